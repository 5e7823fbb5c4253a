package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 6960 clients name the issuer by SHA-1; it secures nothing
	"crypto/sha256"
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
	// ocspFresh is how long after its signature an answer is returned again.
	ocspFresh = 10 * time.Minute
	// statusBackdate is how far thisUpdate and producedAt of OCSP answers and CRLs are
	// before the signature, as notBefore of certificates is: a relying party whose clock
	// is a little slow would refuse every certificate after each revocation, because the
	// list that it fetches is not yet valid.
	statusBackdate = defaultBackdate
	// responderValidity of a delegated responder certificate. It is short because
	// id-pkix-ocsp-nocheck says that it cannot be revoked (RFC 6960, 4.2.2.2.1).
	responderValidity = 7 * 24 * time.Hour
	// responderRetry is the pause after a renewal that failed while the old
	// certificate is still good: a full disk is not tried on every request.
	responderRetry = time.Minute
)

// responder is the delegated OCSP signer of one authority. Its key lives in this
// process only; each process has its own.
type responder struct {
	mu    sync.Mutex
	retry time.Time // no renewal before this
	key   crypto.Signer
	cert  *x509.Certificate
	alg   []byte
	hash  crypto.Hash
	id    []byte // ResponderID, byKey
	certs []byte // [0] EXPLICIT SEQUENCE OF Certificate
}

// issuerNames are the hashes by which an OCSP request names an issuer.
type issuerNames struct {
	name1, key1     [20]byte
	name256, key256 [32]byte
}

func namesOf(cert *x509.Certificate) issuerNames {
	bits, err := publicKeyBits(cert.PublicKey)
	if err != nil {
		return issuerNames{} // a key type that cannot be named in OCSP: never matches
	}
	return issuerNames{
		sha1.Sum(cert.RawSubject), sha1.Sum(bits), //nolint:gosec // as above
		sha256.Sum256(cert.RawSubject), sha256.Sum256(bits),
	}
}

func (n *issuerNames) match(id countersign.CertID) bool {
	switch id.Hash {
	case crypto.SHA1:
		return bytes.Equal(n.name1[:], id.IssuerNameHash) && bytes.Equal(n.key1[:], id.IssuerKeyHash)
	case crypto.SHA256:
		return bytes.Equal(n.name256[:], id.IssuerNameHash) && bytes.Equal(n.key256[:], id.IssuerKeyHash)
	}
	return false
}

func (c *CA) issuerOf(id countersign.CertID) *authority {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, a := range c.authorities {
		if a.names.match(id) {
			return a
		}
	}
	return nil
}

// answers reports whether OCSP speaks for the authority. It does not for a root:
// its certificates name a CRL only, and a stranger's question must not bring the
// root key out.
func (a *authority) answers() bool { return a.KeyURI != "" && a.Kind != countersign.RootAuthority }

// OCSP answers a query. All its certificates must have one issuer, an issuing
// authority of ours: CertUnknown otherwise. An answer without nonce may come from
// the cache.
func (c *CA) OCSP(ctx context.Context, q countersign.OCSPQuery) (countersign.OCSPAnswer, error) {
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
func (c *CA) answer(ctx context.Context, issuer *authority, q countersign.OCSPQuery, now time.Time) (answer countersign.OCSPAnswer, status countersign.CertStatus, err error) {
	now = now.UTC().Truncate(time.Second)
	this := issuer.backdated(now)
	answer = countersign.OCSPAnswer{ProducedAt: this, ThisUpdate: this, NextUpdate: now.Add(ocspValidity)}
	var singles []byte
	for i, id := range q.CertIDs {
		one := countersign.StatusUnknown
		cert, err := c.Certificate(ctx, c.DB, countersign.CertRef{Issuer: issuer.ID, Serial: id.Serial})
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
	r, err := c.openResponder(ctx, issuer)
	if err != nil {
		return answer, status, err
	}
	answer.DER, err = r.respond(singles, answer.ProducedAt, q.Nonce)
	return answer, status, err
}

// backdated is what a list or answer that is signed now has for thisUpdate: never
// before the authority's own notBefore, which a responder's certificate keeps to too.
func (a *authority) backdated(now time.Time) time.Time {
	this := now.Add(-statusBackdate)
	if from := a.Certificate.NotBefore.UTC(); this.Before(from) {
		return from
	}
	return this
}

// shownRevocation is the time of a revocation in a list or answer of thisUpdate. A
// revocation that is younger than statusBackdate is dated back with it: that a
// certificate will be revoked is no status (RFC 5280, 5.1.2.6; RFC 6960, 2.2).
func shownRevocation(at, thisUpdate time.Time) time.Time {
	if at.After(thisUpdate) {
		return thisUpdate
	}
	return at
}

// signing is what a responder needs for one answer, copied out under its lock.
type signing struct {
	key       crypto.Signer
	alg       []byte
	hash      crypto.Hash
	id, certs []byte
}

// openResponder returns the authority's OCSP signer, issuing it anew when it is
// missing or past two thirds of its life.
func (c *CA) openResponder(ctx context.Context, a *authority) (signing, error) {
	r := &a.responder
	r.mu.Lock()
	defer r.mu.Unlock()
	now := c.Now()
	expired := r.cert == nil || now.After(r.cert.NotAfter)
	if expired || now.After(r.renewAt()) && !now.Before(r.retry) {
		err := c.renewResponder(ctx, a)
		if err != nil && expired {
			return signing{}, fmt.Errorf("issue the OCSP responder of %s: %w", a.ID, err)
		}
		if err != nil {
			r.retry = now.Add(responderRetry)
			c.Log.ErrorContext(ctx, "ocsp responder not renewed", "authority", a.ID, "error", err)
		}
	}
	return signing{r.key, r.alg, r.hash, r.id, r.certs}, nil
}

// renewAt is two thirds into the life of the certificate, which the authority's
// own end may have shortened.
func (r *responder) renewAt() time.Time {
	return r.cert.NotBefore.Add(r.cert.NotAfter.Sub(r.cert.NotBefore) * 2 / 3)
}

func (c *CA) renewResponder(ctx context.Context, a *authority) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ski, err := keyID(&key.PublicKey)
	if err != nil {
		return err
	}
	p := Profile{Validity: Duration(responderValidity), Backdate: Duration(defaultBackdate)}
	from, to, err := p.window(a, c.Now())
	if err != nil {
		return err
	}
	issued, err := c.issueOwn(store.Emergency(ctx), a, &x509.Certificate{
		Subject:         pkix.Name{CommonName: a.Certificate.Subject.CommonName + " OCSP"},
		NotBefore:       from,
		NotAfter:        to,
		SubjectKeyId:    ski,
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: asn1.NullBytes}},
	}, &key.PublicKey, "ocsp-responder")
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(issued.DER)
	if err != nil {
		return err
	}
	return a.responder.set(key, cert)
}

func (r *responder) set(key crypto.Signer, cert *x509.Certificate) error {
	alg, hash, err := algorithmOf(key.Public())
	if err != nil {
		return err
	}
	bits, err := publicKeyBits(cert.PublicKey)
	if err != nil {
		return err
	}
	byKey := sha1.Sum(bits) //nolint:gosec // RFC 6960, 4.2.1 defines KeyHash so
	var id, certs cryptobyte.Builder
	id.AddASN1(cbasn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddASN1OctetString(byKey[:]) })
	certs.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(cert.Raw) })
	})
	idDER, err := id.Bytes()
	if err != nil {
		return err
	}
	certsDER, err := certs.Bytes()
	if err != nil {
		return err
	}
	r.key, r.cert, r.alg, r.hash, r.id, r.certs = key, cert, alg, hash, idDER, certsDER
	return nil
}

// encodeSingle writes a SingleResponse (RFC 6960, 4.2.1).
func encodeSingle(id countersign.CertID, status countersign.CertStatus, cert *countersign.Certificate, a countersign.OCSPAnswer) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(id.DER)
		switch status {
		case countersign.StatusRevoked:
			b.AddASN1(cbasn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				addGeneralizedTime(b, shownRevocation(cert.RevokedAt, a.ThisUpdate))
				if cert.Reason != countersign.Unspecified {
					b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
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
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { addGeneralizedTime(b, a.NextUpdate) })
	})
	return b.Bytes()
}

func addGeneralizedTime(b *cryptobyte.Builder, t time.Time) {
	b.AddASN1(cbasn1.GeneralizedTime, func(b *cryptobyte.Builder) { b.AddBytes([]byte(t.UTC().Format("20060102150405Z"))) })
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
			b.AddASN1(cbasn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
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
	basic, err := signed(s.key, s.hash, s.alg, tbs, s.certs)
	if err != nil {
		return nil, fmt.Errorf("sign OCSP answer: %w", err)
	}
	out := cryptobyte.NewBuilder(make([]byte, 0, len(basic)+64))
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Enum(0) // successful
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(oidOCSPBasic)
				b.AddASN1OctetString(basic)
			})
		})
	})
	return out.Bytes()
}

// Issuer returns an authority's certificate, DER, for caIssuers (RFC 5280, 4.2.2.1).
func (c *CA) Issuer(_ context.Context, id string) ([]byte, error) {
	a, err := c.authority(id)
	if err != nil {
		return nil, err
	}
	return a.Certificate.Raw, nil
}
