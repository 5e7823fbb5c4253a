package detect

import (
	"context"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

func TestReplayBeginsAWeekBeforeTheCursor(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		const n = 400 // one an hour
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			for i := range n {
				_, err := tx.Exec(ctx, `INSERT INTO event (seq, at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data)
					VALUES ($1, $2, 'crl.published', 'system', '', '', '', '', '', '', '', '', '')`, i+1, store.Micros(start.Add(time.Duration(i)*time.Hour)))
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		w := &Watch{DB: db}
		for cursor, want := range map[int64]int64{0: 0, 1: 0, 100: 0, 169: 0, 170: 1, 400: 400 - 169} {
			if got, err := w.replayFrom(t.Context(), cursor); err != nil || got != want {
				t.Errorf("replayFrom(%d): got %d, %v, want %d", cursor, got, err, want)
			}
		}
	})
}
