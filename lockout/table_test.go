package lockout

import (
	"testing"
	"time"
)

// TestTableIsBounded checks that the entry touched last stays and the oldest is replaced.
func TestTableIsBounded(t *testing.T) {
	tab := Table[int, int]{Max: 100, TTL: time.Hour}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for i := range 1000 {
		tab.Touch(i, now)
		if v, found := tab.Touch(0, now); !found || v == nil {
			t.Fatal("the entry that is touched most was forgotten")
		}
		if len(tab.by) > 100 {
			t.Fatalf("got %d entries, want at most 100", len(tab.by))
		}
		now = now.Add(time.Second)
	}
	if tab.Look(999) == nil || tab.Look(1) != nil {
		t.Error("want the latest kept and the oldest gone")
	}
	now = now.Add(2 * time.Hour)
	for i := range 60 {
		tab.Touch(-1-i, now)
	}
	if len(tab.by) != 60 {
		t.Errorf("after two hours: got %d entries, want the 60 new ones", len(tab.by))
	}
	n := 0
	for e := tab.oldest; e != nil; e = e.newer {
		n++
	}
	if n != len(tab.by) {
		t.Errorf("the list has %d entries, the map %d", n, len(tab.by))
	}
}
