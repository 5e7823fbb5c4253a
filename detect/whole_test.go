package detect_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// sealed appends forks from one number up to another to the log, and seals them.
func sealed(t *testing.T, db *store.DB, from, to int) {
	t.Helper()
	l := &event.Log{DB: db, Now: func() time.Time { return start }, Log: slog.New(slog.DiscardHandler)}
	for i := from; i < to; i++ {
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return l.Append(ctx, tx, fork(i)) })
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, db *store.DB, statements ...string) {
	t.Helper()
	for _, q := range statements {
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, q)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRemovedEndIsFoundAndNothingSkipped removes the end of the log while the watch runs
// and while it does not, with and without the record of that end. Findings about later
// events must not be missed.
func TestRemovedEndIsFoundAndNothingSkipped(t *testing.T) {
	const short = "log_shortenedserver"
	for _, tt := range []struct {
		name    string
		running bool
		change  []string
	}{
		{"while it runs", true, []string{`DELETE FROM event WHERE seq > 2`}},
		{"while it runs, the record too", true, []string{`DELETE FROM event WHERE seq > 2`, `DELETE FROM event_head`}},
		{"before its start", false, []string{`DELETE FROM event WHERE seq > 2`}},
		{"before its start, the record too", false, []string{`DELETE FROM event WHERE seq > 2`, `UPDATE event_head SET seq = 2`}},
		{"rewritten while it runs", true, []string{`UPDATE event SET hash = NULL WHERE seq = 6`}},
		{"out of the middle of what is not read yet", false, []string{`UPDATE event_cursor SET seq = 2 WHERE name = 'detect'`, `DELETE FROM event WHERE seq = 4`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			storetest.Each(t, func(t *testing.T, db *store.DB) {
				b := &book{db: db}
				sealed(t, db, 0, 6)
				w := newWatch(b, start)
				stop := run(t, w)
				eventually(t, "the end of the log", func() bool { return cursor(t, db) == 6 })
				if got := b.counts(t)[short]; got != 0 {
					t.Fatalf("a whole log: got %d findings", got)
				}
				if !tt.running {
					stop()
				}
				remove(t, db, tt.change...)
				if !tt.running {
					run(t, newWatch(b, start))
				}
				eventually(t, "the finding", func() bool { return b.counts(t)[short] == 1 })
				sealed(t, db, 10, 12)
				for i := 10; i < 12; i++ {
					key := fmt.Sprintf("%sdevice:pump-%d", detect.RenewalFork, i)
					eventually(t, "what happened afterwards", func() bool { return b.counts(t)[key] == 1 })
				}
				if got := b.counts(t)[short]; got != 1 {
					t.Errorf("got %d findings that the log was shortened, want one", got)
				}
			})
		})
	}
}

// TestABatchThatIsReadAgainIsNoGap has the rules of a fleet be out of reach once, so that the
// events are read twice.
func TestABatchThatIsReadAgainIsNoGap(t *testing.T) {
	b := &book{db: storetest.Open(t)}
	l := &event.Log{DB: b.db, Now: func() time.Time { return start }, Log: slog.New(slog.DiscardHandler)}
	for i := range 3 {
		e := countersign.Event{Type: countersign.CertIssued, Device: fmt.Sprint("pump-", i), Fleet: "pumps"}
		if err := b.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return l.Append(ctx, tx, e) }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := newWatch(b, start)
	var asked atomic.Int64
	w.Usual = func(context.Context, string) (countersign.Usual, error) {
		if asked.Add(1) == 1 {
			return countersign.Usual{}, errors.New("the database is away")
		}
		return countersign.Usual{}, nil
	}
	run(t, w)
	eventually(t, "the end of the log", func() bool { return cursor(t, b.db) == 3 })
	if got := b.counts(t)["log_shortenedserver"]; got != 0 || asked.Load() < 2 {
		t.Errorf("got %d findings that the log was shortened after %d attempts, want none after two", got, asked.Load())
	}
}

// TestEventsForAPersonAreFindings checks that each event of level alert has a rule, so that
// it opens an alert. The events of package respond are alerts already.
func TestEventsForAPersonAreFindings(t *testing.T) {
	own := map[countersign.EventType]bool{countersign.FindingRaised: true, countersign.MitigationFailed: true}
	var want []countersign.EventType
	for e, k := range countersign.Kinds() {
		if k.Level == countersign.LevelAlert && !own[e] {
			want = append(want, e)
		}
	}
	if len(want) < 6 {
		t.Fatalf("only %v are for a person", want)
	}
	for _, e := range want {
		t.Run(string(e), func(t *testing.T) {
			db := storetest.Open(t)
			b := &book{db: db}
			write(t, db, countersign.Event{Type: e, At: start, Device: "pump-1", Actor: countersign.System})
			run(t, newWatch(b, start))
			eventually(t, "the finding", func() bool { return len(b.counts(t)) == 1 })
		})
	}
}
