package event_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// sealAll seals all events.
func sealAll(t *testing.T, l *event.Log) {
	t.Helper()
	for {
		n, err := l.Seal(t.Context())
		if err != nil {
			t.Fatalf("Seal: %v", err)
		}
		if n == 0 {
			return
		}
	}
}

func exec(t *testing.T, db *store.DB, query string) {
	t.Helper()
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, query)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func TestSealKeepsTheEvent(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		appendAll(t, l, countersign.Event{Type: countersign.DeviceCreated, Device: "pump-1", Data: map[string]string{"b": "<2>", "a": "1"}})
		before := all(t, l, event.Filter{})
		sealAll(t, l)
		after := all(t, l, event.Filter{})
		if d := cmp.Diff(before, after, ignoreSeal); d != "" {
			t.Errorf("sealing changed the event (-want +got):\n%s", d)
		}
		if after[0].Seq != 1 || len(after[0].Hash) != 32 {
			t.Errorf("got sequence %d and a hash of %d octets, want 1 and 32", after[0].Seq, len(after[0].Hash))
		}
	})
}

// TestSealIsDenseUnderConcurrentWriters lets several nodes write at once, in transactions
// that commit in another order than they began, while several sealers run. No event may be
// lost, no sequence number missing, and the chain must be valid.
func TestSealIsDenseUnderConcurrentWriters(t *testing.T) {
	run := func(t *testing.T, logs []*event.Log, hold time.Duration) {
		const writers, each = 6, 40
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var sealers, wg sync.WaitGroup
		for _, l := range logs {
			sealers.Go(func() {
				for ctx.Err() == nil {
					if _, err := l.Seal(t.Context()); err != nil {
						t.Errorf("Seal: %v", err)
						return
					}
				}
			})
		}
		for w := range writers {
			l := logs[w%len(logs)]
			wg.Go(func() {
				for i := range each {
					err := l.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
						for part := range 2 {
							if err := l.Append(ctx, tx, countersign.Event{Type: countersign.SessionOpened, Reason: fmt.Sprint(w, i, part)}); err != nil {
								return err
							}
							time.Sleep(rand.N(hold)) // the other writers overtake
						}
						return nil
					})
					if err != nil {
						t.Errorf("Write: %v", err)
						return
					}
				}
			})
		}
		wg.Wait()
		cancel()
		sealers.Wait()
		l := logs[0]
		sealAll(t, l)
		const want = writers * each * 2
		seen, seqs := map[string]bool{}, map[int64]bool{}
		for _, e := range all(t, l, event.Filter{}) {
			seen[e.Reason], seqs[e.Seq] = true, true
		}
		if len(seen) != want || len(seqs) != want || seqs[0] {
			t.Errorf("got %d events with %d sequence numbers, want %d of each, all sealed", len(seen), len(seqs), want)
		}
		rep, err := l.Verify(t.Context())
		if err != nil || rep.Events != want || rep.BrokenAt != 0 || rep.Unsealed != 0 {
			t.Errorf("Verify: got %+v, %v, want %d good events", rep, err, want)
		}
	}
	t.Run("sqlite", func(t *testing.T) { run(t, []*event.Log{newLog(storetest.Open(t))}, time.Microsecond) })
	t.Run("postgres", func(t *testing.T) {
		url := storetest.PostgresURL(t)
		run(t, []*event.Log{newLog(storetest.OpenURL(t, url)), newLog(storetest.OpenURL(t, url))}, 3*time.Millisecond)
	})
}

func TestRunSeals(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		stop := running(t, l)
		appendAll(t, l, make([]countersign.Event, 1200)...) // more than two batches
		eventually(t, "the seal", func() bool {
			rep, err := l.Verify(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return rep.Events == 1200 && rep.Unsealed == 0
		})
		stop()
	})
}

// TestVerifyFindsTampering changes the log directly in the database in each way that can be
// detected. Verify must report the first bad event.
func TestVerifyFindsTampering(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		for i := range 9 {
			appendAll(t, l, countersign.Event{
				Type: countersign.CertIssued, Actor: countersign.System, Device: fmt.Sprintf("device-%d", i), Fleet: "default", Via: "est",
				Cert: countersign.CertRef{Issuer: "issuing", Serial: "0a"}, Remote: "192.0.2.1:5", Code: countersign.NotAllowed, Reason: "because",
				Data: map[string]string{"a": "1"},
			})
		}
		sealAll(t, l)
		good, err := l.Verify(t.Context())
		if err != nil || good.BrokenAt != 0 || good.Events != 9 || good.Problem != "" {
			t.Fatalf("Verify: got %+v, %v, want 9 good events", good, err)
		}
		undo := []string{
			`DELETE FROM event`,
			`INSERT INTO event SELECT * FROM kept`,
		}
		exec(t, db, `CREATE TABLE kept AS SELECT * FROM event`)
		for _, tt := range []struct {
			name   string
			change []string
			at     int64
		}{
			{"time", []string{`UPDATE event SET at = at + 1 WHERE seq = 4`}, 4},
			{"type", []string{`UPDATE event SET type = 'device.created' WHERE seq = 4`}, 4},
			{"actor", []string{`UPDATE event SET actor = 'operator:eve' WHERE seq = 4`}, 4},
			{"device", []string{`UPDATE event SET device = 'device-0' WHERE seq = 4`}, 4},
			{"fleet", []string{`UPDATE event SET fleet = '' WHERE seq = 4`}, 4},
			{"issuer", []string{`UPDATE event SET issuer = 'root' WHERE seq = 4`}, 4},
			{"serial", []string{`UPDATE event SET serial = '0b' WHERE seq = 4`}, 4},
			{"remote", []string{`UPDATE event SET remote = '' WHERE seq = 4`}, 4},
			{"via", []string{`UPDATE event SET via = 'rest' WHERE seq = 4`}, 4},
			{"code", []string{`UPDATE event SET code = '' WHERE seq = 4`}, 4},
			{"reason", []string{`UPDATE event SET reason = 'Because' WHERE seq = 4`}, 4},
			{"data", []string{`UPDATE event SET data = '{"a":"2"}' WHERE seq = 4`}, 4},
			{"data's form", []string{`UPDATE event SET data = '{"a": "1"}' WHERE seq = 4`}, 4},
			{"data no JSON", []string{`UPDATE event SET data = '{' WHERE seq = 4`}, 4},
			{"data gone", []string{`UPDATE event SET data = '' WHERE seq = 4`}, 4},
			{"text moved to the next field", []string{`UPDATE event SET via = via || code, code = '' WHERE seq = 4`}, 4},
			{"hash", []string{`UPDATE event SET hash = (SELECT hash FROM kept WHERE seq = 3) WHERE seq = 4`}, 4},
			{"hash gone", []string{`UPDATE event SET hash = NULL WHERE seq = 4`}, 4},
			{"row deleted", []string{`DELETE FROM event WHERE seq = 4`}, 4},
			{"first row deleted", []string{`DELETE FROM event WHERE seq = 1`}, 1},
			{"row deleted, the rest moved up", []string{
				`DELETE FROM event WHERE seq = 4`, `UPDATE event SET seq = seq + 1000 WHERE seq > 4`, `UPDATE event SET seq = seq - 1001 WHERE seq > 1000`,
			}, 4},
			{"row unsealed", []string{`UPDATE event SET seq = NULL WHERE seq = 4`}, 4},
			{"rows swapped", []string{
				`UPDATE event SET seq = 1000 WHERE seq = 4`, `UPDATE event SET seq = 4 WHERE seq = 5`, `UPDATE event SET seq = 5 WHERE seq = 1000`,
			}, 4},
			{"row put before the first", []string{`UPDATE event SET seq = -1 WHERE seq = 9`}, 1},
		} {
			for _, q := range tt.change {
				exec(t, db, q)
			}
			rep, err := l.Verify(t.Context())
			if err != nil || rep.BrokenAt != tt.at || !strings.Contains(rep.Problem, fmt.Sprintf("event %d ", tt.at)) {
				t.Errorf("%s: got %+v, %v, want the break at %d", tt.name, rep, err, tt.at)
			}
			if _, _, err := l.List(t.Context(), event.Filter{}); err != nil {
				t.Errorf("%s: the log cannot be read any more: %v", tt.name, err)
			}
			for _, q := range undo {
				exec(t, db, q)
			}
		}
		if rep, err := l.Verify(t.Context()); err != nil || rep.BrokenAt != 0 || string(rep.Head) != string(good.Head) {
			t.Errorf("after all was undone: got %+v, %v", rep, err)
		}
	})
}
