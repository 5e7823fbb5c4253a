package server_test

import (
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/test/kit"
)

// keyWith makes an RSA key that has p as one of its primes.
func keyWith(t *testing.T, p *big.Int) *rsa.PrivateKey {
	t.Helper()
	e, one := big.NewInt(65537), big.NewInt(1)
	for {
		q, err := rand.Prime(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		d := new(big.Int).ModInverse(e, new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one)))
		n := new(big.Int).Mul(p, q)
		if d == nil || n.BitLen() != 2048 {
			continue
		}
		k := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: 65537}, D: d, Primes: []*big.Int{p, q}}
		k.Precompute()
		return k
	}
}

// TestAnAuditFindsKeysThatShareAPrime enrolls two devices with such keys and one without
// and has the running server audit itself.
func TestAnAuditFindsKeysThatShareAPrime(t *testing.T) {
	s := countersigntest.Start(t)
	p, err := rand.Prime(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	sound, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for device, key := range map[string]*rsa.PrivateKey{"pump-1": keyWith(t, p), "pump-2": keyWith(t, p), "pump-3": sound} {
		_, err := sdk.Enroll(t.Context(), sdk.Enrollment{
			Server: s.Endpoints().Enroll, Roots: s.Roots, Device: device, Token: s.Token(t, api.NewToken{Device: device}), Key: key,
		})
		if err != nil {
			t.Fatalf("enroll %s: %v", device, err)
		}
	}
	run, err := s.Admin.StartAudit(t.Context(), api.NewAudit{})
	if err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "the end of the audit", func() bool {
		got, err := s.Admin.Audit(t.Context(), run.ID)
		return err == nil && got.State != "IN_PROGRESS"
	})
	found := map[string]bool{}
	for f, err := range s.Admin.AuditFindings(t.Context(), run.ID, api.AuditFindingFilter{}) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Reason == "CERTIFICATE_KEY_SHARES_PRIME" {
			found[f.Device] = true
		}
	}
	if len(found) != 2 || !found["pump-1"] || !found["pump-2"] {
		t.Errorf("got findings about %v, want pump-1 and pump-2", found)
	}
}
