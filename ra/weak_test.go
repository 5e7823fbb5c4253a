package ra_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
	"github.com/countersign-iot/countersign/weakkey"
)

func bigPrime(t *testing.T, bits int) *big.Int {
	t.Helper()
	p, err := rand.Prime(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// rocaPrime makes a prime as the library of CVE-2017-15361 did.
func rocaPrime(t *testing.T) *big.Int {
	t.Helper()
	const bits = 1024
	m := big.NewInt(1)
	for i := int64(2); i <= 701; i++ {
		if big.NewInt(i).ProbablyPrime(10) {
			m.Mul(m, big.NewInt(i))
		}
	}
	low := new(big.Int).Lsh(big.NewInt(3), bits-2) // the product of two has 2048 bits
	for {
		a, err := rand.Int(rand.Reader, m)
		if err != nil {
			t.Fatal(err)
		}
		k, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-2-m.BitLen())))
		if err != nil {
			t.Fatal(err)
		}
		k.Add(k, new(big.Int).Div(low, m))
		p := new(big.Int).Exp(big.NewInt(65537), a, m)
		if p.Add(p, k.Mul(k, m)); p.BitLen() == bits && p.ProbablyPrime(10) {
			return p
		}
	}
}

// product is a modulus of 2048 bits with p for a factor.
func product(t *testing.T, p *big.Int) *big.Int {
	t.Helper()
	for {
		if n := new(big.Int).Mul(p, bigPrime(t, 2048-p.BitLen())); n.BitLen() == 2048 {
			return n
		}
	}
}

// weakKeys are one key for each kind of weakness, and the list that knows one of them.
func weakKeys(t *testing.T) (map[string]crypto.PublicKey, *weakkey.Blocklist) {
	t.Helper()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	sound, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	close := bigPrime(t, 1024)
	next := new(big.Int).Add(close, big.NewInt(2))
	for !next.ProbablyPrime(10) {
		next.Add(next, big.NewInt(2))
	}
	debian, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha1.Sum(fmt.Appendf(nil, "Modulus=%X\n", debian.N))
	list := &weakkey.Blocklist{}
	if err := list.Read(strings.NewReader(hex.EncodeToString(sum[:])[20:])); err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tiny, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), append(make([]byte, 31), 2))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(nil) // its key is part of Go
	server.Close()
	return map[string]crypto.PublicKey{
		"RSA of 1024 bits": &small.PublicKey,
		"exponent 1":       &rsa.PublicKey{N: sound.N, E: 1},
		"even exponent":    &rsa.PublicKey{N: sound.N, E: 65536},
		"ROCA":             &rsa.PublicKey{N: new(big.Int).Mul(rocaPrime(t), rocaPrime(t)), E: 65537},
		"close primes":     &rsa.PublicKey{N: new(big.Int).Mul(close, next), E: 65537},
		"small factor":     &rsa.PublicKey{N: product(t, big.NewInt(65521)), E: 65537},
		"on the list":      &debian.PublicKey,
		"published":        server.Certificate().PublicKey,
		"P-224":            &p224.PublicKey,
		"tiny private key": &tiny.PublicKey,
	}, list
}

// request is a PKCS #10 request for a key whose private half is not at hand. That the
// signature is none is found out after the key.
func request(t *testing.T, pub crypto.PublicKey, cn string) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	subject, err := asn1.Marshal(pkix.Name{CommonName: cn}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		Info struct {
			Version    int
			Subject    asn1.RawValue
			Key        asn1.RawValue
			Attributes asn1.RawValue
		}
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		Info: struct {
			Version    int
			Subject    asn1.RawValue
			Key        asn1.RawValue
			Attributes asn1.RawValue
		}{0, asn1.RawValue{FullBytes: subject}, asn1.RawValue{FullBytes: spki}, asn1.RawValue{FullBytes: []byte{0xa0, 0}}},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
		Signature: asn1.BitString{Bytes: make([]byte, 64), BitLength: 512},
	})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestNoDoorTakesAWeakKey holds every door through which a public key enters against
// every kind of weakness.
func TestNoDoorTakesAWeakKey(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	keys, list := weakKeys(t)
	w.CA.WeakKeys = list
	m := newMaker(t, w.Now())
	w.registers(t, ca.Registration{ID: "maker", Certificate: m.cert.Raw})
	w.rules(t, "default", countersign.Rules{Authorities: []string{"maker"}, TPMID: true})
	holder := w.active(t, "holder")
	enroll := func(csr []byte, ev countersign.Evidence) error {
		_, err := w.Enroll(t.Context(), countersign.EnrollRequest{CSR: csr, Evidence: ev, Door: "test", Remote: remote})
		return err
	}
	below := func(pub crypto.PublicKey, tmpl x509.Certificate) *x509.Certificate {
		tmpl.NotBefore, tmpl.NotAfter = w.Now().Add(-time.Hour), w.Now().Add(time.Hour)
		return m.sign(t, &tmpl, pub)
	}
	authority := x509.Certificate{
		Subject: pkix.Name{CommonName: "weak CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte("weak"),
	}
	register := func(cert *x509.Certificate, intermediates ...[]byte) error {
		_, err := w.provisioner().RegisterAuthority(t.Context(), ca.Registration{ID: "weak", Certificate: cert.Raw, Intermediates: intermediates, Override: true}, boss)
		return err
	}
	for name, door := range map[string]func(pub crypto.PublicKey) error{
		"enroll": func(pub crypto.PublicKey) error {
			return enroll(request(t, pub, "pump-1"), countersign.Evidence{Token: w.token(t, registry.Credential{})})
		},
		"renew": func(pub crypto.PublicKey) error {
			_, err := w.Reenroll(t.Context(), countersign.EnrollRequest{CSR: request(t, pub, "holder"), Evidence: peer(holder), Door: "test", Remote: remote})
			return err
		},
		"claim": func(pub crypto.PublicKey) error {
			_, err := w.provisioner().CreateClaim(t.Context(), registry.Credential{UsesMax: 1, ExpiresAt: w.Now().Add(time.Hour)}, request(t, pub, "claim"), false, boss)
			return err
		},
		"factory certificate": func(pub crypto.PublicKey) error {
			leaf := below(pub, x509.Certificate{Subject: pkix.Name{CommonName: "pump-2"}, KeyUsage: x509.KeyUsageDigitalSignature})
			return enroll(kit.CSR(t, kit.Key(t), "pump-2"), peer(leaf))
		},
		"factory certificate, first connection": func(pub crypto.PublicKey) error {
			leaf := below(pub, x509.Certificate{Subject: pkix.Name{CommonName: "pump-3"}, KeyUsage: x509.KeyUsageDigitalSignature})
			w.rules(t, "default", countersign.Rules{Authorities: []string{"maker"}, Connect: true})
			v := w.Admit(t.Context(), countersign.Connection{Gateway: "test", Remote: remote, Peer: []*x509.Certificate{leaf}})
			w.rules(t, "default", countersign.Rules{Authorities: []string{"maker"}, TPMID: true})
			if v.Allow {
				return nil
			}
			return &countersign.Error{Code: v.Code, Message: v.Reason}
		},
		"intermediate of a factory": func(pub crypto.PublicKey) error {
			mid, other := below(pub, authority), newMaker(t, w.Now())
			parent := *mid
			parent.PublicKey = nil
			other.cert = &parent // signs with a key of its own: the path would fail later
			leaf := other.device(t, "pump-4", w.Now())
			return enroll(kit.CSR(t, kit.Key(t), "pump-4"), peer(leaf, mid))
		},
		"registered authority": func(pub crypto.PublicKey) error {
			root := authority
			root.NotBefore, root.NotAfter, root.SerialNumber = w.Now().Add(-time.Hour), w.Now().Add(time.Hour), big.NewInt(9)
			der, err := x509.CreateCertificate(rand.Reader, &root, &root, pub, kit.Key(t))
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			return register(cert)
		},
		"intermediate that is registered": func(pub crypto.PublicKey) error { return register(m.cert, below(pub, authority).Raw) },
		"self-signed certificate": func(pub crypto.PublicKey) error {
			tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "self"}, NotBefore: w.Now().Add(-time.Hour), NotAfter: w.Now().Add(time.Hour)}
			der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, kit.Key(t))
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			c, err := w.provisioner().CreateThumbprint(t.Context(), registry.Credential{Device: "pump-5"}, thumb(cert), "", boss)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if _, _, err := w.provisioner().StopCredential(t.Context(), c.ID, "tried", boss); err != nil {
					t.Fatal(err)
				}
			}()
			return enroll(kit.CSR(t, kit.Key(t), "pump-5"), peer(cert))
		},
		"endorsement key that is registered": func(pub crypto.PublicKey) error {
			area, err := attest.EKArea(pub)
			if err != nil {
				return err
			}
			_, err = w.provisioner().CreateTPM(t.Context(), registry.Credential{Device: "pump-6"}, area, "", boss)
			return err
		},
		"endorsement key": func(pub crypto.PublicKey) error {
			area, err := attest.EKArea(pub)
			if err != nil {
				return err
			}
			_, err = w.ChallengeTPM(t.Context(), api.TPMIdentity{EKPublic: area, AKPublic: []byte{1}}, remote)
			return err
		},
	} {
		for kind, pub := range keys {
			if err := door(pub); countersign.CodeOf(err) != countersign.WeakKey {
				t.Errorf("%s, %s: got %v, want weak_key", name, kind, err)
			}
		}
	}
	if dev := w.device(t, "holder"); dev.State != countersign.DeviceActive {
		t.Errorf("the renewing device is %s, want active", dev.State)
	}
}
