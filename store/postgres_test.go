package store_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// patience is how long these tests wait for what must happen.
const patience = 20 * time.Second

func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s after %v", what, patience)
		panic("unreachable")
	}
}

func notify(t *testing.T, db *store.DB, payload string, end error) {
	t.Helper()
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Notify(ctx, payload); err != nil {
			return err
		}
		return end
	})
	if err != end { //nolint:errorlint // the very error
		t.Fatalf("Write: got %v, want %v", err, end)
	}
}

func TestListenHearsCommitsOfOtherNodes(t *testing.T) {
	t.Parallel()
	url := storetest.PostgresURL(t)
	listening, writing := storetest.OpenURL(t, url), storetest.OpenURL(t, url)
	ctx, cancel := context.WithCancel(t.Context())
	payloads, states, ended := make(chan string, 9), make(chan bool, 9), make(chan error, 1)
	go func() {
		ended <- listening.Listen(ctx, func(p string) { payloads <- p }, func(up bool) { states <- up })
	}()
	if !receive(t, states, "state") {
		t.Fatal("first state: got down, want up")
	}
	notify(t, writing, "rolled back", context.Canceled)
	notify(t, writing, "one", nil)
	if got := receive(t, payloads, "payload"); got != "one" {
		t.Errorf("payload: got %q, want one", got)
	}

	run(t, writing, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND query LIKE 'LISTEN%' AND pid <> pg_backend_pid()`)
	if receive(t, states, "state") {
		t.Error("state after the connection was cut: got up, want down")
	}
	if !receive(t, states, "state") {
		t.Error("state after that: got down, want up")
	}
	notify(t, writing, "two", nil)
	if got := receive(t, payloads, "payload"); got != "two" {
		t.Errorf("payload after the reconnect: got %q, want two", got)
	}
	time.Sleep(2500 * time.Millisecond) // over a ping
	notify(t, writing, "three", nil)
	if got := receive(t, payloads, "payload"); got != "three" {
		t.Errorf("payload after a silence: got %q, want three", got)
	}
	if len(states) != 0 {
		t.Errorf("state after a silence: got up=%v, want none", <-states)
	}
	cancel()
	if err := receive(t, ended, "end of Listen"); err != nil {
		t.Errorf("Listen: %v", err)
	}
}

func TestNotifyRefusesLongPayload(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		for size, want := range map[int]bool{7999: true, 8000: false} {
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				return tx.Notify(ctx, strings.Repeat("x", size))
			})
			if (err == nil) != want {
				t.Errorf("Notify of %d bytes: got %v, want success %v", size, err, want)
			}
		}
	})
}

func TestWriteRunsAgainAfterDeadlock(t *testing.T) {
	t.Parallel()
	db := storetest.OpenURL(t, storetest.PostgresURL(t))
	table(t, db)
	run(t, db, insert, "n", 0)
	var both, done sync.WaitGroup
	both.Add(2)
	for _, keys := range [][2]string{{"a", "b"}, {"b", "a"}} {
		done.Go(func() {
			meet := sync.OnceFunc(func() { both.Done(); both.Wait() })
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				if err := tx.Lock(ctx, keys[0]); err != nil {
					return err
				}
				meet() // each holds what the other one wants
				if err := tx.Lock(ctx, keys[1]); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, `UPDATE counter SET n = n + 1`)
				return err
			})
			if err != nil {
				t.Errorf("Write: %v", err)
			}
		})
	}
	done.Wait()
	var n int
	if err := db.QueryRow(t.Context(), `SELECT n FROM counter`).Scan(&n); err != nil || n != 2 {
		t.Errorf("counter: got %d, %v, want 2", n, err)
	}
}

func TestUnreachablePostgresIsUnavailable(t *testing.T) {
	t.Parallel()
	_, err := store.Open(t.Context(), store.Options{URL: "postgres://nobody@127.0.0.1:1/none?sslmode=disable", Now: time.Now})
	if countersign.CodeOf(err) != countersign.Unavailable {
		t.Errorf("Open: got %v, want Unavailable", err)
	}
}

func TestWriteSurvivesCutConnections(t *testing.T) {
	t.Parallel()
	url := storetest.PostgresURL(t)
	db, other := storetest.OpenURL(t, url), storetest.OpenURL(t, url)
	table(t, db)
	const cut = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid()`

	// In the middle of a transaction: refused, and nothing is kept.
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		if _, err := tx.Exec(ctx, insert, "a", 1); err != nil {
			return err
		}
		run(t, other, cut)
		_, err := tx.Exec(ctx, insert, "b", 1)
		return err
	})
	if countersign.CodeOf(err) != countersign.Unavailable {
		t.Errorf("Write over a cut connection: got %v, want Unavailable", err)
	}
	// Between transactions: nobody notices.
	run(t, db, insert, "c", 1)
	run(t, other, cut)
	run(t, db, insert, "d", 1)
	if got := names(t, db); len(got) != 2 || got[0] != "c" || got[1] != "d" {
		t.Errorf("rows: got %v, want c and d", got)
	}
}

func TestBusyPoolIsUnavailable(t *testing.T) {
	t.Parallel() // waits for seconds
	db := storetest.OpenURL(t, storetest.PostgresURL(t))
	free := make(chan struct{})
	var began, ended sync.WaitGroup
	const conns = 20
	began.Add(conns)
	for range conns {
		ended.Go(func() {
			if err := db.Write(context.Background(), func(context.Context, *store.Tx) error {
				began.Done()
				<-free
				return nil
			}); err != nil {
				t.Errorf("holding Write: %v", err)
			}
		})
	}
	began.Wait()
	err := tryRun(t.Context(), db, `SELECT 1`)
	close(free)
	ended.Wait()
	if e := countersign.Public(err); e.Code != countersign.Unavailable || e.RetryAfter == 0 {
		t.Errorf("Write with all connections taken: got %v, want Unavailable with RetryAfter", err)
	}
}

// TestLostDatabaseIsRefusedAtOnceAndBackInTime takes the database away in each way. It
// must count as lost, refuse reads and writes without waiting, and listen again within
// the bound that a revocation by another node depends on.
func TestLostDatabaseIsRefusedAtOnceAndBackInTime(t *testing.T) {
	t.Parallel() // waits for seconds
	const noticed, back, atOnce = 8 * time.Second, 1500 * time.Millisecond, 200 * time.Millisecond
	for name, fault := range map[string]func(*storetest.Proxy){"cut": (*storetest.Proxy).Cut, "hang": (*storetest.Proxy).Hang} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, _, proxy := faulty(t)
			states := make(chan bool, 9)
			ended := make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { ended <- db.Listen(ctx, func(string) {}, func(up bool) { states <- up }) }()
			if !receive(t, states, "state") {
				t.Fatal("first state: got down, want up")
			}
			fault(proxy)
			for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				if since, lost := db.Lost(); lost {
					if time.Since(since) > noticed {
						t.Errorf("lost since %v", since)
					}
					break
				}
				if time.Since(begin) > noticed {
					t.Fatalf("not lost after %v", noticed)
				}
			}
			if receive(t, states, "state") {
				t.Error("state of a lost database: got up, want down")
			}
			begin := time.Now()
			var n int
			for what, err := range map[string]error{
				"read": db.QueryRow(t.Context(), `SELECT 1`).Scan(&n), "write": tryRun(t.Context(), db, `SELECT 1`),
			} {
				if countersign.CodeOf(err) != countersign.Unavailable {
					t.Errorf("%s: got %v, want Unavailable", what, err)
				}
			}
			if took := time.Since(begin); took > atOnce {
				t.Errorf("refused after %v, want at once", took)
			}
			time.Sleep(2 * time.Second) // attempts are under way
			proxy.Heal()
			begin = time.Now()
			if !receive(t, states, "state") {
				t.Error("state after it came back: got down, want up")
			}
			if took := time.Since(begin); took > back {
				t.Errorf("listening again after %v, want at most %v", took, back)
			}
			if _, lost := db.Lost(); lost {
				t.Error("the database is still lost")
			}
			if err := db.QueryRow(t.Context(), `SELECT 1`).Scan(&n); err != nil {
				t.Errorf("read: %v", err)
			}
			cancel()
			if err := receive(t, ended, "end of Listen"); err != nil {
				t.Errorf("Listen: %v", err)
			}
		})
	}
}
