package ra

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/store"
)

// OperatorSource is the source of access tokens that were given out for an
// operator token.
func OperatorSource(id string) string { return "operator_token:" + id }

// CreateAccessToken gives out an access token; see access.Tokens.
func (o *Office) CreateAccessToken(ctx context.Context, k access.Token, ttl time.Duration, by By) (made access.Token, text string, err error) {
	err = o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if made, text, err = o.Tokens.Issue(ctx, tx, k, ttl); err != nil {
			return err
		}
		return o.Events.Append(ctx, tx, tokenEvent(countersign.AccessTokenIssued, made, by))
	})
	return made, text, err
}

// RevokeAccessToken ends an access token at once, with the sessions that rest on it.
func (o *Office) RevokeAccessToken(ctx context.Context, id string, by By) (k access.Token, err error) {
	err = o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if k, err = o.Tokens.Revoke(ctx, tx, id); err != nil {
			return err
		}
		return o.Events.Append(ctx, tx, tokenEvent(countersign.AccessTokenRevoked, k, by))
	})
	return k, err
}

func tokenEvent(t countersign.EventType, k access.Token, by By) countersign.Event {
	e := by.event(t)
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

// DeviceToken gives the device at the door an access token of its own, for a way
// in where it cannot show its certificate: a WebSocket through somebody's proxy. It
// refuses with what Admit refuses.
func (d *Desk) DeviceToken(ctx context.Context, c countersign.Connection, ttl time.Duration) (k access.Token, text string, err error) {
	v := d.Admit(ctx, c)
	switch {
	case !v.Allow:
		return k, "", &countersign.Error{Code: v.Code, Message: v.Reason}
	case strings.Contains(v.Device, "/") || strings.HasPrefix(v.Credential, "token:"):
		return k, "", countersign.Errorf(countersign.NotAllowed, "a token is given for a certificate or a secret of a device, and for nothing else")
	}
	source := "certificate:" + string(v.Cert.Serial)
	if v.Credential != "" {
		source = v.Credential
	}
	order := access.Token{Subject: v.Device, Source: source, Fleet: v.Fleet}
	err = d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if k, text, err = d.Access.Tokens.Issue(ctx, tx, order, ttl); err != nil {
			return err
		}
		return d.Events.Append(ctx, tx, tokenEvent(countersign.AccessTokenIssued, k, By{Actor: countersign.DeviceActor(v.Device), Via: c.Gateway}))
	})
	return k, text, err
}
