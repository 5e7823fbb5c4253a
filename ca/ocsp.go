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
	// ocspValidity is from thisUpdate to nextUpdate: how long a client that saw
	// "good" may believe it.
	ocspValidity = time.Hour
	// ocspFresh is how long a signed answer is given out again.
	ocspFresh = 10 * time.Minute
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
		return issuerNames{} // a key type nobody can name in OCSP: never matches
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
	keep := len(q.CertIDs) == 1 && q.Nonce == nil && c.Cacheable()
	if keep {
		if a, ok := c.answers.get(countersign.CertRef{Issuer: issuer.ID, Serial: q.CertIDs[0].Serial}, q.CertIDs[0].DER, c.Now()); ok {
			return a, nil
		}
	}
	epoch := c.answers.epoch()
	answer, err := c.answer(ctx, issuer, q)
	if err == nil && keep && c.Cacheable() {
		c.answers.put(countersign.CertRef{Issuer: issuer.ID, Serial: q.CertIDs[0].Serial}, q.CertIDs[0].DER, answer, epoch)
	}
	return answer, err
}

func (c *CA) answer(ctx context.Context, issuer *authority, q countersign.OCSPQuery) (countersign.OCSPAnswer, error) {
	now := c.Now().UTC().Truncate(time.Second)
	answer := countersign.OCSPAnswer{ProducedAt: now, ThisUpdate: now, NextUpdate: now.Add(ocspValidity)}
	var singles []byte
	for _, id := range q.CertIDs {
		cert, err := c.Certificate(ctx, c.DB, countersign.CertRef{Issuer: issuer.ID, Serial: id.Serial})
		if err != nil && countersign.CodeOf(err) != countersign.NotFound {
			return answer, err
		}
		one, err := encodeSingle(id, err == nil, &cert, answer)
		if err != nil {
			return answer, fmt.Errorf("encode OCSP answer: %w", err)
		}
		singles = append(singles, one...)
	}
	r, err := c.openResponder(ctx, issuer)
	if err != nil {
		return answer, err
	}
	answer.DER, err = r.respond(singles, answer.ProducedAt, q.Nonce)
	return answer, err
}

// signing is what a responder needs for one answer, copied out under its lock.
type signing struct {
	key       crypto.Signer
	alg       []byte
	hash      crypto.Hash
	id, certs []byte
}

// openResponder gives the authority's OCSP signer, issuing it anew when it is
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
func encodeSingle(id countersign.CertID, known bool, cert *countersign.Certificate, a countersign.OCSPAnswer) ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(id.DER)
		switch {
		case !known:
			b.AddASN1(cbasn1.Tag(2).ContextSpecific(), func(*cryptobyte.Builder) {})
		case withdrawn(cert.State):
			b.AddASN1(cbasn1.Tag(1).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				addGeneralizedTime(b, cert.RevokedAt)
				if cert.Reason != countersign.Unspecified {
					b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
						b.AddASN1Enum(int64(cert.Reason))
					})
				}
			})
		default:
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {})
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

// Forget drops the cached answer about a certificate that another node changed.
func (c *CA) Forget(ref countersign.CertRef) { c.answers.forget(ref) }

// maxAnswers bounds one generation of the cache: two of 64k answers of about 1 KB.
const maxAnswers = 64 << 10

// answers keeps signed answers in two generations: when the young one is full it
// becomes the old one, and what was not asked for since is dropped.
type answers struct {
	mu         sync.RWMutex
	young, old map[countersign.CertRef]kept
	changes    uint64 // counts forgets, so that an answer computed across one is not kept
}

type kept struct {
	id []byte // the CertID it answers: the same certificate may be named by SHA-1 or SHA-256
	a  countersign.OCSPAnswer
}

func (s *answers) epoch() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changes
}

func (s *answers) get(ref countersign.CertRef, id []byte, now time.Time) (countersign.OCSPAnswer, bool) {
	s.mu.RLock()
	k, ok := s.young[ref]
	if !ok {
		k, ok = s.old[ref]
	}
	s.mu.RUnlock()
	if !ok || !bytes.Equal(k.id, id) || now.Sub(k.a.ProducedAt) > ocspFresh {
		return countersign.OCSPAnswer{}, false
	}
	return k.a, true
}

func (s *answers) put(ref countersign.CertRef, id []byte, a countersign.OCSPAnswer, epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changes != epoch {
		return
	}
	if s.young == nil || len(s.young) >= maxAnswers {
		s.young, s.old = map[countersign.CertRef]kept{}, s.young
	}
	s.young[ref] = kept{id: bytes.Clone(id), a: a}
}

func (s *answers) forget(ref countersign.CertRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	delete(s.young, ref)
	delete(s.old, ref)
}

// forgetAfter forgets once the change is durable.
func (s *answers) forgetAfter(tx *store.Tx, ref countersign.CertRef) {
	tx.AfterCommit(func() { s.forget(ref) })
}

// Issuer gives an authority's certificate, DER, for caIssuers (RFC 5280, 4.2.2.1).
func (c *CA) Issuer(_ context.Context, id string) ([]byte, error) {
	a, err := c.authority(id)
	if err != nil {
		return nil, err
	}
	return a.Certificate.Raw, nil
}
