package ra

import (
	"iter"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

const (
	// thinWindow is over how long the same lines of the log are counted: a device that
	// tries again without pause must not fill the log.
	thinWindow = 10 * time.Second
	// thinBurst is how many of the same are written in a window, from one address.
	thinBurst = 5
	// windows is how many thinWindows a minute has: Budget.Events is for a minute.
	windows = int(time.Minute / thinWindow)
	// strangerBurst is the same for all together of whom nothing is known: 20 lines a
	// second, some 2 GB a day while an attack from thousands of addresses lasts.
	strangerBurst = 200
	// maxThin bounds how many different lines are distinguished, about 16 MB. Once there are
	// more, what is left out is counted by its reason alone.
	maxThin = 8192
	// lateAtOnce bounds how many of the lines that were left out are written late at once.
	lateAtOnce = 50
)

// thinKey is what makes two lines the same.
type thinKey struct {
	who    string // the actor whom what was shown proved, else empty
	device string // on record, in whose name it was
	what   string // type of event and code
	from   netip.Prefix
}

// thin leaves out repeated lines of the log and keeps their number, which goes with
// the next line of the same kind or, where there is none, with a late one. So an
// identity, a credential and an address each cause a bounded number of lines, and
// nothing is left out without trace.
type thin struct {
	mu       sync.Mutex
	by       lockout.Table[thinKey, repeats]
	overflow map[string]*repeats            // by reason, of what by had no room for
	totals   lockout.Table[string, repeats] // by who; "" for strangers
}

// repeats is one kind of line.
type repeats struct {
	since   time.Time // of the present window
	written int       // in it
	silent  int       // left out since the last that was written
	over    bool      // of a total: its budget is spent in this window, which was noted
	last    countersign.Event
}

// add notes an event at now; device distinguishes it from others of the same actor, and must be
// on record, since a stranger may claim any number of names. It reports whether to write it, with the number of those
// left out before it as more_before in its data.
// most is how many lines of all kinds its identity may cause in a window; over says that
// this line was the first above it.
func (t *thin) add(e *countersign.Event, device string, most int, now time.Time) (write, over bool) {
	key := thinKey{who: string(e.Actor), device: device, what: string(e.Type) + " " + string(e.Code)}
	if e.Actor == unknown {
		key.who = ""
	}
	if ap, err := netip.ParseAddrPort(e.Remote); err == nil {
		key.from, _ = countersign.SourceOf(ap.Addr())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.entry(key, now)
	if p.room(thinBurst, now) {
		var fits bool
		if fits, over = t.total(key.who, most, now); fits {
			p.written++
			p.carry(e)
			return true, false
		}
		// All that its identity causes beyond its budget has one count for each reason, not
		// one for each address: each is written once a window.
		p = t.entry(thinKey{who: key.who, what: key.what}, now)
	}
	if e.At.IsZero() {
		e.At = now
	}
	p.last = *e
	p.silent++
	return false, over
}

// room reports whether one more may be written in the present window.
func (p *repeats) room(most int, now time.Time) bool {
	if p.past(now) {
		p.written, p.since = 0, now
	}
	return p.written < most
}

// carry notes on e how many were left out before it.
func (p *repeats) carry(e *countersign.Event) {
	if p.silent == 0 {
		return
	}
	if e.Data == nil {
		e.Data = map[string]string{}
	}
	e.Data["more_before"] = strconv.Itoa(p.silent)
	p.silent, p.last = 0, countersign.Event{}
}

// total counts a line against all of who. over: it is the first above what who may
// cause in this window.
func (t *thin) total(who string, most int, now time.Time) (fits, over bool) {
	if who == "" {
		most = strangerBurst
	}
	t.totals.Max = maxThin
	if !t.totals.Room(who, now, func(_ string, old *repeats) bool { return old.past(now) }) {
		return false, false
	}
	p, known := t.totals.Touch(who, now)
	if !known {
		p.since = now
	}
	if !p.room(most, now) {
		over, p.over = !p.over && who != "", true
		return false, over
	}
	if p.written == 0 {
		p.over = false
	}
	p.written++
	return true, false
}

// entry finds the count of a kind of line. One that was quiet for a window makes room for
// another one; what was left out of it is counted with all lines of its reason. Where there
// is no room, the count is that of all lines of the reason.
func (t *thin) entry(key thinKey, now time.Time) *repeats {
	t.by.Max = maxThin
	quiet := func(oldest thinKey, old *repeats) bool {
		if !old.past(now) {
			return false
		}
		if old.silent > 0 {
			rest := t.rest(oldest.what, now)
			rest.silent, rest.last = rest.silent+old.silent, old.last
		}
		return true
	}
	if !t.by.Room(key, now, quiet) {
		return t.rest(key.what, now)
	}
	p, known := t.by.Touch(key, now)
	if !known {
		p.since = now
	}
	return p
}

// rest finds the count of all lines of a reason that have none of their own. There are
// no more than types of events with their codes.
func (t *thin) rest(what string, now time.Time) *repeats {
	p := t.overflow[what]
	if p == nil {
		if t.overflow == nil {
			t.overflow = map[string]*repeats{}
		}
		p = &repeats{since: now}
		t.overflow[what] = p
	}
	return p
}

// past reports whether the present window is over.
func (p *repeats) past(now time.Time) bool {
	return now.Sub(p.since) >= thinWindow || now.Before(p.since)
}

// late returns lines with the number of those left out in windows that are over, at
// most lateAtOnce; all of them if all is set. Each is the last of its kind, with the
// number of those before it.
func (t *thin) late(now time.Time, all bool) (events []countersign.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.counts() {
		if p.silent == 0 || !all && now.Sub(p.since) < thinWindow {
			continue
		}
		if !all && len(events) == lateAtOnce {
			break
		}
		e := p.last
		p.silent--
		p.carry(&e)
		p.silent, p.last, p.since, p.written = 0, countersign.Event{}, now, 1
		events = append(events, e)
	}
	return events
}

// counts returns all counts of lines, those that were quiet longest first.
func (t *thin) counts() iter.Seq[*repeats] {
	return func(yield func(*repeats) bool) {
		for _, p := range t.overflow {
			if !yield(p) {
				return
			}
		}
		for _, p := range t.by.All() {
			if !yield(p) {
				return
			}
		}
	}
}

const (
	// pairWindow is over how long the sessions of a device are counted: Budget.Events is
	// for a minute, and a session is two lines.
	pairWindow = time.Minute
	// maxPairs bounds the devices that are counted, about 8 MB. Beyond it a device that
	// is not counted yet has its lines written.
	maxPairs = 65_536
)

// pairs thins the lines of sessions of a device that connects without pause: the
// opening and the end of a session are written both or neither, because the detectors
// match them.
type pairs struct {
	mu     sync.Mutex
	by     map[string]*pairCount
	silent map[string]struct{} // sessions that are open and whose opening was not written
}

type pairCount struct {
	since   time.Time
	written int
	silent  int // left out since the last that was written
}

// opened reports whether to write the opening of a session, with the number of those
// left out before it, and whether it is the first above most in this window.
func (p *pairs) opened(s countersign.Session, most int, now time.Time) (write bool, before int, over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.by == nil {
		p.by, p.silent = map[string]*pairCount{}, map[string]struct{}{}
	}
	c := p.by[s.Device]
	if c == nil {
		if len(p.by) >= maxPairs {
			return true, 0, false
		}
		c = &pairCount{since: now}
		p.by[s.Device] = c
	}
	if now.Sub(c.since) >= pairWindow || now.Before(c.since) {
		c.since, c.written = now, 0
	}
	if c.written < most {
		c.written++
		before, c.silent = c.silent, 0
		return true, before, false
	}
	c.silent++
	p.silent[s.ID] = struct{}{}
	over = c.written == most
	c.written = most + 1 // noted
	return false, 0, over
}

// closed reports whether to write the end of a session.
func (p *pairs) closed(s countersign.Session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, silent := p.silent[s.ID]
	delete(p.silent, s.ID)
	return !silent
}

// sweep forgets devices that have been quiet for a window.
func (p *pairs) sweep(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for device, c := range p.by {
		if c.silent == 0 && now.Sub(c.since) >= pairWindow {
			delete(p.by, device)
		}
	}
}

// latest gathers the last value of each key until the next flush.
type latest[V any] struct {
	mu sync.Mutex
	by map[string]V
}

func (l *latest[V]) set(key string, v V) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = map[string]V{}
	}
	l.by[key] = v
}
