package audit_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// BenchmarkAudit runs all checks over a fleet of steady devices, each with a
// certificate and a session.
func BenchmarkAudit(b *testing.B) {
	const fleet = 20_000
	w := newWorld(b, storetest.Open(b))
	w.device(b, "first")
	w.certificate(b, "first")
	w.write(b, func(ctx context.Context, tx *store.Tx) error {
		for i := range fleet {
			if err := w.copyFirst(ctx, tx, fmt.Sprintf("dev-%07d", i)); err != nil {
				return err
			}
		}
		return nil
	})
	w.seal(b)
	for b.Loop() {
		w.clock.Advance(time.Second)
		run, err := w.Start(b.Context(), audit.Request{By: "operator:ann", Via: "test"})
		if err == nil {
			run, err = w.Wait(b.Context(), run.ID)
		}
		if err != nil || run.State != audit.Completed {
			b.Fatalf("got %s (%s), %v", run.State, run.Reason, err)
		}
	}
	b.ReportMetric(float64(fleet*b.N)/b.Elapsed().Seconds(), "devices/s")
}

// copyFirst makes a device like the first, with a certificate of another key and a
// session that ended.
func (w *world) copyFirst(ctx context.Context, tx *store.Tx, id string) error {
	_, err := tx.Exec(ctx, `INSERT INTO device (id, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
		SELECT $1, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr FROM device WHERE id = 'first'`, id)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence, method,
			key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
		SELECT $1, issuer, $1, fleet, profile, state, held_from, reason, replaced, predecessor, evidence, method,
			$1, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der FROM certificate WHERE device = 'first'`, id)
	if err != nil {
		return err
	}
	e := w.opened(visit{id, id, id, "192.0.2.1:1", nil, time.Hour})
	return w.log.Append(ctx, tx, e, w.closed(e, "client left", time.Minute))
}
