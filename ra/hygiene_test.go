package ra_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
	"github.com/countersign-iot/countersign/weakkey"
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

func TestSharedFactorsAlertOnBothDevices(t *testing.T) {
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
		w := newWorld(t, db)
		secret := w.token(t, registry.Credential{UsesMax: 3})
		for id, key := range map[string]*rsa.PrivateKey{"pump-a": a, "pump-b": b, "pump-c": c} {
			if _, err := w.Enroll(t.Context(), enrollment(t, key, id, secret)); err != nil {
				t.Fatal(err)
			}
		}
		n, err := w.SharedFactors(t.Context())
		if err != nil || n != 1 {
			t.Fatalf("SharedFactors: got %d, %v, want 1 pair", n, err)
		}
		list, _, err := w.Events.List(t.Context(), event.Filter{Type: countersign.FindingSharedFactor, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, e := range list {
			got[e.Device] = true
		}
		if len(list) != 2 || !got["pump-a"] || !got["pump-b"] {
			t.Errorf("findings: got %v, want one each on pump-a and pump-b", got)
		}
		pairs, err := w.SharedKeys(t.Context())
		if err != nil || len(pairs) != 1 || pairs[0][0].Device == pairs[0][1].Device {
			t.Errorf("SharedKeys: got %v, %v, want the pair of two devices", pairs, err)
		}
		// A process that starts later compares all anew and says nothing twice.
		after := w.neighbor(t, 0)
		if n, err := after.SharedFactors(t.Context()); err != nil || n != 1 {
			t.Errorf("SharedFactors of another process: got %d, %v, want 1", n, err)
		}
		if found := w.events(t, event.Filter{Type: countersign.FindingSharedFactor}); len(found) != 2 {
			t.Errorf("got %d findings after another process looked, want still 2", len(found))
		}
		if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-a", Reason: countersign.KeyCompromise}); err != nil {
			t.Fatal(err)
		}
		if pairs, err := w.SharedKeys(t.Context()); err != nil || len(pairs) != 0 {
			t.Errorf("SharedKeys after a revocation: got %v, %v, want none that is usable", pairs, err)
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
	w := newWorld(t, storetest.Open(t))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	secret := w.token(t, registry.Credential{UsesMax: 2})
	for _, id := range []string{"pump-a", "pump-b"} {
		if _, err := w.Enroll(t.Context(), enrollment(t, rsaWith(t, p), id, secret)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); len(w.events(t, event.Filter{Type: countersign.FindingSharedFactor})) != 2; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("two keys that share a prime were not found")
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestEnrollRefusesAListedWeakKey(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		secret := w.token(t, registry.Credential{})
		// The form of openssl-blacklist: the last 20 hex digits of the SHA-1 of this line.
		sum := sha1.Sum(fmt.Appendf(nil, "Modulus=%X\n", key.N))
		w.CA.WeakKeys = &weakkey.Blocklist{}
		if err := w.CA.WeakKeys.Read(strings.NewReader("# listed\n" + hex.EncodeToString(sum[:])[20:] + "\n")); err != nil {
			t.Fatal(err)
		}
		_, err = w.Enroll(t.Context(), enrollment(t, key, "pump-1", secret))
		kit.WantCode(t, err, countersign.WeakKey)
	})
}
