package ca

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// maxCommonName is ub-common-name (RFC 5280, A.1). A longer id is in the URI
// only, and the subject is empty.
const maxCommonName = 64

// Order is what a device certificate is planned for.
type Order struct {
	Profile     Profile
	Fleet       countersign.Fleet
	Device      string
	PublicKey   crypto.PublicKey
	Predecessor countersign.CertRef // the certificate it renews; zero for a first one
	Evidence    string              // fingerprint of what earned it
	Method      countersign.Method
}

// Planned is a certificate whose serial is on record and which has passed lint.
// Only Plan makes one and Sign spends it, so nothing unrecorded reaches a key and
// nothing is signed twice.
type Planned struct {
	spent     atomic.Bool
	tbs       *x509.Certificate
	pub       crypto.PublicKey
	key       subjectKey // of pub
	authority *authority
	block     string
	record    countersign.Certificate
}

// Issued is a signed certificate that Record has yet to write.
type Issued struct {
	countersign.Certificate
	block string
	pub   crypto.PublicKey
}

// issuance plans, signs and records certificates.
type issuance struct {
	*authorities
	*serials
	// newKeys are those of certificates that were recorded, for PrimeCheck.
	newKeys chan deviceKey
}

// deviceKey is an RSA key with its certificate; of a key that was renewed, the newest.
type deviceKey struct {
	ref           countersign.CertRef
	device, fleet string
	modulus       *big.Int
}

// maxArrived bounds the new keys that wait to be compared. Further ones are found on
// the record within primesEvery.
const maxArrived = 4096

// Plan draws a recorded serial and prepares a device certificate.
func (c *issuance) Plan(ctx context.Context, o Order) (*Planned, error) {
	kind, err := CheckKey(o.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := o.Profile.accepts(kind); err != nil {
		return nil, err
	}
	a, err := c.authority(o.Fleet.Issuer)
	if err != nil {
		return nil, err
	}
	tbs, err := c.deviceTemplate(a, o)
	if err != nil {
		return nil, err
	}
	return c.plan(ctx, a, tbs, o.PublicKey, countersign.Certificate{
		Device: o.Device, Fleet: o.Fleet.Name, Profile: o.Profile.Name,
		State: countersign.CertPending, Predecessor: o.Predecessor, Evidence: o.Evidence, Method: string(o.Method),
	})
}

func (c *issuance) plan(ctx context.Context, a *authority, tbs *x509.Certificate, pub crypto.PublicKey, record countersign.Certificate) (*Planned, error) {
	key, err := encodeKey(pub)
	if err != nil {
		return nil, err
	}
	tbs.SubjectKeyId = key.id()
	if err := lint(tbs, a.Certificate); err != nil {
		return nil, err
	}
	d, err := c.draw(ctx)
	if err != nil {
		return nil, err
	}
	tbs.SerialNumber = d.serial
	record.Issuer = a.ID
	record.IssuedAt = c.Now()
	record.KeyHash = key.hash()
	return &Planned{tbs: tbs, pub: pub, key: key, authority: a, block: d.block, record: record}, nil
}

// lint is the cheap check of every certificate before it is signed: what the
// profile's lint cannot know because it depends on the order.
func lint(tbs, issuer *x509.Certificate) error {
	switch {
	case !tbs.NotAfter.After(tbs.NotBefore):
		return fmt.Errorf("plan: NotAfter %v is not after NotBefore %v", tbs.NotAfter, tbs.NotBefore)
	case tbs.NotBefore.Before(issuer.NotBefore):
		return fmt.Errorf("plan: NotBefore %v is before the issuer's", tbs.NotBefore)
	case tbs.IsCA || tbs.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return fmt.Errorf("plan: an end-entity certificate may not sign others")
	case len(tbs.SubjectKeyId) == 0 || len(issuer.SubjectKeyId) == 0:
		return fmt.Errorf("plan: key identifiers are missing")
	case tbs.Subject.CommonName == "" && len(tbs.URIs)+len(tbs.DNSNames)+len(tbs.IPAddresses) == 0:
		return fmt.Errorf("plan: the certificate has no name")
	}
	return nil
}

func (p *Profile) accepts(kind string) error {
	if len(p.Keys) == 0 || slices.Contains(p.Keys, kind) {
		return nil
	}
	return countersign.Errorf(countersign.WeakKey, "profile %s does not accept a %s key", p.Name, kind).
		WithNext(fmt.Sprintf("make a key of one of these types: %v", p.Keys))
}

func (c *issuance) deviceTemplate(a *authority, o Order) (*x509.Certificate, error) {
	p := &o.Profile
	notBefore, notAfter, err := p.window(a, c.Now())
	if err != nil {
		return nil, err
	}
	tbs := &x509.Certificate{
		NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage:    p.keyUsage(),
		ExtKeyUsage: p.extKeyUsage(),
	}
	if len(o.Device) <= maxCommonName {
		tbs.Subject = pkix.Name{CommonName: o.Device}
	}
	if !p.OmitURI || len(o.Device) > maxCommonName {
		u, err := url.Parse(countersign.DeviceURI(o.Fleet, o.Device))
		if err != nil {
			return nil, countersign.Errorf(countersign.BadRequest, "device id %q does not make a URI", o.Device).WithCause(err)
		}
		tbs.URIs = []*url.URL{u}
	}
	if !p.NoStatus {
		a.status.addTo(tbs)
	}
	return tbs, nil
}

func (s statusURLs) addTo(tbs *x509.Certificate) {
	tbs.CRLDistributionPoints, tbs.OCSPServer, tbs.IssuingCertificateURL = s.crl, s.ocsp, s.issuer
}

// window is the validity of a certificate issued at now. It never starts before
// the issuer does, and ends no later unless the profile knows no expiry.
func (p *Profile) window(a *authority, now time.Time) (from, to time.Time, err error) {
	now = now.UTC().Truncate(time.Second)
	from = now.Add(-time.Duration(p.Backdate))
	if from.Before(a.Certificate.NotBefore) {
		from = a.Certificate.NotBefore
	}
	if p.NoExpiry {
		return from, noExpiry, nil
	}
	to = now.Add(time.Duration(p.Validity))
	if to.After(a.Certificate.NotAfter) {
		to = a.Certificate.NotAfter
	}
	if to.Sub(now) < minValidity {
		return from, to, countersign.Errorf(countersign.Unavailable, "authority %s expires at %s", a.ID, a.Certificate.NotAfter.UTC().Format(time.RFC3339)).
			WithNext("choose another issuer for the fleet")
	}
	return from, to, nil
}

// ErrSpent means that a plan was signed before.
var ErrSpent = errors.New("this plan has been signed already")

// Sign signs a plan, once.
func (c *issuance) Sign(p *Planned) (*Issued, error) {
	if p.spent.Swap(true) {
		return nil, ErrSpent
	}
	signer, err := c.signerOf(p.authority)
	if err != nil {
		return nil, err
	}
	der, err := signer.certify(p.tbs, p.authority.Certificate, p.pub, p.key)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", p.record.Device, err)
	}
	rec := p.record
	rec.DER = der
	rec.Serial = countersign.SerialOf(p.tbs.SerialNumber)
	rec.NotBefore, rec.NotAfter = p.tbs.NotBefore, p.tbs.NotAfter
	rec.Fingerprint = hexSum(der)
	return &Issued{Certificate: rec, block: p.block, pub: p.pub}, nil
}

// Record writes an issued certificate in the caller's transaction. It fails where
// the block of its serial is no longer open: then the certificate must not be
// handed out, since its serial has been voided.
func (c *issuance) Record(ctx context.Context, tx *store.Tx, i *Issued) error {
	n, err := insert(ctx, tx, newRow{Certificate: &i.Certificate, block: i.block})
	if err != nil {
		return err
	}
	if n != 1 {
		c.forgetBlock(i.block)
		return countersign.Errorf(countersign.Unavailable, "the serial block of certificate %s was closed meanwhile", i.Serial).
			WithNext("try again").WithRetry(time.Second).WithCause(ErrBlockClosed)
	}
	c.recorded(tx, &i.Certificate, i.pub)
	return nil
}

// recorded passes the key of a device's certificate to PrimeCheck once the certificate
// is on record. Where none runs, the first maxArrived keys are kept.
func (c *issuance) recorded(tx *store.Tx, cert *countersign.Certificate, pub crypto.PublicKey) {
	key, isRSA := pub.(*rsa.PublicKey)
	if !isRSA || cert.Device == "" {
		return
	}
	k := deviceKey{cert.Ref(), cert.Device, cert.Fleet, key.N}
	tx.AfterCommit(func() {
		select {
		case c.newKeys <- k:
		default:
		}
	})
}

// ErrBlockClosed is the cause where Record refuses a certificate because the block
// of its serial is no longer open. Another certificate for the same order has a
// serial of another block.
var ErrBlockClosed = errors.New("the block of its serial is not open")
