package ca_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// newLog returns the event log of a house, which runs until the test ends.
func (h *house) newLog(t *testing.T) *event.Log {
	t.Helper()
	log := &event.Log{DB: h.db, Now: h.clock.Now, Log: slog.New(slog.DiscardHandler), Node: "test"}
	running(t, log.Run)
	return log
}

// running runs something until the test ends.
func running(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); ended.Wait() })
}

// publisher runs a publisher of the lists of c until the test ends, and its log.
func (h *house) publisher(t *testing.T, c *ca.CA) (*ca.Publisher, *event.Log) {
	t.Helper()
	events := h.newLog(t)
	p := ca.NewPublisher(c, events, slog.New(slog.DiscardHandler))
	running(t, p.Run)
	return p, events
}

func TestPublisherMakesOneListForManyChanges(t *testing.T) {
	h := found(t, storetest.Open(t))
	p, log := h.publisher(t, h.CA)
	p.Changed(ca.IssuingID)
	first := p.Wait(t.Context(), ca.IssuingID)
	const changes = 200
	for i := range changes {
		cert := h.issue(t, ca.ProfileDevice, fmt.Sprint("pump-", i))
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			return h.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
		})
		p.Changed(ca.IssuingID)
	}
	last := p.Wait(t.Context(), ca.IssuingID)
	if l, err := h.CRLRecord(t.Context(), ca.IssuingID, 0); err != nil || l.Number != last || l.Entries != changes {
		t.Errorf("got %+v, %v, want list %d with %d entries", l, err, last, changes)
	}
	if last <= first || last >= first+changes {
		t.Errorf("got list %d after %d and %d changes, want more, and fewer than that", last, first, changes)
	}
	if again := p.Wait(t.Context(), ca.IssuingID); again < last {
		t.Errorf("Wait without a change: got %d, want %d at once", again, last)
	}
	if err := log.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	events, _, err := log.List(t.Context(), event.Filter{Type: countersign.CRLPublished})
	if err != nil || len(events) == 0 || events[0].Data["number"] == "" {
		t.Errorf("got %+v, %v, want each publication on record", events, err)
	}
}

// TestANodeIsNotifiedOfAnotherNodesList: it may have to load the list elsewhere.
func TestANodeIsNotifiedOfAnotherNodesList(t *testing.T) {
	h := found(t, storetest.Open(t))
	h.publish(t)
	events := h.newLog(t)
	var mu sync.Mutex
	var seen []string
	events.Subscribe(func(e countersign.Event) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, string(e.Type)+" "+e.Data["number"])
	})
	p := ca.NewPublisher(h.process(t), events, slog.New(slog.DiscardHandler))
	running(t, p.Run)
	cert := h.issue(t, ca.ProfileDevice, "pump")
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		return h.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
	})
	l, _, err := h.Refresh(t.Context(), ca.IssuingID, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.Changed(ca.IssuingID)
	if n := p.Wait(t.Context(), ca.IssuingID); n != l.Number {
		t.Errorf("got list %d, want %d of the other node", n, l.Number)
	}
	kit.Eventually(t, "the notice", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Contains(seen, fmt.Sprint("crl.published ", l.Number))
	})
}

func TestPublisherWaitEndsWithItsContext(t *testing.T) {
	h := found(t, storetest.Open(t))
	p := ca.NewPublisher(h.CA, h.newLog(t), slog.New(slog.DiscardHandler)) // which does not run
	p.Changed(ca.IssuingID)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if n := p.Wait(ctx, ca.IssuingID); n != 0 {
		t.Errorf("got list %d, which was not published", n)
	}
}

func TestPublisherPublishesWhatIsDueAtTheStart(t *testing.T) {
	h := found(t, storetest.Open(t))
	h.publisher(t, h.CA)
	for _, issuer := range []string{ca.RootID, ca.IssuingID} {
		kit.Eventually(t, "a CRL of "+issuer, func() bool {
			_, err := h.CRL(t.Context(), issuer, 0)
			return err == nil
		})
	}
}

// TestPublisherTriesAgainAndLetsOthersPass takes the key of one authority away:
// its list fails, that of the other does not wait for it, and comes with the key.
func TestPublisherTriesAgainAndLetsOthersPass(t *testing.T) {
	db := storetest.Open(t)
	h := found(t, db)
	dir := t.TempDir()
	keys := &keystore.Store{Dir: dir}
	without, err := ca.Open(t.Context(), ca.Options{DB: db, Keys: keys, Now: h.clock.Now, Log: slog.New(slog.DiscardHandler), StatusURL: "http://status.example.net"})
	if err != nil {
		t.Fatal(err)
	}
	have := h.keys
	copyKey := func(name string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(have, "keys", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "keys", name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	copyKey("issuing.pem")
	p, _ := h.publisher(t, without)
	tried := func() (n int) { // the number is taken before the key is opened
		if err := db.QueryRow(t.Context(), `SELECT number FROM crl WHERE issuer = $1`, ca.RootID).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	begin := time.Now()
	p.Changed(ca.RootID)
	kit.Eventually(t, "the root's list is tried", func() bool { return tried() > 0 })
	p.Changed(ca.IssuingID)
	ctx, cancel := context.WithTimeout(t.Context(), kit.Patience)
	defer cancel()
	if n := p.Wait(ctx, ca.IssuingID); n == 0 {
		t.Error("the issuing authority's list waits for the root's")
	}
	const pause = 5 * time.Second // the publisher's after a failure
	if n := tried(); time.Duration(n-2)*pause > time.Since(begin) {
		t.Errorf("the root's list was tried %d times in %v, want a pause of %v after each failure", n, time.Since(begin), pause)
	}
	copyKey("root.pem")
	ctx, cancel = context.WithTimeout(t.Context(), kit.Patience)
	defer cancel()
	if n := p.Wait(ctx, ca.RootID); n == 0 {
		t.Error("the root's list was not tried again")
	}
}
