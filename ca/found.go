package ca

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
)

const (
	// DefaultRootValidity is the ten years that devices can keep a trust anchor.
	DefaultRootValidity = 10 * 365 * 24 * time.Hour
	// DefaultIssuingValidity leaves its successor seven years of the root's life.
	DefaultIssuingValidity = 3 * 365 * 24 * time.Hour
	// minAuthorityValidity leaves room for the life of a device certificate.
	minAuthorityValidity = DefaultValidity
	// maxAuthorityValidity is the longest that any device is expected to live.
	maxAuthorityValidity = 50 * 365 * 24 * time.Hour
	// maxNamePart is ub-common-name, ub-organization-name of RFC 5280, appendix A.1.
	maxNamePart = 64
)

// Plan is what a founding decides: who the authorities are, with which keys, and for
// how long.
type Plan struct {
	Name         string // in front of Root and Issuing in the common names
	RootName     string // common name of the root; empty: Name and Root
	IssuingName  string // common name of the issuing authority; empty: Name and Issuing
	Organization string // O of both subjects; may be empty
	Country      string // C of both subjects, two letters; may be empty

	RootKey         string        // one of keystore.KeyTypes; empty: the first
	IssuingKey      string        // the same
	RootValidity    time.Duration // zero: DefaultRootValidity
	IssuingValidity time.Duration // zero: DefaultIssuingValidity, or the root's if that is shorter
}

// complete fills in what was left open.
func (p Plan) complete() Plan {
	p.RootName = cmp.Or(p.RootName, p.Name+" Root")
	p.IssuingName = cmp.Or(p.IssuingName, p.Name+" Issuing")
	p.RootKey = cmp.Or(p.RootKey, keystore.KeyTypes[0])
	p.IssuingKey = cmp.Or(p.IssuingKey, keystore.KeyTypes[0])
	p.RootValidity = cmp.Or(p.RootValidity, DefaultRootValidity)
	p.IssuingValidity = cmp.Or(p.IssuingValidity, min(DefaultIssuingValidity, p.RootValidity))
	return p
}

// Check returns the first thing that is wrong with a plan.
func (p Plan) Check() error {
	p = p.complete()
	bad := func(format string, args ...any) error {
		return countersign.Errorf(countersign.BadRequest, format, args...)
	}
	for what, s := range map[string]string{"name of the root": p.RootName, "name of the issuing authority": p.IssuingName, "organization": p.Organization} {
		if len(s) > maxNamePart || strings.TrimSpace(s) != s || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }) {
			return bad("%s %.80q is longer than %d octets, or has spaces around it", what, s, maxNamePart)
		}
	}
	if p.RootName == p.IssuingName {
		return bad("root and issuing authority are both named %.80q: a certificate would seem to be its own issuer", p.RootName)
	}
	if p.Country != "" && (len(p.Country) != 2 || strings.ToUpper(p.Country) != p.Country || strings.Trim(p.Country, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "") {
		return bad("country %.20q is not two capital letters (ISO 3166)", p.Country)
	}
	for what, k := range map[string]string{"root": p.RootKey, "issuing authority": p.IssuingKey} {
		if !slices.Contains(keystore.KeyTypes, k) {
			return bad("key type %.20q of the %s is not one of %s", k, what, strings.Join(keystore.KeyTypes, ", "))
		}
	}
	if p.RootValidity < minAuthorityValidity || p.RootValidity > maxAuthorityValidity {
		return bad("validity %s of the root is not between %s and %s", p.RootValidity, minAuthorityValidity, maxAuthorityValidity)
	}
	if p.IssuingValidity < minAuthorityValidity || p.IssuingValidity > p.RootValidity {
		return bad("validity %s of the issuing authority is not between %s and the root's %s", p.IssuingValidity, minAuthorityValidity, p.RootValidity)
	}
	return nil
}

func (p Plan) subject(commonName string) pkix.Name {
	n := pkix.Name{CommonName: commonName}
	if p.Organization != "" {
		n.Organization = []string{p.Organization}
	}
	if p.Country != "" {
		n.Country = []string{p.Country}
	}
	return n
}

// Founding is a root and an issuing authority, signed but not yet on record.
type Founding struct {
	authorities []countersign.Authority
	parents     []drawn
}

// The ids of the authorities that Found makes.
const (
	RootID    = "root"
	IssuingID = "issuing"
)

// The keys of the authorities that Found makes.
const (
	RootKeyURI    = "file:keys/root.pem"
	IssuingKeyURI = "file:keys/issuing.pem"
)

// Found makes the keys and certificates of a root and an issuing authority as a plan
// has them. Keys that an earlier, interrupted founding left behind are used, if they
// are of the planned types; the caller knows that they are such.
func (c *CA) Found(ctx context.Context, p Plan) (*Founding, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	p = p.complete()
	passphrase, err := c.passphrase()
	if err != nil {
		return nil, err
	}
	now := c.Now().UTC().Truncate(time.Second)
	root := countersign.Authority{ID: RootID, Kind: countersign.RootAuthority, KeyURI: RootKeyURI, State: "active", CreatedAt: now}
	issuing := countersign.Authority{ID: IssuingID, Kind: countersign.IssuingAuthority, Parent: RootID, KeyURI: IssuingKeyURI, State: "active", CreatedAt: now}
	rootKey, err := c.openOrCreate(root.KeyURI, p.RootKey, passphrase)
	if err != nil {
		return nil, err
	}
	issuingKey, err := c.openOrCreate(issuing.KeyURI, p.IssuingKey, nil)
	if err != nil {
		return nil, err
	}
	f := &Founding{}
	tmpl := authorityTemplate(p.subject(p.RootName), now, p.RootValidity)
	if root.Certificate, err = c.signAuthority(ctx, f, tmpl, nil, [2]crypto.Signer{rootKey, rootKey}); err != nil {
		return nil, err
	}
	tmpl = authorityTemplate(p.subject(p.IssuingName), now, p.IssuingValidity)
	tmpl.MaxPathLenZero = true
	tmpl.CRLDistributionPoints = []string{c.crlURL(RootID)}
	tmpl.IssuingCertificateURL = []string{c.issuerURL(RootID)}
	if issuing.Certificate, err = c.signAuthority(ctx, f, tmpl, root.Certificate, [2]crypto.Signer{issuingKey, rootKey}); err != nil {
		return nil, err
	}
	f.authorities = []countersign.Authority{root, issuing}
	return f, nil
}

func authorityTemplate(subject pkix.Name, now time.Time, life time.Duration) *x509.Certificate {
	return &x509.Certificate{
		Subject:               subject,
		NotBefore:             now.Add(-defaultBackdate),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

// signAuthority signs a CA certificate. keys are the subject's and the issuer's.
func (c *CA) signAuthority(ctx context.Context, f *Founding, tmpl, parent *x509.Certificate, keys [2]crypto.Signer) (*x509.Certificate, error) {
	d, err := c.draw(ctx)
	if err != nil {
		return nil, err
	}
	f.parents = append(f.parents, d)
	tmpl.SerialNumber = d.serial
	key, err := encodeKey(keys[0].Public())
	if err != nil {
		return nil, err
	}
	tmpl.SubjectKeyId = key.id()
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, keys[0].Public(), keys[1])
	if err != nil {
		return nil, fmt.Errorf("sign authority %s: %w", tmpl.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}

func (c *CA) openOrCreate(uri, keyType string, passphrase []byte) (crypto.Signer, error) {
	key, err := c.Keys.Open(uri, passphrase)
	if errors.Is(err, os.ErrNotExist) {
		return c.Keys.Create(uri, keyType, passphrase)
	}
	if err != nil {
		return nil, err
	}
	if is := keyTypeOf(key.Public()); is != keyType {
		return nil, countersign.Errorf(countersign.Conflict, "%s is a %s key of an interrupted founding, but the plan has a %s key", c.Keys.Path(uri), is, keyType).
			WithNext("ask for the same type again, or remove the file")
	}
	return key, nil
}

// keyTypeOf names a key as keystore.KeyTypes does.
func keyTypeOf(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return k.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	}
	return fmt.Sprintf("%T", pub)
}

// RecordFounding writes the new authorities. Call Reload after the commit.
func (c *CA) RecordFounding(ctx context.Context, tx *store.Tx, f *Founding) error {
	for i, a := range f.authorities {
		now := store.Micros(a.CreatedAt)
		_, err := tx.Exec(ctx, `INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			a.ID, string(a.Kind), a.Parent, a.Certificate.Raw, a.KeyURI, a.State, now)
		if err != nil {
			return fmt.Errorf("record authority %s: %w", a.ID, err)
		}
		_, err = tx.Exec(ctx, `INSERT INTO crl (issuer, shard, number, published, this_update, next_update, entries) VALUES ($1, 0, 0, 0, 0, 0, 0)`, a.ID)
		if err != nil {
			return fmt.Errorf("open the CRL of authority %s: %w", a.ID, err)
		}
		rec := completed(countersign.Certificate{
			Issuer: cmp.Or(a.Parent, a.ID), Profile: "authority", State: countersign.CertActive, IssuedAt: a.CreatedAt, UsedAt: a.CreatedAt,
		}, a.Certificate)
		if err := c.Record(ctx, tx, &Issued{Certificate: rec, block: f.parents[i].block}); err != nil {
			return err
		}
	}
	for _, p := range builtin() {
		if err := c.SaveProfile(ctx, tx, p); err != nil {
			return err
		}
	}
	return nil
}
