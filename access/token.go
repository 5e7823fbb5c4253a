package access

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"github.com/countersign-iot/countersign"
)

// byToken identifies a client by an access token as the password. The user name beside it
// is ignored: the token names its subject.
func (d *Decider) byToken(ctx context.Context, c countersign.Connection) (dec Decision) {
	k, err := d.Tokens.Verify(ctx, string(c.Password))
	switch {
	case countersign.CodeOf(err) == countersign.Internal:
		dec = refuse(countersign.Unavailable, "the record of the access token cannot be read now")
	case err != nil:
		dec = refuse(countersign.CodeOf(err), countersign.Public(err).Message)
	case !strings.Contains(k.Subject, "/"):
		dec = d.deviceToken(ctx, c, k)
	default:
		dec = Decision{Known: true, ReadOnly: k.ReadOnly, Verdict: countersign.Verdict{
			Device: k.Subject, Fleet: k.Fleet, Credential: k.Credential(), NotAfter: k.ExpiresAt, Ephemeral: true,
		}}
		d.operatorScope(ctx, k, &dec)
	}
	if dec.Code == countersign.BadCredential {
		dec.Tried = d.Secrets.tried(c.Password)
	}
	dec.Kind = countersign.AccessToken
	return dec
}

// operatorScope sets the scope of the decision to those devices of an operator's token that
// are active now, in its fleet. It refuses the token if there are none.
func (d *Decider) operatorScope(ctx context.Context, k Token, dec *Decision) {
	for _, id := range k.Devices {
		var state countersign.DeviceState
		var fleet string
		err := d.DB.QueryRow(ctx, `SELECT state, fleet FROM device WHERE id = $1`, id).Scan(&state, &fleet)
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			dec.Code, dec.Reason = countersign.Unavailable, "the record of a device cannot be read now"
			return
		case state == countersign.DeviceActive && fleet == k.Fleet:
			dec.Scope = append(dec.Scope, id)
		}
	}
	if len(dec.Scope) == 0 {
		dec.Code, dec.Reason = countersign.NotAllowed, "none of the devices that the access token is for is active"
	}
}

// deviceToken decides about a device's own token, and the credential that it was issued
// for, by the record as it is now.
func (d *Decider) deviceToken(ctx context.Context, c countersign.Connection, k Token) Decision {
	h, err := d.holder(ctx, k.Subject)
	if err != nil {
		return unreadable()
	}
	if !h.known() {
		return refuse(countersign.NotAllowed, "there is no such device")
	}
	dec := d.decide(ctx, c, h, proof{kind: countersign.AccessToken, credential: k.Credential(), made: k.IssuedPos, until: k.ExpiresAt})
	if dec.FirstUse { // registered: it had an identity when the token was issued, and has lost it since
		dec.FirstUse, dec.Code, dec.Reason = false, countersign.NotAllowed, "the device is registered"
	}
	if dec.Code == "" {
		dec.Code, dec.Reason = d.sourceRefusal(ctx, c, h, k.Source)
	}
	return dec
}

// sourceRefusal reports why the credential that a device's token was issued for is not
// valid any more, because the token must not outlive it.
func (d *Decider) sourceRefusal(ctx context.Context, c countersign.Connection, h *holder, source string) (countersign.Code, string) {
	s := countersign.Session{Device: h.device, Fleet: h.fleet, Credential: source, Remote: c.Remote}
	all, err := d.standings(ctx, d.DB, []countersign.Session{s})
	const unread = "the record of the credential that the access token was issued for cannot be read now"
	if err != nil {
		return countersign.Unavailable, unread
	}
	_, code, reason, err := all.credentialRefusal(ctx, &s, source)
	switch {
	case err != nil:
		return countersign.Unavailable, unread
	case code == countersign.CredentialExpire:
		reason = "the credential that the access token was issued for is no longer in force"
	}
	return code, reason
}
