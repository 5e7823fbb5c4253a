package ra

import (
	"context"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

const (
	// FactoryUses bounds the uses of a token or claim that the role factory makes: a
	// batch. Larger ones are made by an operator.
	FactoryUses = 1000
	// FactoryTTL bounds how long it is good: the days between two batches.
	FactoryTTL = 7 * 24 * time.Hour
)

// Factory is an operator token of role factory that acts. What it makes is for new
// devices only; see ADR 19.
type Factory struct {
	Token string    // its id
	Until time.Time // its end
}

// fitFactory holds a credential that the role factory makes to its bounds. device is
// the one that it is for as it is on record; nil: there is none yet.
func (o *Office) fitFactory(ctx context.Context, tx *store.Tx, t *registry.Credential, device *registry.Entry, f *Factory) error {
	if device != nil && (device.State != countersign.DeviceRegistered && device.State != countersign.DevicePending || !device.RevokedAt.IsZero()) {
		what := string(device.State)
		if !device.RevokedAt.IsZero() {
			what = "revoked"
		}
		return countersign.Errorf(countersign.NotAllowed, "device %s is %s: the role factory acts for new devices only", device.ID, what).
			WithNext("have an operator do it")
	}
	if t.UsesMax > FactoryUses {
		return countersign.Errorf(countersign.NotAllowed, "the role factory makes credentials of at most %d uses", FactoryUses).WithNext("make several, or have an operator do it")
	}
	// Else one that is made while the operator token is revoked would be missed there.
	source := OperatorSource(f.Token)
	if err := tx.Lock(ctx, source); err != nil {
		return err
	}
	revoked, err := o.Operators.Revoked(ctx, tx, f.Token)
	if err == nil && revoked {
		err = countersign.Errorf(countersign.CredentialExpire, "the operator token was revoked").WithNext("ask an admin for a new one")
	}
	t.Source = source
	return err
}

// ends bounds the end of a token or claim by that of the operator token that makes it.
func (f *Factory) ends(start, end time.Time) (time.Time, error) {
	if f == nil {
		return end, nil
	}
	if end.Sub(start) > FactoryTTL {
		return end, countersign.Errorf(countersign.NotAllowed, "the role factory makes credentials for at most %s", FactoryTTL).WithNext("choose an earlier end, or have an operator do it")
	}
	if f.Until.Before(end) {
		end = f.Until
	}
	return end, nil
}

// mayPick refuses a voucher's profile that the fleet does not name: one with serverAuth
// or without an end is for nobody who may only bring devices in.
func mayPick(a *appraisal, f *countersign.Fleet) error {
	if a.profile == "" || a.profile == f.Profile || slices.Contains(f.Rules.FactoryProfiles, a.profile) {
		return nil
	}
	return countersign.Errorf(countersign.NotAllowed, "fleet %s does not let a factory pick profile %.80q", f.Name, a.profile).
		WithNext("name it in factory_profiles of the fleet's rules")
}
