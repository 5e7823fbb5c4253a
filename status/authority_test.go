package status

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/test/kit"
)

// authority is a small CA named "issuing", with an OCSP responder certificate of its own.
// It signs with the code of this test file and not with package ca.
type authority struct {
	cert, responder *x509.Certificate
	key, respKey    crypto.Signer

	mu      sync.Mutex
	revoked map[countersign.Serial]time.Time
	known   []countersign.Serial
	fail    error // answer of every call, if set
	last    countersign.OCSPQuery
	opened  int // how often a list was opened
	number  int64
	list    *countersign.CRL // of number, with as many entries as are revoked
	entries int
	mangle  func(*ocspData) // changes an answer before it is signed
}

type ocspData struct {
	nonce                  []byte
	signer                 *x509.Certificate
	key                    crypto.Signer
	thisUpdate, nextUpdate time.Time
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{revoked: map[countersign.Serial]time.Time{}}
	a.key, a.respKey = kit.Key(t), kit.Key(t)
	tmpl := template(1, "Test issuing")
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	a.cert = a.sign(t, tmpl, tmpl, a.key)
	resp := template(2, "Test responder")
	resp.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	resp.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: []byte{5, 0}}} // id-pkix-ocsp-nocheck
	a.responder = a.sign(t, resp, a.cert, a.respKey)
	return a
}

func template(serial int64, cn string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
}

func (a *authority) sign(t testing.TB, tmpl, parent *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue returns a device's certificate that the authority has on record.
func (a *authority) issue(t testing.TB, serial int64) *x509.Certificate {
	t.Helper()
	cert := a.sign(t, template(serial, "pump-7"), a.cert, kit.Key(t))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.known = append(a.known, countersign.SerialOf(cert.SerialNumber))
	return cert
}

func (a *authority) revoke(cert *x509.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked[countersign.SerialOf(cert.SerialNumber)] = time.Now()
	a.number++
}

func (a *authority) OCSP(_ context.Context, q countersign.OCSPQuery) (countersign.OCSPAnswer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = q
	if a.fail != nil {
		return countersign.OCSPAnswer{}, a.fail
	}
	name := sha1.Sum(a.cert.RawSubject)
	if q.CertIDs[0].Hash != crypto.SHA1 || string(q.CertIDs[0].IssuerNameHash) != string(name[:]) {
		return countersign.OCSPAnswer{}, countersign.Errorf(countersign.CertUnknown, "not our issuer")
	}
	now := time.Now().UTC().Truncate(time.Second)
	d := ocspData{nonce: q.Nonce, signer: a.responder, key: a.respKey, thisUpdate: now, nextUpdate: now.Add(time.Hour)}
	if a.mangle != nil {
		a.mangle(&d)
	}
	der, err := a.encode(q, d)
	return countersign.OCSPAnswer{DER: der, ProducedAt: now, ThisUpdate: d.thisUpdate, NextUpdate: d.nextUpdate}, err
}

func (a *authority) encode(q countersign.OCSPQuery, d ocspData) ([]byte, error) {
	generalized := func(b *cryptobyte.Builder, t time.Time) { b.AddASN1GeneralizedTime(t.UTC()) }
	var tbs cryptobyte.Builder
	tbs.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tag1, func(b *cryptobyte.Builder) { b.AddBytes(d.signer.RawSubject) })
		generalized(b, d.thisUpdate)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, id := range q.CertIDs {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddBytes(id.DER)
					at, revoked := a.revoked[id.Serial]
					switch {
					case revoked:
						b.AddASN1(tag1, func(b *cryptobyte.Builder) {
							generalized(b, at)
							b.AddASN1(tag0, func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(countersign.KeyCompromise)) })
						})
					case slices.Contains(a.known, id.Serial):
						b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {})
					default:
						b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(*cryptobyte.Builder) {})
					}
					generalized(b, d.thisUpdate)
					b.AddASN1(tag0, func(b *cryptobyte.Builder) { generalized(b, d.nextUpdate) })
				})
			}
		})
		if d.nonce != nil {
			b.AddASN1(tag1, func(b *cryptobyte.Builder) { addNonce(b, d.nonce) })
		}
	})
	raw, err := tbs.Bytes()
	if err != nil {
		return nil, err
	}
	sig, err := crypto.SignMessage(d.key, rand.Reader, raw, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0)
		b.AddASN1(tag0, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1})
				b.AddASN1(cbasn1.OCTET_STRING, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddBytes(raw)
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2})
						})
						b.AddASN1BitString(sig)
						b.AddASN1(tag0, func(b *cryptobyte.Builder) {
							b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(d.signer.Raw) })
						})
					})
				})
			})
		})
	})
	return b.Bytes()
}

func (a *authority) CRL(_ context.Context, issuer string, shard int) (*countersign.CRL, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return nil, a.fail
	}
	if issuer != "issuing" || shard != 0 {
		return nil, countersign.Errorf(countersign.NotFound, "there is no such list")
	}
	if a.list != nil && a.list.Number == a.number && a.entries == len(a.revoked) {
		return new(*a.list), nil
	}
	now := time.Now().UTC().Truncate(time.Second)
	tmpl := &x509.RevocationList{Number: big.NewInt(a.number), ThisUpdate: now, NextUpdate: now.Add(time.Hour)}
	for s, at := range a.revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: s.Int(), RevocationTime: at, ReasonCode: int(countersign.KeyCompromise),
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.cert, a.key)
	if err != nil {
		return nil, err
	}
	a.entries = len(a.revoked)
	a.list = &countersign.CRL{Issuer: issuer, Shard: shard, Number: a.number, ThisUpdate: now, NextUpdate: tmpl.NextUpdate, Size: int64(len(der)), DER: der}
	return new(*a.list), nil
}

func (a *authority) CRLRecord(ctx context.Context, issuer string, shard int) (*countersign.CRL, error) {
	l, err := a.CRL(ctx, issuer, shard)
	if err != nil {
		return nil, err
	}
	l.DER = nil
	return l, nil
}

func (a *authority) OpenCRL(ctx context.Context, issuer string, shard int) (*countersign.CRL, io.ReadSeekCloser, error) {
	l, err := a.CRL(ctx, issuer, shard)
	if err != nil {
		return nil, nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.opened++
	return l, struct {
		io.ReadSeeker
		io.Closer
	}{bytes.NewReader(l.DER), io.NopCloser(nil)}, nil
}

func (a *authority) Issuer(_ context.Context, id string) ([]byte, error) {
	if id != "issuing" {
		return nil, countersign.Errorf(countersign.NotFound, "there is no authority %q", id)
	}
	return a.cert.Raw, nil
}

func start(t testing.TB, a *authority) string {
	t.Helper()
	hs := httptest.NewServer(&Server{Authority: a, Now: time.Now})
	t.Cleanup(hs.Close)
	return hs.URL
}

var errBroken = errors.New("the disk is on fire")
