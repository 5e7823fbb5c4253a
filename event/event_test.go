package event_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// patience bounds the wait for another goroutine.
const patience = 20 * time.Second

func newLog(db *store.DB) *event.Log {
	return &event.Log{DB: db, Now: func() time.Time { return start }, Log: slog.New(slog.DiscardHandler), Node: "a"}
}

// running starts Run and returns a function that ends it.
func running(t *testing.T, l *event.Log) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
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

func appendAll(t *testing.T, l *event.Log, events ...countersign.Event) {
	t.Helper()
	err := l.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return l.Append(ctx, tx, events...) })
	if err != nil {
		t.Fatalf("Append: %v", err)
	}
}

func all(t *testing.T, l *event.Log, f event.Filter) []countersign.Event {
	t.Helper()
	var list []countersign.Event
	for {
		page, next, err := l.List(t.Context(), f)
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		list = append(list, page...)
		if next == 0 {
			return list
		}
		f.After = next
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestAppendKeepsEveryField(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		want := countersign.Event{
			At: start.Add(-time.Hour), Type: countersign.CertRevokedEv, Actor: countersign.OperatorActor("ann"), Device: "pump-1", Fleet: "pumps",
			Cert: countersign.CertRef{Issuer: "issuing", Serial: "0a"}, Remote: "192.0.2.1:5", Via: "cli", Code: countersign.CertIsRevoked,
			Reason: "stolen, <b>&\u2028", Data: map[string]string{"reason": "keyCompromise", "b": "ü", "a": ""},
		}
		appendAll(t, l, want, countersign.Event{Type: countersign.ServerStarted})
		got := all(t, l, event.Filter{})
		if d := cmp.Diff([]countersign.Event{want, {At: start, Type: countersign.ServerStarted}}, got); d != "" {
			t.Errorf("List (-want +got):\n%s", d)
		}
	})
}

func TestListPagesBothWaysAndFilters(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		var events []countersign.Event
		for i := range 11 {
			events = append(events, countersign.Event{
				At: start.Add(time.Duration(i) * time.Minute), Device: fmt.Sprintf("device-%d", i%3), Reason: fmt.Sprint(i),
				Type: []countersign.EventType{countersign.SessionOpened, countersign.SessionClosed}[i%2],
			})
		}
		appendAll(t, l, events...)
		for _, tt := range []struct {
			name string
			f    event.Filter
			want []string
		}{
			{"all", event.Filter{Limit: 4}, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"}},
			{"newest", event.Filter{Limit: 4, Newest: true}, []string{"10", "9", "8", "7", "6", "5", "4", "3", "2", "1", "0"}},
			{"one page, exactly", event.Filter{Limit: 11}, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"}},
			{"device", event.Filter{Limit: 3, Device: "device-1"}, []string{"1", "4", "7", "10"}},
			{"type", event.Filter{Limit: 2, Type: countersign.SessionClosed, Newest: true}, []string{"9", "7", "5", "3", "1"}},
			{"since", event.Filter{Limit: 1, Since: start.Add(9 * time.Minute)}, []string{"9", "10"}},
			{"together", event.Filter{Device: "device-2", Type: countersign.SessionOpened, Since: start.Add(3 * time.Minute)}, []string{"8"}},
			{"none", event.Filter{Device: "device-9", Limit: -1}, nil},
		} {
			var got []string
			for _, e := range all(t, l, tt.f) {
				got = append(got, e.Reason)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("%s (-want +got):\n%s", tt.name, d)
			}
		}
	})
}

// TestAppendTakesAnyText appends texts that a peer may choose. PostgreSQL refuses NUL and
// invalid UTF-8; the event, and the others of its batch, must be written nevertheless.
func TestAppendTakesAnyText(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		nasty := []string{"\x00", "a\x00b", "\xff\xfe", "\xf0\x9f", strings.Repeat("x", 511) + "ü", strings.Repeat("\xff a", 600), strings.Repeat("\x00", 600), "\u2028\"\\"}
		for _, s := range nasty {
			data := map[string]string{"k": s, "key" + s: "v"}
			mine := maps.Clone(data)
			appendAll(t, l, countersign.Event{
				Type: countersign.ConnectRefused, Actor: countersign.Actor(s), Device: s, Fleet: s, Remote: s, Via: s, Reason: s,
				Cert: countersign.CertRef{Issuer: s, Serial: countersign.Serial(s)}, Data: data,
			})
			if d := cmp.Diff(mine, data); d != "" {
				t.Errorf("Append changed the caller's data (-want +got):\n%s", d)
			}
		}
		list := all(t, l, event.Filter{})
		if len(list) != len(nasty) {
			t.Fatalf("got %d events, want %d", len(list), len(nasty))
		}
		for i, e := range list {
			for _, s := range []string{e.Device, e.Reason, e.Data["k"], e.Remote} {
				if s == "" || len(s) > 512 || !utf8.ValidString(s) || strings.Contains(s, "\x00") {
					t.Errorf("of %.20q: got %d octets %.20q, want 1 to 512 of UTF-8 without NUL", nasty[i], len(s), s)
				}
			}
		}
		if _, err := l.Seal(t.Context()); err != nil {
			t.Fatal(err)
		}
		if rep, err := l.Verify(t.Context()); err != nil || rep.BrokenAt != 0 || rep.Events != int64(len(nasty)) {
			t.Errorf("Verify: got %+v, %v", rep, err)
		}
	})
}

func TestLaterIsWrittenByFlushAndAtTheEnd(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		stop := running(t, l)
		for i := range 1000 { // more than a batch
			l.Later(countersign.Event{Type: countersign.SessionOpened, Reason: fmt.Sprint(i)})
		}
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := len(all(t, l, event.Filter{})); got != 1000 {
			t.Errorf("after Flush: got %d events, want 1000", got)
		}
		for range 600 {
			l.Later(countersign.Event{Type: countersign.SessionClosed})
		}
		stop()
		if got := len(all(t, l, event.Filter{Type: countersign.SessionClosed})); got != 600 {
			t.Errorf("after Run: got %d events, want 600", got)
		}
	})
}

func TestFlushEndsWithItsContext(t *testing.T) {
	l := newLog(storetest.Open(t)) // Run is not called
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := l.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Flush: got %v, want the deadline", err)
	}
}

func suppressedCount(t *testing.T, l *event.Log) (total int) {
	t.Helper()
	for _, e := range all(t, l, event.Filter{Type: countersign.EventsSuppressed}) {
		var n int
		if _, err := fmt.Sscan(e.Data["count"], &n); err != nil {
			t.Fatalf("count %q: %v", e.Data["count"], err)
		}
		total += n
	}
	return total
}

func TestOverflowIsCounted(t *testing.T) {
	l := newLog(storetest.Open(t))
	const given = 4096 + 123 // more than the queue, while Run does not run
	for range given {
		l.Later(countersign.Event{Type: countersign.ConnectRefused})
	}
	running(t, l)
	if err := l.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(all(t, l, event.Filter{Type: countersign.ConnectRefused})); got != 4096 {
		t.Errorf("got %d events, want the 4096 that fit", got)
	}
	if got := suppressedCount(t, l); got != 123 {
		t.Errorf("got %d counted as suppressed, want 123", got)
	}
}

// TestRefusedWriteIsCounted renames the table for a while.
func TestRefusedWriteIsCounted(t *testing.T) {
	l := newLog(storetest.Open(t))
	rename := func(from, to string) {
		t.Helper()
		err := l.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `ALTER TABLE `+from+` RENAME TO `+to)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	stop := running(t, l)
	rename("event", "away")
	for range 3 { // three batches, the later ones with the count of the earlier
		l.Later(countersign.Event{Type: countersign.ConnectRefused})
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rename("away", "event")
	stop() // it records the count although there is no other event
	if got := suppressedCount(t, l); got != 3 {
		t.Errorf("got %d counted as suppressed, want 3", got)
	}
}

// TestAPoisonedEventIsAlone lets the database refuse one event of a batch: the others must
// be written, and this one counted and logged without its contents.
func TestAPoisonedEventIsAlone(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		refuse := []string{`CREATE TRIGGER poison BEFORE INSERT ON event WHEN NEW.device = 'poison' BEGIN SELECT RAISE(ABORT, 'no'); END`}
		if db.Postgres() {
			refuse = []string{`ALTER TABLE event ADD CONSTRAINT poison CHECK (device <> 'poison')`}
		}
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			for _, q := range refuse {
				if _, err := tx.Exec(ctx, q); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		l := newLog(db)
		var text strings.Builder
		l.Log = slog.New(slog.NewTextHandler(&text, nil))
		for i := range 20 {
			device := fmt.Sprint("pump-", i)
			if i == 7 {
				device = "poison"
			}
			l.Later(countersign.Event{Type: countersign.ConnectRefused, Device: device, Reason: "what only the event says"})
		}
		stop := running(t, l)
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop()
		if got := len(all(t, l, event.Filter{Type: countersign.ConnectRefused})); got != 19 {
			t.Errorf("%d events were written, want the 19 that the database accepts", got)
		}
		if got := suppressedCount(t, l); got != 1 {
			t.Errorf("%d are counted as suppressed, want 1", got)
		}
		if s := text.String(); !strings.Contains(s, "event not written") || strings.Contains(s, "poison") || strings.Contains(s, "only the event") {
			t.Errorf("the log has %q, want the type of the event alone", s)
		}
	})
}

// heard collects the events of a subscriber.
type heard struct {
	mu     sync.Mutex
	events []countersign.Event
}

func (h *heard) hear(e countersign.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

func (h *heard) count(reason string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(h.events), func(e countersign.Event) bool { return e.Reason != reason }))
}

func TestSubscribersHearAfterCommitOnly(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		var h heard
		l.Subscribe(func(e countersign.Event) {
			if len(all(t, l, event.Filter{})) == 0 {
				t.Error("a subscriber received an event that cannot be read yet")
			}
			h.hear(e)
		})
		boom := errors.New("boom")
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if err := l.Append(ctx, tx, countersign.Event{Type: countersign.DeviceRevoked, Reason: "rolled back"}); err != nil {
				return err
			}
			return boom
		})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		err = db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			if err := l.Append(ctx, tx, countersign.Event{Type: countersign.DeviceRevoked, Reason: "kept"}); err != nil {
				return err
			}
			if h.count("kept") != 0 {
				t.Error("a subscriber was called before the commit")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if h.count("kept") != 1 || h.count("rolled back") != 0 {
			t.Errorf("received %d of the kept event and %d of the other, want 1 and 0", h.count("kept"), h.count("rolled back"))
		}
	})
}

func TestNoticesReachOtherNodesOnce(t *testing.T) {
	url := storetest.PostgresURL(t)
	here, there := newLog(storetest.OpenURL(t, url)), newLog(storetest.OpenURL(t, url)) // of the same Node name, by mistake
	var own, other heard
	here.Subscribe(own.hear)
	there.Subscribe(other.hear)
	if here.Live() {
		t.Error("Live before anything listens")
	}
	running(t, here)
	running(t, there)
	eventually(t, "Live", func() bool { return here.Live() && there.Live() })
	long := strings.Repeat("<", 512) // six octets each in JSON
	appendAll(t, here,
		countersign.Event{Type: countersign.DeviceRevoked, Device: "pump-1", Reason: "stolen", Data: map[string]string{"reason": "keyCompromise"}},
		countersign.Event{Type: countersign.DeviceRevoked, Device: "pump-2", Reason: long, Data: map[string]string{"a": long, "b": long, "c": long}},
		countersign.Event{Type: countersign.SessionOpened, Reason: "nobody's business"},
		countersign.Event{Type: countersign.DeviceSuspendedEv, Reason: "last"},
	)
	eventually(t, "the last notice", func() bool { return other.count("last") == 1 })
	if other.count("stolen") != 1 || other.count("nobody's business") != 0 || other.count("") != 1 {
		t.Errorf("the other node received %+v", other.events)
	}
	if d := cmp.Diff("pump-2", other.events[1].Device); d != "" {
		t.Errorf("a long notice (-want +got):\n%s", d)
	}
	time.Sleep(100 * time.Millisecond) // time for a second copy to arrive
	for _, reason := range []string{"stolen", long, "nobody's business", "last"} {
		if got := own.count(reason); got != 1 {
			t.Errorf("the own node received %.20q %d times, want once", reason, got)
		}
	}
}

// TestMissedNoticesAreMadeUpFor ends the stream of notices and lets another node act. Its
// event must be read from the log before Live reports true again.
func TestMissedNoticesAreMadeUpFor(t *testing.T) {
	url := storetest.PostgresURL(t)
	here, there := newLog(storetest.OpenURL(t, url)), newLog(storetest.OpenURL(t, url))
	var h heard
	there.Subscribe(h.hear)
	appendAll(t, here, countersign.Event{Type: countersign.DeviceRevoked, Reason: "long ago", At: start.Add(-time.Hour)})
	stop := running(t, there)
	eventually(t, "Live", there.Live)
	if h.count("long ago") != 0 {
		t.Error("received an event from before the start")
	}
	err := here.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		// A node that reads the missed events must wait for this transaction.
		if _, err := tx.Exec(ctx, `LOCK TABLE event IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN %'`); err != nil {
			return err
		}
		for deadline := time.Now().Add(patience); there.Live(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				return errors.New("Live stays true without a stream")
			}
		}
		// Without a notice, as one that is lost.
		_, err := tx.Exec(ctx, `INSERT INTO event (at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data)
			VALUES ($1, 'device.revoked', '', 'pump-1', '', '', '', '', '', '', 'missed', '')`, store.Micros(start))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "Live again", there.Live)
	if got := h.count("missed"); got != 1 {
		t.Errorf("received the missed event %d times before Live, want once", got)
	}
	stop()
	if there.Live() {
		t.Error("Live after the end of Run")
	}
}

// TestLostNoticesAreFoundByEventID drops the notices to a node while another one acts, with
// clocks that are more than a minute apart in both directions. Each event
// must be acted on within the bound, once, and the sessions compared with the record
// before Live reports true again.
func TestLostNoticesAreFoundByEventID(t *testing.T) {
	for name, apart := range map[string]time.Duration{"behind": -75 * time.Second, "ahead": 75 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // waits for seconds
			url := storetest.PostgresURL(t)
			proxy := storetest.NewProxy(t, url)
			here, there := newLog(storetest.OpenURL(t, url)), newLog(storetest.OpenURL(t, proxy.URL()))
			there.Now = func() time.Time { return start.Add(apart) }
			var h heard
			there.Subscribe(h.hear)
			var compared atomic.Int32
			there.Reconcile = func(context.Context, string) error { compared.Add(1); return nil }
			running(t, here)
			running(t, there)
			eventually(t, "Live", there.Live)
			for range 3 { // some are sealed, some are not
				appendAll(t, here, countersign.Event{Type: countersign.DeviceRevoked, Device: "pump-0", Reason: "heard"})
				time.Sleep(150 * time.Millisecond)
			}
			proxy.CutNotices()
			eventually(t, "the end of Live", func() bool { return !there.Live() })
			began := time.Now()
			appendAll(t, here, countersign.Event{Type: countersign.DeviceRevoked, Device: "pump-1", Reason: "deaf"})
			eventually(t, "the event", func() bool { return h.count("deaf") > 0 })
			if took := time.Since(began); took > event.CaughtUp {
				t.Errorf("without notices it took %v, want at most %v", took, event.CaughtUp)
			}
			proxy.Cut()
			appendAll(t, here, countersign.Event{Type: countersign.DeviceRevoked, Device: "pump-2", Reason: "cut off"})
			time.Sleep(time.Second) // for it to be sealed
			before := compared.Load()
			began = time.Now()
			proxy.Heal()
			eventually(t, "Live again", there.Live)
			if took := time.Since(began); took > event.CaughtUp {
				t.Errorf("caught up after %v, want at most %v", took, event.CaughtUp)
			}
			if compared.Load() == before {
				t.Error("Live before the sessions were compared with the record")
			}
			time.Sleep(event.CaughtUp) // time for a second copy to arrive
			for reason, want := range map[string]int{"heard": 3, "deaf": 1, "cut off": 1} {
				if got := h.count(reason); got != want {
					t.Errorf("acted on %q %d times, want %d", reason, got, want)
				}
			}
		})
	}
}

// TestNotLiveUntilTheSessionsWereCompared lets the comparison fail: Live must keep reporting
// false.
func TestNotLiveUntilTheSessionsWereCompared(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		l := newLog(db)
		var good atomic.Bool
		good.Store(true)
		var compared atomic.Int32
		l.Reconcile = func(context.Context, string) error {
			compared.Add(1)
			if !good.Load() {
				return errors.New("the record cannot be read")
			}
			return nil
		}
		running(t, l)
		eventually(t, "Live at first", func() bool { return l.Live() && (compared.Load() > 0 || !db.Postgres()) })
		good.Store(false)
		l.Doubt("the clock was set")
		for range 30 {
			if db.Postgres() && l.Live() { // on SQLite no other node can have changed anything
				t.Fatal("Live although the sessions could not be compared")
			}
			time.Sleep(10 * time.Millisecond)
		}
		before := compared.Load()
		good.Store(true)
		eventually(t, "Live", func() bool { return l.Live() && compared.Load() > before })
	})
}

// TestAnOlderStateOfTheDatabaseIsInDoubt sets the log back to an older state while a node
// runs, as a restored backup does: the node has acted on events that are not on record, and
// the next events have sequence numbers that it has seen.
func TestAnOlderStateOfTheDatabaseIsInDoubt(t *testing.T) {
	t.Parallel() // waits for seconds
	url := storetest.PostgresURL(t)
	here, there := newLog(storetest.OpenURL(t, url)), newLog(storetest.OpenURL(t, url))
	var h heard
	there.Subscribe(h.hear)
	why := make(chan string, 99)
	there.Reconcile = func(_ context.Context, reason string) error { why <- reason; return nil }
	stop := running(t, here) // it seals
	running(t, there)
	eventually(t, "Live", there.Live)
	appendAll(t, here, countersign.Event{Type: countersign.DeviceCreated, Device: "pump-1"})
	appendAll(t, here, countersign.Event{Type: countersign.DeviceRevoked, Device: "pump-1", Reason: "before"})
	eventually(t, "the event", func() bool { return h.count("before") == 1 })
	time.Sleep(event.CaughtUp) // it is sealed, and read
	for len(why) > 0 {
		<-why
	}
	err := here.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM event WHERE seq > 1`)
		if err == nil {
			_, err = tx.Exec(ctx, `UPDATE event_head SET seq = 1, hash = (SELECT hash FROM event WHERE seq = 1), id = (SELECT id FROM event WHERE seq = 1)`)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case reason := <-why:
		if !strings.Contains(reason, "the log ends before") {
			t.Errorf("compared because %s", reason)
		}
	case <-time.After(patience):
		t.Fatal("the sessions were not compared with the record")
	}
	eventually(t, "Live again", there.Live)
	stop()
	appendAll(t, here, countersign.Event{Type: countersign.DeviceRevoked, Device: "pump-1", Reason: "after"})
	eventually(t, "the next event", func() bool { return h.count("after") == 1 })
}

// TestOwnEventIsActedOnThoughItsCommitGotNoAnswer loses the answer to COMMIT, and then the
// database, so that the outcome cannot be read: the event is found on record later.
func TestOwnEventIsActedOnThoughItsCommitGotNoAnswer(t *testing.T) {
	t.Parallel() // waits for seconds
	url := storetest.PostgresURL(t)
	proxy := storetest.NewProxy(t, url)
	l := newLog(storetest.OpenURL(t, proxy.URL()))
	var h heard
	l.Subscribe(h.hear)
	cuts := make(chan countersign.Cut, 9)
	l.Cut = func(c countersign.Cut) int { cuts <- c; return 1 }
	running(t, l)
	eventually(t, "Live", l.Live)
	proxy.LoseCommitAndCut("pump-1")
	err := l.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return l.Append(ctx, tx, countersign.Event{Type: countersign.DeviceRevoked, Device: "pump-1", Reason: "stolen"})
	})
	if !store.Unconfirmed(err) {
		t.Fatalf("Write: got %v, want unconfirmed", err)
	}
	if h.count("stolen") != 0 {
		t.Error("acted on before it was known to be on record")
	}
	began := time.Now()
	proxy.Heal()
	select {
	case c := <-cuts:
		if c.Device != "pump-1" {
			t.Errorf("cut: got %+v, want pump-1", c)
		}
	case <-time.After(patience):
		t.Fatal("nothing was cut")
	}
	if took := time.Since(began); took > event.CaughtUp {
		t.Errorf("cut after %v, want at most %v", took, event.CaughtUp)
	}
	eventually(t, "the event", func() bool { return h.count("stolen") > 0 })
}

func TestSQLiteIsAlwaysLive(t *testing.T) {
	if !newLog(storetest.Open(t)).Live() {
		t.Error("the only node does not receive its own events")
	}
}

func TestRunLeavesNoGoroutine(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		before := runtime.NumGoroutine()
		l := newLog(db)
		stop := running(t, l)
		eventually(t, "Live", l.Live)
		l.Later(countersign.Event{Type: countersign.ServerStarted})
		if err := l.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop()
		// Connections of the pool that are kept open have goroutines of their own.
		const pool = 8
		eventually(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before+pool })
		buf := make([]byte, 1<<20)
		if stacks := string(buf[:runtime.Stack(buf, true)]); strings.Contains(stacks, "event.(*Log)") {
			t.Errorf("still running:\n%s", stacks)
		}
	})
}

var ignoreSeal = cmpopts.IgnoreFields(countersign.Event{}, "Seq", "Hash")
