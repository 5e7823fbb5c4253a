package ra

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// certificateSource is the source of those that a device got with its certificate.
func certificateSource(ref countersign.CertRef) string { return "certificate:" + ref.String() }

// TokenEvent returns an event about an access token.
func TokenEvent(t countersign.EventType, k access.Token, by By) countersign.Event {
	e := by.Event(t)
	e.Fleet = k.Fleet
	e.Data = map[string]string{
		"token": k.ID, "subject": k.Subject, "source": k.Source, "devices": strings.Join(k.Devices, " "),
		"read_only": strconv.FormatBool(k.ReadOnly), "expires_at": k.ExpiresAt.Format(time.RFC3339),
	}
	if !strings.Contains(k.Subject, "/") {
		e.Device = k.Subject
	}
	return e
}

// DeviceToken returns the device at the door an access token of its own, for a way
// in where it cannot show its certificate: a WebSocket through another party's proxy. It
// refuses with what Admit refuses.
func (d *Authority) DeviceToken(ctx context.Context, c countersign.Connection, ttl time.Duration) (k access.Token, text string, err error) {
	v := d.Admit(ctx, c)
	switch {
	case !v.Allow:
		return k, "", &countersign.Error{Code: v.Code, Message: v.Reason}
	case strings.Contains(v.Device, "/") || strings.HasPrefix(v.Credential, "token:"):
		return k, "", countersign.Errorf(countersign.NotAllowed, "a token is given for a certificate or a secret of a device, and for nothing else")
	}
	source := certificateSource(v.Cert)
	if v.Credential != "" {
		source = v.Credential
	}
	order := access.Token{Subject: v.Device, Source: source, Fleet: v.Fleet}
	err = d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := d.stillHolds(ctx, tx, sessionOf(&v, c)); err != nil {
			return err
		}
		if k, text, err = d.Access.Tokens.Issue(ctx, tx, order, ttl); err != nil {
			return err
		}
		return d.Events.Append(ctx, tx, TokenEvent(countersign.AccessTokenIssued, k, By{Actor: countersign.DeviceActor(v.Device), Via: c.Gateway}))
	})
	return k, text, err
}

// stillHolds locks the device that was let in, and refuses if what it came in with
// is not good any more: what is given out for it now would not end with it.
func (d *Authority) stillHolds(ctx context.Context, tx *store.Tx, s countersign.Session) error {
	if err := registry.LockDevice(ctx, tx, s.Device); err != nil {
		return err
	}
	code, reason, first, err := d.Access.Refusal(ctx, tx, s)
	switch {
	case err != nil:
		return err
	case code != "":
		return countersign.Errorf(code, "%s", reason)
	case first: // it has lost its identity since
		return countersign.Errorf(countersign.NotAllowed, "the device is registered")
	}
	return nil
}

// endGiven ends the access tokens that a device was given for what ends now, with
// the sessions that rest on them. The device is locked.
func (d *Authority) endGiven(ctx context.Context, tx *store.Tx, source string, by By) ([]countersign.Event, error) {
	return EndTokens(ctx, tx, d.Access.Tokens, source, by)
}

// EndTokens ends the access tokens of a source; nil tokens: there are none.
func EndTokens(ctx context.Context, tx *store.Tx, tokens *access.Tokens, source string, by By) ([]countersign.Event, error) {
	if tokens == nil {
		return nil, nil
	}
	given, err := tokens.RevokeSource(ctx, tx, source)
	events := make([]countersign.Event, 0, len(given))
	for _, k := range given {
		events = append(events, TokenEvent(countersign.AccessTokenRevoked, k, by))
	}
	return events, err
}
