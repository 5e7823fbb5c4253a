package ca

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/store"
)

// codeLife is how long a registration code can be signed over: a ceremony with an offline
// CA may take days.
const codeLife = 7 * 24 * time.Hour

// registrations are the authorities of others whose certificates are accepted.
type registrations struct {
	*authorities
	reading sync.Mutex // held while a registered authority is read again
}

// Known returns those of the ids that name registered authorities which are active on
// record, whichever node registered them.
func Known(ctx context.Context, rd store.Reader, ids []string) (known []string, err error) {
	versions, err := versionsOf(ctx, rd, ids)
	for _, id := range ids {
		if _, ok := versions[id]; ok {
			known = append(known, id)
		}
	}
	return known, err
}

// versionsOf reads the versions of the active ones of registered authorities.
func versionsOf(ctx context.Context, rd store.Reader, ids []string) (versions map[string]int64, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	type versioned struct {
		id      string
		version int64
	}
	versions = map[string]int64{}
	var q store.Query
	for a, err := range store.Rows(ctx, rd, func(row store.Row) (a versioned, err error) {
		err = row.Scan(&a.id, &a.version)
		return a, err
	}, `SELECT id, version FROM authority WHERE kind = 'registered' AND state = 'active' AND id IN `+store.In(&q, ids), q.Args...) {
		if err != nil {
			return nil, fmt.Errorf("read the versions of authorities: %w", err)
		}
		versions[a.id] = a.version
	}
	return versions, nil
}

// Anchors returns the trust anchors among the registered authorities of those ids, as they
// are on record now, and the id of each. Unknown and retired ones are left out.
func (c *registrations) Anchors(ctx context.Context, rd store.Reader, ids []string) (anchors []attest.Anchor, names []string, err error) {
	versions, err := versionsOf(ctx, rd, ids)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range ids {
		version, ok := versions[id]
		if !ok {
			continue
		}
		a, err := c.Anchor(ctx, rd, id, version)
		if err != nil {
			return nil, nil, err
		}
		anchors, names = append(anchors, *a), append(names, id)
	}
	return anchors, names, nil
}

// Anchor returns the trust anchor of a registered authority at a version that the caller
// read from the record, or at a later one. What this process has in memory may be older,
// because another node changed it: then it is read again first, once for all who wait.
func (c *registrations) Anchor(ctx context.Context, rd store.Reader, id string, version int64) (*attest.Anchor, error) {
	if a, err := c.authority(id); err == nil && a.anchor != nil && a.version >= version {
		return a.anchor, nil
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	if a, err := c.authority(id); err == nil && a.anchor != nil && a.version >= version {
		return a.anchor, nil
	}
	a, _, err := c.readRegistered(ctx, rd, id)
	if err != nil {
		return nil, err
	}
	c.add(a)
	return a.anchor, nil
}

// Registration is what an operator registers an external authority with.
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

// NewRegistrationCode draws a code that the CA to be registered signs over.
func (c *registrations) NewRegistrationCode(ctx context.Context, tx *store.Tx, by countersign.Actor) (string, time.Time, error) {
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

// Register records an external authority, once it has proved that it holds its key
// or the operator overrides that. Call Reload after the commit.
func (c *registrations) Register(ctx context.Context, tx *store.Tx, g Registration) (countersign.Authority, error) {
	a := countersign.Authority{ID: g.ID, Kind: countersign.RegisteredAuthority, State: "active", CreatedAt: c.Now()}
	if err := countersign.CheckName(g.ID); err != nil {
		return a, err
	}
	t := trust{Intermediates: g.Intermediates, CRLs: g.CRLs, RequireCRL: g.RequireCRL, Legacy: g.Legacy}
	var err error
	if a.Certificate, err = x509.ParseCertificate(g.Certificate); err != nil {
		return a, countersign.Errorf(countersign.BadRequest, "the certificate cannot be read").WithNext("send one certificate in PEM").WithCause(err)
	}
	a.Subject = a.Certificate.Subject.String()
	anchor, err := c.anchorOf(a.Certificate, t)
	if err != nil {
		return a, err
	}
	if err := usableAnchor(*anchor, c.Now()); err != nil {
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
func (c *registrations) provePossession(ctx context.Context, tx *store.Tx, authority *x509.Certificate, der []byte) error {
	next := "get a registration code, have the CA sign a certificate with that common name, and send it as the verification"
	if len(der) == 0 {
		return countersign.Errorf(countersign.Unauthenticated, "no verification certificate was sent").WithNext(next)
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
