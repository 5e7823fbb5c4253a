package countersign_test

import (
	"testing"

	"github.com/countersign-iot/countersign"
)

func TestParseNetworkGivesOneForm(t *testing.T) {
	for in, want := range map[string]string{
		"203.0.113.7":            "203.0.113.7/32",
		"203.0.113.7/24":         "203.0.113.0/24",
		"0.0.0.0/0":              "0.0.0.0/0",
		"2001:DB8::1":            "2001:db8::1/128",
		"2001:db8:1:2:3::/64":    "2001:db8:1:2::/64",
		"::ffff:203.0.113.7":     "203.0.113.7/32",
		"::ffff:203.0.113.7/120": "203.0.113.0/24",
		"::ffff:0:0/96":          "0.0.0.0/0",
	} {
		if got, err := countersign.ParseNetwork(in); err != nil || got.String() != want {
			t.Errorf("%s: got %v, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", "pump", "203.0.113", "203.0.113.7/33", "203.0.113.7/", "/24", "203.0.113.0_24", "203.0.113.07", "::1/129", "fe80::1%eth0", "fe80::%1/64",
		"::ffff:203.0.113.7/95", " 203.0.113.7",
	} {
		if got, err := countersign.ParseNetwork(in); countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("%q: got %v, %v, want bad_request", in, got, err)
		}
	}
}

func FuzzParseNetwork(f *testing.F) {
	f.Add("203.0.113.7/24")
	f.Add("::ffff:203.0.113.7/120")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := countersign.ParseNetwork(s)
		if err != nil {
			return
		}
		if again, err := countersign.ParseNetwork(p.String()); err != nil || again != p || p != p.Masked() || p.Addr().Is4In6() {
			t.Errorf("%q gives %v, which gives %v, %v", s, p, again, err)
		}
	})
}
