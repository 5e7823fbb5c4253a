package attest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/attest"
)

// today is when all paths of these tests are validated.
var today = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// tbsCertificate is RFC 5280, 4.1, open to every kind of tampering.
type tbsCertificate struct {
	Version    int `asn1:"optional,explicit,default:0,tag:0"`
	Serial     *big.Int
	Algorithm  pkix.AlgorithmIdentifier
	Issuer     asn1.RawValue
	Validity   asn1.RawValue
	Subject    asn1.RawValue
	Key        asn1.RawValue
	Extensions []pkix.Extension `asn1:"omitempty,optional,explicit,tag:3"`
}

// spec is a certificate to be.
type spec struct {
	template x509.Certificate
	by       *spec // nil: itself
	key      crypto.Signer
	tamper   func(*tbsCertificate) // before it is signed
	forged   bool                  // the signature afterwards
	cert     *x509.Certificate
}

// list is a CRL to be.
type list struct {
	template x509.RevocationList
	by       *spec
	key      crypto.Signer // nil: the issuer's
}

// world is a factory's PKI with one device, as one case bends it.
type world struct {
	t               testing.TB
	root, mid, leaf *spec
	extra           []*spec // sent after mid, in this order
	known           []*spec // by the anchor
	lists           []*list
	require         bool
	allow           []asn1.ObjectIdentifier
	o               attest.PathOptions
	reorder         func(chain []*x509.Certificate) []*x509.Certificate
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func name(cn string) pkix.Name {
	return pkix.Name{Organization: []string{"Pump Works"}, CommonName: cn}
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, root: newCA(t, "Pump Works Root", nil, 1)}
	w.mid = newCA(t, "Pump Works Factory 3", w.root, 2)
	w.leaf = &spec{key: newKey(t), by: w.mid, template: x509.Certificate{
		SerialNumber: big.NewInt(77), Subject: name("pump-7"), NotBefore: today.AddDate(0, -1, 0), NotAfter: today.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}}
	w.o.Now = today
	return w
}

func newCA(t testing.TB, cn string, by *spec, serial int64) *spec {
	return &spec{key: newKey(t), by: by, template: x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: name(cn), NotBefore: today.AddDate(-1, 0, 0), NotAfter: today.AddDate(9, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true,
	}}
}

// newList is an empty list of the CA.
func newList(by *spec, number int64) *list {
	return &list{by: by, template: x509.RevocationList{
		Number: big.NewInt(number), ThisUpdate: today.AddDate(0, 0, -1), NextUpdate: today.AddDate(0, 0, 1),
	}}
}

func (l *list) revoke(serial int64, reason int) *list {
	l.template.RevokedCertificateEntries = append(l.template.RevokedCertificateEntries,
		x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: today.AddDate(0, 0, -2), ReasonCode: reason})
	return l
}

// extend adds a critical extension.
func (l *list) extend(oid asn1.ObjectIdentifier, der []byte) *list {
	l.template.ExtraExtensions = append(l.template.ExtraExtensions, pkix.Extension{Id: oid, Critical: true, Value: der})
	return l
}

func (s *spec) extend(oid asn1.ObjectIdentifier, critical bool, der []byte) {
	s.template.ExtraExtensions = append(s.template.ExtraExtensions, pkix.Extension{Id: oid, Critical: critical, Value: der})
}

// drop removes an extension that crypto/x509 adds by itself.
func drop(oid ...int) func(*tbsCertificate) {
	return func(c *tbsCertificate) {
		c.Extensions = slices.DeleteFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oid) })
	}
}

// edit changes an extension that crypto/x509 adds by itself.
func edit(change func(*pkix.Extension), oid ...int) func(*tbsCertificate) {
	return func(c *tbsCertificate) {
		for i := range c.Extensions {
			if c.Extensions[i].Id.Equal(oid) {
				change(&c.Extensions[i])
			}
		}
	}
}

// sign makes the certificate, and its issuers' before it.
func (s *spec) sign(t testing.TB) *x509.Certificate {
	t.Helper()
	cert, err := s.trySign()
	if err != nil {
		t.Fatalf("make certificate %s: %v", s.template.Subject, err)
	}
	return cert
}

func (s *spec) trySign() (*x509.Certificate, error) {
	if s.cert != nil {
		return s.cert, nil
	}
	parent, key := &s.template, s.key
	if s.by != nil {
		var err error
		if parent, err = s.by.trySign(); err != nil {
			return nil, err
		}
		key = s.by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, &s.template, parent, s.key.Public(), key)
	if err == nil && (s.tamper != nil || s.forged) {
		der, err = s.resign(der, key)
	}
	if err != nil {
		return nil, err
	}
	s.cert, err = x509.ParseCertificate(der)
	return s.cert, err
}

func (s *spec) resign(der []byte, key crypto.Signer) ([]byte, error) {
	var outer struct {
		TBS       tbsCertificate
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil, err
	}
	if s.tamper != nil {
		s.tamper(&outer.TBS)
	}
	outer.Algorithm = outer.TBS.Algorithm
	tbs, err := asn1.Marshal(outer.TBS)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(tbs)
	if s.forged {
		digest[0] ^= 1
	}
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	outer.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	return asn1.Marshal(outer)
}

func (l *list) sign(t testing.TB) []byte {
	t.Helper()
	issuer := *l.by.sign(t)
	issuer.KeyUsage |= x509.KeyUsageCRLSign // what crypto/x509 would refuse to sign is what some cases want
	key := l.key
	if key == nil {
		key = l.by.key
	}
	issuer.PublicKey = key.Public()
	der, err := x509.CreateRevocationList(rand.Reader, &l.template, &issuer, key)
	if err != nil {
		t.Fatalf("make CRL: %v", err)
	}
	return der
}

// built is a world whose certificates are signed.
type built struct {
	chain  []*x509.Certificate
	anchor attest.Anchor
	lists  [][]byte
}

func (w *world) build() (b built, err error) {
	w.t.Helper()
	b.chain = []*x509.Certificate{w.leaf.sign(w.t)}
	if w.leaf.by == w.mid {
		b.chain = append(b.chain, w.mid.sign(w.t))
	}
	for _, s := range w.extra {
		b.chain = append(b.chain, s.sign(w.t))
	}
	if w.reorder != nil {
		b.chain = w.reorder(b.chain)
	}
	b.anchor = attest.Anchor{Certificate: w.root.sign(w.t), RequireCRL: w.require, AllowCritical: w.allow}
	for _, s := range w.known {
		b.anchor.Intermediates = append(b.anchor.Intermediates, s.sign(w.t))
	}
	for _, l := range w.lists {
		der := l.sign(w.t)
		b.lists = append(b.lists, der)
		crl, err := attest.ParseCRL(der)
		if err != nil {
			return b, err
		}
		b.anchor.CRLs = append(b.anchor.CRLs, crl)
	}
	return b, nil
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// tlv is one element of DER, for lengths below 128.
func tlv(tag byte, contents ...[]byte) []byte {
	body := slices.Concat(contents...)
	if len(body) > 127 {
		return slices.Concat([]byte{tag, 0x81, byte(len(body))}, body)
	}
	return slices.Concat([]byte{tag, byte(len(body))}, body)
}
