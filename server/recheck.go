package server

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/policies"
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

// rechecks are what changed, of which the sessions are yet to be compared with the record.
// They are as many as there are fleets and authorities at the most.
type rechecks struct {
	*core
	access *access.Decider
	ca     *ca.CA
	index  *edge.Index
	hooks  *hooks
	sample *policies.Sample
	pace   *rate.Limiter

	mu   sync.Mutex
	due  map[scope]bool
	wake chan struct{}
}

// scope names sessions that are to be compared with the record: those of a fleet, or those
// that rest on what an authority issued.
type scope struct{ fleet, authority string }

// of returns those of the sessions that are in scope. An access token may have been given
// for a certificate, and a broker may have verified one, of any authority.
func (w scope) of(sessions []countersign.Session) []countersign.Session {
	return slices.DeleteFunc(sessions, func(s countersign.Session) bool {
		if w.authority == "" {
			return s.Fleet != w.fleet
		}
		return s.Cert.Authority() != w.authority && !strings.HasPrefix(s.Credential, "token:") && !strings.HasPrefix(s.Credential, "vouched:")
	})
}

// openPolicies sets up what decides what a session may do, and the checks of live sessions
// after a change of it.
func (s *Server) openPolicies(context.Context) error {
	s.authority.Sample = &policies.Sample{DB: s.db, Now: s.opts.Now, Log: s.log}
	r := &s.rechecks
	r.core, r.access, r.ca, r.index, r.hooks, r.sample = &s.core, s.authority.Access, s.ca, s.index, &s.hooks, s.authority.Sample
	r.pace, r.due, r.wake = rate.NewLimiter(recheckRate, recheckRate), map[scope]bool{}, make(chan struct{}, 1)
	s.events.Subscribe(r.noticed)
	s.events.Reconcile = r.reconcile
	s.index.Stale = func(live countersign.Session) { r.soon(scope{fleet: live.Fleet}) }
	return nil
}

// noticed notes which fleets' sessions have to be compared with the record,
// because of what happened here or on another node.
func (r *rechecks) noticed(e countersign.Event) {
	if e.Type == countersign.PolicyApplied {
		r.access.Policies.Forget(e.Fleet)
	}
	switch e.Type.Kind().Recheck {
	case countersign.RecheckFleet:
		r.index.Changed(e.Fleet)
		r.soon(scope{fleet: e.Fleet})
	case countersign.RecheckAll:
		r.index.Changed()
		r.soon(scope{authority: e.Cert.Authority()})
	}
}

// soon has sessions compared with the record.
func (r *rechecks) soon(w scope) {
	r.mu.Lock()
	r.due[w] = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // it is awake
	}
}

// run writes the sample of decisions behind, and holds live sessions
// against the policies that are applied.
func (r *rechecks) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = r.sample.Run(ctx) }) // it ends with ctx, without an error
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		r.mu.Lock()
		due := r.due
		r.due = map[scope]bool{}
		r.mu.Unlock()
		for w := range due {
			wg.Go(func() { r.recheck(ctx, w) })
		}
	}
}

// recheck ends the sessions that the record no longer supports. It does not return before
// it could compare them.
func (r *rechecks) recheck(ctx context.Context, w scope) {
	for {
		n, err := r.compare(ctx, w)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			r.log.InfoContext(ctx, "sessions compared with the record", "fleet", w.fleet, "authority", w.authority, "ended", n)
			return
		}
		r.log.ErrorContext(ctx, "sessions not compared with the record", "fleet", w.fleet, "authority", w.authority, "error", err, "retry_in", recheckRetry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(recheckRetry):
		}
	}
}

// compare ends at once the sessions that may not come back, and those of which the policy
// takes something no more in a second than can come back.
func (r *rechecks) compare(ctx context.Context, w scope) (ended int, err error) {
	lost, err := r.access.Recheck(ctx, w.of(r.sessions()))
	if err != nil {
		return 0, err
	}
	for done, paced := split(lost); ; {
		ended += r.end(done)
		if len(paced) == 0 {
			return ended, nil
		}
		n := min(len(paced), recheckStep)
		if err := r.pace.WaitN(ctx, n); err != nil {
			return ended, err
		}
		done, paced = paced[:n], paced[n:]
	}
}

// sessions are the live ones of this node, and those at brokers of others that it knows.
func (r *rechecks) sessions() []countersign.Session {
	list := r.index.Sessions()
	if r.hooks.server != nil {
		list = append(list, r.hooks.server.Sessions()...)
	}
	return list
}

// split parts what ends at once from what may come back to less.
func split(lost []access.Lost) (now, paced []access.Lost) {
	for _, l := range lost {
		if l.ByPolicy {
			paced = append(paced, l)
		} else {
			now = append(now, l)
		}
	}
	return now, paced
}

func (r *rechecks) end(lost []access.Lost) int {
	reasons := make(map[string]string, len(lost))
	for _, l := range lost {
		reasons[l.Session.ID] = l.Reason
	}
	n := r.index.EndEach(reasons)
	if r.hooks.server != nil {
		n += r.hooks.server.End(reasons)
	}
	return n
}

// reconcile compares all live sessions with the record, because something may have
// been missed. Sessions whose own device, certificate or credential is good no more end
// at once; those that many may share a reason with end at the pace of a changed policy.
// Connections that are being decided are compared once they are in.
func (r *rechecks) reconcile(ctx context.Context, why string) error {
	r.index.Changed()
	r.index.Reschedule()
	r.access.Policies.ForgetAll()
	if r.hooks.server != nil {
		r.hooks.server.Doubt()
	}
	if err := r.ca.Reload(ctx); err != nil {
		return err
	}
	lost, err := r.access.Recheck(ctx, r.sessions())
	if err != nil {
		return err
	}
	now, paced := split(lost)
	for _, l := range paced {
		r.soon(scope{fleet: l.Session.Fleet})
	}
	r.log.InfoContext(ctx, "sessions compared with the record", "because", why, "ended", r.end(now), "lost", len(lost))
	return nil
}
