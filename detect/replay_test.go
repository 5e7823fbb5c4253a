package detect

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
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
		w := &Watch{DB: db, Now: func() time.Time { return start }}
		for cursor, want := range map[int64]int64{0: 0, 1: 0, 100: 0, 169: 0, 170: 1, 400: 400 - 169} {
			if got, err := w.replayFrom(t.Context(), cursor); err != nil || got != want {
				t.Errorf("replayFrom(%d): got %d, %v, want %d", cursor, got, err, want)
			}
		}
		// The watch must start with a log whose end was removed.
		for _, cut := range []string{`DELETE FROM event WHERE seq BETWEEN 250 AND 300`, `DELETE FROM event WHERE seq > 380`, `DELETE FROM event`} {
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				if _, err := tx.Exec(ctx, cut); err != nil {
					return err
				}
				return event.MoveCursor(ctx, tx, cursorName, 399)
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.start(t.Context()); err != nil || w.at != 399 {
				t.Errorf("start after %s: at %d, %v, want 399", cut, w.at, err)
			}
		}
	})
}

// record writes a story to the log and seals it.
func record(tb testing.TB, db *store.DB, log []countersign.Event) {
	tb.Helper()
	for len(log) > 0 {
		part := log[:min(len(log), 5000)]
		log = log[len(part):]
		err := db.Write(tb.Context(), func(ctx context.Context, tx *store.Tx) error {
			for _, e := range part {
				data, err := json.Marshal(e.Data)
				if err != nil {
					return err
				}
				_, err = tx.Exec(ctx, `INSERT INTO event (seq, at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data)
					VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`, e.Seq, store.Micros(e.At), string(e.Type), string(e.Actor), e.Device, e.Fleet,
					e.Cert.Issuer, string(e.Cert.Serial), e.Remote, e.Via, string(e.Code), e.Reason, string(data))
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// BenchmarkWatch reads a month of an honest fleet from the database.
func BenchmarkWatch(b *testing.B) {
	db := storetest.Open(b)
	log := steadyStory(1)
	record(b, db, log)
	handle := func(context.Context, *store.Tx, []countersign.Finding) error { return nil }
	for b.Loop() {
		w := &Watch{DB: db, Now: func() time.Time { return start }, Log: slog.New(slog.DiscardHandler), Handle: handle}
		if err := w.start(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := w.catchUp(b.Context()); err != nil || w.at != int64(len(log)) {
			b.Fatalf("at event %d of %d: %v", w.at, len(log), err)
		}
		err := db.Write(b.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM event_cursor`)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*float64(len(log))/b.Elapsed().Seconds(), "events/s")
}
