package ra_test

import (
	"context"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store/storetest"
)

// publish runs a publisher for the world, told of changes as the server tells it.
func (w *world) publish(t *testing.T) (stop func()) {
	t.Helper()
	p := &ra.Publisher{CA: w.CA, Events: w.Events, Log: slog.New(slog.DiscardHandler)}
	w.Events.Subscribe(func(e countersign.Event) {
		switch e.Type {
		case countersign.CertRevokedEv, countersign.CertHeldEv, countersign.CertReplaced, countersign.CertReleased:
			p.Changed(e.Cert.Issuer)
		}
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	w.CRLs = p
	return func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run did not end with its context")
		}
	}
}

func (w *world) crl(t *testing.T) (*x509.RevocationList, int64) {
	t.Helper()
	l, err := w.CA.CRL(t.Context(), ca.IssuingID, 0)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseRevocationList(l.DER)
	if err != nil {
		t.Fatal(err)
	}
	return parsed, l.Number
}

func TestRevokeAnswersWithTheListThatShowsIt(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		defer w.publish(t)()
		for _, id := range []string{"pump-1", "pump-2"} {
			cert := w.active(t, id)
			out, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: id, Reason: countersign.KeyCompromise})
			if err != nil {
				t.Fatal(err)
			}
			list, number := w.crl(t)
			if out.CRLNumber == 0 || out.CRLNumber > number {
				t.Errorf("got CRL number %d, published is %d", out.CRLNumber, number)
			}
			found := false
			for _, e := range list.RevokedCertificateEntries {
				found = found || e.SerialNumber.Cmp(cert.SerialNumber) == 0 && e.ReasonCode == int(countersign.KeyCompromise)
			}
			if !found {
				t.Errorf("CRL %d does not show %s revoked for keyCompromise", number, id)
			}
		}
	})
}

func TestPublisherMakesOneListForManyChanges(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	defer w.publish(t)()
	w.CRLs.Changed(ca.IssuingID)
	first := w.CRLs.Wait(t.Context(), ca.IssuingID)
	const changes = 1000
	for range changes {
		w.CRLs.Changed(ca.IssuingID)
	}
	last := w.CRLs.Wait(t.Context(), ca.IssuingID)
	if last <= first || last > first+changes/10 {
		t.Errorf("got list %d after %d and %d changes, want a few more", last, first, changes)
	}
	if again := w.CRLs.Wait(t.Context(), ca.IssuingID); again < last {
		t.Errorf("Wait without a change: got %d, want %d at once", again, last)
	}
	events := w.events(t, event.Filter{Type: countersign.CRLPublished})
	if len(events) == 0 || events[0].Data["number"] == "" {
		t.Errorf("got %+v, want each publication on record", events)
	}
}

func TestPublisherWaitEndsWithItsContext(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	p := &ra.Publisher{CA: w.CA, Events: w.Events, Log: slog.New(slog.DiscardHandler)} // nobody runs it
	p.Changed(ca.IssuingID)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if n := p.Wait(ctx, ca.IssuingID); n != 0 {
		t.Errorf("got list %d that nobody made", n)
	}
}

func TestPublisherPublishesWhatIsDueAtTheStart(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	defer w.publish(t)()
	deadline := time.Now().Add(10 * time.Second)
	for _, issuer := range []string{ca.RootID, ca.IssuingID} {
		for {
			if _, err := w.CA.CRL(t.Context(), issuer, 0); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: no CRL", issuer)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// TestPublisherTriesAgainAndLetsOthersPass takes the key of one authority away:
// its list fails, that of the other does not wait for it, and comes with the key.
func TestPublisherTriesAgainAndLetsOthersPass(t *testing.T) {
	db := storetest.Open(t)
	w := newWorld(t, db)
	dir := t.TempDir()
	keys := &keystore.Store{Dir: dir}
	without, err := ca.Open(t.Context(), ca.Options{DB: db, Keys: keys, Now: w.clock.Now, Log: w.Log, StatusURL: "http://status.example.net"})
	if err != nil {
		t.Fatal(err)
	}
	have := w.CA.Keys.Dir
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
	w.CA = without
	defer w.publish(t)()
	w.CRLs.Changed(ca.RootID)
	time.Sleep(100 * time.Millisecond) // it fails meanwhile
	w.CRLs.Changed(ca.IssuingID)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if n := w.CRLs.Wait(ctx, ca.IssuingID); n == 0 {
		t.Error("the issuing authority's list waits for the root's")
	}
	var tried int
	if err := db.QueryRow(t.Context(), `SELECT number FROM crl WHERE issuer = $1`, ca.RootID).Scan(&tried); err != nil || tried > 2 {
		t.Errorf("the root's list was tried %d times at once, %v, want a rest after each failure", tried, err)
	}
	copyKey("root.pem")
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if n := w.CRLs.Wait(ctx, ca.RootID); n == 0 {
		t.Error("the root's list was not tried again")
	}
}
