package store_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/google/go-cmp/cmp"
)

// table makes the one table that these tests write to.
func table(t testing.TB, db *store.DB) {
	t.Helper()
	run(t, db, `CREATE TABLE counter (name TEXT PRIMARY KEY, n BIGINT NOT NULL)`)
}

func run(t testing.TB, db *store.DB, q string, args ...any) {
	t.Helper()
	if err := tryRun(t.Context(), db, q, args...); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
}

func tryRun(ctx context.Context, db *store.DB, q string, args ...any) error {
	return db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, q, args...)
		return err
	})
}

const insert = `INSERT INTO counter (name, n) VALUES ($1, $2)`

// names lists the rows that are on record.
func names(t testing.TB, db store.Reader) []string {
	t.Helper()
	rows, err := db.Query(t.Context(), `SELECT name FROM counter ORDER BY name`)
	if err != nil {
		t.Fatalf("Query: %v", err)
	}
	defer rows.Close()
	var got []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatalf("Scan: %v", err)
		}
		got = append(got, name)
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("rows: %v", err)
	}
	return got
}

// hold occupies the writer (SQLite) until release is called.
func hold(t *testing.T, db *store.DB) (release func()) {
	t.Helper()
	began, free, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := db.Write(context.Background(), func(context.Context, *store.Tx) error {
			close(began)
			<-free
			return nil
		}); err != nil {
			t.Errorf("holding Write: %v", err)
		}
	}()
	<-began
	return sync.OnceFunc(func() { close(free); <-done })
}

func TestWriteKeepsWhatItReturnedNilFor(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		table(t, db)
		run(t, db, insert, "a", 1)
		if diff := cmp.Diff([]string{"a"}, names(t, db)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWriteFailureLeavesNothingAndSparesNeighbors(t *testing.T) {
	t.Parallel()
	wantErr := errors.New("refused")
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		table(t, db)
		release := hold(t, db)
		defer release()
		var wg sync.WaitGroup
		write := func(name string, end func() error) (result func() error) {
			var err error
			wg.Go(func() {
				err = db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					if _, err := tx.Exec(ctx, insert, name, 0); err != nil {
						return err
					}
					return end()
				})
			})
			return func() error { return err }
		}
		good1 := write("good1", func() error { return nil })
		failing := write("failing", func() error { return wantErr })
		panicking := write("panicking", func() error { panic("at the disco") })
		good2 := write("good2", func() error { return nil })
		time.Sleep(50 * time.Millisecond) // let them queue, so that they share a transaction
		release()
		wg.Wait()
		if err := errors.Join(good1(), good2()); err != nil {
			t.Errorf("neighbors: %v", err)
		}
		if err := failing(); !errors.Is(err, wantErr) {
			t.Errorf("failing: got %v, want %v", err, wantErr)
		}
		if err := panicking(); err == nil || !strings.Contains(err.Error(), "at the disco") {
			t.Errorf("panicking: got %v, want the panic's value", err)
		}
		if diff := cmp.Diff([]string{"good1", "good2"}, names(t, db)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestFailedStatementEndsTransaction(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		table(t, db)
		run(t, db, insert, "a", 1)
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if _, err := tx.Exec(ctx, insert, "b", 1); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, insert, "a", 1); !errors.Is(err, store.ErrExists) {
				t.Errorf("Exec: got %v, want ErrExists", err)
			}
			if _, err := tx.Exec(ctx, insert, "c", 1); !errors.Is(err, store.ErrExists) {
				t.Errorf("Exec after a failure: got %v, want the failure again", err)
			}
			var n int
			if err := tx.QueryRow(ctx, `SELECT 1`).Scan(&n); !errors.Is(err, store.ErrExists) {
				t.Errorf("QueryRow after a failure: got %v, want the failure again", err)
			}
			return nil // swallows it
		})
		if !errors.Is(err, store.ErrExists) {
			t.Errorf("Write: got %v, want ErrExists", err)
		}
		if diff := cmp.Diff([]string{"a"}, names(t, db)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestQueryRowTellsExistsAndNoRows(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		table(t, db)
		var n int64
		q := insert + ` RETURNING n`
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if err := tx.QueryRow(ctx, `SELECT n FROM counter WHERE name = $1`, "a").Scan(&n); !errors.Is(err, sql.ErrNoRows) {
				t.Errorf("SELECT: got %v, want sql.ErrNoRows", err)
			}
			return tx.QueryRow(ctx, q, "a", 7).Scan(&n)
		})
		if err != nil || n != 7 {
			t.Fatalf("INSERT RETURNING: got %d, %v, want 7", n, err)
		}
		err = db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			return tx.QueryRow(ctx, q, "a", 8).Scan(&n)
		})
		if !errors.Is(err, store.ErrExists) {
			t.Errorf("second INSERT RETURNING: got %v, want ErrExists", err)
		}
		if err := db.QueryRow(t.Context(), `SELECT n FROM counter WHERE name = $1`, "zz").Scan(&n); !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("QueryRow: got %v, want sql.ErrNoRows", err)
		}
	})
}

func TestDatabaseRefusesCallsInsideOfWrite(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		err := db.Write(t.Context(), func(ctx context.Context, _ *store.Tx) error {
			if err := tryRun(ctx, db, `SELECT 1`); err == nil {
				t.Error("Write inside of a Write: got nil, want an error")
			}
			var n int
			if err := db.QueryRow(ctx, `SELECT 1`).Scan(&n); err == nil {
				t.Error("QueryRow inside of a Write: got nil, want an error")
			}
			if _, err := db.Query(ctx, `SELECT 1`); err == nil { //nolint:sqlclosecheck,rowserrcheck // no rows are wanted
				t.Error("Query inside of a Write: got nil, want an error")
			}
			return nil
		})
		if err != nil {
			t.Errorf("Write: %v", err)
		}
	})
}

func TestWriteCountsEachCallOnce(t *testing.T) {
	t.Parallel()
	const writers, each = 16, 25
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		table(t, db)
		run(t, db, insert, "n", 0)
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for range each {
					// Read, then write: lost updates show unless Lock holds.
					err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
						if err := tx.Lock(ctx, "n"); err != nil {
							return err
						}
						var n int64
						if err := tx.QueryRow(ctx, `SELECT n FROM counter WHERE name = 'n'`).Scan(&n); err != nil {
							return err
						}
						_, err := tx.Exec(ctx, `UPDATE counter SET n = $1 WHERE name = 'n'`, n+1)
						return err
					})
					if err != nil {
						t.Errorf("Write: %v", err)
					}
				}
			})
		}
		wg.Wait()
		var n int64
		if err := db.QueryRow(t.Context(), `SELECT n FROM counter WHERE name = 'n'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if n != writers*each {
			t.Errorf("counter: got %d, want %d", n, writers*each)
		}
	})
}

func TestWriteNeverReportsCancelOfCommitted(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		table(t, db)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, insert, "a", 1)
			cancel()
			return err
		})
		if err != nil {
			t.Errorf("Write canceled after its last statement: got %v, want nil", err)
		}
		if diff := cmp.Diff([]string{"a"}, names(t, db)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWriteCanceledBetweenStatementsKeepsNothing(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		table(t, db)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
			if _, err := tx.Exec(ctx, insert, "a", 1); err != nil {
				return err
			}
			cancel()
			_, err := tx.Exec(ctx, insert, "b", 1)
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Write: got %v, want context.Canceled", err)
		}
		if got := names(t, db); len(got) != 0 {
			t.Errorf("rows: got %v, want none", got)
		}
	})
}

func TestAfterCommitRunsInOrderAndOnlyThen(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		table(t, db)
		var got []string
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			tx.AfterCommit(func() { got = append(got, names(t, db)...) })
			tx.AfterCommit(func() { got = append(got, "second") })
			_, err := tx.Exec(ctx, insert, "first", 1)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = db.Write(t.Context(), func(_ context.Context, tx *store.Tx) error {
			tx.AfterCommit(func() { got = append(got, "never") })
			return errors.New("refused")
		})
		if diff := cmp.Diff([]string{"first", "second"}, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTxRefusesUseAfterWrite(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		table(t, db)
		var leaked *store.Tx
		if err := db.Write(t.Context(), func(_ context.Context, tx *store.Tx) error { leaked = tx; return nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := leaked.Exec(t.Context(), insert, "a", 1); err == nil {
			t.Error("Exec after Write returned: got nil, want an error")
		}
		if got := names(t, db); len(got) != 0 {
			t.Errorf("rows: got %v, want none", got)
		}
	})
}

func TestQueryOutOfTimeIsUnavailable(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		var n int
		err := db.QueryRow(ctx, `SELECT 1`).Scan(&n)
		if countersign.CodeOf(err) != countersign.Unavailable || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("QueryRow: got %v, want Unavailable caused by the deadline", err)
		}
	})
}

func TestTimeRoundTrip(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 2, 3, 4, 5, 6, 789000, time.FixedZone("east", 3600))
	if got := store.Time(store.Micros(at)); !got.Equal(at) || got.Location() != time.UTC {
		t.Errorf("Time(Micros(%v)): got %v", at, got)
	}
	if got := store.Micros(time.Time{}); got != 0 {
		t.Errorf("Micros of the zero time: got %d, want 0", got)
	}
	if got := store.Time(0); !got.IsZero() {
		t.Errorf("Time(0): got %v, want the zero time", got)
	}
}

func TestOpenRefusesUnknownURL(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "sqlite:", "mysql://u:secret@h/db", filepath.Join(os.TempDir(), "x.db")} {
		_, err := store.Open(t.Context(), store.Options{URL: url, Now: time.Now})
		if countersign.CodeOf(err) != countersign.BadRequest || strings.Contains(err.Error(), "secret") {
			t.Errorf("Open(%q): got %v, want BadRequest without the URL's secrets", url, err)
		}
	}
}
