package ca

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/store"
)

// anchorOf makes a trust anchor of what is on record.
func (c *CA) anchorOf(cert *x509.Certificate, t trust) (attest.Anchor, error) {
	a := attest.Anchor{Certificate: cert, RequireCRL: t.RequireCRL, Legacy: t.Legacy, WeakKeys: c.WeakKeys}
	if len(t.Intermediates) > maxIntermediates || len(t.CRLs) > maxLists {
		return a, countersign.Errorf(countersign.TooLarge, "an authority brings at most %d intermediates and %d lists", maxIntermediates, maxLists)
	}
	for _, der := range t.Intermediates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return a, countersign.Errorf(countersign.BadRequest, "an intermediate certificate cannot be read").WithCause(err)
		}
		a.Intermediates = append(a.Intermediates, c)
	}
	for _, der := range t.CRLs {
		l, err := attest.ParseCRL(der)
		if err != nil {
			return a, err
		}
		a.CRLs = append(a.CRLs, l)
	}
	return a, nil
}

// Known returns those of the ids that name registered authorities which are active on
// record, whichever node registered them.
func (c *CA) Known(ctx context.Context, rd store.Reader, ids []string) (known []string, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	versions, err := versionsOf(ctx, rd, ids)
	for _, id := range ids {
		if _, ok := versions[id]; ok {
			known = append(known, id)
		}
	}
	return known, err
}

// Anchors returns the trust anchors among the registered authorities of those ids, as they
// are on record now, and the id of each. Unknown and retired ones are left out.
func (c *CA) Anchors(ctx context.Context, rd store.Reader, ids []string) (anchors []attest.Anchor, names []string, err error) {
	if len(ids) == 0 {
		return nil, nil, nil
	}
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

// versionsOf reads the versions of the active ones of registered authorities.
func versionsOf(ctx context.Context, rd store.Reader, ids []string) (versions map[string]int64, err error) {
	type versioned struct {
		id      string
		version int64
	}
	var q store.Query
	list, err := store.List(ctx, rd, func(row store.Row) (v versioned, err error) {
		err = row.Scan(&v.id, &v.version)
		return v, err
	}, `SELECT id, version FROM authority WHERE kind = 'registered' AND state = 'active' AND id IN `+store.In(&q, ids), q.Args...)
	if err != nil {
		return nil, fmt.Errorf("read the versions of authorities: %w", err)
	}
	versions = map[string]int64{}
	for _, v := range list {
		versions[v.id] = v.version
	}
	return versions, nil
}

// Anchor returns the trust anchor of a registered authority at a version that the caller
// read from the record, or at a later one. What this process has in memory may be older,
// because another node changed it: then it is read again first, once for all who wait.
func (c *CA) Anchor(ctx context.Context, rd store.Reader, id string, version int64) (*attest.Anchor, error) {
	if a := c.anchorAt(id, version); a != nil {
		return a, nil
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	if a := c.anchorAt(id, version); a != nil {
		return a, nil
	}
	a, err := c.readRegistered(ctx, rd, id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.authorities[id] = a
	return &a.anchor, nil
}

func (c *CA) anchorAt(id string, version int64) *attest.Anchor {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if a := c.authorities[id]; a != nil && a.Kind == countersign.RegisteredAuthority && a.version >= version {
		return &a.anchor
	}
	return nil
}

const authorityColumns = `id, kind, parent, certificate, key_uri, state, created_at, version`

func scanAuthority(row store.Row, extra ...any) (*authority, error) {
	a := &authority{}
	var der []byte
	var created int64
	err := row.Scan(append([]any{&a.ID, &a.Kind, &a.Parent, &der, &a.KeyURI, &a.State, &created, &a.version}, extra...)...)
	if err != nil {
		return nil, store.Wrap(err)
	}
	a.CreatedAt = store.Time(created)
	if a.Certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("parse the certificate of authority %s: %w", a.ID, err)
	}
	a.Subject, a.names = a.Certificate.Subject.String(), namesOf(a.Certificate)
	return a, nil
}

// readRegistered reads a registered authority with its intermediates and lists.
func (c *CA) readRegistered(ctx context.Context, rd store.Reader, id string) (*authority, error) {
	var text string
	a, err := scanAuthority(rd.QueryRow(ctx, `SELECT `+authorityColumns+`, trust FROM authority WHERE id = $1 AND kind = 'registered'`, id), &text)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, countersign.Errorf(countersign.NotFound, "there is no registered authority %.80q", id).WithNext("look for it in the list of authorities")
	}
	if err != nil {
		return nil, fmt.Errorf("read authority %s: %w", id, err)
	}
	if err := json.Unmarshal([]byte(text), &a.trust); err != nil {
		return nil, fmt.Errorf("decode the trust of authority %s: %w", id, err)
	}
	if a.anchor, err = c.anchorOf(a.Certificate, a.trust); err != nil {
		return nil, fmt.Errorf("load registered authority %s: %w", id, err)
	}
	a.trust.CRLs = nil // the anchor has them
	return a, nil
}
