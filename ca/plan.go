package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

// maxCommonName is ub-common-name (RFC 5280, A.1). A longer id is in the URI
// only, and the subject is empty.
const maxCommonName = 64

// Order says for whom a certificate is planned.
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

// Plan draws a recorded serial and prepares a device certificate.
func (c *CA) Plan(ctx context.Context, o Order) (*Planned, error) {
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

func (c *CA) plan(ctx context.Context, a *authority, tbs *x509.Certificate, pub crypto.PublicKey, record countersign.Certificate) (*Planned, error) {
	if err := lint(tbs, a.Certificate); err != nil {
		return nil, err
	}
	d, err := c.serials.draw(ctx)
	if err != nil {
		return nil, err
	}
	tbs.SerialNumber = d.serial
	record.Issuer = a.ID
	record.IssuedAt = c.Now()
	return &Planned{tbs: tbs, pub: pub, authority: a, block: d.block, record: record}, nil
}

func (p *Profile) accepts(kind string) error {
	if len(p.Keys) == 0 || slices.Contains(p.Keys, kind) {
		return nil
	}
	return countersign.Errorf(countersign.WeakKey, "profile %s does not accept a %s key", p.Name, kind).
		WithNext(fmt.Sprintf("make a key of one of these types: %v", p.Keys))
}

func (c *CA) deviceTemplate(a *authority, o Order) (*x509.Certificate, error) {
	p := &o.Profile
	ski, err := keyID(o.PublicKey)
	if err != nil {
		return nil, err
	}
	notBefore, notAfter, err := p.window(a, c.Now())
	if err != nil {
		return nil, err
	}
	tbs := &x509.Certificate{
		NotBefore: notBefore, NotAfter: notAfter,
		SubjectKeyId: ski,
		KeyUsage:     p.keyUsage(),
		ExtKeyUsage:  p.extKeyUsage(),
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
		c.addStatus(tbs, a)
	}
	return tbs, nil
}

func (c *CA) addStatus(tbs *x509.Certificate, a *authority) {
	tbs.CRLDistributionPoints = []string{c.crlURL(a.ID, 0)}
	tbs.OCSPServer = []string{c.ocspURL()}
	tbs.IssuingCertificateURL = []string{c.issuerURL(a.ID)}
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
			WithNext("give the fleet another issuer")
	}
	return from, to, nil
}

// ErrSpent says that a plan was signed before.
var ErrSpent = errors.New("this plan has been signed already")

// Sign signs a plan, once.
func (c *CA) Sign(p *Planned) (*Issued, error) {
	if p.spent.Swap(true) {
		return nil, ErrSpent
	}
	signer, err := c.signerOf(p.authority)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, p.tbs, p.authority.Certificate, p.pub, signer)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", p.record.Device, err)
	}
	rec := p.record
	rec.DER = der
	rec.Serial = countersign.SerialOf(p.tbs.SerialNumber)
	rec.NotBefore, rec.NotAfter = p.tbs.NotBefore, p.tbs.NotAfter
	rec.Fingerprint = hexSum(der)
	if rec.KeyHash, err = KeyHash(p.pub); err != nil {
		return nil, err
	}
	return &Issued{Certificate: rec, block: p.block, pub: p.pub}, nil
}

// recordOf completes rec with what is in cert.
func recordOf(cert *x509.Certificate, rec countersign.Certificate) countersign.Certificate {
	rec.Serial = countersign.SerialOf(cert.SerialNumber)
	rec.DER = cert.Raw
	rec.NotBefore, rec.NotAfter = cert.NotBefore, cert.NotAfter
	rec.Fingerprint = hexSum(cert.Raw)
	rec.KeyHash = hexSum(cert.RawSubjectPublicKeyInfo)
	return rec
}

// Record writes an issued certificate in the caller's transaction. It fails where
// the block of its serial is no longer open: then the certificate must not be
// given out, since its serial has been voided.
func (c *CA) Record(ctx context.Context, tx *store.Tx, i *Issued) error {
	n, err := tx.Exec(ctx, `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced,
			predecessor, predecessor_issuer, evidence, method, key_hash, fingerprint, not_before, not_after, issued_at, used_at,
			accept_until, revoked_at, shard, der, issued_pos)
		SELECT $1, $2, $3, $4, $5, $6, '', 0, FALSE, $7, $19, $8, $9, $10, $11, $12, $13, $14, $15, 0, 0, $16, $17, `+event.PositionSQL+`
		FROM serial_block WHERE id = $18 AND state = 'open'`,
		string(i.Serial), i.Issuer, i.Device, i.Fleet, i.Profile, string(i.State), string(i.Predecessor.Serial), i.Evidence, i.Method, i.KeyHash,
		i.Fingerprint, store.Micros(i.NotBefore), store.Micros(i.NotAfter), store.Micros(i.IssuedAt), store.Micros(i.UsedAt), i.Shard, i.DER, i.block, i.Predecessor.Issuer)
	if err != nil {
		return fmt.Errorf("record certificate %s: %w", i.Serial, err)
	}
	if n != 1 {
		c.serials.closed(i.block)
		return countersign.Errorf(countersign.Unavailable, "the serial block of certificate %s was closed meanwhile", i.Serial).
			WithNext("try again").WithRetry(time.Second).WithCause(ErrBlockClosed)
	}
	c.keyRecorded(tx, &i.Certificate, i.pub)
	return nil
}

// ErrBlockClosed is the cause where Record refuses a certificate because the block
// of its serial is no longer open. Another certificate for the same order has a
// serial of another block.
var ErrBlockClosed = errors.New("the block of its serial is not open")

// IssueServer issues a TLS server certificate of the authority itself for names
// (DNS names and addresses), records it, and returns leaf and chain without root.
func (c *CA) IssueServer(ctx context.Context, issuer string, names []string, pub crypto.PublicKey) (chain [][]byte, notAfter time.Time, err error) {
	tbs := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tbs.IPAddresses = append(tbs.IPAddresses, ip)
		} else {
			tbs.DNSNames = append(tbs.DNSNames, n)
		}
	}
	if len(names) > 0 && len(names[0]) <= maxCommonName {
		tbs.Subject.CommonName = names[0]
	}
	return c.issueService(ctx, issuer, tbs, pub, "server")
}

// IssueIntroducer issues a certificate with which the authority signs introductions
// of devices to each other. Its one name is api.IntroducerURI, and it is good for no TLS.
func (c *CA) IssueIntroducer(ctx context.Context, issuer string, pub crypto.PublicKey) (chain [][]byte, notAfter time.Time, err error) {
	name, err := url.Parse(api.IntroducerURI)
	if err != nil {
		return nil, time.Time{}, err
	}
	tbs := &x509.Certificate{Subject: pkix.Name{CommonName: "introducer"}, URIs: []*url.URL{name}}
	return c.issueService(ctx, issuer, tbs, pub, "introducer")
}

// issueService issues a certificate of the authority's own that lives for
// ServerValidity, and returns it with its chain without root.
func (c *CA) issueService(ctx context.Context, issuer string, tbs *x509.Certificate, pub crypto.PublicKey, profile string) (chain [][]byte, notAfter time.Time, err error) {
	a, err := c.authority(issuer)
	if err != nil {
		return nil, time.Time{}, err
	}
	p := Profile{Name: profile, Validity: Duration(ServerValidity), Backdate: Duration(defaultBackdate)}
	if tbs.NotBefore, tbs.NotAfter, err = p.window(a, c.Now()); err != nil {
		return nil, time.Time{}, err
	}
	tbs.KeyUsage = x509.KeyUsageDigitalSignature
	if tbs.SubjectKeyId, err = keyID(pub); err != nil {
		return nil, time.Time{}, err
	}
	c.addStatus(tbs, a)
	issued, err := c.issueOwn(store.Emergency(ctx), a, tbs, pub, profile)
	if err != nil {
		return nil, time.Time{}, err
	}
	above, err := c.Chain(issuer)
	if err != nil {
		return nil, time.Time{}, err
	}
	return append([][]byte{issued.DER}, above[:len(above)-1]...), tbs.NotAfter, nil
}

// ServerValidity of the authority's own TLS certificates. They are made anew at
// each start and at two thirds of this.
const ServerValidity = 30 * 24 * time.Hour

// issueOwn plans, signs and records a certificate of the authority's own.
func (c *CA) issueOwn(ctx context.Context, a *authority, tbs *x509.Certificate, pub crypto.PublicKey, profile string) (*Issued, error) {
	for again := false; ; again = true {
		plan, err := c.plan(ctx, a, tbs, pub, countersign.Certificate{Profile: profile, State: countersign.CertActive})
		if err != nil {
			return nil, err
		}
		issued, err := c.Sign(plan)
		if err != nil {
			return nil, err
		}
		issued.UsedAt = issued.IssuedAt
		err = c.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return c.Record(ctx, tx, issued) })
		if again || !errors.Is(err, ErrBlockClosed) {
			return issued, err
		}
	}
}

func publicKeyBits(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, fmt.Errorf("decode public key: %w", err)
	}
	return spki.PublicKey.RightAlign(), nil
}
