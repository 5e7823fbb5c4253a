package provision

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
)

// SaveFleet creates a fleet or changes one: change gets it as it is, or a
// new one with defaults, and edits it within the transaction.
func (p *Provisioner) SaveFleet(ctx context.Context, name string, change func(*countersign.Fleet), by ra.By) (f countersign.Fleet, err error) {
	return p.ChangeFleet(ctx, FleetOrder{Name: name, Change: func(f *countersign.Fleet) error { change(f); return nil }}, by)
}

// FleetOrder is a fleet that is to be created or changed.
type FleetOrder struct {
	Name  string
	Known bool // NotFound unless there is one
	Dry   bool // check all and change nothing
	// Change edits the fleet as it is, or a new one with defaults. A function, since it
	// may run more than once, each time on what is on record then.
	Change func(*countersign.Fleet) error
}

// errDry takes back a transaction that was tried only.
var errDry = errors.New("tried only")

// ChangeFleet creates or changes a fleet, and returns it as it is then or, if the
// order is dry, would be.
func (p *Provisioner) ChangeFleet(ctx context.Context, order FleetOrder, by ra.By) (f countersign.Fleet, err error) {
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Lock(ctx, "fleet:"+order.Name); err != nil {
			return err
		}
		f, err = p.Registry.Fleet(ctx, tx, order.Name)
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
		if p.Rules != nil {
			if err := p.Rules(f.Rules); err != nil {
				return err
			}
		}
		if err := p.authoritiesAreKnown(ctx, tx, f.Rules.Authorities); err != nil {
			return err
		}
		if err := p.Registry.SaveFleet(ctx, tx, f); err != nil {
			return err
		}
		if f, err = p.Registry.Fleet(ctx, tx, order.Name); err != nil {
			return err
		}
		if order.Dry {
			return errDry
		}
		e := by.Event(countersign.FleetSaved)
		e.Fleet = f.Name
		e.Data = map[string]string{"issuer": f.Issuer, "profile": f.Profile, "overlap": f.Overlap.String()}
		if names := changedRules(before, f.Rules); len(names) > 0 {
			e.Data["rules"] = strings.Join(names, ",")
		}
		return p.Events.Append(ctx, tx, e)
	})
	if errors.Is(err, errDry) {
		err = nil
	}
	return f, err
}

// authoritiesAreKnown refuses rules that name an authority which is not on record. This
// process may not have read one yet that another node registered.
func (p *Provisioner) authoritiesAreKnown(ctx context.Context, tx *store.Tx, ids []string) error {
	known, err := ca.Known(ctx, tx, ids)
	if err != nil || len(known) == len(ids) {
		return err
	}
	return countersign.Errorf(countersign.BadRequest, "not all of the authorities %v are registered and active; known: %v", ids, known).
		WithNext("look for it in the list of authorities")
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
func (p *Provisioner) SaveProfile(ctx context.Context, profile ca.Profile, by ra.By) error {
	return p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := p.CA.SaveProfile(ctx, tx, profile); err != nil {
			return err
		}
		e := by.Event(countersign.ProfileSaved)
		e.Data = map[string]string{"profile": profile.Name}
		return p.Events.Append(ctx, tx, e)
	})
}
