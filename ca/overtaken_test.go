package ca_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// interrupted opens a process of the installation that calls numbered once, after it has
// taken the number of a list of the issuer, and signing before it signs one of the root.
func (h *house) interrupted(t *testing.T, issuer string, numbered, signing func()) *ca.CA {
	t.Helper()
	number := func() (n int64) {
		if err := h.db.QueryRow(t.Context(), `SELECT number FROM crl WHERE issuer = $1`, issuer).Scan(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	before := number()
	return kit.Must(ca.Open(t.Context(), ca.Options{
		DB: h.db, Keys: &keystore.Store{Dir: h.keys}, Log: slog.New(slog.DiscardHandler), StatusURL: "http://ca.example.net:8090",
		Now: func() time.Time {
			if f := numbered; f != nil && number() != before {
				numbered = nil
				f()
			}
			return h.clock.Now()
		},
		Passphrase: func() ([]byte, error) {
			if signing != nil {
				signing()
			}
			return nil, nil
		},
	}))
}

// certificates puts active certificates of an issuer on record.
func (h *house) certificates(t *testing.T, issuer string, serials ...countersign.Serial) (list []countersign.Certificate) {
	t.Helper()
	for _, serial := range serials {
		c := countersign.Certificate{Serial: serial, Issuer: issuer, State: countersign.CertActive, NotAfter: start.Add(time.Hour)}
		h.put(t, c)
		list = append(list, c)
	}
	return list
}

func (h *house) revoke(t *testing.T, cert *countersign.Certificate) {
	t.Helper()
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		return h.Revoke(ctx, tx, cert, countersign.KeyCompromise)
	})
}

// entriesOn returns how many certificates are on the list of an issuer, and its number.
func (h *house) entriesOn(t *testing.T, issuer string) (n int, number int64) {
	t.Helper()
	l, err := h.process(t).CRL(t.Context(), issuer, 0)
	if err != nil {
		t.Fatalf("CRL: %v", err)
	}
	return l.Entries, l.Number
}

// TestAListShowsWhatThoseWithLowerNumbersShowed: while one process makes the list anew,
// another, whose number is lower, publishes a revocation that is not on the list made anew.
func TestAListShowsWhatThoseWithLowerNumbersShowed(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		if _, err := h.Publish(t.Context(), ca.RootID, 0); err != nil {
			t.Fatal(err)
		}
		certs := h.certificates(t, ca.RootID, "11", "12")
		h.revoke(t, &certs[0])
		reading, recorded, done := make(chan struct{}), make(chan struct{}), make(chan error)
		anew := h.interrupted(t, ca.RootID, nil, func() { close(reading); <-recorded })
		follows := h.interrupted(t, ca.RootID, func() {
			go func() {
				_, err := anew.Publish(context.WithoutCancel(t.Context()), ca.RootID, 0)
				done <- err
			}()
			<-reading
			h.revoke(t, &certs[1])
		}, nil)
		_, _, err := follows.Refresh(t.Context(), ca.RootID, 0)
		close(recorded)
		if err := <-done; err != nil {
			t.Fatalf("Publish: %v", err)
		}
		if err != nil {
			t.Fatalf("Refresh: %v", err)
		}
		if _, _, err := h.process(t).Refresh(t.Context(), ca.RootID, 0); err != nil {
			t.Fatalf("Refresh: %v", err)
		}
		if n, _ := h.entriesOn(t, ca.RootID); n != 2 {
			t.Errorf("got %d entries, want both", n)
		}
	})
}

// TestRefreshReturnsTheListOnRecord: a list that another process overtook never was one.
func TestRefreshReturnsTheListOnRecord(t *testing.T) {
	for name, age := range map[string]time.Duration{"follows": 0, "anew": 13 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			h := found(t, storetest.Open(t))
			h.publish(t)
			certs := h.certificates(t, ca.IssuingID, "11")
			h.revoke(t, &certs[0])
			h.clock.Advance(age)
			slow := h.interrupted(t, ca.IssuingID, func() {
				if _, _, err := h.Refresh(t.Context(), ca.IssuingID, 0); err != nil {
					t.Error(err)
				}
			}, nil)
			l, published, err := slow.Refresh(t.Context(), ca.IssuingID, 0)
			if err != nil {
				t.Fatal(err)
			}
			if n, number := h.entriesOn(t, ca.IssuingID); n != 1 || l.Number != number || published {
				t.Errorf("got list %d, published %t, want that on record, %d, which another process published; it has %d entries", l.Number, published, number, n)
			}
		})
	}
}

// TestAListWithoutAChunkIsMadeAnew: the database lost one, as a failover in the middle of a
// publication may have it.
func TestAListWithoutAChunkIsMadeAnew(t *testing.T) {
	h := found(t, storetest.Open(t))
	certs := h.certificates(t, ca.IssuingID, "11")
	h.revoke(t, &certs[0])
	h.publish(t)
	for _, q := range []string{`DELETE FROM crl_chunk`, `UPDATE crl_chunk SET n = 2`} { // or has it damaged
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, q)
			return err
		})
		if _, published, err := h.process(t).Refresh(t.Context(), ca.IssuingID, 0); err != nil || !published {
			t.Fatalf("%s: Refresh: got published %t, %v, want a new list", q, published, err)
		}
		if n, _ := h.entriesOn(t, ca.IssuingID); n != 1 {
			t.Errorf("%s: got %d entries, want one", q, n)
		}
	}
}

// TestAnEmptyListOfAnEarlierVersionIsMadeAnew: that version noted no changes, and may have
// ended before it published one.
func TestAnEmptyListOfAnEarlierVersionIsMadeAnew(t *testing.T) {
	h := found(t, storetest.Open(t))
	old, _ := h.publish(t)
	h.failOver(t, old)
	h.put(t, countersign.Certificate{Serial: "11", Issuer: ca.IssuingID, State: countersign.CertRevoked, NotAfter: start.Add(time.Hour), RevokedAt: start})
	c := h.process(t)
	if _, fresh, got := h.refresh(t, c, c); !fresh || len(got) != 1 {
		t.Errorf("got fresh %t, entries %v, want the revoked one", fresh, got)
	}
}

// TestNoChangesAreLeftOfAuthoritiesWithoutAList: nothing would ever remove them.
func TestNoChangesAreLeftOfAuthoritiesWithoutAList(t *testing.T) {
	h := found(t, storetest.Open(t))
	certs := h.certificates(t, "maker", "11")
	h.revoke(t, &certs[0])
	if n := countRows(t, h.db, "crl_change"); n != 0 {
		t.Errorf("changes on record: got %d, want none", n)
	}
}

// TestAListWithChangesIsDue: the process that was to publish them has ended, and that of
// a root is not looked at otherwise for half of its life.
func TestAListWithChangesIsDue(t *testing.T) {
	h := found(t, storetest.Open(t))
	h.publish(t)
	certs := h.certificates(t, ca.IssuingID, "11")
	h.revoke(t, &certs[0])
	if !h.isDue(t, h.process(t)) {
		t.Error("the list is not due, and a revocation is not on it")
	}
}
