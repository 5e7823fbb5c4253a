package ra

import (
	"strconv"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
)

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

// pairOpened writes the opening of a session behind, unless its device connects without
// pause.
func (d *Authority) pairOpened(e countersign.Event, s countersign.Session) {
	budget := d.Access.BudgetOf(s.Fleet).Events
	write, before, over := d.pairs.opened(s, max(budget/2, 1), d.Now())
	if write {
		if before > 0 {
			e.Data["more_before"] = strconv.Itoa(before)
		}
		d.Events.Later(e)
	}
	if over {
		d.overEvents(e, budget)
	}
}

// overEvents records that a device caused more lines of the log than its budget allows.
func (d *Authority) overEvents(e countersign.Event, budget int) {
	d.Events.Later(countersign.Event{
		Type: countersign.BudgetExceeded, Actor: e.Actor, Device: e.Device, Fleet: e.Fleet, Remote: e.Remote, Via: e.Via,
		Code: countersign.OverBudget, Reason: "the device causes more lines of the log than its budget allows",
		Data: map[string]string{"budget": countersign.BudgetEvents, "limit": strconv.Itoa(budget)},
	})
}
