package server

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
)

const (
	// recheckRate is how many sessions a second a change of policy cuts on a node:
	// what it also lets in again, so that a fleet which comes back at once does not
	// keep others waiting.
	recheckRate = 1000
	// recheckStep is how many of them are cut at once.
	recheckStep = 50
	// recheckRetry is the pause where the records cannot be read.
	recheckRetry = time.Second
)

// rechecks are the fleets whose policy or rules changed, and whose sessions are yet to be
// held against it. They are as many as there are fleets at the most.
type rechecks struct {
	sample *access.Sample
	pace   *rate.Limiter

	mu   sync.Mutex
	due  map[string]bool
	wake chan struct{}
}

// openPolicies sets up what says what a session may do, and hears of its changes.
func (s *Server) openPolicies(context.Context) error {
	s.desk.Access.Policies = &access.Policies{DB: s.db, Now: s.opts.Now, Append: s.events.Append, Live: s.events.Live}
	s.desk.Sample = &access.Sample{DB: s.db, Now: s.opts.Now, Log: s.log}
	s.rechecks = rechecks{
		sample: s.desk.Sample, pace: rate.NewLimiter(recheckRate, recheckRate),
		due: map[string]bool{}, wake: make(chan struct{}, 1),
	}
	s.events.Subscribe(s.heardPolicy)
	s.events.Reconcile = s.reconcile
	s.index.Stale = func(live countersign.Session) { s.recheckSoon(live.Fleet) }
	return nil
}

// heardPolicy notes which fleets' sessions have to be compared with the record,
// because of what happened here or on another node.
func (s *Server) heardPolicy(e countersign.Event) {
	if e.Type == countersign.PolicyApplied {
		s.desk.Access.Policies.Forget(e.Fleet)
	}
	switch e.Type.Kind().Recheck {
	case countersign.RecheckFleet:
		s.index.Changed(e.Fleet)
		s.recheckSoon(e.Fleet)
	case countersign.RecheckAll:
		s.index.Changed()
		for _, live := range s.index.Sessions() {
			s.recheckSoon(live.Fleet)
		}
	}
}

// recheckSoon has the sessions of a fleet compared with the record.
func (s *Server) recheckSoon(fleet string) {
	r := &s.rechecks
	r.mu.Lock()
	r.due[fleet] = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // it is awake
	}
}

// runPolicies writes the sample of decisions behind, and holds live sessions
// against the policies that are applied.
func (s *Server) runPolicies(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = s.rechecks.sample.Run(ctx) }) // it ends with ctx, without an error
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.rechecks.wake:
		}
		s.rechecks.mu.Lock()
		due := s.rechecks.due
		s.rechecks.due = map[string]bool{}
		s.rechecks.mu.Unlock()
		for fleet := range due {
			wg.Go(func() { s.recheck(ctx, fleet) })
		}
	}
}

// recheck ends the sessions of a fleet that the record no longer supports, no more in
// a second than can come back. It does not return before it could compare them.
func (s *Server) recheck(ctx context.Context, fleet string) {
	for {
		n, err := s.recheckFleet(ctx, fleet)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			s.log.InfoContext(ctx, "sessions compared with the record", "fleet", fleet, "ended", n)
			return
		}
		s.log.ErrorContext(ctx, "sessions not compared with the record", "fleet", fleet, "error", err, "retry_in", recheckRetry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(recheckRetry):
		}
	}
}

func (s *Server) recheckFleet(ctx context.Context, fleet string) (ended int, err error) {
	lost, err := s.desk.Access.Recheck(ctx, access.OfFleet(s.index.Sessions(), fleet))
	if err != nil {
		return 0, err
	}
	for len(lost) > 0 {
		n := min(len(lost), recheckStep)
		if err := s.rechecks.pace.WaitN(ctx, n); err != nil {
			return ended, err
		}
		ended += s.endLost(lost[:n])
		lost = lost[n:]
	}
	return ended, nil
}

func (s *Server) endLost(lost []access.Lost) int {
	reasons := make(map[string]string, len(lost))
	for _, l := range lost {
		reasons[l.Session.ID] = l.Reason
	}
	return s.index.EndEach(reasons)
}

// reconcile compares all live sessions with the record, because something may have
// been missed. Sessions whose own device, certificate or credential is good no more end
// at once; those that many may share a reason with end at the pace of a changed policy.
// Connections that are being decided are compared once they are in.
func (s *Server) reconcile(ctx context.Context, why string) error {
	s.index.Changed()
	s.index.Reschedule()
	s.desk.Access.Policies.ForgetAll()
	if s.hooks.server != nil {
		s.hooks.server.Doubt()
	}
	if err := s.ca.Reload(ctx); err != nil {
		return err
	}
	lost, err := s.desk.Access.Recheck(ctx, s.index.Sessions())
	if err != nil {
		return err
	}
	var now []access.Lost
	for _, l := range lost {
		if l.ByFleet {
			s.recheckSoon(l.Session.Fleet)
		} else {
			now = append(now, l)
		}
	}
	s.log.InfoContext(ctx, "sessions compared with the record", "because", why, "ended", s.endLost(now), "lost", len(lost))
	return nil
}
