package countersign_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
)

func TestSpanAcceptsDaysAndWeeks(t *testing.T) {
	const day = 24 * time.Hour
	for in, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "24h": day, "7d": 7 * day, "2w": 14 * day, "1w2d3h": 9*day + 3*time.Hour, "1.5d": 36 * time.Hour,
		"-1d": -day, "90s": 90 * time.Second, "1h30m": 90 * time.Minute, "250ms": 250 * time.Millisecond, "5us": 5 * time.Microsecond, "5µs": 5 * time.Microsecond,
		"106751d": 106751 * day,
	} {
		if got, err := countersign.ParseSpan(in); err != nil || got != want {
			t.Errorf("ParseSpan(%q): got %v, %v, want %v", in, got, err, want)
		}
	}
}

func TestSpanSaysWhatToWrite(t *testing.T) {
	for in, want := range map[string]string{
		"24":                       "write a unit, such as 24h",
		"7d12":                     "write a unit, such as 12h",
		"":                         "write a number with a unit",
		"-":                        "write a number with a unit",
		"d":                        "write a number with a unit",
		"soon":                     "write a number with a unit",
		"7 d":                      "write a unit",
		"3y":                       "the units are",
		"1D":                       "write a unit",
		"1..5h":                    "the units are",
		"106752d":                  "292 years",
		"100000d100000d":           "292 years",
		strings.Repeat("1h", 5000): "write a number",
	} {
		got, err := countersign.ParseSpan(in)
		if err == nil || !strings.Contains(err.Error(), want) || countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("ParseSpan(%.40q): got %v, %v, want an error that says %q", in, got, err, want)
		}
	}
}

// TestSpanKeepsItsValueAsText holds that what is written is read again as the same,
// in the form that readers from before days and weeks accept too.
func TestSpanKeepsItsValueAsText(t *testing.T) {
	var r countersign.Rules
	if err := json.Unmarshal([]byte(`{"approval_ttl":"7d","audit":{"unused":"2w"}}`), &r); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"approval_ttl":"168h0m0s","audit":{"unused":"336h0m0s"}}`; !strings.Contains(string(b), `"approval_ttl":"168h0m0s"`) || !strings.Contains(string(b), `"unused":"336h0m0s"`) {
		t.Errorf("Marshal: got %s, want %s", b, want)
	}
}

func FuzzParseSpan(f *testing.F) {
	for _, s := range []string{"7d", "1w2d3h4m5.6s", "-1d", "24", "µs", "9999999999w"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := countersign.ParseSpan(s)
		if err != nil {
			return
		}
		if again, err := countersign.ParseSpan(d.String()); err != nil || again != d {
			t.Errorf("ParseSpan(%q) is %v, which is read as %v, %v", s, d, again, err)
		}
	})
}
