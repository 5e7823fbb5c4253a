package ca

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

// What a query reads of certificates, for scanCert: all of it, or all but the DER.
const (
	certColumns = `serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, predecessor_issuer, evidence, method,
	key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, issued_pos, used_pos`
	bareColumns  = certColumns + `, NULL`
	wholeColumns = certColumns + `, der`
	bare         = `SELECT ` + bareColumns + ` FROM certificate `
	whole        = `SELECT ` + wholeColumns + ` FROM certificate `
)

func scanCert(row store.Row) (c countersign.Certificate, err error) {
	var from, to, issued, used, accept, revoked int64
	err = row.Scan(
		&c.Serial, &c.Issuer, &c.Device, &c.Fleet, &c.Profile, &c.State, &c.HeldFrom, &c.Reason, &c.Replaced, &c.Predecessor.Serial, &c.Predecessor.Issuer,
		&c.Evidence, &c.Method, &c.KeyHash, &c.Fingerprint, &from, &to, &issued, &used, &accept, &revoked, &c.Shard, &c.IssuedPos, &c.UsedPos, &c.DER)
	if err != nil {
		return c, store.Wrap(err)
	}
	c.NotBefore, c.NotAfter, c.IssuedAt = store.Time(from), store.Time(to), store.Time(issued)
	c.UsedAt, c.AcceptUntil, c.RevokedAt = store.Time(used), store.Time(accept), store.Time(revoked)
	return c, nil
}

// certificates reads a list of certificates, bare or whole.
func certificates(ctx context.Context, r store.Reader, query string, args ...any) (list []countersign.Certificate, err error) {
	if list, err = store.List(ctx, r, scanCert, query, args...); err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	return list, nil
}

// certificate reads one certificate with its DER.
func certificate(ctx context.Context, r store.Reader, name, where string, args ...any) (countersign.Certificate, error) {
	cert, err := scanCert(r.QueryRow(ctx, whole+where, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return cert, noCertificate(name)
	}
	if err != nil {
		return cert, fmt.Errorf("read certificate %s: %w", name, err)
	}
	return cert, nil
}

func noCertificate(name string) error {
	return countersign.Errorf(countersign.NotFound, "there is no certificate %s", name).WithNext("look for it in the list of certificates")
}

// Certificate reads one certificate with its DER: NotFound if there is none.
func Certificate(ctx context.Context, r store.Reader, ref countersign.CertRef) (countersign.Certificate, error) {
	return certificate(ctx, r, ref.String(), `WHERE serial = $1 AND issuer = $2`, string(ref.Serial), ref.Issuer)
}

// Shown reads the record of a certificate that a client presented, of whatever issuer:
// NotFound if it is not, octet for octet, on record. The caller needs no check of the
// issuer's signature: what is on record was signed here, or verified before it was recorded.
func Shown(ctx context.Context, r store.Reader, cert *x509.Certificate) (countersign.Certificate, error) {
	serial := string(countersign.SerialOf(cert.SerialNumber))
	return certificate(ctx, r, serial, `WHERE serial = $1 AND fingerprint = $2`, serial, hexSum(cert.Raw))
}

// maxNamesakes bounds how many certificates with one serial number are distinguished.
const maxNamesakes = 16

// BySerial reads the certificates with a serial number, with their DER, by issuer: at
// most maxNamesakes. NotFound if there is none.
func BySerial(ctx context.Context, r store.Reader, serial countersign.Serial) ([]countersign.Certificate, error) {
	list, err := certificates(ctx, r, whole+`WHERE serial = $1 ORDER BY issuer LIMIT $2`, string(serial), maxNamesakes)
	if err == nil && len(list) == 0 {
		err = noCertificate("with serial " + string(serial))
	}
	return list, err
}

// maxDeviceCerts bounds how many certificates of one device are looked at to
// decide something. Package ra lets a device have half as many that are good, so
// none of those is ever out of sight.
const maxDeviceCerts = 256

// DeviceCertificates reads the certificates of a device with their DER: those not
// revoked, then the others, each newest first. Replaced ones are left out, since a
// device that cannot keep its new key may make any number of them.
func DeviceCertificates(ctx context.Context, r store.Reader, device string) ([]countersign.Certificate, error) {
	return certificates(ctx, r, whole+`WHERE device = $1 AND NOT replaced
		ORDER BY CASE state WHEN 'revoked' THEN 1 ELSE 0 END, issued_pos DESC, issued_at DESC, serial, issuer LIMIT $2`, device, maxDeviceCerts)
}

// maxFactoryCerts bounds how many manufacturer's certificates of one device are looked at.
// A device has one, and another one for each time that its identity was revoked.
const maxFactoryCerts = 16

// FactoryCertificates reads the manufacturer's certificates that a device was introduced
// with, with their DER, the newest first, of whatever state.
func FactoryCertificates(ctx context.Context, r store.Reader, device string) ([]countersign.Certificate, error) {
	return certificates(ctx, r, whole+`WHERE device = $1 AND (anchor <> '' OR issuer IN (SELECT id FROM authority WHERE kind = 'registered'))
		ORDER BY issued_at DESC, serial LIMIT $2`, device, maxFactoryCerts)
}

// Overdue reads superseded certificates whose overlap has ended by now, at most limit.
func Overdue(ctx context.Context, r store.Reader, now time.Time, limit int) ([]countersign.Certificate, error) {
	return certificates(ctx, r, bare+`WHERE state = 'superseded' AND accept_until < $1 ORDER BY accept_until LIMIT $2`, store.Micros(now), limit)
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
		found, err := certificates(ctx, r, bare+`WHERE serial IN `+store.In(&q, serials), q.Args...)
		if err != nil {
			return nil, err
		}
		for i := range found { // serials of others may be the same
			if slices.Contains(some, found[i].Ref()) {
				list = append(list, found[i])
			}
		}
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
	list, err = certificates(ctx, r, whole+`WHERE (key_hash, serial, issuer) > ($1, $2, $3) AND device <> '' AND state <> 'revoked'
		ORDER BY key_hash, serial, issuer LIMIT $4`, after.Hash, string(after.Ref.Serial), after.Ref.Issuer, store.MaxPage+1)
	list, next = store.Page(list, store.MaxPage, func(c *countersign.Certificate) KeyRef { return KeyRef{c.KeyHash, c.Ref()} })
	return list, next, err
}

// Filter chooses certificates for a list.
type Filter struct {
	Device        string
	State         countersign.CertState
	ExpiresBefore time.Time
	After         countersign.CertRef // keyset: the last of the page before
	Limit         int                 // at most store.MaxPage; 0 is that
}

// Certificates lists certificates without DER: those of a device, or all, by serial and
// issuer; those of a state, or that expire, by the end of their validity, the first first.
// next is the After of the following page, zero at the end. It refuses with BadRequest an
// After that is no certificate where the list is by the end of validity.
func Certificates(ctx context.Context, r store.Reader, f Filter) (list []countersign.Certificate, next countersign.CertRef, err error) {
	limit := store.PageSize(f.Limit)
	var q store.Query
	query := f.bySerial
	if f.Device == "" && (f.State != "" || !f.ExpiresBefore.IsZero()) {
		query = f.byExpiry
	}
	text, err := query(ctx, r, &q, limit+1)
	if err != nil {
		return nil, next, err
	}
	list, err = certificates(ctx, r, text, q.Args...)
	list, next = store.Page(list, limit, (*countersign.Certificate).Ref)
	return list, next, err
}

// bySerial returns the query of all certificates, or of all that a device has.
func (f *Filter) bySerial(_ context.Context, _ store.Reader, q *store.Query, limit int) (string, error) {
	q.And("(serial, issuer) > (?, ?)", string(f.After.Serial), f.After.Issuer)
	q.If(f.Device != "", "device = ?", f.Device)
	// In an expression, because SQLite would take the index of the state otherwise, which
	// has more certificates than a device.
	q.If(f.State != "", "state || '' = ?", string(f.State))
	q.If(!f.ExpiresBefore.IsZero(), "not_after < ?", store.Micros(f.ExpiresBefore))
	return bare + q.Where() + ` ORDER BY serial, issuer LIMIT ` + q.Arg(limit), nil
}

// byExpiry returns the query of the certificates of a state, or of all, by expiry.
func (f *Filter) byExpiry(ctx context.Context, r store.Reader, q *store.Query, limit int) (string, error) {
	if f.After.Serial != "" {
		var issuer string
		var end int64
		err := r.QueryRow(ctx, `SELECT issuer, not_after FROM certificate WHERE serial = $1 AND issuer <= $2 ORDER BY issuer DESC LIMIT 1`,
			string(f.After.Serial), f.After.Issuer).Scan(&issuer, &end)
		if err != nil {
			missing := countersign.Errorf(countersign.BadRequest, "after is no cursor of this list").WithNext("use the next of the page before")
			return "", store.RowError(err, missing, "read certificate "+f.After.String())
		}
		q.And("(not_after, serial, issuer) > (?, ?, ?)", end, string(f.After.Serial), issuer)
	}
	q.If(!f.ExpiresBefore.IsZero(), "not_after < ?", store.Micros(f.ExpiresBefore))
	states := append(unrevoked(), countersign.CertRevoked)
	if f.State != "" {
		states = []countersign.CertState{f.State}
	}
	parts := partsOf(bareColumns, states, "not_after, serial, issuer", limit)
	return parts.Text(q), nil
}

// partsOf is a list of the certificates in some states.
func partsOf(columns string, states []countersign.CertState, order string, limit int) store.Parts[countersign.CertState] {
	return store.Parts[countersign.CertState]{Columns: columns, Table: "certificate", Column: "state", Values: states, Order: order, Limit: limit}
}

// unrevoked returns all states but revoked.
func unrevoked() []countersign.CertState {
	return []countersign.CertState{countersign.CertPending, countersign.CertActive, countersign.CertSuperseded, countersign.CertHeld}
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

// KeyHolder reports whether any certificate, even a revoked one, was issued over the
// public key to another holder than the device: another device, or no particular one
// (empty), as with claims and the authority's own.
func KeyHolder(ctx context.Context, r store.Reader, keyHash, device string) (other string, taken bool, err error) {
	err = r.QueryRow(ctx, `SELECT device FROM certificate WHERE key_hash = $1 AND device <> $2 ORDER BY device DESC LIMIT 1`, keyHash, device).Scan(&other)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("look for other holders of a key: %w", err)
	}
	return other, true, nil
}

// IssuedWithin reports whether a device was issued most certificates or more after
// since, and when the one was that many before the newest.
func IssuedWithin(ctx context.Context, r store.Reader, device string, since time.Time, most int) (at time.Time, over bool, err error) {
	var issued int64
	err = r.QueryRow(ctx, `SELECT issued_at FROM certificate WHERE device = $1 AND issued_at > $2 ORDER BY issued_at DESC LIMIT 1 OFFSET $3`,
		device, store.Micros(since), most-1).Scan(&issued)
	if errors.Is(err, sql.ErrNoRows) {
		return at, false, nil
	}
	if err != nil {
		return at, false, fmt.Errorf("count the certificates of %s: %w", device, store.Wrap(err))
	}
	return store.Time(issued), true, nil
}

// Recoveries counts the certificates that a device was issued by recovery from a position
// of the log on and did not give up unused.
func Recoveries(ctx context.Context, r store.Reader, device string, from countersign.Position) (n int, err error) {
	err = r.QueryRow(ctx, `SELECT count(*) FROM certificate WHERE device = $1 AND issued_pos >= $2 AND method = $3 AND NOT replaced`,
		device, from, string(countersign.MethodRecovery)).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count the recoveries of %s: %w", device, store.Wrap(err))
	}
	return n, nil
}

// completed returns rec with what is in cert.
func completed(rec countersign.Certificate, cert *x509.Certificate) countersign.Certificate {
	rec.Serial = countersign.SerialOf(cert.SerialNumber)
	rec.DER = cert.Raw
	rec.NotBefore, rec.NotAfter = cert.NotBefore, cert.NotAfter
	rec.Fingerprint = hexSum(cert.Raw)
	rec.KeyHash = hexSum(cert.RawSubjectPublicKeyInfo)
	return rec
}

// newRow is a certificate that is not on record yet: one of ours, or one of a manufacturer.
type newRow struct {
	*countersign.Certificate
	external     bool   // it is a manufacturer's, whose serial is in no block
	block        string // of its serial, if it is ours
	anchor, path string // the authority to which a manufacturer's path leads, and the path
}

// insert writes a new certificate. rows is 0 where the block is not open, or another
// certificate has the issuer and serial.
func insert(ctx context.Context, tx *store.Tx, c newRow) (rows int64, err error) {
	from := `FROM serial_block WHERE id = $20 AND state = 'open'`
	if c.external {
		from = `WHERE $20 = '' ON CONFLICT (serial, issuer) DO NOTHING`
	}
	rows, err = tx.Exec(ctx, `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced,
			predecessor, predecessor_issuer, evidence, method, key_hash, fingerprint, not_before, not_after, issued_at, used_at,
			accept_until, revoked_at, shard, der, anchor, path, issued_pos)
		SELECT $1, $2, $3, $4, $5, $6, '', 0, FALSE, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 0, 0, 0, $17, $18, $19, `+event.PositionSQL+` `+from,
		string(c.Serial), c.Issuer, c.Device, c.Fleet, c.Profile, string(c.State), string(c.Predecessor.Serial), c.Predecessor.Issuer, c.Evidence, c.Method, c.KeyHash,
		c.Fingerprint, store.Micros(c.NotBefore), store.Micros(c.NotAfter), store.Micros(c.IssuedAt), store.Micros(c.UsedAt), c.DER, c.anchor, c.path, c.block)
	if err != nil {
		return 0, fmt.Errorf("record certificate %s: %w", c.Ref(), err)
	}
	return rows, nil
}
