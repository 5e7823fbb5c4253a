package ca_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"log/slog"
	"math/big"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// rsaWith makes an RSA key that has p as one of its primes.
func rsaWith(t *testing.T, p *big.Int) *rsa.PrivateKey {
	t.Helper()
	e := big.NewInt(65537)
	for {
		q, err := rand.Prime(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		one := big.NewInt(1)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(e, phi)
		n := new(big.Int).Mul(p, q)
		if d == nil || n.BitLen() != 2048 {
			continue
		}
		k := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: 65537}, D: d, Primes: []*big.Int{p, q}}
		k.Precompute()
		if err := k.Validate(); err != nil {
			t.Fatal(err)
		}
		return k
	}
}

// issueRSA makes and records a certificate of an RSA key.
func (h *house) issueRSA(t *testing.T, device string, key *rsa.PrivateKey) countersign.Certificate {
	t.Helper()
	o := h.order(t, ca.ProfileDevice, device)
	o.PublicKey = &key.PublicKey
	issued := h.sign(t, o)
	h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.Record(ctx, tx, issued) })
	return issued.Certificate
}

// findings returns on which devices a shared prime was reported, and how often.
func findings(t *testing.T, log *event.Log) map[string]int {
	t.Helper()
	if err := log.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, _, err := log.List(t.Context(), event.Filter{Type: countersign.FindingSharedFactor, Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, e := range list {
		got[e.Device]++
	}
	return got
}

func TestSharedPrimesAlertOnBothDevices(t *testing.T) {
	p, err := rand.Prime(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	a, b := rsaWith(t, p), rsaWith(t, p)
	c, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		log := h.newLog(t)
		var first countersign.Certificate
		for id, key := range map[string]*rsa.PrivateKey{"pump-a": a, "pump-b": b, "pump-c": c} {
			if cert := h.issueRSA(t, id, key); id == "pump-a" {
				first = cert
			}
		}
		check := ca.NewPrimeCheck(h.CA, log, slog.New(slog.DiscardHandler))
		if n, err := check.Compare(t.Context()); err != nil || n != 1 {
			t.Fatalf("Compare: got %d, %v, want 1 pair", n, err)
		}
		if got := findings(t, log); len(got) != 2 || got["pump-a"] != 1 || got["pump-b"] != 1 {
			t.Errorf("findings: got %v, want one each on pump-a and pump-b", got)
		}
		pairs, err := check.Pairs(t.Context())
		if err != nil || len(pairs) != 1 || pairs[0][0].Device == pairs[0][1].Device {
			t.Errorf("Pairs: got %v, %v, want the pair of two devices", pairs, err)
		}
		// A process that starts later compares all anew and reports nothing twice.
		after := ca.NewPrimeCheck(h.process(t), log, slog.New(slog.DiscardHandler))
		if n, err := after.Compare(t.Context()); err != nil || n != 1 {
			t.Errorf("Compare of another process: got %d, %v, want 1", n, err)
		}
		if got := findings(t, log); got["pump-a"] != 1 || got["pump-b"] != 1 {
			t.Errorf("got findings %v after another process looked, want still one each", got)
		}
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			return h.Revoke(ctx, tx, &first, countersign.KeyCompromise)
		})
		if pairs, err := check.Pairs(t.Context()); err != nil || len(pairs) != 0 {
			t.Errorf("Pairs after a revocation: got %v, %v, want none that is usable", pairs, err)
		}
	})
}

// TestANewKeyIsComparedSoon: a key that shares a prime is found when it arrives, not
// at the next look at all of them.
func TestANewKeyIsComparedSoon(t *testing.T) {
	p, err := rand.Prime(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	h := found(t, storetest.Open(t))
	log := h.newLog(t)
	check := ca.NewPrimeCheck(h.CA, log, slog.New(slog.DiscardHandler))
	running(t, check.Run)
	for _, id := range []string{"pump-a", "pump-b"} {
		h.issueRSA(t, id, rsaWith(t, p))
	}
	kit.Eventually(t, "the finding on both devices", func() bool { return len(findings(t, log)) == 2 })
}
