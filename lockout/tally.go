package lockout

import (
	"maps"
	"time"

	"github.com/countersign-iot/countersign"
)

// tallies counts failures by name within a window. It keeps at most maxTallies names; a
// new one then evicts one with few failures.
type tallies struct {
	kind   string // in the database
	window time.Duration
	by     map[string]tally
	dirty  map[string]bool // names to be written
}

type tally struct {
	failures int
	since    time.Time // of the first in this window
}

// maxTallies bounds each of the three counts, about 8 MB. It takes 100 new addresses a
// second to fill it within ten minutes.
const maxTallies = 64 << 10

// worthWriting is the number of failures from which a tally is written to the database. A
// crash may lose a single failure without harm, and a flood of addresses or names that
// fail once each must not cause a flood of writes.
const worthWriting = 2

// live reports whether the tally still counts at now. A tally that began in the future was
// made by a wrong clock.
func (t *tally) live(now time.Time, window time.Duration) bool {
	return now.Sub(t.since) <= window && !t.since.After(now.Add(countersign.ClockSkew))
}

// count adds a failure and returns the number within the window.
func (s *tallies) count(name string, now time.Time) int {
	t, known := s.by[name]
	if !known || !t.live(now, s.window) {
		t = tally{since: now}
	}
	t.failures++
	s.put(name, t, now)
	if t.failures >= worthWriting {
		s.mark(name)
	}
	return t.failures
}

// put sets a tally, and evicts another one if there is no room.
func (s *tallies) put(name string, t tally, now time.Time) {
	if s.by == nil {
		s.by = map[string]tally{}
	}
	if _, known := s.by[name]; !known && len(s.by) >= maxTallies {
		s.evict(now)
	}
	s.by[name] = t
}

// evict removes one tally of a sample: one whose window has ended, else the one with the
// fewest failures, of those the oldest. So names that fail once do not evict a guesser.
func (s *tallies) evict(now time.Time) {
	name := least(s.by, func(a, b tally) bool {
		switch aLive, bLive := a.live(now, s.window), b.live(now, s.window); {
		case aLive != bLive:
			return bLive
		case a.failures != b.failures:
			return a.failures < b.failures
		}
		return a.since.Before(b.since)
	})
	delete(s.by, name) // Ledger.sweep deletes its row, if it has one
}

// clear removes the tally of a name.
func (s *tallies) clear(name string) {
	t := s.by[name]
	delete(s.by, name)
	if t.failures >= worthWriting {
		s.mark(name)
	}
}

// mark marks the name to be written with the next batch. If there is no room for it, its
// failures are lost only if the process crashes.
func (s *tallies) mark(name string) {
	if s.dirty == nil {
		s.dirty = map[string]bool{}
	}
	if len(s.dirty) < maxTallies {
		s.dirty[name] = true
	}
}

// sweep removes tallies that no longer count.
func (s *tallies) sweep(now time.Time) {
	maps.DeleteFunc(s.by, func(_ string, t tally) bool { return !t.live(now, s.window) })
}

// written is one tally as it is written to the database. Without failures its row is
// deleted.
type written struct {
	kind, name string
	tally
}

// take returns up to limit tallies that are to be written, and clears their mark.
func (s *tallies) take(limit int) []written {
	var list []written
	for name := range s.dirty {
		if len(list) == limit {
			break
		}
		delete(s.dirty, name)
		list = append(list, written{kind: s.kind, name: name, tally: s.by[name]})
	}
	return list
}
