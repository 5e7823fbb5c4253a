package demo

import (
	"testing"
	"time"
)

// TestDemoHoldsWhatItClaims plays every step there is, in one run.
func TestDemoHoldsWhatItClaims(t *testing.T) {
	var seen []Result
	results, err := Run(t.Context(), Options{
		Devices: MinDevices, Methods: true, Models: !testing.Short(), Now: time.Now, Progress: func(r Result) { seen = append(seen, r) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(results) < 20 || len(seen) != len(results) {
		t.Errorf("got %d steps, of which %d were announced, want at least 20", len(results), len(seen))
	}
	for _, r := range results {
		if !r.OK {
			t.Errorf("%s: %s", r.Step, r.Result)
		}
	}
}
