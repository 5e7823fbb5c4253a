package registry_test

import (
	"context"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestWaitingIsBoundedByWhatStillWaits fills the queue of one credential and wants
// it open again once those requests have expired.
func TestWaitingIsBoundedByWhatStillWaits(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := open(t, db)
		await := func(evidence string) error {
			return db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := h.Await(ctx, tx, api.Waiting{Device: "pump-1", Fleet: "default", KeyHash: "k", Evidence: evidence}, time.Hour)
				return err
			})
		}
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			if _, err := h.Await(ctx, tx, api.Waiting{Device: "x", Fleet: "default", Evidence: "claim:1"}, time.Hour); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `WITH RECURSIVE copy(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copy WHERE n < 9999)
				INSERT INTO waiting_enrollment (id, state, device, fleet, method, evidence, key_hash, facts, remote, via, decided_by, note, created_at, expires_at, decided_at)
				SELECT 'copy' || n, state, device, fleet, method, evidence, key_hash, facts, remote, via, decided_by, note, created_at, expires_at, decided_at
				FROM waiting_enrollment, copy`)
			return err
		})
		kit.WantCode(t, await("claim:1"), countersign.RateLimited)
		if err := await("claim:2"); err != nil {
			t.Errorf("another credential: %v", err)
		}
		h.now = start.Add(time.Hour + time.Second)
		if err := await("claim:1"); err != nil {
			t.Errorf("once they have expired: %v", err)
		}
	})
}
