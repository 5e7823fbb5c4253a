// Package ra is the registration authority: every enrollment, whatever the
// protocol, and every change of a device's standing is decided here. A [Authority]
// takes evidence in, decides, and gives a certificate out; certificate, device
// state, spent evidence and event are written in one transaction before it
// answers. Doors call it; it knows no protocol.
package ra

import (
	"context"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/hold"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Authority decides. Set the fields, then Run.
type Authority struct {
	DB       *store.DB
	CA       *ca.CA
	Registry *registry.Registry
	Access   *access.Decider
	Ledger   *lockout.Ledger
	Sample   *policies.Sample // of what was decided, for the replay of policies; nil: none
	Events   *event.Log
	CRLs     *ca.Publisher
	Now      func() time.Time
	Log      *slog.Logger
	// Sealer opens the symmetric keys of devices and seals what goes out to be
	// brought back.
	Sealer *keystore.Sealer
	// Secret resolves a reference (file:, env:) to a secret.
	Secret func(reference string) ([]byte, error)
	// Holds are the devices that this node refuses although that is not on record; nil:
	// an act that cannot be recorded has no effect at all.
	Holds *hold.Book
	// Observe hears the outcome of each enrollment, renewal and connection, for
	// metrics; empty code: granted. nil: nobody does.
	Observe  func(Outcome)
	seen     sightings
	uses     secretUses
	thin     thin
	pairs    pairs
	rates    lockout.Rates[string] // of credentials
	refusals lockout.Rates[string] // of those who are known
	rules    rules

	introducer introducer
}

var (
	_ countersign.Enroller   = (*Authority)(nil)
	_ countersign.Gatekeeper = (*Authority)(nil)
)

const (
	// seenEvery is how often sightings are written: a crash loses this much of
	// "last seen", and nothing else.
	seenEvery = time.Second
	// sweepEvery is how late the end of an overlap may be recorded. Access does
	// not wait for it: it looks at the time itself.
	sweepEvery = 30 * time.Second
	// sweepBatch bounds what one look of the sweep holds in memory.
	sweepBatch = 200
)

// Run writes sightings behind and ends overlaps, until ctx ends.
func (d *Authority) Run(ctx context.Context) error {
	flush := time.NewTicker(seenEvery)
	defer flush.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			d.flushSeen(context.WithoutCancel(ctx))
			d.flushUses(context.WithoutCancel(ctx))
			d.flushThin(true)
			return nil
		case <-flush.C:
			d.flushSeen(ctx)
			d.flushUses(ctx)
			d.flushThin(false)
			d.pairs.sweep(d.Now())
			d.recordHolds(ctx)
		case <-sweep.C:
			if _, err := d.Sweep(ctx); err != nil && ctx.Err() == nil {
				d.Log.ErrorContext(ctx, "overlaps not ended", "error", err)
			}
			if _, err := d.SweepSecrets(ctx); err != nil && ctx.Err() == nil {
				d.Log.ErrorContext(ctx, "secrets not ended", "error", err)
			}
		}
	}
}

// Sweep revokes superseded certificates whose overlap has ended, and gives their number.
func (d *Authority) Sweep(ctx context.Context) (int, error) {
	total := 0
	for {
		due, err := d.CA.Overdue(ctx, d.DB, sweepBatch)
		if err != nil || len(due) == 0 {
			return total, err
		}
		for _, cert := range due {
			switch err := d.endOverlap(ctx, cert); {
			case err == nil:
				total++
			case countersign.CodeOf(err) != countersign.Conflict: // else another node or act was first
				return total, err
			}
		}
		if len(due) < sweepBatch {
			return total, nil
		}
	}
}

func (d *Authority) endOverlap(ctx context.Context, cert countersign.Certificate) error {
	return d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := registry.LockDevice(ctx, tx, cert.Device); err != nil {
			return err
		}
		c := cert
		if err := d.CA.Revoke(ctx, tx, &c, countersign.Superseded); err != nil {
			return err
		}
		tokens, err := d.endGiven(ctx, tx, certificateSource(c.Ref()), By{Actor: countersign.System})
		if err != nil {
			return err
		}
		return d.Events.Append(ctx, tx, append([]countersign.Event{certEvent(countersign.CertRevokedEv, &c, countersign.System, "its overlap ended")}, tokens...)...)
	})
}

func certEvent(t countersign.EventType, c *countersign.Certificate, by countersign.Actor, why string) countersign.Event {
	return countersign.Event{Type: t, Actor: by, Device: c.Device, Fleet: c.Fleet, Cert: c.Ref(), Reason: why}
}

// Outcome is how a request ended.
type Outcome struct {
	Act    string             // enroll, renew, recover, connect
	Method countersign.Method // of a connection the kind of its credential
	Door   string
	Code   countersign.Code
}

func (d *Authority) observe(o Outcome) {
	if d.Observe != nil {
		d.Observe(o)
	}
}

// sightings gathers the last accepted connection of each device until the next flush.
type sightings struct {
	mu sync.Mutex
	by map[string]registry.Sighting
}

func (s *sightings) add(v registry.Sighting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[string]registry.Sighting{}
	}
	s.by[v.Device] = v
}

func (s *sightings) take() []registry.Sighting {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]registry.Sighting, 0, len(s.by))
	for _, v := range s.by {
		list = append(list, v)
	}
	s.by = nil
	return list
}

// seenBatch bounds one transaction of sightings.
const seenBatch = 500

func (d *Authority) flushSeen(ctx context.Context) {
	list := d.seen.take()
	for len(list) > 0 {
		n := min(len(list), seenBatch)
		batch := list[:n]
		list = list[n:]
		err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return d.Registry.Saw(ctx, tx, batch) })
		if err != nil && ctx.Err() == nil {
			d.Log.ErrorContext(ctx, "sightings not written", "count", n, "error", err)
		}
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

// later writes an event behind, unless enough of its kind were written; see thin.add.
func (d *Authority) later(e countersign.Event, device string) {
	budget := d.Access.BudgetOf(e.Fleet).Events
	write, over := d.thin.add(&e, device, max(budget/windows, 1), d.Now())
	if write {
		d.Events.Later(e)
	}
	if over && e.Device != "" {
		d.overEvents(e, budget)
	}
}
