package server

import (
	"context"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/store"
)

const (
	// outageEvery is how often the state of the database is looked at.
	outageEvery = 500 * time.Millisecond
	// outageWrite bounds the record of an outage that is over.
	outageWrite = 5 * time.Second
	// clockJump is the least difference between the clock and the time that has passed
	// that counts as a clock that was set. NTP slews less than this away.
	clockJump = 5 * time.Second
)

// outage is a time in which the database cannot be reached.
type outage struct {
	since time.Time
	ended int // sessions, because it lasted too long
	cut   bool
}

// outages watches whether the database can be reached, and whether the clock was set.
type outages struct {
	*core
	index *edge.Index
}

// watch ends all sessions when the database has been out of reach for too long,
// and records an outage once it is over. It also notices that the clock was set.
func (o *outages) watch(ctx context.Context) error {
	var now outage
	last := o.readClocks()
	return every(ctx, outageEvery, func() {
		last = o.checkClock(ctx, last)
		since, lost := o.db.Lost()
		switch {
		case lost:
			if since.After(now.since) { // a new one; what could not be recorded of the one before goes with it
				now = outage{since: since}
			}
			o.endUnverified(ctx, &now)
		case !now.since.IsZero() && o.record(ctx, now) == nil:
			now = outage{}
		}
	})
}

// endUnverified ends all sessions once nothing was known of them for too long. It looks
// again at each tick: one may have been on its way in.
func (o *outages) endUnverified(ctx context.Context, now *outage) {
	if o.now().Sub(now.since) < o.cfg.OfflineSessions {
		return
	}
	n := o.index.EndAll(countersign.Ending{Code: countersign.EndUnverified, Reason: "the database cannot be reached"})
	if now.ended += n; !now.cut {
		now.cut = true
		o.log.ErrorContext(ctx, "sessions ended: the database has been out of reach for too long", "sessions", n, "lost_since", now.since)
	}
}

// record writes when the database was lost and that it is back.
func (o *outages) record(ctx context.Context, past outage) error {
	ctx, cancel := context.WithTimeout(ctx, outageWrite)
	defer cancel()
	data := map[string]string{"node": o.events.Node}
	back := map[string]string{"node": o.events.Node, "lost_for": o.now().Sub(past.since).Round(time.Millisecond).String()}
	if past.cut {
		back["sessions_ended"] = strconv.Itoa(past.ended)
	}
	err := o.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		return o.events.Append(ctx, tx,
			countersign.Event{Type: countersign.DatabaseLost, Actor: countersign.System, At: past.since, Data: data, Reason: "the database could not be reached"},
			countersign.Event{Type: countersign.DatabaseBack, Actor: countersign.System, Data: back})
	})
	if err != nil && ctx.Err() == nil {
		o.log.WarnContext(ctx, "outage of the database not recorded yet", "error", err)
	}
	return err
}

// clocks are two clocks that advance alike until one is set.
type clocks struct {
	shown time.Time // by the clock that is used
	steps time.Time // by the monotonic clock, which cannot be set
}

func (o *outages) readClocks() clocks { return clocks{o.now().Round(0), time.Now()} }

// checkClock compares the clock with the time that has passed since last. After a jump
// the sessions are compared with the record: what was to end by the clock may be late.
func (o *outages) checkClock(ctx context.Context, last clocks) clocks {
	now := o.readClocks()
	if jump := now.shown.Sub(last.shown) - now.steps.Sub(last.steps); jump.Abs() >= clockJump {
		o.log.WarnContext(ctx, "clock was set", "by", jump)
		o.events.Doubt("the clock was set")
	}
	return now
}
