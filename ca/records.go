package ca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// AuthorityRecord is an authority with what the record holds of its trust.
type AuthorityRecord struct {
	countersign.Authority
	Intermediates []*x509.Certificate    // of a registered one
	Lists         []*x509.RevocationList // that an operator loaded for it
	RequireCRL    bool
}

// Records reads all authorities by id, whatever this process has in memory. Lists are
// parsed as they are, whoever signed them.
func Records(ctx context.Context, r store.Reader) ([]AuthorityRecord, error) {
	list, err := store.List(ctx, r, scanRecord, `SELECT `+authorityColumns+`, trust FROM authority ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("read authorities: %w", err)
	}
	return list, nil
}

func scanRecord(row store.Row) (rec AuthorityRecord, err error) {
	var text string
	a, err := scanAuthority(row, &text)
	if err != nil {
		return rec, err
	}
	var t trust
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return rec, fmt.Errorf("decode the trust of authority %s: %w", a.ID, err)
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

// ListRecords reads the records of all lists that the authorities publish, without
// their octets. The number of one that was never published is 0.
func ListRecords(ctx context.Context, r store.Reader) ([]countersign.CRL, error) {
	list, err := store.List(ctx, r, func(row store.Row) (l countersign.CRL, err error) {
		var this, next int64
		err = row.Scan(&l.Issuer, &l.Shard, &l.Number, &this, &next)
		l.ThisUpdate, l.NextUpdate = store.Time(this), store.Time(next)
		return l, err
	}, `SELECT issuer, shard, published, this_update, next_update FROM crl ORDER BY issuer, shard`)
	if err != nil {
		return nil, fmt.Errorf("read the records of revocation lists: %w", err)
	}
	return list, nil
}

// RecordedList reads a list as the database has it, which after a restore may be an
// older one than was published; nil if none was.
func RecordedList(ctx context.Context, r store.Reader, issuer string, shard int) (*x509.RevocationList, error) {
	var der []byte
	if err := r.QueryRow(ctx, `SELECT der FROM crl WHERE issuer = $1 AND shard = $2`, issuer, shard).Scan(&der); err != nil {
		return nil, fmt.Errorf("read CRL %s/%d: %w", issuer, shard, store.Wrap(err))
	}
	if len(der) == 0 {
		return nil, nil
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("parse CRL %s/%d: %w", issuer, shard, err)
	}
	return list, nil
}

// KeyRef is the place of a certificate in the order of public keys.
type KeyRef struct {
	Hash string
	Ref  countersign.CertRef
}

// ByKey lists the certificates of devices that are not revoked, with their DER, in the
// order of their public keys, so that those over one key follow each other: those after
// a place; next is the After of the following page, zero at the end.
func ByKey(ctx context.Context, r store.Reader, after KeyRef) (list []countersign.Certificate, next KeyRef, err error) {
	list, err = certificates(ctx, r, `WHERE (key_hash, serial, issuer) > ($1, $2, $3) AND device <> '' AND state <> 'revoked'
		ORDER BY key_hash, serial, issuer LIMIT $4`, after.Hash, string(after.Ref.Serial), after.Ref.Issuer, store.MaxPage+1)
	list, next = store.Page(list, store.MaxPage, func(c *countersign.Certificate) KeyRef { return KeyRef{c.KeyHash, c.Ref()} })
	return list, next, err
}

// refsAtOnce bounds the certificates that one query looks up.
const refsAtOnce = 200

// ByRef reads those of the certificates that are on record, without their DER.
func ByRef(ctx context.Context, r store.Reader, refs []countersign.CertRef) (list []countersign.Certificate, err error) {
	for some := range slices.Chunk(refs, refsAtOnce) {
		serials := make([]countersign.Serial, len(some))
		for i, ref := range some {
			serials[i] = ref.Serial
		}
		var q store.Query
		found, err := store.List(ctx, r, func(row store.Row) (countersign.Certificate, error) { return scanCert(row) },
			`SELECT `+certColumns+` FROM certificate WHERE serial IN `+store.In(&q, serials), q.Args...)
		if err != nil {
			return nil, fmt.Errorf("read certificates: %w", err)
		}
		for i := range found { // serials of others may be the same
			if slices.Contains(some, found[i].Ref()) {
				list = append(list, found[i])
			}
		}
	}
	return list, nil
}

// Holders returns those of the devices that have a certificate which is neither revoked
// nor on hold.
func Holders(ctx context.Context, r store.Reader, devices []string) ([]string, error) {
	var q store.Query
	list, err := store.List(ctx, r, store.Scan[string],
		`SELECT DISTINCT device FROM certificate WHERE state IN ('pending', 'active', 'superseded') AND device IN `+store.In(&q, devices), q.Args...)
	if err != nil {
		return nil, fmt.Errorf("read which devices have certificates: %w", err)
	}
	return list, nil
}
