package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

// issuerKeyDigits of the SHA-256 of an issuer's public key tell the CAs below one
// registered authority apart: 64 bits, and only that authority's own CAs could collide.
const issuerKeyDigits = 16

// externalIssuer returns the name under which CertRef keeps the issuer of path[0], a
// manufacturer's certificate with a valid path to a registered authority. Each CA below
// the authority has serial numbers of its own.
func externalIssuer(authority string, path []*x509.Certificate) string {
	if len(path) <= 2 {
		return authority
	}
	return authority + "/" + hexSum(path[1].RawSubjectPublicKeyInfo)[:issuerKeyDigits]
}

// RecordExternal puts a manufacturer's certificate on record as a device's own. path is
// its valid path, the certificate first and the registered authority last; rec says whose
// it is, and the id of the authority as its issuer. The rest is read from the certificate.
// It refuses with Conflict a certificate whose issuer and serial number another one has.
func (c *CA) RecordExternal(ctx context.Context, tx *store.Tx, path []*x509.Certificate, rec countersign.Certificate) (countersign.Certificate, error) {
	authority := rec.Issuer
	rec = recordOf(path[0], rec)
	rec.Issuer = externalIssuer(authority, path)
	anchor := ""
	if rec.Issuer != authority {
		anchor = authority
	}
	prints, err := recordIssuers(ctx, tx, path[1:])
	if err != nil {
		return rec, err
	}
	n, err := tx.Exec(ctx, `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced,
			predecessor, evidence, method, key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der, anchor, path,
			issued_pos)
		VALUES ($1, $2, $3, $4, $5, $6, '', 0, FALSE, '', $7, $8, $9, $10, $11, $12, $13, $14, 0, 0, 0, $15, $16, $17, `+event.PositionSQL+`)
		ON CONFLICT (serial, issuer) DO NOTHING`,
		string(rec.Serial), rec.Issuer, rec.Device, rec.Fleet, rec.Profile, string(rec.State), rec.Evidence, rec.Method, rec.KeyHash,
		rec.Fingerprint, store.Micros(rec.NotBefore), store.Micros(rec.NotAfter), store.Micros(rec.IssuedAt), store.Micros(rec.UsedAt), rec.DER, anchor, prints)
	if err != nil {
		return rec, fmt.Errorf("record certificate %s: %w", rec.Ref(), err)
	}
	if n != 1 {
		return rec, countersign.Errorf(countersign.Conflict, "another certificate of issuer %s with serial %s is on record", rec.Issuer, rec.Serial).
			WithNext("enroll the device instead, and ask the manufacturer for certificates with serial numbers that are unique (RFC 5280, 4.1.2.2)")
	}
	c.keyRecorded(tx, &rec, path[0].PublicKey)
	return rec, nil
}

// maxFactoryCerts bounds how many manufacturer's certificates of one device are looked at.
// A device has one, and another one for each time that its identity was revoked.
const maxFactoryCerts = 16

// FactoryCertificates reads the manufacturer's certificates that a device was introduced
// with, with their DER, the newest first, of whatever state.
func (c *CA) FactoryCertificates(ctx context.Context, r store.Reader, device string) ([]countersign.Certificate, error) {
	return certificates(ctx, r, `WHERE device = $1 AND (anchor <> '' OR issuer IN (SELECT id FROM authority WHERE kind = 'registered'))
		ORDER BY issued_at DESC, serial LIMIT $2`, device, maxFactoryCerts)
}

// SetPath records another valid path of a manufacturer's certificate: its device presented
// CAs that were not on record, such as one that was issued anew.
func (c *CA) SetPath(ctx context.Context, tx *store.Tx, ref countersign.CertRef, path []*x509.Certificate) error {
	prints, err := recordIssuers(ctx, tx, path[1:])
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE certificate SET path = $3 WHERE serial = $1 AND issuer = $2`, string(ref.Serial), ref.Issuer, prints); err != nil {
		return fmt.Errorf("record the path of certificate %s: %w", ref, err)
	}
	return nil
}

// recordIssuers keeps the certificates of CAs, each once, and returns their fingerprints
// as the column path holds them.
func recordIssuers(ctx context.Context, tx *store.Tx, above []*x509.Certificate) (string, error) {
	prints := make([]string, 0, len(above))
	for _, cert := range above {
		print := hexSum(cert.Raw)
		if _, err := tx.Exec(ctx, `INSERT INTO issuer_certificate (fingerprint, der) VALUES ($1, $2) ON CONFLICT (fingerprint) DO NOTHING`, print, cert.Raw); err != nil {
			return "", fmt.Errorf("record the certificate of %s: %w", cert.Subject, err)
		}
		prints = append(prints, print)
	}
	return strings.Join(prints, " "), nil
}
