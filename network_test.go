package countersign_test

import (
	"net/netip"
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

func TestMappedNetworksContainIPv4(t *testing.T) {
	for _, tt := range []struct {
		network, addr string
		want          bool
	}{
		{"::ffff:10.0.0.0/104", "10.1.2.3", true},
		{"::ffff:10.0.0.0/104", "::ffff:10.1.2.3", true},
		{"::ffff:10.0.0.0/104", "11.1.2.3", false},
		{"10.0.0.0/8", "::ffff:10.1.2.3", true},
		{"10.9.9.9/8", "10.1.2.3", true},
		{"::/0", "10.1.2.3", false},
		{"::/0", "2001:db8::1", true},
	} {
		list := []netip.Prefix{netip.MustParsePrefix(tt.network)}
		for form, networks := range map[string][]netip.Prefix{"as read": list, "normal": countersign.NormalNetworks(list)} {
			if got := countersign.Contains(networks, netip.MustParseAddr(tt.addr)); got != tt.want {
				t.Errorf("%s (%s) contains %s: got %t", tt.network, form, tt.addr, got)
			}
		}
	}
}

func TestSourceOfIsOneClient(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":           "192.0.2.7/32",
		"::ffff:192.0.2.7":    "192.0.2.7/32",
		"64:ff9b::192.0.2.7":  "192.0.2.7/32",
		"2001:db8:1:2:3:4::5": "2001:db8:1:2::/64",
		"fe80::1%eth0":        "fe80::/64",
		"::ffff:0.0.0.0":      "0.0.0.0/32",
		"64:ff9b::":           "0.0.0.0/32",
		"64:ff9b:1::1":        "64:ff9b:1::/64", // a prefix of one operator: only he knows where the IPv4 address is
		"::1":                 "::/64",
	} {
		if got, ok := countersign.SourceOf(netip.MustParseAddr(in)); !ok || got.String() != want {
			t.Errorf("SourceOf(%s): got %v, %t, want %s", in, got, ok, want)
		}
	}
	if got, ok := countersign.SourceOf(netip.Addr{}); ok {
		t.Errorf("SourceOf(no address): got %v", got)
	}
}

func TestSourceNetworkContainsTheSourcesOfItsAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7/24":            "192.0.2.0/24",
		"::ffff:192.0.2.7/120":    "192.0.2.0/24",
		"64:ff9b::192.0.2.7/120":  "192.0.2.0/24",
		"64:ff9b::192.0.2.7/128":  "192.0.2.7/32",
		"64:ff9b::/96":            "0.0.0.0/0",
		"64:ff9b::/64":            "64:ff9b::/64",
		"2001:db8:1:2:3::/80":     "2001:db8:1:2::/64",
		"2001:db8:1:2:3:4::5/128": "2001:db8:1:2::/64",
		"2001:db8:1:2::/48":       "2001:db8:1::/48",
	} {
		p := netip.MustParsePrefix(in)
		got := countersign.SourceNetwork(p)
		if got.String() != want {
			t.Errorf("SourceNetwork(%s): got %v, want %s", in, got, want)
		}
		src, ok := countersign.SourceOf(p.Addr())
		if in != "64:ff9b::/64" && (!ok || !got.Overlaps(src) || got.Bits() > src.Bits()) {
			t.Errorf("SourceNetwork(%s): got %v, which does not contain %v, the source of its address", in, got, src)
		}
	}
}
