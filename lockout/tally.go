package lockout

import (
	"maps"
	"time"

	"github.com/countersign-iot/countersign"
)

// tallies counts failures by name within a window. It is bounded: noise costs
// memory up to most, and then pushes out noise.
type tallies struct {
	kind   string // as it is in the database
	window time.Duration
	by     map[string]tally
	dirty  map[string]bool // to be written behind
}

type tally struct {
	failures int
	since    time.Time // of the first in this window
}

// maxTallies bounds each of the three counts, about 8 MB. A window of ten minutes
// takes 100 new addresses a second to fill it.
const maxTallies = 64 << 10

// worthWriting is the count from which a tally goes to the database. A single
// failure lost in a crash costs nothing, and a flood of addresses or names that
// fail once each must not become a flood of writes.
const worthWriting = 2

// live reports whether the tally still counts at now. One that began in the future
// was made by a clock that was wrong.
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

// put sets a tally, making room first.
func (s *tallies) put(name string, t tally, now time.Time) {
	if s.by == nil {
		s.by = map[string]tally{}
	}
	if _, known := s.by[name]; !known && len(s.by) >= maxTallies {
		s.evict(now)
	}
	s.by[name] = t
}

// evict forgets one of a sample: one whose window has ended, else the one with the fewest
// failures, of those the oldest. So a guesser is not forgotten for others that fail once.
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
	delete(s.by, name) // its row, if it has one, goes with time
}

// clear forgets a name.
func (s *tallies) clear(name string) {
	t := s.by[name]
	delete(s.by, name)
	if t.failures >= worthWriting {
		s.mark(name)
	}
}

// mark has the name written with the next batch. A name that finds no room there
// loses no more than a crash would take.
func (s *tallies) mark(name string) {
	if s.dirty == nil {
		s.dirty = map[string]bool{}
	}
	if len(s.dirty) < maxTallies {
		s.dirty[name] = true
	}
}

// sweep forgets what no longer counts.
func (s *tallies) sweep(now time.Time) {
	maps.DeleteFunc(s.by, func(_ string, t tally) bool { return !t.live(now, s.window) })
}

// written is one tally as it goes to the database; no failures: its row goes.
type written struct {
	kind, name string
	tally
}

// take returns up to most of what is to be written, and forgets that it is.
func (s *tallies) take(most int) []written {
	var list []written
	for name := range s.dirty {
		if len(list) == most {
			break
		}
		delete(s.dirty, name)
		list = append(list, written{kind: s.kind, name: name, tally: s.by[name]})
	}
	return list
}
