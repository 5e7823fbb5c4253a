package hook

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
)

// TestAFleetThatIsCutFillsTheQueueOnce: what only looks once more makes room, and a
// queue that is full is reported once.
func TestAFleetThatIsCutFillsTheQueueOnce(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	reports := 0
	k := &Kicker{
		Drivers: []*Driver{{Hook: "b"}}, Report: func(countersign.Event) { reports++ }, Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return now },
	}
	cut := func(i int) { k.kick("b", target{device: fmt.Sprint("d", i), at: now, whole: true}) }
	for i := range maxJobs + 100 {
		cut(i)
	}
	if reports != 1 || k.Waiting() != maxJobs {
		t.Fatalf("%d reports with %d waiting, want once with %d", reports, k.Waiting(), maxJobs)
	}
	for _, j := range k.jobs["b"] {
		j.confirmed = true
	}
	cut(maxJobs)
	if j := k.jobs["b"][fmt.Sprint("d", maxJobs)]; j == nil || len(k.jobs["b"]) != maxJobs {
		t.Errorf("the next got no room among %d jobs", len(k.jobs["b"]))
	}
}
