package ra

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
)

// TestThinIsBoundedAndLosesNoCount floods the counts of lines with more kinds than they
// hold: memory and the work of one call stay, and each line is written or counted.
func TestThinIsBoundedAndLosesNoCount(t *testing.T) {
	var th thin
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	lines, counted := 0, 0
	count := func(e *countersign.Event) {
		more, _ := strconv.Atoi(e.Data["more_before"])
		counted += 1 + more
	}
	add := func(device int, actor countersign.Actor) {
		e := countersign.Event{Type: countersign.EnrollRefused, Code: countersign.BadCredential, Actor: actor, Remote: "192.0.2.1:1"}
		if write, _ := th.add(&e, strconv.Itoa(device), 1000, now); write {
			count(&e)
		}
		lines++
	}
	flood := func(from int) {
		for i := range maxThin {
			for range thinBurst + 1 {
				add(from+i, "device:thief")
			}
		}
	}
	next := 10 * maxThin
	fresh := func() {
		add(next, "device:thief")
		next++
	}
	empty := quickest(fresh)
	flood(0)
	flood(maxThin) // none of the first was quiet for a window
	now = now.Add(thinWindow)
	flood(2 * maxThin)
	for i := range 2 * maxThin { // as many who are known to be someone else
		add(0, countersign.Actor(fmt.Sprint("device:", i)))
	}
	for _, e := range th.late(now, true) {
		count(&e)
	}
	if counted != lines {
		t.Errorf("%d lines are written or counted of %d", counted, lines)
	}
	if full := quickest(fresh); full > 50*empty {
		t.Errorf("100 lines take %s in a flood, %s before: all that is kept was looked at", full, empty)
	}
}

// quickest returns the shortest time that a hundred calls of do took: what else the
// machine does makes some of them slow, not all.
func quickest(do func()) time.Duration {
	best := time.Hour
	for range 20 {
		began := time.Now()
		for range 100 {
			do()
		}
		best = min(best, time.Since(began))
	}
	return best
}
