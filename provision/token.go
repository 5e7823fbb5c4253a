package provision

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// CreateToken makes an enrollment token and returns it with its secret. A token for
// a device that is known takes that device's fleet, and may name no other.
func (p *Provisioner) CreateToken(ctx context.Context, t registry.Credential, ttl time.Duration, by ra.By) (made registry.Credential, secret string, err error) {
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		var e countersign.Event
		if made, secret, e, err = p.createToken(ctx, tx, tokenOrder{t, ttl, by}); err != nil {
			return err
		}
		return p.Events.Append(ctx, tx, e)
	})
	return made, secret, err
}

// CreateTokens makes a token as t for each of the devices and returns the secrets in
// their order: all, or none.
func (p *Provisioner) CreateTokens(ctx context.Context, t registry.Credential, devices []string, ttl time.Duration, by ra.By) (secrets []string, err error) {
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		secrets = secrets[:0] // the transaction may be tried again
		events := make([]countersign.Event, 0, len(devices))
		for _, id := range devices {
			if err := countersign.CheckDeviceID(id); err != nil { // an empty one would be any device
				return err
			}
			t.Device = id
			_, secret, e, err := p.createToken(ctx, tx, tokenOrder{t, ttl, by})
			if err != nil {
				return err
			}
			secrets, events = append(secrets, secret), append(events, e)
		}
		return p.Events.Append(ctx, tx, events...)
	})
	return secrets, err
}

// tokenOrder is a token to be made.
type tokenOrder struct {
	token registry.Credential
	ttl   time.Duration
	by    ra.By
}

func (p *Provisioner) createToken(ctx context.Context, tx *store.Tx, want tokenOrder) (registry.Credential, string, countersign.Event, error) {
	e := want.by.Event(countersign.TokenCreated)
	want.token.CreatedBy = want.by.Actor
	if err := p.fitDevice(ctx, tx, &want.token, want.by); err != nil {
		return want.token, "", e, err
	}
	if f := want.by.Factory; f != nil {
		start := p.Registry.Now()
		if want.token.NotBefore.After(start) {
			start = want.token.NotBefore
		}
		end, err := endOf(f, p.Registry.Now(), start.Add(want.ttl))
		if err != nil {
			return want.token, "", e, err
		}
		want.ttl = end.Sub(start)
	}
	made, secret, err := p.Registry.CreateToken(ctx, tx, want.token, want.ttl)
	e.Device, e.Fleet = made.Device, made.Fleet
	e.Data = map[string]string{"token": made.ID, "expires_at": made.ExpiresAt.UTC().Format(time.RFC3339)}
	return made, secret, e, err
}

func (p *Provisioner) fitDevice(ctx context.Context, tx *store.Tx, t *registry.Credential, by ra.By) error {
	var known *registry.Entry
	if t.Device != "" {
		d, err := p.Registry.Device(ctx, tx, t.Device)
		switch {
		case countersign.CodeOf(err) == countersign.NotFound: // the token may bring it into being
		case err != nil:
			return err
		case d.State == countersign.DeviceRetired:
			return countersign.Errorf(countersign.DeviceGone, "device %s is retired and cannot enroll", d.ID).WithNext("choose another id")
		case t.Fleet != "" && t.Fleet != d.Fleet:
			return countersign.Errorf(countersign.Conflict, "device %s is in fleet %s, not %s", d.ID, d.Fleet, t.Fleet).WithNext("leave the fleet out")
		default:
			t.Fleet, known = d.Fleet, &d
		}
	}
	if t.Fleet == "" {
		t.Fleet = countersign.DefaultFleet
	}
	if by.Factory != nil {
		return p.fitFactory(ctx, tx, t, known, by.Factory)
	}
	return nil
}
