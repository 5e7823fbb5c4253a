package attest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
)

// maker is a manufacturer of our own, for certificates that swtpm's would not issue.
type maker struct {
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newMaker(t *testing.T, usages ...asn1.ObjectIdentifier) maker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "maker"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, UnknownExtKeyUsage: usages,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return maker{root, key}
}

func (m maker) issue(t *testing.T, pub any, change func(*x509.Certificate)) []byte {
	t.Helper()
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: tpmName(t)}})
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, m.root, pub, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func tpmName(t *testing.T) []byte {
	t.Helper()
	der, err := asn1.Marshal(pkix.RDNSequence{
		{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: "id:49465800"}},
		{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 2}, Value: "SLB9670"}},
		{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 3}, Value: "id:0007"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestEKCertificateIsJudged(t *testing.T) {
	chip, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	another, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := attest.EKArea(chip.Public())
	if err != nil {
		t.Fatal(err)
	}
	trusted, untrusted, tls := newMaker(t), newMaker(t), newMaker(t, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 10, 3, 4})
	unknown := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}
	for name, tt := range map[string]struct {
		by     maker
		pub    any
		change func(*x509.Certificate)
		code   countersign.Code
	}{
		"good":                  {by: trusted, pub: chip.Public()},
		"of another EK":         {trusted, another.Public(), nil, countersign.Misconfigured},
		"untrusted":             {untrusted, chip.Public(), nil, countersign.CertUnknown},
		"expired":               {trusted, chip.Public(), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, countersign.CertExpired},
		"not yet valid":         {trusted, chip.Public(), func(c *x509.Certificate) { c.NotBefore = time.Now().Add(2 * countersign.ClockSkew) }, countersign.CertNotYetValid},
		"no EKU":                {trusted, chip.Public(), func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil }, countersign.Misconfigured},
		"another usage":         {trusted, chip.Public(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, countersign.Misconfigured},
		"a CA":                  {trusted, chip.Public(), func(c *x509.Certificate) { c.IsCA = true }, countersign.Misconfigured},
		"unknown critical":      {trusted, chip.Public(), func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, unknown) }, countersign.Misconfigured},
		"malformed SAN":         {trusted, chip.Public(), func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{0x30, 4, 0xa4, 2, 5, 0} }, countersign.Misconfigured},
		"CA for something else": {tls, chip.Public(), nil, countersign.Misconfigured},
	} {
		t.Run(name, func(t *testing.T) {
			ev := attest.TPMEvidence{EKPublic: ek, AKPublic: softAK(t, nil), EKCertificate: tt.by.issue(t, tt.pub, tt.change)}
			anchors := []attest.Anchor{{Certificate: trusted.root}}
			if tt.by == tls {
				anchors = append(anchors, attest.Anchor{Certificate: tls.root})
			}
			got, err := attest.IdentifyTPM(ev, attest.TPMOptions{Anchors: anchors, Now: time.Now()})
			if code := countersign.CodeOf(err); code != tt.code {
				t.Fatalf("got %q %v, want %q", code, err, tt.code)
			}
			if err == nil && got.Model != (attest.TPMModel{Manufacturer: "id:49465800", Model: "SLB9670", Version: "id:0007"}) {
				t.Errorf("got %+v", got.Model)
			}
		})
	}
}

// TestEKCertificateMayNameOAEP covers chips whose maker names the key's algorithm
// id-RSAES-OAEP, which crypto/x509 leaves unread.
func TestEKCertificateMayNameOAEP(t *testing.T) {
	chip, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := attest.EKArea(chip.Public())
	if err != nil {
		t.Fatal(err)
	}
	m := newMaker(t)
	plain := m.issue(t, chip.Public(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	ev := attest.TPMEvidence{EKPublic: ek, AKPublic: softAK(t, nil), EKCertificate: m.renameKey(t, plain)}
	if c, err := x509.ParseCertificate(ev.EKCertificate); err != nil || c.PublicKey != nil {
		t.Fatalf("crypto/x509 reads the key now: %v", err)
	}
	o := attest.TPMOptions{Anchors: []attest.Anchor{{Certificate: m.root}}, Now: time.Now()}
	if _, err := attest.IdentifyTPM(ev, o); err != nil {
		t.Errorf("IdentifyTPM: %v", err)
	}
	another, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if ev.EKPublic, err = attest.EKArea(another.Public()); err != nil {
		t.Fatal(err)
	}
	_, err = attest.IdentifyTPM(ev, o)
	refused(t, err, countersign.Misconfigured, "for another endorsement key")
}

// renameKey issues the certificate again with rsaEncryption renamed to id-RSAES-OAEP.
func (m maker) renameKey(t *testing.T, der []byte) []byte {
	t.Helper()
	var c struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &c); err != nil {
		t.Fatal(err)
	}
	rsaEncryption := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1}
	oaep := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 7}
	c.TBS = asn1.RawValue{FullBytes: bytes.Replace(c.TBS.FullBytes, rsaEncryption, oaep, 1)}
	digest := sha256.Sum256(c.TBS.FullBytes)
	signature, err := m.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	c.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	renamed, err := asn1.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return renamed
}
