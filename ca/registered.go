package ca

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/store"
)

const (
	// codeLife is how long a registration code can be signed over: a ceremony with
	// an offline CA may take days.
	codeLife = 7 * 24 * time.Hour
	// maxIntermediates and maxLists bound what one registered authority brings.
	maxIntermediates = 16
	maxLists         = 16
)

// Registration brings an external authority in.
type Registration struct {
	ID            string
	Certificate   []byte   // DER
	Intermediates [][]byte // DER, of CAs below it, for devices that send too little
	CRLs          [][]byte // DER, of it and of CAs below
	RequireCRL    bool     // refuse where there is no list for a link
	Legacy        bool     // accept a CA without key identifiers, see attest.Anchor
	// Verification is a certificate that the authority signed over the code: its
	// common name is the code. Empty: Override.
	Verification []byte
	// Override registers without proof, on the operator's word, for the reason.
	Override bool
	Reason   string
}

// trust is what the record keeps of a registered authority beside its certificate.
type trust struct {
	Intermediates [][]byte `json:"intermediates,omitempty"`
	CRLs          [][]byte `json:"crls,omitempty"`
	RequireCRL    bool     `json:"require_crl,omitempty"`
	Legacy        bool     `json:"legacy,omitempty"`
	Proven        bool     `json:"proven"`
}

// NewRegistrationCode draws a code that the CA to be registered signs over.
func (c *CA) NewRegistrationCode(ctx context.Context, tx *store.Tx, by countersign.Actor) (string, time.Time, error) {
	code := "countersign-" + strings.ToLower(rand.Text())
	until := c.Now().Add(codeLife)
	if _, err := tx.Exec(ctx, `DELETE FROM registration_code WHERE expires_at < $1`, store.Micros(c.Now())); err != nil {
		return "", until, fmt.Errorf("clear old registration codes: %w", err)
	}
	_, err := tx.Exec(ctx, `INSERT INTO registration_code (code, created_by, expires_at) VALUES ($1, $2, $3)`, code, string(by), store.Micros(until))
	if err != nil {
		return "", until, fmt.Errorf("record a registration code: %w", err)
	}
	return code, until, nil
}

// Register records an external authority, once it has shown that it holds its key
// or the operator says so. Call Reload after the commit.
func (c *CA) Register(ctx context.Context, tx *store.Tx, g Registration) (countersign.Authority, error) {
	a := countersign.Authority{ID: g.ID, Kind: countersign.RegisteredAuthority, State: "active", CreatedAt: c.Now()}
	if err := countersign.CheckName(g.ID); err != nil {
		return a, err
	}
	t := trust{Intermediates: g.Intermediates, CRLs: g.CRLs, RequireCRL: g.RequireCRL, Legacy: g.Legacy}
	var err error
	if a.Certificate, err = x509.ParseCertificate(g.Certificate); err != nil {
		return a, countersign.Errorf(countersign.BadRequest, "the certificate cannot be read").WithNext("give one certificate in PEM").WithCause(err)
	}
	a.Subject = a.Certificate.Subject.String()
	anchor, err := c.anchorOf(a.Certificate, t)
	if err != nil {
		return a, err
	}
	if err := usableAnchor(anchor, c.Now()); err != nil {
		return a, err
	}
	if anchor.CRLs, err = follow(nil, anchor.CRLs, append([]*x509.Certificate{a.Certificate}, anchor.Intermediates...)); err != nil {
		return a, err
	}
	t.CRLs = derOf(anchor.CRLs)
	if !g.Override {
		if err := c.provePossession(ctx, tx, a.Certificate, g.Verification); err != nil {
			return a, err
		}
		t.Proven = true
	}
	text, err := json.Marshal(t)
	if err != nil {
		return a, fmt.Errorf("encode trust: %w", err)
	}
	n, err := tx.Exec(ctx, `INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at, trust) VALUES ($1, $2, '', $3, '', $4, $5, $6)
		ON CONFLICT (id) DO NOTHING`, a.ID, string(a.Kind), a.Certificate.Raw, a.State, store.Micros(a.CreatedAt), string(text))
	if err != nil {
		return a, fmt.Errorf("record authority %s: %w", a.ID, err)
	}
	if n != 1 {
		return a, countersign.Errorf(countersign.Conflict, "there is an authority %s already", a.ID).WithNext("choose another id")
	}
	return a, nil
}

// usableAnchor refuses what each device of the authority would be refused for later.
// The fault is in the operator's input.
func usableAnchor(a attest.Anchor, now time.Time) error {
	err := attest.CheckAnchor(a, now)
	if countersign.CodeOf(err) != countersign.Misconfigured {
		return err
	}
	p := countersign.Public(err)
	return countersign.Errorf(countersign.BadRequest, "%s", p.Message).WithNext(p.Next).WithCause(err)
}

// provePossession checks that the CA signed a certificate over a code of ours.
func (c *CA) provePossession(ctx context.Context, tx *store.Tx, authority *x509.Certificate, der []byte) error {
	next := "get a registration code, have the CA sign a certificate with that common name, and give it as the verification"
	if len(der) == 0 {
		return countersign.Errorf(countersign.Unauthenticated, "no verification certificate was given").WithNext(next)
	}
	v, err := x509.ParseCertificate(der)
	if err != nil {
		return countersign.Errorf(countersign.BadRequest, "the verification certificate cannot be read").WithNext(next).WithCause(err)
	}
	if err := v.CheckSignatureFrom(authority); err != nil {
		return countersign.Errorf(countersign.BadSignature, "the verification certificate is not signed by the authority").WithNext(next).WithCause(err)
	}
	n, err := tx.Exec(ctx, `DELETE FROM registration_code WHERE code = $1 AND expires_at >= $2`, v.Subject.CommonName, store.Micros(c.Now()))
	if err != nil {
		return fmt.Errorf("spend a registration code: %w", err)
	}
	if n != 1 {
		return countersign.Errorf(countersign.BadCredential, "the verification certificate's common name %.80q is no registration code of ours, or an old one", v.Subject.CommonName).WithNext(next)
	}
	return nil
}

// KeyHolder reports whether any certificate, even a revoked one, was issued over the
// public key to anybody but the device: another device, or no particular one
// (empty), as with claims and the authority's own.
func (c *CA) KeyHolder(ctx context.Context, r store.Reader, keyHash, device string) (other string, taken bool, err error) {
	err = r.QueryRow(ctx, `SELECT device FROM certificate WHERE key_hash = $1 AND device <> $2 ORDER BY device DESC LIMIT 1`, keyHash, device).Scan(&other)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("look for other holders of a key: %w", err)
	}
	return other, true, nil
}

// ClaimValidity bounds a claim certificate where its credential has no end.
const ClaimValidity = 366 * 24 * time.Hour

// IssueClaim signs a claim certificate, which enrolls and can do nothing else: it
// is on record without a device, so no gateway admits it. It returns the leaf, DER.
func (c *CA) IssueClaim(ctx context.Context, issuer, label string, until time.Time, pub any) (*Issued, error) {
	a, err := c.authority(issuer)
	if err != nil {
		return nil, err
	}
	p := Profile{
		Name: "claim", Validity: Duration(max(until.Sub(c.Now()), minValidity)), Backdate: Duration(defaultBackdate),
		KeyUsage: []string{"digitalSignature"}, ExtKeyUsage: []string{"clientAuth"},
	}
	from, to, err := p.window(a, c.Now())
	if err != nil {
		return nil, err
	}
	tbs := &x509.Certificate{NotBefore: from, NotAfter: to, KeyUsage: p.keyUsage(), ExtKeyUsage: p.extKeyUsage()}
	if tbs.SubjectKeyId, err = keyID(pub); err != nil {
		return nil, err
	}
	tbs.Subject.CommonName = "claim:" + label
	if len(tbs.Subject.CommonName) > maxCommonName {
		tbs.Subject.CommonName = tbs.Subject.CommonName[:maxCommonName]
	}
	c.addStatus(tbs, a)
	return c.issueOwn(ctx, a, tbs, pub, p.Name)
}
