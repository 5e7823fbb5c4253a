package ra_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
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
	})
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
		if err := w.WeakKeys.Read(strings.NewReader("# listed\n" + hex.EncodeToString(sum[:])[20:] + "\n")); err != nil {
			t.Fatal(err)
		}
		_, err = w.Enroll(t.Context(), enrollment(t, key, "pump-1", secret))
		wantCode(t, err, countersign.WeakKey)
	})
}
