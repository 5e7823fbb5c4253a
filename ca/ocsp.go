package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	_ "crypto/sha1" //nolint:gosec // names issuers and keys (RFC 6960); it secures nothing
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// ocspValidity is from the signature to nextUpdate: how long a client that saw
	// "good" may believe it.
	ocspValidity = time.Hour
	// responderValidity of a delegated responder certificate. It is short because
	// id-pkix-ocsp-nocheck means that it cannot be revoked (RFC 6960, 4.2.2.2.1).
	responderValidity = 7 * 24 * time.Hour
	// responderRetry is the pause after a renewal that failed while the old
	// certificate is still good: a full disk is not tried on every request.
	responderRetry = time.Minute
)

// responder answers OCSP requests for the managed authorities that are no roots.
type responder struct {
	*issuance
	answers *answers

	mu      sync.Mutex
	signers map[string]*ocspSigner // by authority
}

// ocspSigner is the delegated OCSP signer of one authority. Its key is in the memory of
// this process only; each process has its own.
type ocspSigner struct {
	mu    sync.Mutex
	retry time.Time // no renewal before this
	signing
	cert *x509.Certificate
}

// signing is what a signer needs for one answer.
type signing struct {
	*signer
	id    []byte // ResponderID, byKey
	certs []byte // [0] EXPLICIT SEQUENCE OF Certificate
}

// answers reports whether OCSP speaks for the authority. It does not for a root:
// its certificates name a CRL only, and a request from anywhere must not open the
// root key.
func (a *authority) answers() bool { return a.KeyURI != "" && a.Kind != countersign.RootAuthority }

// OCSP answers a query. All its certificates must have one issuer, an issuing
// authority of ours: CertUnknown otherwise. An answer without nonce may come from
// the cache.
func (c *responder) OCSP(ctx context.Context, q countersign.OCSPQuery) (countersign.OCSPAnswer, error) {
	var issuer *authority
	for _, id := range q.CertIDs {
		a := c.issuerOf(id)
		if a == nil || !a.answers() || issuer != nil && a != issuer {
			return countersign.OCSPAnswer{}, countersign.Errorf(countersign.CertUnknown, "the issuer in the request is none that is answered for here")
		}
		issuer = a
	}
	if issuer == nil {
		return countersign.OCSPAnswer{}, countersign.Errorf(countersign.BadRequest, "the request names no certificate")
	}
	now := c.Now()
	if len(q.CertIDs) > 1 || q.Nonce != nil || !c.Cacheable() {
		answer, _, err := c.answer(ctx, issuer, q, now)
		return answer, err
	}
	k, keep := keyOf(issuer.ID, q.CertIDs[0])
	if keep {
		if a, ok := c.answers.get(k, q.CertIDs[0].DER, now); ok {
			return a, nil
		}
	}
	epoch := c.answers.epoch()
	answer, status, err := c.answer(ctx, issuer, q, now)
	if err == nil && keep && c.Cacheable() {
		c.answers.put(k, kept{answer, string(q.CertIDs[0].DER), now, status}, epoch)
	}
	return answer, err
}

// answer signs an answer. status is that of the first certificate.
func (c *responder) answer(ctx context.Context, issuer *authority, q countersign.OCSPQuery, now time.Time) (answer countersign.OCSPAnswer, status countersign.CertStatus, err error) {
	now = now.UTC().Truncate(time.Second)
	this := issuer.backdated(now)
	answer = countersign.OCSPAnswer{ProducedAt: this, ThisUpdate: this, NextUpdate: now.Add(ocspValidity)}
	var singles []byte
	for i, id := range q.CertIDs {
		one := countersign.StatusUnknown
		cert, err := Certificate(ctx, c.DB, countersign.CertRef{Issuer: issuer.ID, Serial: id.Serial})
		switch {
		case err == nil && withdrawn(cert.State):
			one = countersign.StatusRevoked
		case err == nil:
			one = countersign.StatusGood
		case countersign.CodeOf(err) != countersign.NotFound:
			return answer, one, err
		}
		der, err := encodeSingle(id, one, &cert, answer)
		if err != nil {
			return answer, one, fmt.Errorf("encode OCSP answer: %w", err)
		}
		singles = append(singles, der...)
		if i == 0 {
			status = one
		}
	}
	s, err := c.signer(ctx, issuer)
	if err != nil {
		return answer, status, err
	}
	answer.DER, err = s.respond(singles, answer.ProducedAt, q.Nonce)
	return answer, status, err
}

// signer returns the authority's OCSP signer, issuing it anew when it is
// missing or past two thirds of its life.
func (c *responder) signer(ctx context.Context, a *authority) (signing, error) {
	c.mu.Lock()
	s := c.signers[a.ID]
	if s == nil {
		s = &ocspSigner{}
		c.signers[a.ID] = s
	}
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := c.Now()
	expired := s.cert == nil || now.After(s.cert.NotAfter)
	if expired || now.After(s.renewAt()) && !now.Before(s.retry) {
		err := c.renew(ctx, a, s)
		if err != nil && expired {
			return signing{}, fmt.Errorf("issue the OCSP responder of %s: %w", a.ID, err)
		}
		if err != nil {
			s.retry = now.Add(responderRetry)
			c.Log.ErrorContext(ctx, "ocsp responder not renewed", "authority", a.ID, "error", err)
		}
	}
	return s.signing, nil
}

// renewAt is two thirds into the life of the certificate, which the authority's
// own end may have shortened.
func (s *ocspSigner) renewAt() time.Time {
	return s.cert.NotBefore.Add(s.cert.NotAfter.Sub(s.cert.NotBefore) * 2 / 3)
}

func (c *responder) renew(ctx context.Context, a *authority, s *ocspSigner) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	p := Profile{Name: "ocsp-responder", Validity: Duration(responderValidity), NoStatus: true}
	issued, err := c.issueOwn(store.Emergency(ctx), a, p, &x509.Certificate{
		Subject:         pkix.Name{CommonName: a.Certificate.Subject.CommonName + " OCSP"},
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: asn1.NullBytes}},
	}, &key.PublicKey)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(issued.DER)
	if err != nil {
		return err
	}
	var next signing
	if next.signer, err = newSigner(key); err != nil {
		return err
	}
	pub, err := encodeKey(cert.PublicKey)
	if err != nil {
		return err
	}
	byKey := digest(crypto.SHA1, pub.bits) // RFC 6960, 4.2.1 defines KeyHash so
	var id, certs cryptobyte.Builder
	id.AddASN1(context2, func(b *cryptobyte.Builder) { b.AddASN1OctetString(byKey) })
	certs.AddASN1(context0, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(cert.Raw) })
	})
	if next.id, err = id.Bytes(); err != nil {
		return err
	}
	if next.certs, err = certs.Bytes(); err != nil {
		return err
	}
	s.signing, s.cert = next, cert
	return nil
}

// encodeSingle writes a SingleResponse (RFC 6960, 4.2.1).
func encodeSingle(id countersign.CertID, status countersign.CertStatus, cert *countersign.Certificate, a countersign.OCSPAnswer) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(id.DER)
		switch status {
		case countersign.StatusRevoked:
			b.AddASN1(context1, func(b *cryptobyte.Builder) {
				addGeneralizedTime(b, shownRevocation(cert.RevokedAt, a.ThisUpdate))
				if cert.Reason != countersign.Unspecified {
					b.AddASN1(context0, func(b *cryptobyte.Builder) {
						b.AddASN1Enum(int64(cert.Reason))
					})
				}
			})
		case countersign.StatusGood:
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {})
		default:
			b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(*cryptobyte.Builder) {})
		}
		addGeneralizedTime(b, a.ThisUpdate)
		b.AddASN1(context0, func(b *cryptobyte.Builder) { addGeneralizedTime(b, a.NextUpdate) })
	})
	return b.Bytes()
}

var (
	oidOCSPBasic = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidOCSPNonce = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
)

// respond signs an OCSPResponse over the singles (RFC 6960, 4.2.1; the nonce as
// RFC 9654, 2.1).
func (s *signing) respond(singles []byte, producedAt time.Time, nonce []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(singles)+256))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(s.id)
		addGeneralizedTime(b, producedAt)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(singles) })
		if nonce != nil {
			b.AddASN1(context1, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					addExtension(b, oidOCSPNonce, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
				})
			})
		}
	})
	tbs, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	sig, err := s.sign(tbs)
	if err != nil {
		return nil, fmt.Errorf("sign OCSP answer: %w", err)
	}
	basic, err := withSignature(tbs, s.alg, sig, s.certs)
	if err != nil {
		return nil, err
	}
	out := cryptobyte.NewBuilder(make([]byte, 0, len(basic)+64))
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0) // successful
		b.AddASN1(context0, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidOCSPBasic)
				b.AddASN1OctetString(basic)
			})
		})
	})
	return out.Bytes()
}

// Forget drops the cached answers about a certificate that another node changed.
func (c *responder) Forget(ref countersign.CertRef) { c.answers.forget(ref) }
