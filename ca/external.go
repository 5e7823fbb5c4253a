package ca

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// issuerKeyDigits of the SHA-256 of an issuer's public key distinguish the CAs below one
// registered authority: 64 bits, and only that authority's own CAs could collide.
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
// its valid path, the certificate first and the registered authority last; rec has its
// device, and the id of the authority as its issuer. The rest is read from the certificate.
// It refuses with Conflict a certificate whose issuer and serial number another one has.
func (c *issuance) RecordExternal(ctx context.Context, tx *store.Tx, path []*x509.Certificate, rec countersign.Certificate) (countersign.Certificate, error) {
	authority := rec.Issuer
	rec = completed(rec, path[0])
	rec.Issuer = externalIssuer(authority, path)
	anchor := ""
	if rec.Issuer != authority {
		anchor = authority
	}
	prints, err := recordIssuers(ctx, tx, path[1:])
	if err != nil {
		return rec, err
	}
	n, err := insert(ctx, tx, newRow{Certificate: &rec, external: true, anchor: anchor, path: prints})
	if err != nil {
		return rec, err
	}
	if n != 1 {
		return rec, countersign.Errorf(countersign.Conflict, "another certificate of issuer %s with serial %s is on record", rec.Issuer, rec.Serial).
			WithNext("enroll the device instead, and ask the manufacturer for certificates with serial numbers that are unique (RFC 5280, 4.1.2.2)")
	}
	c.recorded(tx, &rec, path[0].PublicKey)
	return rec, nil
}

// SetPath records another valid path of a manufacturer's certificate: its device presented
// CAs that were not on record, such as one that was issued anew.
func SetPath(ctx context.Context, tx *store.Tx, ref countersign.CertRef, path []*x509.Certificate) error {
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
