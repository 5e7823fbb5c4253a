package ca

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/store"
)

// maxIntermediates and maxLists bound what one registered authority has.
const (
	maxIntermediates = 16
	maxLists         = 16
)

// trust is what the record keeps of a registered authority beside its certificate.
type trust struct {
	Intermediates [][]byte `json:"intermediates,omitempty"`
	CRLs          [][]byte `json:"crls,omitempty"`
	RequireCRL    bool     `json:"require_crl,omitempty"`
	Legacy        bool     `json:"legacy,omitempty"`
	Proven        bool     `json:"proven"`
}

// anchorOf makes a trust anchor of what is on record.
func (c *authorities) anchorOf(cert *x509.Certificate, t trust) (*attest.Anchor, error) {
	a := &attest.Anchor{Certificate: cert, RequireCRL: t.RequireCRL, Legacy: t.Legacy, WeakKeys: c.WeakKeys}
	if len(t.Intermediates) > maxIntermediates || len(t.CRLs) > maxLists {
		return nil, countersign.Errorf(countersign.TooLarge, "an authority has at most %d intermediates and %d lists", maxIntermediates, maxLists)
	}
	for _, der := range t.Intermediates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, countersign.Errorf(countersign.BadRequest, "an intermediate certificate cannot be read").WithCause(err)
		}
		a.Intermediates = append(a.Intermediates, c)
	}
	for _, der := range t.CRLs {
		l, err := attest.ParseCRL(der)
		if err != nil {
			return nil, err
		}
		a.CRLs = append(a.CRLs, l)
	}
	return a, nil
}

// scanTrust reads an authority with its trust.
func scanTrust(row store.Row) (*authority, trust, error) {
	var t trust
	var text string
	a, err := scanAuthority(row, &text)
	if err != nil {
		return nil, t, err
	}
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return nil, t, fmt.Errorf("decode the trust of authority %s: %w", a.ID, err)
	}
	return a, t, nil
}

// readRegistered reads a registered authority with its intermediates and lists.
func (c *authorities) readRegistered(ctx context.Context, rd store.Reader, id string) (*authority, trust, error) {
	a, t, err := scanTrust(rd.QueryRow(ctx, `SELECT `+authorityColumns+`, trust FROM authority WHERE id = $1 AND kind = 'registered'`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, t, countersign.Errorf(countersign.NotFound, "there is no registered authority %.80q", id).WithNext("look for it in the list of authorities")
	}
	if err == nil {
		a.anchor, err = c.anchorOf(a.Certificate, t)
	}
	if err != nil {
		return nil, t, fmt.Errorf("read registered authority %s: %w", id, err)
	}
	return a, t, nil
}

// AuthorityRecord is an authority with what the record holds of its trust.
type AuthorityRecord struct {
	countersign.Authority
	Intermediates []*x509.Certificate    // of a registered one
	Lists         []*x509.RevocationList // that an operator loaded for it
	RequireCRL    bool
}

// Records reads all authorities by id, whatever this process has in memory. Lists are
// parsed as they are, whatever signed them.
func Records(ctx context.Context, r store.Reader) ([]AuthorityRecord, error) {
	list, err := store.List(ctx, r, scanRecord, `SELECT `+authorityColumns+`, trust FROM authority ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("read authorities: %w", err)
	}
	return list, nil
}

func scanRecord(row store.Row) (rec AuthorityRecord, err error) {
	a, t, err := scanTrust(row)
	if err != nil {
		return rec, err
	}
	rec = AuthorityRecord{Authority: a.Authority, RequireCRL: t.RequireCRL}
	for _, der := range t.Intermediates {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return rec, fmt.Errorf("parse an intermediate of authority %s: %w", a.ID, err)
		}
		rec.Intermediates = append(rec.Intermediates, cert)
	}
	for _, der := range t.CRLs {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return rec, fmt.Errorf("parse a list of authority %s: %w", a.ID, err)
		}
		rec.Lists = append(rec.Lists, list)
	}
	return rec, nil
}

// Founded returns when the first authority was founded; the zero time if none was.
func Founded(ctx context.Context, r store.Reader) (time.Time, error) {
	var at int64
	if err := r.QueryRow(ctx, `SELECT COALESCE(min(created_at), 0) FROM authority`).Scan(&at); err != nil {
		return time.Time{}, fmt.Errorf("read when the first authority was founded: %w", store.Wrap(err))
	}
	return store.Time(at), nil
}
