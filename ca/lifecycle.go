package ca

import (
	"context"
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

// lifecycle moves certificates from state to state.
type lifecycle struct {
	now     func() time.Time
	answers *answers // about them; those that a move makes untrue are dropped
}

// Activate records the first use of a pending certificate.
func (l *lifecycle) Activate(ctx context.Context, tx *store.Tx, cert *countersign.Certificate) error {
	return l.move(ctx, tx, cert, countersign.CertActive, func(n *countersign.Certificate) { n.UsedAt = l.now() })
}

// Supersede starts the overlap of a certificate that a newer one took over from.
// It never reaches beyond NotAfter.
func (l *lifecycle) Supersede(ctx context.Context, tx *store.Tx, cert *countersign.Certificate, until time.Time) error {
	if until.After(cert.NotAfter) {
		until = cert.NotAfter
	}
	return l.move(ctx, tx, cert, countersign.CertSuperseded, func(n *countersign.Certificate) { n.AcceptUntil = until })
}

// Hold puts a certificate on certificateHold; Release ends it.
func (l *lifecycle) Hold(ctx context.Context, tx *store.Tx, cert *countersign.Certificate) error {
	return l.move(ctx, tx, cert, countersign.CertHeld, func(n *countersign.Certificate) {
		n.HeldFrom, n.Reason, n.RevokedAt = cert.State, countersign.CertificateHold, l.now()
	})
}

// Release returns a held certificate the state back that it had.
func (l *lifecycle) Release(ctx context.Context, tx *store.Tx, cert *countersign.Certificate) error {
	if cert.State != countersign.CertHeld {
		return moveError(cert, "released")
	}
	return l.set(ctx, tx, cert, cert.HeldFrom, func(n *countersign.Certificate) {
		n.HeldFrom, n.Reason, n.RevokedAt = "", 0, time.Time{}
	})
}

// Revoke ends a certificate for good: BadRequest for a reason that does not mean
// that (RFC 5280, 5.3.1).
func (l *lifecycle) Revoke(ctx context.Context, tx *store.Tx, cert *countersign.Certificate, reason countersign.ReasonCode) error {
	switch {
	case reason == countersign.CertificateHold, reason == countersign.RemoveFromCRL, reason == 7,
		reason < countersign.Unspecified, reason > countersign.AACompromise:
		return countersign.Errorf(countersign.BadRequest, "%s does not revoke a certificate for good", reason)
	}
	return l.move(ctx, tx, cert, countersign.CertRevoked, func(n *countersign.Certificate) {
		n.HeldFrom, n.Reason, n.RevokedAt = "", reason, l.now()
	})
}

// RaiseReason records a graver reason for which a certificate is revoked already: see
// [countersign.ReasonCode.Graver]. The date of the revocation stays, since relying parties
// have refused the certificate from then on. The next CRL and OCSP answer show the reason.
func (l *lifecycle) RaiseReason(ctx context.Context, tx *store.Tx, cert *countersign.Certificate, reason countersign.ReasonCode) error {
	if cert.State != countersign.CertRevoked || !reason.Graver(cert.Reason) {
		return countersign.Errorf(countersign.Conflict, "certificate %s is %s for %s, which %s does not replace", cert.Serial, cert.State, cert.Reason, reason)
	}
	return l.set(ctx, tx, cert, countersign.CertRevoked, func(n *countersign.Certificate) { n.Reason = reason })
}

// Replace revokes a pending certificate in favor of another key that the device
// asked for. A client that presents it afterwards is a second holder of the identity.
func (l *lifecycle) Replace(ctx context.Context, tx *store.Tx, cert *countersign.Certificate) error {
	if cert.State != countersign.CertPending {
		return moveError(cert, "replaced")
	}
	return l.move(ctx, tx, cert, countersign.CertRevoked, func(n *countersign.Certificate) {
		n.Reason, n.RevokedAt, n.Replaced = countersign.Superseded, l.now(), true
	})
}

func (l *lifecycle) move(ctx context.Context, tx *store.Tx, cert *countersign.Certificate, to countersign.CertState, change func(*countersign.Certificate)) error {
	if !slices.Contains(moves[cert.State], to) {
		return moveError(cert, string(to))
	}
	return l.set(ctx, tx, cert, to, change)
}

// set writes the new state where the certificate is still in the one that cert
// shows, and then changes cert. A transaction that runs again must read cert again.
func (l *lifecycle) set(ctx context.Context, tx *store.Tx, cert *countersign.Certificate, to countersign.CertState, change func(*countersign.Certificate)) error {
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
		if err := noteChange(ctx, tx, cert); err != nil {
			return err
		}
		l.answers.forgetAfter(tx, cert.Ref())
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
