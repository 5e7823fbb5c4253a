package detect_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// patience bounds the wait for another goroutine.
const patience = 30 * time.Second

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// write appends sealed events.
func write(t *testing.T, db *store.DB, events ...countersign.Event) {
	t.Helper()
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		var seq int64
		if err := tx.QueryRow(ctx, `SELECT COALESCE(MAX(seq), 0) FROM event`).Scan(&seq); err != nil {
			return err
		}
		for _, e := range events {
			seq++
			_, err := tx.Exec(ctx, `INSERT INTO event (seq, at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`, seq, store.Micros(e.At), string(e.Type), string(e.Actor), e.Device, "default",
				e.Cert.Issuer, string(e.Cert.Serial), e.Remote, e.Via, string(e.Code), e.Reason, e.Data["json"])
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("write events: %v", err)
	}
}

// fork is an event that is a finding by itself.
func fork(i int) countersign.Event {
	return countersign.Event{Type: countersign.FindingFork, At: start.Add(time.Duration(i) * time.Second), Device: fmt.Sprint("pump-", i), Actor: countersign.System}
}

// book stores findings in the database, in the transaction that hands them over, as
// package respond does.
type book struct {
	db   *store.DB
	mu   sync.Mutex
	fail func(n int) error // of the n-th call
	n    int
	many [][]countersign.Finding
}

func (b *book) handle(ctx context.Context, tx *store.Tx, list []countersign.Finding) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	for _, f := range list {
		var at int64
		err := tx.QueryRow(ctx, `SELECT seq FROM event_cursor WHERE name = $1`, "count:"+f.Rule+f.Subject).Scan(&at)
		if err != nil && !strings.Contains(err.Error(), "no rows") {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO event_cursor (name, seq) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET seq = excluded.seq`, "count:"+f.Rule+f.Subject, at+1)
		if err != nil {
			return err
		}
	}
	b.many = append(b.many, list)
	if b.fail != nil {
		return b.fail(b.n)
	}
	return nil
}

// last returns the findings of the latest call.
func (b *book) last() []countersign.Finding {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.many[len(b.many)-1]
}

// counts returns the number of stored findings, by rule and subject.
func (b *book) counts(t *testing.T) map[string]int {
	t.Helper()
	rows, err := b.db.Query(t.Context(), `SELECT name, seq FROM event_cursor WHERE name LIKE 'count:%'`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	got := map[string]int{}
	for rows.Next() {
		var name string
		var n int
		if err := rows.Scan(&name, &n); err != nil {
			t.Fatal(err)
		}
		got[strings.TrimPrefix(name, "count:")] = n
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return got
}

func newWatch(b *book, now time.Time) *detect.Watch {
	return &detect.Watch{
		DB: b.db, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler), Handle: b.handle,
	}
}

// run starts a watch and returns a function that ends it.
func run(t *testing.T, w *detect.Watch) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run did not end with its context")
		}
	})
	t.Cleanup(stop)
	return stop
}

func cursor(t *testing.T, db *store.DB) (seq int64) {
	t.Helper()
	err := db.QueryRow(t.Context(), `SELECT COALESCE(MAX(seq), 0) FROM event_cursor WHERE name = 'detect'`).Scan(&seq)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// each fails the test unless each of n forks was found once.
func each(t *testing.T, b *book, n int) {
	t.Helper()
	got := b.counts(t)
	if len(got) != n {
		t.Errorf("got %d findings, want %d", len(got), n)
	}
	for name, count := range got {
		if count != 1 {
			t.Errorf("%s was handed over %d times, want once", name, count)
		}
	}
}

func TestFindingFollowsItsEvent(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := &book{db: db}
		var mu sync.Mutex
		var observed []string
		w := newWatch(b, start)
		w.Observe = func(rule string, _ countersign.Severity) {
			mu.Lock()
			defer mu.Unlock()
			observed = append(observed, rule)
		}
		run(t, w)
		write(t, db, fork(0))
		eventually(t, "the first finding", func() bool { return len(b.counts(t)) == 1 })
		time.Sleep(50 * time.Millisecond)
		write(t, db, fork(1))
		began := time.Now()
		w.Wake()
		eventually(t, "the second finding", func() bool { return len(b.counts(t)) == 2 })
		t.Logf("from the event to its finding: %v", time.Since(began))
		eventually(t, "the metric", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Equal(observed, []string{detect.RenewalFork, detect.RenewalFork})
		})
		f := b.last()[0]
		if f.Rule != detect.RenewalFork || f.Severity != countersign.SeverityCritical || !slices.Equal(f.Events, []int64{2}) || !f.At.Equal(start.Add(time.Second)) {
			t.Errorf("got %+v", f)
		}
	})
}

func TestManyBatchesAreHandedOverOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		const n = 1300 // more than two batches
		b := &book{db: db}
		var list []countersign.Event
		for i := range n {
			list = append(list, fork(i))
		}
		write(t, db, list...)
		stop := run(t, newWatch(b, start))
		eventually(t, "the end of the log", func() bool { return cursor(t, db) == n })
		stop()
		each(t, b, n)
	})
}

// TestFailureLosesAndDoublesNothing lets Handle fail after it wrote the findings, and stops
// the watch in the middle and starts it again.
func TestFailureLosesAndDoublesNothing(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		const n = 1300
		b := &book{db: db, fail: func(n int) error {
			if n == 1 || n == 3 {
				return errors.New("a bad moment")
			}
			return nil
		}}
		var list []countersign.Event
		for i := range n {
			list = append(list, fork(i))
		}
		write(t, db, list...)
		stop := run(t, newWatch(b, start))
		eventually(t, "the first batch", func() bool { return cursor(t, db) > 0 })
		stop()
		run(t, newWatch(b, start))
		eventually(t, "the end of the log", func() bool { return cursor(t, db) == n })
		each(t, b, n)
	})
}

// wrong returns the event of a wrong secret for a device.
func wrong(i int) countersign.Event {
	return countersign.Event{
		Type: countersign.ConnectRefused, At: start.Add(time.Duration(i) * time.Minute), Device: "pump-1", Actor: "device:pump-1",
		Remote: "192.0.2.1:1", Code: countersign.BadCredential,
	}
}

// TestRestartRemembers checks that a burst is found although the server was restarted
// within it, and that earlier findings are not reported again.
func TestRestartRemembers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := &book{db: db}
		write(t, db, wrong(0), wrong(1), wrong(2))
		stop := run(t, newWatch(b, start))
		eventually(t, "three wrong secrets", func() bool { return cursor(t, db) == 3 })
		stop()
		if got := b.counts(t); got["wrong_secretdevice:pump-1"] != 1 {
			t.Fatalf("three wrong secrets: got %v, want the first found", got)
		}
		run(t, newWatch(b, start))
		write(t, db, wrong(3), wrong(4), wrong(5))
		eventually(t, "six wrong secrets", func() bool { return cursor(t, db) == 6 })
		if got := b.counts(t); got["wrong_secretdevice:pump-1"] != 2 {
			t.Errorf("five wrong secrets, a restart between: got %v, want one more finding", got)
		}
		if last := b.last(); len(last) != 1 || last[0].Severity != countersign.SeverityHigh || len(last[0].Events) != 5 {
			t.Errorf("got %+v, want the burst with the events from before the restart", last)
		}
	})
}

// open returns the event of a session's start.
func open(session, addr string, after time.Duration) countersign.Event {
	return countersign.Event{
		Type: countersign.SessionOpened, At: start.Add(after), Device: "pump-1", Actor: "device:pump-1", Remote: addr + ":1", Via: "mqtt",
		Cert: countersign.CertRef{Issuer: "issuing", Serial: "0a"},
		Data: map[string]string{"json": `{"session":"` + session + `","client_id":"pump-1/` + session + `"}`},
	}
}

// TestTimeAloneIsHandedOverOnce completes a finding without an event, on two nodes
// and again after restarts.
func TestTimeAloneIsHandedOverOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := &book{db: db}
		write(t, db, open("a", "192.0.2.1", 0), open("b", "198.51.100.1", time.Minute))
		const key = "shared_certificatedevice:pump-1"
		early := run(t, newWatch(b, start.Add(5*time.Minute)))
		eventually(t, "the end of the log", func() bool { return cursor(t, db) == 2 })
		early()
		if got := b.counts(t); got[key] != 0 {
			t.Errorf("too early: got %v", got)
		}
		for range 2 {
			one, two := run(t, newWatch(b, start.Add(7*time.Minute))), run(t, newWatch(b, start.Add(7*time.Minute)))
			eventually(t, "the finding", func() bool { return b.counts(t)[key] > 0 })
			time.Sleep(1200 * time.Millisecond) // two more polls
			one()
			two()
		}
		write(t, db, countersign.Event{Type: countersign.CRLPublished, At: start.Add(time.Hour), Actor: countersign.System})
		run(t, newWatch(b, start.Add(time.Hour)))
		eventually(t, "the next event", func() bool { return cursor(t, db) == 3 })
		if got := b.counts(t); got[key] != 1 {
			t.Errorf("got %v, want one finding", got)
		}
	})
}

// TestNodesShareTheWork runs two nodes on one database while events are written, and stops
// one.
func TestNodesShareTheWork(t *testing.T) {
	url := storetest.PostgresURL(t)
	b, other := &book{db: storetest.OpenURL(t, url)}, &book{db: storetest.OpenURL(t, url)}
	one, two := newWatch(b, start), newWatch(other, start)
	stop := run(t, one)
	run(t, two)
	const n = 900
	for i := 0; i < n; i += 30 {
		var list []countersign.Event
		for j := range 30 {
			list = append(list, fork(i+j))
		}
		write(t, b.db, list...)
		one.Wake()
		two.Wake()
		if i == n/2 {
			stop()
		}
		time.Sleep(20 * time.Millisecond)
	}
	eventually(t, "the end of the log", func() bool { return cursor(t, b.db) == n })
	each(t, b, n)
}

func TestUsualIsAskedOfTheFleet(t *testing.T) {
	db := storetest.Open(t)
	b := &book{db: db}
	w := newWatch(b, start)
	failed := false
	w.Usual = func(_ context.Context, fleet string) (countersign.Usual, error) {
		if !failed {
			failed = true
			return countersign.Usual{}, errors.New("a bad moment")
		}
		return countersign.Usual{Hours: "00-06"}, nil
	}
	write(t, db, countersign.Event{Type: countersign.CertIssued, At: start, Device: "pump-1", Remote: "192.0.2.1:1", Actor: "token:1"})
	run(t, w)
	eventually(t, "the finding", func() bool { return b.counts(t)["unusual_enrollmentfleet:default"] == 1 })
}
