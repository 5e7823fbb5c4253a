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
	// secondLook is when the sessions are looked at again. It is longer than a
	// connection may take to be decided: one that was decided by the old policy, and
	// not yet in the index at the first look, is there at the second.
	secondLook = 30 * time.Second
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
	return nil
}

// heardPolicy notes which fleets' sessions have to be compared with the record,
// because of what happened here or on another node.
func (s *Server) heardPolicy(e countersign.Event) {
	if e.Type == countersign.PolicyApplied {
		s.desk.Access.Policies.Forget(e.Fleet)
	}
	var fleets []string
	switch e.Type.Kind().Recheck {
	case countersign.RecheckFleet:
		fleets = []string{e.Fleet}
	case countersign.RecheckAll:
		for _, live := range s.index.Sessions() {
			fleets = append(fleets, live.Fleet)
		}
	}
	if len(fleets) == 0 {
		return
	}
	r := &s.rechecks
	r.mu.Lock()
	for _, f := range fleets {
		r.due[f] = true
	}
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

// recheck cuts the sessions of a fleet that have more than its policy gives now, or
// came in by what the fleet accepts no more. It
// does not end before it could look: what may be too much is too much.
func (s *Server) recheck(ctx context.Context, fleet string) {
	for looks := 0; looks < 2; {
		cut, err := s.cutLosers(ctx, fleet)
		pause := secondLook
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.log.ErrorContext(ctx, "sessions not held against a new policy", "fleet", fleet, "error", err, "retry_in", recheckRetry)
			pause = recheckRetry
		default:
			looks++
			s.log.InfoContext(ctx, "sessions held against a new policy", "fleet", fleet, "cut", cut, "look", looks)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (s *Server) cutLosers(ctx context.Context, fleet string) (int, error) {
	in, err := s.desk.Access.Policies.Of(ctx, fleet)
	if err != nil {
		return 0, err
	}
	sessions := access.OfFleet(s.index.Sessions(), fleet)
	unaccepted, err := s.desk.Access.Unaccepted(ctx, fleet, sessions)
	if err != nil {
		return 0, err
	}
	losers, err := s.desk.Access.Policies.Losers(ctx, in.Policy, sessions)
	if err != nil {
		return 0, err
	}
	n, err := s.cutEach(ctx, unaccepted, "the fleet no longer accepts what the session came in by")
	if err != nil {
		return n, err
	}
	more, err := s.cutEach(ctx, losers, "the policy changed")
	return n + more, err
}

// cutEach cuts the sessions of devices, no more in a second than can come back.
func (s *Server) cutEach(ctx context.Context, sessions []countersign.Session, why string) (cut int, err error) {
	for _, l := range sessions {
		if err := s.rechecks.pace.Wait(ctx); err != nil {
			return cut, err
		}
		cut += s.index.Cut(countersign.Cut{Device: l.Device, Reason: why})
	}
	return cut, nil
}
