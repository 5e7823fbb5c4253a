package ra

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Introduce introduces the device at the door to another of its fleet. It refuses
// with what Admit refuses, with NotFound a peer that there is not or that is of
// another fleet, and with Conflict one that has no identity now.
func (d *Authority) Introduce(ctx context.Context, c countersign.Connection, i api.NewIntroduction) (api.SignedIntroduction, error) {
	v := d.Admit(ctx, c)
	if !v.Allow {
		return api.SignedIntroduction{}, &countersign.Error{Code: v.Code, Message: v.Reason}
	}
	if v.Cert.IsZero() {
		return api.SignedIntroduction{}, countersign.Errorf(countersign.Unauthenticated, "an introduction names keys: connect with the device's certificate")
	}
	i.Device = v.Device
	return d.makeIntroduction(ctx, i, By{Actor: countersign.DeviceActor(v.Device), Via: c.Gateway}, true)
}

// AccessToken makes an access token for the device at the door, for a way in where it
// cannot show its certificate: a WebSocket through another party's proxy. ttl 0 is the
// default. It refuses with what Admit refuses.
func (d *Authority) AccessToken(ctx context.Context, c countersign.Connection, ttl time.Duration) (made api.IssuedAccessToken, err error) {
	v := d.Admit(ctx, c)
	switch {
	case !v.Allow:
		return made, &countersign.Error{Code: v.Code, Message: v.Reason}
	case strings.Contains(v.Device, "/") || strings.HasPrefix(v.Credential, "token:"):
		return made, countersign.Errorf(countersign.NotAllowed, "a token is made for a certificate or a secret of a device, and for nothing else")
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
		k, text, err := d.Access.Tokens.Issue(ctx, tx, order, cmp.Or(ttl, access.DefaultTokenTTL))
		if err != nil {
			return err
		}
		made = IssuedAccessToken(k, text)
		return d.Events.Append(ctx, tx, TokenEvent(countersign.AccessTokenIssued, k, By{Actor: countersign.DeviceActor(v.Device), Via: c.Gateway}))
	})
	return made, err
}

// ChangeSecret lets a device rotate its own secret: the one that it shows in c, or
// with its certificate the primary one. It passes the same door as a connection.
func (d *Authority) ChangeSecret(ctx context.Context, c countersign.Connection, in api.ChangeSecret) (made api.IssuedSecret, err error) {
	v := d.Admit(ctx, c)
	id, bySecret := strings.CutPrefix(v.Credential, "secret:")
	switch {
	case !v.Allow:
		return made, countersign.Errorf(v.Code, "%s", v.Reason)
	case !bySecret && v.Cert.IsZero():
		return made, countersign.Errorf(countersign.NotAllowed, "a secret is changed with the present one, or with the device's certificate")
	}
	by := By{Actor: countersign.DeviceActor(v.Device), Via: c.Gateway}
	o := access.SecretOrder{
		Device: v.Device, Slot: attest.Primary, Binary: in.Binary, Rotate: true, Overlap: access.DefaultSecretOverlap, By: by.Actor,
	}
	if bySecret {
		all, err := d.Access.Secrets.Of(ctx, d.DB, v.Device)
		if err != nil {
			return made, err
		}
		for i := range all {
			if all[i].ID == id {
				o.Slot = all[i].Slot
			}
		}
	}
	s, text, err := d.makeSecret(ctx, o, by, func(ctx context.Context, tx *store.Tx, dev *registry.Entry) error {
		if err := d.stillHolds(ctx, tx, sessionOf(&v, c)); err != nil {
			return err
		}
		fleet, err := d.Registry.Fleet(ctx, tx, dev.Fleet)
		if err != nil {
			return err
		}
		if !access.Accepts(fleet.Rules.Access, countersign.AccessSecret) && (in.Binary || !access.Accepts(fleet.Rules.Access, countersign.AccessSCRAM)) {
			return countersign.Errorf(countersign.NotAllowed, "fleet %s does not accept a secret", fleet.Name)
		}
		return d.Access.Secrets.MayChange(ctx, tx, dev.ID)
	})
	return IssuedSecret(s, text, in.Binary), err
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

// IssuedAccessToken is the answer that shows the text of a new token.
func IssuedAccessToken(k access.Token, text string) api.IssuedAccessToken {
	return api.IssuedAccessToken{AccessToken: ShapeAccessToken(k), Token: text}
}

// ShapeAccessToken returns a token as the API shows it, without its text.
func ShapeAccessToken(k access.Token) api.AccessToken {
	return api.AccessToken{
		ID: k.ID, Subject: k.Subject, Fleet: k.Fleet, Devices: append([]string{}, k.Devices...), ReadOnly: k.ReadOnly,
		IssuedAt: k.IssuedAt.UTC(), ExpiresAt: k.ExpiresAt.UTC(), RevokedAt: k.RevokedAt.UTC(),
	}
}

// ShapeSecret returns a secret as the API shows it, without the secret itself.
func ShapeSecret(s access.Secret) api.Secret {
	return api.Secret{
		ID: s.ID, Device: s.Device, Slot: string(s.Slot), Kind: string(s.Kind), SCRAM: s.SCRAM, State: s.State, Reason: s.Reason,
		CreatedBy: string(s.CreatedBy), CreatedAt: s.CreatedAt.UTC(), ExpiresAt: s.ExpiresAt.UTC(), UsedAt: s.UsedAt.UTC(),
	}
}

// IssuedSecret is the answer that shows a new secret.
func IssuedSecret(s access.Secret, text []byte, binary bool) api.IssuedSecret {
	out := api.IssuedSecret{Secret: ShapeSecret(s)}
	if binary {
		out.Octets = text
	} else {
		out.Text = string(text)
	}
	return out
}
