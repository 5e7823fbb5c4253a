package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// foreign makes a CA that is not ours; the zero parent signs itself.
func foreign(t *testing.T, now time.Time, change func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := kit.Key(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Foreign"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(9999 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der), key
}

// over signs a verification certificate over a code.
func over(t *testing.T, code string, by *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: code}, NotBefore: by.NotBefore, NotAfter: by.NotAfter,
	}, by, &kit.Key(t).PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRegisterWantsProofOfPossession(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		cert, key := foreign(t, start, nil)
		stranger, strangerKey := foreign(t, start, nil)
		code := func() (c string) {
			h.write(t, func(ctx context.Context, tx *store.Tx) (err error) {
				c, _, err = h.NewRegistrationCode(ctx, tx, "operator:o")
				return err
			})
			return c
		}
		register := func(id string, der, verification []byte) error {
			return db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := h.Register(ctx, tx, ca.Registration{ID: id, Certificate: der, Verification: verification})
				return err
			})
		}
		first := code()
		kit.WantCode(t, register("maker", cert.Raw, nil), countersign.Unauthenticated)
		kit.WantCode(t, register("maker", cert.Raw, []byte("x")), countersign.BadRequest)
		kit.WantCode(t, register("maker", cert.Raw, over(t, "countersign-made-up", cert, key)), countersign.BadCredential)
		kit.WantCode(t, register("maker", cert.Raw, over(t, "", cert, key)), countersign.BadCredential)
		kit.WantCode(t, register("maker", cert.Raw, over(t, first, stranger, strangerKey)), countersign.BadSignature)
		kit.WantCode(t, register("Bad Name", cert.Raw, over(t, first, cert, key)), countersign.BadRequest)
		if err := register("maker", cert.Raw, over(t, first, cert, key)); err != nil {
			t.Fatalf("the right code: %v", err)
		}
		kit.WantCode(t, register("again", cert.Raw, over(t, first, cert, key)), countersign.BadCredential) // used
		second := code()
		kit.WantCode(t, register("maker", cert.Raw, over(t, second, cert, key)), countersign.Conflict)
		if err := register("another", cert.Raw, over(t, second, cert, key)); err != nil {
			t.Errorf("a refused registration cost the code: %v", err)
		}
		third := over(t, code(), cert, key)
		errs := make(chan error, 4)
		for i := range cap(errs) {
			go func() { errs <- register("race-"+string(rune('a'+i)), cert.Raw, third) }()
		}
		won := 0
		for range cap(errs) {
			if err := <-errs; err == nil {
				won++
			} else {
				kit.WantCode(t, err, countersign.BadCredential)
			}
		}
		if won != 1 {
			t.Errorf("one code registered %d authorities", won)
		}
		late := over(t, code(), cert, key)
		h.clock.Advance(8 * 24 * time.Hour)
		kit.WantCode(t, register("late", cert.Raw, late), countersign.BadCredential)
	})
}

func TestRegisterRefusesWhatIsNoCA(t *testing.T) {
	h := found(t, storetest.Open(t))
	for name, change := range map[string]func(*x509.Certificate){
		"end entity": func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature },
		"usage":      func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign },
		"expired":    func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Minute) },
		"early":      func(c *x509.Certificate) { c.NotBefore = start.Add(2 * countersign.ClockSkew) },
	} {
		cert, _ := foreign(t, start, change)
		err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := h.Register(ctx, tx, ca.Registration{ID: "maker", Certificate: cert.Raw, Override: true})
			return err
		})
		if c := countersign.CodeOf(err); c != countersign.BadRequest && c != countersign.CertExpired && c != countersign.CertNotYetValid {
			t.Errorf("%s: got %v", name, err)
		}
	}
	cert, _ := foreign(t, start, nil)
	for name, g := range map[string]ca.Registration{
		"intermediate": {Intermediates: [][]byte{{1}}}, "list": {CRLs: [][]byte{{1}}}, "many": {Intermediates: make([][]byte, 17)},
	} {
		g.ID, g.Certificate, g.Override = "maker", cert.Raw, true
		err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := h.Register(ctx, tx, g)
			return err
		})
		if err == nil || countersign.CodeOf(err) == countersign.Internal {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
}
