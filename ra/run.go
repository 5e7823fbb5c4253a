package ra

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

const (
	// seenEvery is how often sightings are written: a crash loses this much of
	// "last seen", and nothing else.
	seenEvery = time.Second
	// seenBatch bounds one transaction of sightings.
	seenBatch = 500
	// sweepEvery is how late the end of an overlap may be recorded. Access does
	// not wait for it: it looks at the time itself.
	sweepEvery = 30 * time.Second
	// sweepBatch bounds what one look of the sweep holds in memory.
	sweepBatch = 200
)

// Run writes sightings behind and ends overlaps and secrets, until ctx ends.
func (d *Authority) Run(ctx context.Context) error {
	flush := time.NewTicker(seenEvery)
	defer flush.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			d.flush(context.WithoutCancel(ctx), true)
			return nil
		case <-flush.C:
			d.flush(ctx, false)
			d.pairs.sweep(d.Now())
			d.recordHolds(ctx)
		case <-sweep.C:
			if _, err := d.Sweep(ctx); err != nil && ctx.Err() == nil {
				d.Log.ErrorContext(ctx, "could not end overlap of superseded certificates", "error", err)
			}
			if _, err := d.SweepSecrets(ctx); err != nil && ctx.Err() == nil {
				d.Log.ErrorContext(ctx, "could not end secrets whose time is over", "error", err)
			}
		}
	}
}

// flush writes when devices were last seen and secrets last used, and the numbers of the
// lines of the log that were left out; all of these at the end.
func (d *Authority) flush(ctx context.Context, end bool) {
	writeBehind(ctx, d, &d.seen, func(ctx context.Context, tx *store.Tx, batch map[string]registry.Sighting) error {
		return d.Registry.Saw(ctx, tx, slices.Collect(maps.Values(batch)))
	})
	writeBehind(ctx, d, &d.uses, d.Access.Secrets.Used)
	for _, e := range d.thin.late(d.Now(), end) {
		d.Events.Later(e)
	}
}

// writeBehind writes what was gathered, seenBatch values in a transaction.
func writeBehind[V any](ctx context.Context, d *Authority, l *latest[V], write func(context.Context, *store.Tx, map[string]V) error) {
	l.mu.Lock()
	all := l.by
	l.by = nil
	l.mu.Unlock()
	for keys := range slices.Chunk(slices.Collect(maps.Keys(all)), seenBatch) {
		batch := make(map[string]V, len(keys))
		for _, k := range keys {
			batch[k] = all[k]
		}
		err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return write(ctx, tx, batch) })
		if err != nil && ctx.Err() == nil {
			d.Log.ErrorContext(ctx, "sightings not written", "count", len(batch), "error", err)
		}
	}
}

// Sweep revokes superseded certificates whose overlap has ended, and returns their number.
func (d *Authority) Sweep(ctx context.Context) (int, error) {
	return sweep(
		func() ([]countersign.Certificate, error) { return ca.Overdue(ctx, d.DB, d.CA.Now(), sweepBatch) },
		func(c countersign.Certificate) error { return d.endOverlap(ctx, c) },
	)
}

// SweepSecrets stops the secrets whose time is over and cuts the sessions that rest on
// them, and returns their number. Access looks at the time itself.
func (d *Authority) SweepSecrets(ctx context.Context) (int, error) {
	return sweep(
		func() ([]access.Secret, error) { return d.Access.Secrets.Overdue(ctx, sweepBatch) },
		func(s access.Secret) error {
			_, _, err := d.StopSecret(ctx, s.Device, s.ID, "its time is over", By{Actor: countersign.System})
			return err
		},
	)
}

// sweep ends what is due, a batch at a time, and returns how many it ended. Conflict
// means that another node or act was first.
func sweep[T any](due func() ([]T, error), end func(T) error) (total int, err error) {
	for {
		list, err := due()
		if err != nil {
			return total, err
		}
		for _, v := range list {
			switch err := end(v); {
			case err == nil:
				total++
			case countersign.CodeOf(err) != countersign.Conflict:
				return total, err
			}
		}
		if len(list) < sweepBatch {
			return total, nil
		}
	}
}

func (d *Authority) endOverlap(ctx context.Context, c countersign.Certificate) error {
	return d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := registry.LockDevice(ctx, tx, c.Device); err != nil {
			return err
		}
		cert := c // the transaction may be tried again
		if err := d.CA.Revoke(ctx, tx, &cert, countersign.Superseded); err != nil {
			return err
		}
		tokens, err := EndTokens(ctx, tx, d.Access.Tokens, certificateSource(cert.Ref()), By{Actor: countersign.System})
		if err != nil {
			return err
		}
		return d.Events.Append(ctx, tx, append([]countersign.Event{certEvent(countersign.CertRevokedEv, &cert, countersign.System, "its overlap ended")}, tokens...)...)
	})
}
