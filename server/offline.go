package server

import (
	"context"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
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

// watchDatabase ends all sessions when the database has been out of reach for too long,
// and records an outage once it is over. It also notices that the clock was set.
func (s *Server) watchDatabase(ctx context.Context) error {
	tick := time.NewTicker(outageEvery)
	defer tick.Stop()
	var now outage
	last := s.readClocks()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		last = s.checkClock(ctx, last)
		since, lost := s.db.Lost()
		switch {
		case lost:
			if since.After(now.since) { // a new one; what could not be recorded of the one before goes with it
				now = outage{since: since}
			}
			s.endUnverified(ctx, &now)
		case !now.since.IsZero() && s.recordOutage(ctx, now) == nil:
			now = outage{}
		}
	}
}

// endUnverified ends all sessions once nothing was known of them for too long. It looks
// again at each tick: one may have been on its way in.
func (s *Server) endUnverified(ctx context.Context, o *outage) {
	if s.opts.Now().Sub(o.since) < s.cfg.OfflineSessions {
		return
	}
	n := s.index.EndAll(countersign.Ending{Code: countersign.EndUnverified, Reason: "the database cannot be reached"})
	if o.ended += n; !o.cut {
		o.cut = true
		s.log.ErrorContext(ctx, "sessions ended: the database has been out of reach for too long", "sessions", n, "lost_since", o.since)
	}
}

// recordOutage writes when the database was lost and that it is back.
func (s *Server) recordOutage(ctx context.Context, o outage) error {
	ctx, cancel := context.WithTimeout(ctx, outageWrite)
	defer cancel()
	data := map[string]string{"node": s.events.Node}
	back := map[string]string{"node": s.events.Node, "lost_for": s.opts.Now().Sub(o.since).Round(time.Millisecond).String()}
	if o.cut {
		back["sessions_ended"] = strconv.Itoa(o.ended)
	}
	err := s.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		return s.events.Append(ctx, tx,
			countersign.Event{Type: countersign.DatabaseLost, Actor: countersign.System, At: o.since, Data: data, Reason: "the database could not be reached"},
			countersign.Event{Type: countersign.DatabaseBack, Actor: countersign.System, Data: back})
	})
	if err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "outage of the database not recorded yet", "error", err)
	}
	return err
}

// clocks are two clocks that go alike until one is set.
type clocks struct {
	shown time.Time // by the clock that is used
	steps time.Time // by the monotonic clock, which cannot be set
}

func (s *Server) readClocks() clocks { return clocks{s.opts.Now().Round(0), time.Now()} }

// checkClock compares the clock with the time that has passed since last. After a jump
// the sessions are compared with the record: what was to end by the clock may be late.
func (s *Server) checkClock(ctx context.Context, last clocks) clocks {
	now := s.readClocks()
	if jump := now.shown.Sub(last.shown) - now.steps.Sub(last.steps); jump.Abs() >= clockJump {
		s.log.WarnContext(ctx, "clock was set", "by", jump)
		s.events.Doubt("the clock was set")
	}
	return now
}
