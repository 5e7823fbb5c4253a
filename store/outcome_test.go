package store_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// faulty opens one database twice: through a proxy, and plainly.
func faulty(t *testing.T) (db, other *store.DB, proxy *storetest.Proxy) {
	t.Helper()
	url := storetest.PostgresURL(t)
	proxy = storetest.NewProxy(t, url)
	db, other = storetest.OpenURL(t, proxy.URL()), storetest.OpenURL(t, url)
	table(t, other)
	return db, other, proxy
}

// attempted is what became of one Write.
type attempted struct {
	runs, commits atomic.Int32
	late          chan struct{} // gets a value for each commit
}

func (a *attempted) write(ctx context.Context, db *store.DB, name, proof string) error {
	a.late = make(chan struct{}, 9)
	return db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		a.runs.Add(1)
		tx.AfterCommit(func() { a.commits.Add(1); a.late <- struct{}{} })
		if proof != "" {
			tx.Proof(proof, name)
		}
		_, err := tx.Exec(ctx, insert, name, 1)
		return err
	})
}

const onRecord = `SELECT 1 FROM counter WHERE name = $1`

// TestWriteFindsOutWhatBecameOfItsCommit loses COMMIT or its answer. What Write returns
// must be what is on record, and what waits for the commit must run when it is.
func TestWriteFindsOutWhatBecameOfItsCommit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fault func(*storetest.Proxy)
		proof string
		runs  int32
		open  bool // the outcome cannot be read back
	}{
		{"answer lost", func(p *storetest.Proxy) { p.LoseCommit("the row") }, onRecord, 1, false},
		{"commit lost", func(p *storetest.Proxy) { p.DropCommit("the row") }, onRecord, 2, false},
		{"commit lost, nothing to be found by", func(p *storetest.Proxy) { p.DropCommit("the row") }, "", 2, false},
		{"answer lost, nothing to be found by", func(p *storetest.Proxy) { p.LoseCommit("the row") }, "", 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			db, other, proxy := faulty(t)
			tt.fault(proxy)
			var a attempted
			err := a.write(t.Context(), db, "the row", tt.proof)
			if store.Unconfirmed(err) != tt.open || err != nil != tt.open {
				t.Errorf("Write: got %v, want unconfirmed %v", err, tt.open)
			}
			want := int32(1)
			if tt.open {
				want = 0
			}
			if a.runs.Load() != tt.runs || a.commits.Load() != want {
				t.Errorf("got %d runs and %d calls after the commit, want %d and %d", a.runs.Load(), a.commits.Load(), tt.runs, want)
			}
			if got := names(t, other); len(got) != 1 {
				t.Errorf("rows: got %v, want one", got)
			}
		})
	}
}

// TestWriteTrustsNoTransactionIDAlone has the proof contradict the server: after a
// crash it may have given the id of a transaction that it lost to another one.
func TestWriteTrustsNoTransactionIDAlone(t *testing.T) {
	t.Parallel()
	db, _, proxy := faulty(t)
	lost := proxy.LoseCommit("the row")
	var a attempted
	err := a.write(t.Context(), db, "the row", `SELECT 1 FROM counter WHERE name = $1 AND n = 2`)
	receive(t, lost, "lost COMMIT")
	// Not found, so it was done again, and met its own row.
	if a.runs.Load() != 2 || a.commits.Load() != 0 || err == nil {
		t.Errorf("got %d runs, %d commits and %v, want two runs, the second of which is refused", a.runs.Load(), a.commits.Load(), err)
	}
}

// TestWriteFindsOutLate cuts the database off when the answer is lost. Write must say
// that it does not know; what waits for the commit runs when the database is back.
func TestWriteFindsOutLate(t *testing.T) {
	t.Parallel() // waits for seconds
	db, _, proxy := faulty(t)
	proxy.LoseCommitAndCut("the row")
	var a attempted
	err := a.write(t.Context(), db, "the row", onRecord)
	if !store.Unconfirmed(err) || countersign.CodeOf(err) != countersign.Unavailable {
		t.Fatalf("Write: got %v, want unconfirmed", err)
	}
	if a.commits.Load() != 0 {
		t.Fatal("what waits for the commit ran before the outcome was known")
	}
	proxy.Heal()
	receive(t, a.late, "call after the commit")
	if a.runs.Load() != 1 {
		t.Errorf("got %d runs, want one", a.runs.Load())
	}
}

// TestHangingPostgresIsAnsweredInTime bounds reads and writes by their deadline when
// PostgreSQL does not answer, wherever it stops.
func TestHangingPostgresIsAnsweredInTime(t *testing.T) {
	t.Parallel() // waits for seconds
	const deadline, grace = time.Second, 3 * time.Second
	for _, tt := range []struct {
		name string
		do   func(ctx context.Context, db *store.DB, hang func()) error
	}{
		{"read", func(ctx context.Context, db *store.DB, hang func()) error {
			hang()
			var n int
			return db.QueryRow(ctx, `SELECT n FROM counter`).Scan(&n)
		}},
		{"begin", func(ctx context.Context, db *store.DB, hang func()) error {
			hang()
			return db.Write(ctx, func(context.Context, *store.Tx) error { return nil })
		}},
		{"statement", func(ctx context.Context, db *store.DB, hang func()) error {
			return db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
				hang()
				_, err := tx.Exec(ctx, insert, "a", 1)
				return err
			})
		}},
		{"commit", func(ctx context.Context, db *store.DB, hang func()) error {
			return db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Exec(ctx, insert, "b", 1)
				hang()
				return err
			})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db, _, proxy := faulty(t)
			run(t, db, insert, "warm", 1)
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			began := time.Now()
			err := tt.do(ctx, db, proxy.Hang)
			if took := time.Since(began); took > deadline+grace {
				t.Errorf("it took %v, want little more than %v", took, deadline)
			}
			if countersign.CodeOf(err) != countersign.Unavailable {
				t.Errorf("got %v, want Unavailable", err)
			}
			if store.Unconfirmed(err) != (tt.name == "commit") {
				t.Errorf("got unconfirmed %v, want it for the commit alone: %v", store.Unconfirmed(err), err)
			}
			proxy.Heal()
		})
	}
}
