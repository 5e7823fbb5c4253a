package store_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/google/go-cmp/cmp"
)

// commits counts the commit frames of a WAL (SQLite file format, 4.1): a frame is
// a header of 24 bytes and a page, and its second word is not 0 at a commit.
func commits(t *testing.T, url string) int {
	t.Helper()
	wal, err := os.ReadFile(strings.TrimPrefix(url, "sqlite:") + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	const header, frame = 32, 24 + 4096
	n := 0
	for at := header; at+frame <= len(wal); at += frame {
		if binary.BigEndian.Uint32(wal[at+4:]) != 0 {
			n++
		}
	}
	return n
}

func TestWaitingWritesShareCommit(t *testing.T) {
	t.Parallel()
	const writes = 48
	url := storetest.SQLiteURL(t)
	db := storetest.OpenURL(t, url)
	table(t, db)
	before := commits(t, url)
	release := hold(t, db)
	defer release()
	var wg sync.WaitGroup
	for i := range writes {
		wg.Go(func() {
			if err := tryRun(t.Context(), db, insert, strconv.Itoa(i), i); err != nil {
				t.Errorf("Write: %v", err)
			}
		})
	}
	time.Sleep(100 * time.Millisecond) // let them queue
	release()
	wg.Wait()
	if got := len(names(t, db)); got != writes {
		t.Errorf("rows: got %d, want %d", got, writes)
	}
	// One in fact; the bound forgives a machine too busy to let all of them queue.
	if got := commits(t, url) - before; got < 1 || got > writes/4 {
		t.Errorf("commits of %d waiting writes: got %d, want 1 to %d", writes, got, writes/4)
	}
}

func TestWriteCanceledWhileWaitingNeverRuns(t *testing.T) {
	t.Parallel()
	db := storetest.Open(t)
	table(t, db)
	release := hold(t, db)
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- tryRun(ctx, db, insert, "a", 1) }()
	time.Sleep(20 * time.Millisecond) // let it queue
	cancel()
	select {
	case err := <-result:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Write: got %v, want context.Canceled", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a canceled Write waited for the writer")
	}
	release()
	run(t, db, insert, "b", 1)
	if got := names(t, db); len(got) != 1 || got[0] != "b" {
		t.Errorf("rows: got %v, want b alone", got)
	}
}

func TestCloseRefusesWaitingWrites(t *testing.T) {
	t.Parallel()
	db, err := store.Open(t.Context(), store.Options{URL: storetest.SQLiteURL(t), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	table(t, db)
	release := hold(t, db)
	waiting := make(chan error, 1)
	go func() { waiting <- tryRun(context.Background(), db, insert, "a", 1) }()
	time.Sleep(20 * time.Millisecond)
	closed := make(chan error, 1)
	go func() { closed <- db.Close() }()
	time.Sleep(20 * time.Millisecond)
	release()
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
	select {
	case err := <-waiting: // committed or refused, but answered
		t.Logf("the Write that waited: %v", err)
	case <-time.After(patience):
		t.Error("a Write that waited was never answered")
	}
	if err := tryRun(t.Context(), db, insert, "b", 1); err == nil {
		t.Error("Write after Close: got nil, want an error")
	}
	if _, err := db.Query(t.Context(), `SELECT 1`); err == nil { //nolint:sqlclosecheck,rowserrcheck // no rows are wanted
		t.Error("Query after Close: got nil, want an error")
	}
}

func TestOpenRefusesSecondUser(t *testing.T) {
	t.Parallel()
	url := storetest.SQLiteURL(t)
	storetest.OpenURL(t, url)
	_, err := store.Open(t.Context(), store.Options{URL: url, Now: time.Now})
	if countersign.CodeOf(err) != countersign.Conflict {
		t.Fatalf("second Open: got %v, want Conflict", err)
	}
	if want := "process " + strconv.Itoa(os.Getpid()); !strings.Contains(err.Error(), want) {
		t.Errorf("second Open: got %q, want it to name %s", err, want)
	}
}

func TestOpenMakesPrivateFiles(t *testing.T) {
	t.Parallel()
	url := storetest.SQLiteURL(t)
	table(t, storetest.OpenURL(t, url))
	for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
		info, err := os.Stat(strings.TrimPrefix(url, "sqlite:") + suffix)
		if err != nil {
			t.Error(err)
		} else if got := info.Mode().Perm(); got != 0o600 {
			t.Errorf("mode of %s: got %o, want 600", info.Name(), got)
		}
	}
}

func TestOpenTakesAnyFileName(t *testing.T) {
	t.Parallel()
	url := storetest.SQLiteURL(t) + " 50%?x=1#y"
	run(t, storetest.OpenURL(t, url), `CREATE TABLE one (n BIGINT)`)
	if _, err := os.Stat(strings.TrimPrefix(url, "sqlite:")); err != nil {
		t.Error(err)
	}
}

func TestReadsCannotWrite(t *testing.T) {
	t.Parallel()
	db := storetest.Open(t)
	table(t, db)
	var n int
	if err := db.QueryRow(t.Context(), insert+` RETURNING n`, "a", 1).Scan(&n); err == nil {
		t.Error("INSERT outside of Write: got nil, want an error")
	}
}

func TestFullDiskIsUnavailableAndRecovers(t *testing.T) {
	t.Parallel()
	db, err := store.Open(t.Context(), store.Options{URL: storetest.SQLiteURL(t), Now: time.Now, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	run(t, db, `CREATE TABLE heap (id BIGINT PRIMARY KEY, data BLOB NOT NULL)`)
	run(t, db, `CREATE TABLE small (id BIGINT PRIMARY KEY)`)
	fill := func(id int) error {
		return tryRun(t.Context(), db, `INSERT INTO heap (id, data) VALUES ($1, $2)`, id, make([]byte, 64<<10))
	}
	var full error
	n := 0
	for ; full == nil && n < 1000; n++ {
		full = fill(n)
	}
	e, ok := errors.AsType[*countersign.Error](full)
	if !ok || e.Code != countersign.Unavailable || e.RetryAfter == 0 || e.Err == nil {
		t.Fatalf("write to a full disk: got %#v, want Unavailable with RetryAfter and its cause", full)
	}
	// Others in the same transaction must not suffer: a small row still has a place.
	release := hold(t, db)
	var bigFailed, smallFailed atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if fill(10_000+i) != nil {
				bigFailed.Add(1)
			}
		})
		wg.Go(func() {
			if err := tryRun(t.Context(), db, `INSERT INTO small (id) VALUES ($1)`, i); err != nil {
				smallFailed.Add(1)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	release()
	wg.Wait()
	if bigFailed.Load() != 8 || smallFailed.Load() != 0 {
		t.Errorf("on a full disk: %d of 8 big writes failed, want 8; %d of 8 small ones, want 0", bigFailed.Load(), smallFailed.Load())
	}
	run(t, db, `DELETE FROM heap WHERE id < $1`, n/2)
	if err := fill(20_000); err != nil {
		t.Errorf("write after space is back: %v", err)
	}
}

func TestManyStatementTextsStayUsable(t *testing.T) {
	t.Parallel()
	db := storetest.Open(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 700 { // more than the cache holds, from many goroutines
				var got int
				if err := db.QueryRow(t.Context(), fmt.Sprintf("SELECT %d", i)).Scan(&got); err != nil || got != i {
					t.Errorf("SELECT %d: got %d, %v", i, got, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestListenIsUpWithoutOtherNodes(t *testing.T) {
	t.Parallel()
	db := storetest.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := db.Listen(ctx, func(string) { t.Error("notified without a node") }, func(up bool) {
		if !up {
			t.Error("onState: got down, want up")
		}
		cancel()
	})
	if err != nil {
		t.Errorf("Listen: %v", err)
	}
}

func TestSettingsKeepWritesDurable(t *testing.T) {
	t.Parallel()
	settings := func(db *store.DB, names ...string) []string {
		var got []string
		for _, name := range names {
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				var v string
				err := tx.QueryRow(ctx, name).Scan(&v)
				got = append(got, v)
				return err
			})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		return got
	}
	t.Run("sqlite", func(t *testing.T) {
		got := settings(storetest.Open(t), `PRAGMA journal_mode`, `PRAGMA synchronous`, `PRAGMA foreign_keys`)
		if diff := cmp.Diff([]string{"wal", "2", "1"}, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("postgres", func(t *testing.T) {
		url := storetest.PostgresURL(t) + "&synchronous_commit=off"
		got := settings(storetest.OpenURL(t, url), `SHOW synchronous_commit`, `SHOW transaction_isolation`)
		if diff := cmp.Diff([]string{"on", "read committed"}, got); diff != "" {
			t.Error(diff)
		}
	})
}
