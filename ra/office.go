package ra

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Office sets up what devices and operators come to: devices before they enroll,
// tokens, fleets, profiles. Each act and its event are one transaction.
type Office struct {
	DB        *store.DB
	CA        *ca.CA
	Registry  *registry.Registry
	Operators *operator.Accounts
	Events    *event.Log
	Sealer    *keystore.Sealer
	Tokens    *access.Tokens
	// Messages is what the gateways of this node keep for devices; nil: there are none.
	Messages countersign.MessageStore
	// Rules checks what a fleet's expression and webhook mean before they are saved.
	Rules func(countersign.Rules) error
}

// By says who acts and through what.
type By struct {
	Actor countersign.Actor
	Via   string // cli, rest
	// Factory bounds an operator token of role factory; nil: another role acts.
	Factory *Factory
}

func (b By) event(t countersign.EventType) countersign.Event {
	return countersign.Event{Type: t, Actor: b.Actor, Via: b.Via}
}

// CreateDevice registers a device. Its fleet must exist; empty is the default one.
func (o *Office) CreateDevice(ctx context.Context, d countersign.Device, by By) (countersign.Device, error) {
	if d.Fleet == "" {
		d.Fleet = countersign.DefaultFleet
	}
	d.State = countersign.DeviceRegistered
	err := o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		fleet, err := o.Registry.Fleet(ctx, tx, d.Fleet)
		if err != nil {
			return err
		}
		if err := countersign.CheckDevice(fleet, d.ID); err != nil {
			return err
		}
		if err := o.Registry.Create(ctx, tx, d); err != nil {
			return err
		}
		made, err := o.Registry.Device(ctx, tx, d.ID)
		if err != nil {
			return err
		}
		d = made.Device
		e := by.event(countersign.DeviceCreated)
		e.Device, e.Fleet = d.ID, d.Fleet
		return o.Events.Append(ctx, tx, e)
	})
	return d, err
}

// CreateToken makes an enrollment token and gives it with its secret. A token for
// a device that is known takes that device's fleet, and may name no other.
func (o *Office) CreateToken(ctx context.Context, t registry.Credential, ttl time.Duration, by By) (made registry.Credential, secret string, err error) {
	err = o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		var e countersign.Event
		if made, secret, e, err = o.createToken(ctx, tx, tokenOrder{t, ttl, by}); err != nil {
			return err
		}
		return o.Events.Append(ctx, tx, e)
	})
	return made, secret, err
}

// CreateTokens makes a token as t for each of the devices and gives the secrets in
// their order: all, or none.
func (o *Office) CreateTokens(ctx context.Context, t registry.Credential, devices []string, ttl time.Duration, by By) (secrets []string, err error) {
	err = o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		secrets = secrets[:0] // the transaction may be tried again
		events := make([]countersign.Event, 0, len(devices))
		for _, id := range devices {
			if err := countersign.CheckDeviceID(id); err != nil { // an empty one would be any device
				return err
			}
			t.Device = id
			_, secret, e, err := o.createToken(ctx, tx, tokenOrder{t, ttl, by})
			if err != nil {
				return err
			}
			secrets, events = append(secrets, secret), append(events, e)
		}
		return o.Events.Append(ctx, tx, events...)
	})
	return secrets, err
}

// tokenOrder is a token to be made.
type tokenOrder struct {
	token registry.Credential
	ttl   time.Duration
	by    By
}

func (o *Office) createToken(ctx context.Context, tx *store.Tx, want tokenOrder) (registry.Credential, string, countersign.Event, error) {
	e := want.by.event(countersign.TokenCreated)
	want.token.CreatedBy = want.by.Actor
	if err := o.fitDevice(ctx, tx, &want.token, want.by); err != nil {
		return want.token, "", e, err
	}
	if f := want.by.Factory; f != nil {
		start := o.Registry.Now()
		if want.token.NotBefore.After(start) {
			start = want.token.NotBefore
		}
		end, err := f.ends(o.Registry.Now(), start.Add(want.ttl))
		if err != nil {
			return want.token, "", e, err
		}
		want.ttl = end.Sub(start)
	}
	made, secret, err := o.Registry.CreateToken(ctx, tx, want.token, want.ttl)
	e.Device, e.Fleet = made.Device, made.Fleet
	e.Data = map[string]string{"token": made.ID, "expires_at": made.ExpiresAt.UTC().Format(time.RFC3339)}
	return made, secret, e, err
}

func (o *Office) fitDevice(ctx context.Context, tx *store.Tx, t *registry.Credential, by By) error {
	var known *registry.Entry
	if t.Device != "" {
		d, err := o.Registry.Device(ctx, tx, t.Device)
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
		return o.fitFactory(ctx, tx, t, known, by.Factory)
	}
	return nil
}

// SaveFleet creates a fleet or changes one: change gets it as it stands, or a
// new one with defaults, and edits it within the transaction.
func (o *Office) SaveFleet(ctx context.Context, name string, change func(*countersign.Fleet), by By) (f countersign.Fleet, err error) {
	return o.ChangeFleet(ctx, FleetOrder{Name: name, Change: func(f *countersign.Fleet) error { change(f); return nil }}, by)
}

// FleetOrder is a fleet that is to be created or changed.
type FleetOrder struct {
	Name  string
	Known bool // NotFound unless there is one
	Dry   bool // check all and change nothing
	// Change edits the fleet as it is, or a new one with defaults. It may run more than once.
	Change func(*countersign.Fleet) error
}

// errDry takes back a transaction that was tried only.
var errDry = errors.New("tried only")

// ChangeFleet creates or changes a fleet, and returns it as it is then or, if the
// order is dry, would be.
func (o *Office) ChangeFleet(ctx context.Context, order FleetOrder, by By) (f countersign.Fleet, err error) {
	err = o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Lock(ctx, "fleet:"+order.Name); err != nil {
			return err
		}
		f, err = o.Registry.Fleet(ctx, tx, order.Name)
		if countersign.CodeOf(err) == countersign.NotFound && !order.Known {
			f = countersign.Fleet{
				Name: order.Name, Issuer: ca.IssuingID, Profile: ca.ProfileDevice,
				Methods: []countersign.Method{countersign.MethodToken}, Overlap: countersign.DefaultOverlap,
			}
		} else if err != nil {
			return err
		}
		before := f.Rules
		if err := order.Change(&f); err != nil {
			return err
		}
		if o.Rules != nil {
			if err := o.Rules(f.Rules); err != nil {
				return err
			}
		}
		if err := o.authoritiesAreKnown(ctx, tx, f.Rules.Authorities); err != nil {
			return err
		}
		if err := o.Registry.SaveFleet(ctx, tx, f); err != nil {
			return err
		}
		if f, err = o.Registry.Fleet(ctx, tx, order.Name); err != nil {
			return err
		}
		if order.Dry {
			return errDry
		}
		e := by.event(countersign.FleetSaved)
		e.Fleet = f.Name
		e.Data = map[string]string{"issuer": f.Issuer, "profile": f.Profile, "overlap": f.Overlap.String()}
		if names := changedRules(before, f.Rules); len(names) > 0 {
			e.Data["rules"] = strings.Join(names, ",")
		}
		return o.Events.Append(ctx, tx, e)
	})
	if errors.Is(err, errDry) {
		err = nil
	}
	return f, err
}

// authoritiesAreKnown refuses rules that name an authority which is not on record. This
// process may not have read one yet that another node registered.
func (o *Office) authoritiesAreKnown(ctx context.Context, tx *store.Tx, ids []string) error {
	known, err := o.CA.Known(ctx, tx, ids)
	if err != nil || len(known) == len(ids) {
		return err
	}
	return countersign.Errorf(countersign.BadRequest, "not all of the authorities %v are registered and active; known: %v", ids, known).
		WithNext("list them with: countersign ca list")
}

// changedRules names the rules that differ.
func changedRules(before, after countersign.Rules) []string {
	was, is := ruleTexts(before), ruleTexts(after)
	names := map[string]bool{}
	for _, all := range []map[string]json.RawMessage{was, is} {
		for name := range all {
			if !bytes.Equal(was[name], is[name]) {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func ruleTexts(r countersign.Rules) (all map[string]json.RawMessage) {
	b, err := json.Marshal(r)
	if err != nil || json.Unmarshal(b, &all) != nil {
		return nil // rules are written to the database as JSON, so this cannot be
	}
	return all
}

// SaveProfile creates or replaces a profile, once a sample passes the lints.
func (o *Office) SaveProfile(ctx context.Context, p ca.Profile, by By) error {
	return o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := o.CA.SaveProfile(ctx, tx, p); err != nil {
			return err
		}
		e := by.event(countersign.ProfileSaved)
		e.Data = map[string]string{"profile": p.Name}
		return o.Events.Append(ctx, tx, e)
	})
}

// CreateOperatorToken makes an operator token and gives it with its secret.
func (o *Office) CreateOperatorToken(ctx context.Context, t operator.Token, ttl time.Duration, by By) (made operator.Token, secret string, err error) {
	err = o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if made, secret, err = o.Operators.Create(ctx, tx, t.Name, t.Role, ttl); err != nil {
			return err
		}
		e := by.event(countersign.OperatorTokenAdded)
		e.Data = map[string]string{"token": made.ID, "name": made.Name, "role": string(made.Role)}
		return o.Events.Append(ctx, tx, e)
	})
	return made, secret, err
}

// RevokeOperatorToken ends an operator token at once, and the access tokens that
// were given out for it.
func (o *Office) RevokeOperatorToken(ctx context.Context, id string, by By) (t operator.Token, err error) {
	err = o.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Lock(ctx, OperatorSource(id)); err != nil { // see CreateAccessToken
			return err
		}
		if t, err = o.Operators.Revoke(ctx, tx, id); err != nil {
			return err
		}
		e := by.event(countersign.OperatorTokenRevoked)
		e.Data = map[string]string{"token": t.ID, "name": t.Name}
		ended, err := o.Registry.StopSource(ctx, tx, OperatorSource(t.ID), "the operator token that made it was revoked")
		if err != nil {
			return err
		}
		e.Data["credentials"] = strconv.Itoa(ended)
		given, err := endTokens(ctx, tx, o.Tokens, OperatorSource(t.ID), by)
		if err != nil {
			return err
		}
		return o.Events.Append(ctx, tx, append([]countersign.Event{e}, given...)...)
	})
	return t, err
}
