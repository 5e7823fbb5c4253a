package access

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// Use is what a certificate is used for.
type Use int

const (
	// Connecting is to open a session, to keep one, or to get a credential that can open
	// one, such as an access token.
	Connecting Use = iota
	// Renewing is to get a successor of the certificate. Whether a superseded or replaced
	// certificate may have one is decided by the rules of rotation in package ra.
	Renewing
	// Recovering is to get a successor of a certificate that may have expired.
	Recovering
	// vouched is Connecting at a broker that has verified the certificate itself. It does
	// not matter which kinds of credential the fleet accepts.
	vouched
)

func (u Use) connects() bool { return u == Connecting || u == vouched }

// enrollAgain is the next step of a device whose certificate can no longer be used.
const enrollAgain = "enroll anew with a token made for the device"

// record is a certificate with its device, fleet and authority, as far as a decision
// needs them.
type record struct {
	ref                  countersign.CertRef
	device, fleet        string
	state                countersign.CertState
	reason               countersign.ReasonCode
	replaced             bool
	notBefore, notAfter  time.Time
	acceptUntil, revoked time.Time
	issued               countersign.Position
	deviceState          countersign.DeviceState
	deviceReason         string
	deviceRevoked        countersign.Position // first of the log after the device last lost its identity
	tags                 string               // JSON
	rules                string               // of the fleet, JSON
	authority            authority
	path                 string // of a manufacturer's certificate: fingerprints of the CAs above it
	der                  []byte // of a manufacturer's certificate
}

// authority is the CA that a certificate is trusted by.
type authority struct {
	id, state string
	kind      countersign.AuthorityKind
	version   int64
}

const (
	recordColumns = `c.issuer, c.serial, c.device, c.state, c.reason, c.replaced, c.not_before, c.not_after, c.accept_until, c.revoked_at, c.issued_pos,
		c.path, CASE WHEN a.kind = 'registered' THEN c.der END, d.fleet, d.state, d.reason, d.revoked_pos, d.tags, f.rules, a.id, a.kind, a.state, a.version`
	recordTables = `certificate c JOIN device d ON d.id = c.device JOIN fleet f ON f.name = d.fleet
		JOIN authority a ON a.id = CASE WHEN c.anchor = '' THEN c.issuer ELSE c.anchor END`
)

func scanRecord(row store.Row) (r record, err error) {
	var from, to, accept, revoked int64
	err = row.Scan(&r.ref.Issuer, &r.ref.Serial, &r.device, &r.state, &r.reason, &r.replaced, &from, &to, &accept, &revoked, &r.issued,
		&r.path, &r.der, &r.fleet, &r.deviceState, &r.deviceReason, &r.deviceRevoked, &r.tags, &r.rules,
		&r.authority.id, &r.authority.kind, &r.authority.state, &r.authority.version)
	r.notBefore, r.notAfter = store.Time(from), store.Time(to)
	r.acceptUntil, r.revoked = store.Time(accept), store.Time(revoked)
	return r, err
}

func readRecord(ctx context.Context, rd store.Reader, where string, args ...any) (record, error) {
	return scanRecord(rd.QueryRow(ctx, `SELECT `+recordColumns+` FROM `+recordTables+` WHERE `+where, args...))
}

// tagsOf reads the device's tags.
func (r *record) tagsOf() (tags map[string]string, err error) {
	if r.tags != "" {
		err = json.Unmarshal([]byte(r.tags), &tags)
	}
	return tags, err
}

// refusal reports why the certificate, its device or its authority is not valid for a use
// now.
func (r *record) refusal(now time.Time, use Use) (code countersign.Code, reason, next string) {
	switch {
	case r.deviceState == countersign.DeviceRetired:
		return countersign.DeviceGone, "the device is retired", "enroll under another id"
	case r.deviceState == countersign.DeviceSuspended:
		return countersign.DeviceOnHold, because("the device is suspended", r.deviceReason), "ask the operator why"
	case r.issued < r.deviceRevoked && !use.connects():
		return countersign.CertIsRevoked, "the identity of the certificate has been revoked", enrollAgain
	case r.state == countersign.CertRevoked && (use.connects() || r.reason != countersign.Superseded):
		return countersign.CertIsRevoked, fmt.Sprintf("certificate revoked (%s) %s ago", r.reason, ago(now.Sub(r.revoked))), enrollAgain
	case r.state == countersign.CertHeld:
		return countersign.CertIsHeld, "the certificate is on hold", "ask the operator why"
	case r.deviceState != countersign.DeviceActive:
		return countersign.NotAllowed, fmt.Sprintf("the device is %s", r.deviceState), enrollAgain
	case r.authority.state != "active":
		return countersign.CertIsRevoked, fmt.Sprintf("the authority that issued the certificate is %s", r.authority.state), enrollAgain
	}
	return r.timeRefusal(now, use)
}

func (r *record) timeRefusal(now time.Time, use Use) (code countersign.Code, reason, next string) {
	switch {
	case now.After(r.notAfter) && use != Recovering && (use.connects() || !r.replaced):
		return countersign.CertExpired, fmt.Sprintf("certificate expired %s ago", ago(now.Sub(r.notAfter))),
			"revoke the device, then enroll it anew with a token made for it; or give its fleet a rule for recovery, and let it renew there"
	case now.Add(clockSkew).Before(r.notBefore):
		return countersign.CertNotYetValid, "certificate is not yet valid", "check the clock of the server and of the CA"
	case r.state == countersign.CertSuperseded && now.After(r.acceptUntil) && use.connects():
		return countersign.CertIsRevoked, fmt.Sprintf("certificate superseded, its overlap ended %s ago", ago(now.Sub(r.acceptUntil))), "use the certificate that followed it"
	}
	return "", "", ""
}

// ended returns the time since which the certificate is refused with this code; zero if
// there is none.
func (r *record) ended(code countersign.Code) time.Time {
	switch code {
	case countersign.CertExpired:
		return r.notAfter
	case countersign.DeviceGone, countersign.DeviceOnHold, countersign.CertIsHeld:
		return r.revoked
	case countersign.CertIsRevoked:
		if r.revoked.IsZero() {
			return r.acceptUntil
		}
		return r.revoked
	}
	return time.Time{}
}
