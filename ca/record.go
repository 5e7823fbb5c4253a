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

// moves is the life of a certificate. There is no way out of revoked; from held
// Release leads back to the state before, and nothing else does. Planned has no row:
// a planned certificate is its serial in an open block. Expiry needs no move: it
// follows from NotAfter.
var moves = map[countersign.CertState][]countersign.CertState{
	countersign.CertPending:    {countersign.CertActive, countersign.CertHeld, countersign.CertRevoked},
	countersign.CertActive:     {countersign.CertSuperseded, countersign.CertHeld, countersign.CertRevoked},
	countersign.CertSuperseded: {countersign.CertHeld, countersign.CertRevoked},
	countersign.CertHeld:       {countersign.CertRevoked},
	countersign.CertRevoked:    nil,
}

// Activate records the first use of a pending certificate.
func (c *CA) Activate(ctx context.Context, tx *store.Tx, cert *countersign.Certificate) error {
	return c.move(ctx, tx, cert, countersign.CertActive, func(n *countersign.Certificate) { n.UsedAt = c.Now() })
}

// Supersede starts the overlap of a certificate that a newer one took over from.
// It never reaches beyond NotAfter.
func (c *CA) Supersede(ctx context.Context, tx *store.Tx, cert *countersign.Certificate, until time.Time) error {
	if until.After(cert.NotAfter) {
		until = cert.NotAfter
	}
	return c.move(ctx, tx, cert, countersign.CertSuperseded, func(n *countersign.Certificate) { n.AcceptUntil = until })
}

// Hold puts a certificate on certificateHold; Release ends it.
func (c *CA) Hold(ctx context.Context, tx *store.Tx, cert *countersign.Certificate) error {
	return c.move(ctx, tx, cert, countersign.CertHeld, func(n *countersign.Certificate) {
		n.HeldFrom, n.Reason, n.RevokedAt = cert.State, countersign.CertificateHold, c.Now()
	})
}

// Release returns a held certificate the state back that it had.
func (c *CA) Release(ctx context.Context, tx *store.Tx, cert *countersign.Certificate) error {
	if cert.State != countersign.CertHeld {
		return moveError(cert, "released")
	}
	return c.set(ctx, tx, cert, cert.HeldFrom, func(n *countersign.Certificate) {
		n.HeldFrom, n.Reason, n.RevokedAt = "", 0, time.Time{}
	})
}

// Revoke ends a certificate for good: BadRequest for a reason that does not mean
// that (RFC 5280, 5.3.1).
func (c *CA) Revoke(ctx context.Context, tx *store.Tx, cert *countersign.Certificate, reason countersign.ReasonCode) error {
	switch {
	case reason == countersign.CertificateHold, reason == countersign.RemoveFromCRL, reason == 7,
		reason < countersign.Unspecified, reason > countersign.AACompromise:
		return countersign.Errorf(countersign.BadRequest, "%s does not revoke a certificate for good", reason)
	}
	return c.move(ctx, tx, cert, countersign.CertRevoked, func(n *countersign.Certificate) {
		n.HeldFrom, n.Reason, n.RevokedAt = "", reason, c.Now()
	})
}

// RaiseReason records a graver reason for which a certificate is revoked already: see
// [countersign.ReasonCode.Graver]. The date of the revocation stays, since relying parties
// have refused the certificate from then on. The next CRL and OCSP answer show the reason.
func (c *CA) RaiseReason(ctx context.Context, tx *store.Tx, cert *countersign.Certificate, reason countersign.ReasonCode) error {
	if cert.State != countersign.CertRevoked || !reason.Graver(cert.Reason) {
		return countersign.Errorf(countersign.Conflict, "certificate %s is %s for %s, which %s does not replace", cert.Serial, cert.State, cert.Reason, reason)
	}
	return c.set(ctx, tx, cert, countersign.CertRevoked, func(n *countersign.Certificate) { n.Reason = reason })
}

// Replace revokes a pending certificate in favor of another key that the device
// asked for. A client that presents it afterwards is a second holder of the identity.
func (c *CA) Replace(ctx context.Context, tx *store.Tx, cert *countersign.Certificate) error {
	if cert.State != countersign.CertPending {
		return moveError(cert, "replaced")
	}
	return c.move(ctx, tx, cert, countersign.CertRevoked, func(n *countersign.Certificate) {
		n.Reason, n.RevokedAt, n.Replaced = countersign.Superseded, c.Now(), true
	})
}

func (c *CA) move(ctx context.Context, tx *store.Tx, cert *countersign.Certificate, to countersign.CertState, change func(*countersign.Certificate)) error {
	if !slices.Contains(moves[cert.State], to) {
		return moveError(cert, string(to))
	}
	return c.set(ctx, tx, cert, to, change)
}

// set writes the new state where the certificate is still in the one that cert
// shows, and then changes cert. A transaction that runs again must read cert again.
func (c *CA) set(ctx context.Context, tx *store.Tx, cert *countersign.Certificate, to countersign.CertState, change func(*countersign.Certificate)) error {
	next := *cert
	next.State = to
	change(&next)
	n, err := tx.Exec(ctx, `UPDATE certificate SET state = $3, held_from = $4, reason = $5, replaced = $6, used_at = $7, accept_until = $8, revoked_at = $9,
			used_pos = CASE WHEN used_at = $7 THEN used_pos ELSE `+event.PositionSQL+` END
		WHERE serial = $1 AND issuer = $2 AND state = $10`,
		string(cert.Serial), cert.Issuer, string(next.State), string(next.HeldFrom), int(next.Reason), next.Replaced,
		store.Micros(next.UsedAt), store.Micros(next.AcceptUntil), store.Micros(next.RevokedAt), string(cert.State))
	if err != nil {
		return fmt.Errorf("set certificate %s %s: %w", cert.Serial, to, err)
	}
	if n != 1 {
		return moveError(cert, string(to))
	}
	if withdrawn(cert.State) != withdrawn(to) || to == countersign.CertRevoked {
		c.answers.forgetAfter(tx, cert.Ref())
	}
	*cert = next
	return nil
}

func withdrawn(s countersign.CertState) bool {
	return s == countersign.CertRevoked || s == countersign.CertHeld
}

func moveError(cert *countersign.Certificate, to string) error {
	return countersign.Errorf(countersign.Conflict, "certificate %s is %s and cannot become %s", cert.Serial, cert.State, to)
}

const certColumns = `serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, predecessor_issuer, evidence, method,
	key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, issued_pos, used_pos`

func scanCert(row store.Row, extra ...any) (c countersign.Certificate, err error) {
	var from, to, issued, used, accept, revoked int64
	dest := []any{
		&c.Serial, &c.Issuer, &c.Device, &c.Fleet, &c.Profile, &c.State, &c.HeldFrom, &c.Reason, &c.Replaced, &c.Predecessor.Serial, &c.Predecessor.Issuer,
		&c.Evidence, &c.Method, &c.KeyHash, &c.Fingerprint, &from, &to, &issued, &used, &accept, &revoked, &c.Shard, &c.IssuedPos, &c.UsedPos,
	}
	if err := row.Scan(append(dest, extra...)...); err != nil {
		return c, store.Wrap(err)
	}
	c.NotBefore, c.NotAfter, c.IssuedAt = store.Time(from), store.Time(to), store.Time(issued)
	c.UsedAt, c.AcceptUntil, c.RevokedAt = store.Time(used), store.Time(accept), store.Time(revoked)
	return c, nil
}

// Certificate reads one certificate with its DER: NotFound if there is none.
func (c *CA) Certificate(ctx context.Context, r store.Reader, ref countersign.CertRef) (countersign.Certificate, error) {
	return certificate(ctx, r, ref.String(), `serial = $1 AND issuer = $2`, string(ref.Serial), ref.Issuer)
}

// Shown reads the record of a certificate that a client presented, whoever issued it:
// NotFound if it is not, octet for octet, on record. The caller needs no check of the
// issuer's signature, because it was verified before the certificate was recorded.
func (c *CA) Shown(ctx context.Context, r store.Reader, cert *x509.Certificate) (countersign.Certificate, error) {
	serial := countersign.SerialOf(cert.SerialNumber)
	return certificate(ctx, r, string(serial), `serial = $1 AND fingerprint = $2`, string(serial), hexSum(cert.Raw))
}

func certificate(ctx context.Context, r store.Reader, name, where string, args ...any) (countersign.Certificate, error) {
	var der []byte
	cert, err := scanCert(r.QueryRow(ctx, `SELECT `+certColumns+`, der FROM certificate WHERE `+where, args...), &der)
	if errors.Is(err, sql.ErrNoRows) {
		return cert, noCertificate(name)
	}
	if err != nil {
		return cert, fmt.Errorf("read certificate %s: %w", name, err)
	}
	cert.DER = der
	return cert, nil
}

func noCertificate(name string) error {
	return countersign.Errorf(countersign.NotFound, "there is no certificate %s", name).WithNext("look for it in the list of certificates")
}

// maxNamesakes bounds how many certificates with one serial number are distinguished.
const maxNamesakes = 16

// BySerial reads the certificates with a serial number, with their DER, by issuer: at
// most maxNamesakes. NotFound if there is none.
func (c *CA) BySerial(ctx context.Context, r store.Reader, serial countersign.Serial) ([]countersign.Certificate, error) {
	list, err := certificates(ctx, r, `WHERE serial = $1 ORDER BY issuer LIMIT $2`, string(serial), maxNamesakes)
	if err == nil && len(list) == 0 {
		err = noCertificate("with serial " + string(serial))
	}
	return list, err
}

// certificates reads rows with their DER.
func certificates(ctx context.Context, r store.Reader, rest string, args ...any) (list []countersign.Certificate, err error) {
	list, err = store.List(ctx, r, scanWhole, `SELECT `+certColumns+`, der FROM certificate `+rest, args...)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	return list, nil
}

// scanWhole reads certColumns and the DER behind them.
func scanWhole(row store.Row) (countersign.Certificate, error) {
	var der []byte
	cert, err := scanCert(row, &der)
	cert.DER = der
	return cert, err
}

// maxDeviceCerts bounds how many certificates of one device are looked at to
// decide something. Package ra lets a device have half as many that are good, so
// none of those is ever out of sight.
const maxDeviceCerts = 256

// DeviceCertificates reads the certificates of a device with their DER: those not
// revoked, then the others, each newest first. Replaced ones are left out, since a
// device that cannot keep its new key may make any number of them.
func (c *CA) DeviceCertificates(ctx context.Context, r store.Reader, device string) ([]countersign.Certificate, error) {
	return certificates(ctx, r, `WHERE device = $1 AND NOT replaced
		ORDER BY CASE state WHEN 'revoked' THEN 1 ELSE 0 END, issued_pos DESC, issued_at DESC, serial, issuer LIMIT $2`, device, maxDeviceCerts)
}

// IssuedWithin reports whether a device was issued most certificates or more after
// since, and when the one was that many before the newest.
func (c *CA) IssuedWithin(ctx context.Context, r store.Reader, device string, since time.Time, most int) (at time.Time, over bool, err error) {
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

// Recoveries counts the certificates that a device was given by recovery from a position
// of the log on and did not give up unused.
func (c *CA) Recoveries(ctx context.Context, r store.Reader, device string, from countersign.Position) (n int, err error) {
	err = r.QueryRow(ctx, `SELECT count(*) FROM certificate WHERE device = $1 AND issued_pos >= $2 AND method = $3 AND NOT replaced`,
		device, from, string(countersign.MethodRecovery)).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count the recoveries of %s: %w", device, store.Wrap(err))
	}
	return n, nil
}

// Overdue reads superseded certificates whose overlap has ended, at most limit.
func (c *CA) Overdue(ctx context.Context, r store.Reader, limit int) (list []countersign.Certificate, err error) {
	list, err = store.List(ctx, r, func(row store.Row) (countersign.Certificate, error) { return scanCert(row) },
		`SELECT `+certColumns+` FROM certificate WHERE state = 'superseded' AND accept_until < $1 ORDER BY accept_until LIMIT $2`, store.Micros(c.Now()), limit)
	if err != nil {
		return nil, fmt.Errorf("read overdue certificates: %w", err)
	}
	return list, nil
}

// EachKey visits the newest certificates of devices that are not revoked or
// expired, with their DER, until visit fails; at most limit.
func (c *CA) EachKey(ctx context.Context, limit int, visit func(countersign.Certificate) error) (err error) {
	for cert, err := range store.Rows(ctx, c.DB, scanWhole, `SELECT `+certColumns+`, der FROM certificate
		WHERE device <> '' AND state <> 'revoked' AND not_after > $1 ORDER BY not_after DESC, serial LIMIT $2`, store.Micros(c.Now()), limit) {
		if err != nil {
			return fmt.Errorf("read certificates: %w", err)
		}
		if err := visit(cert); err != nil {
			return err
		}
	}
	return nil
}

// Filter chooses certificates for a list.
type Filter struct {
	Device        string
	State         countersign.CertState
	ExpiresBefore time.Time
	After         countersign.CertRef // keyset: the last of the page before
	Limit         int                 // at most store.MaxPage; 0 is that
}

// Certificates lists certificates by serial and issuer, without DER; next is the After
// of the following page, zero at the end.
func (c *CA) Certificates(ctx context.Context, f Filter) (list []countersign.Certificate, next countersign.CertRef, err error) {
	var q store.Query
	q.And("(serial, issuer) > (?, ?)", string(f.After.Serial), f.After.Issuer)
	q.If(f.Device != "", "device = ?", f.Device)
	q.If(f.State != "", "state = ?", string(f.State))
	q.If(!f.ExpiresBefore.IsZero(), "not_after < ?", store.Micros(f.ExpiresBefore))
	limit := store.PageSize(f.Limit)
	list, err = store.List(ctx, c.DB, func(row store.Row) (countersign.Certificate, error) { return scanCert(row) },
		`SELECT `+certColumns+` FROM certificate`+q.Where()+` ORDER BY serial, issuer LIMIT `+q.Arg(limit+1), q.Args...)
	if err != nil {
		return nil, next, fmt.Errorf("list certificates: %w", err)
	}
	list, next = store.Page(list, limit, (*countersign.Certificate).Ref)
	return list, next, nil
}
