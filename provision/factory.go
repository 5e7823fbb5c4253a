package provision

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ra"
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

// fitFactory holds a credential that the role factory makes to its bounds. device is
// the one that it is for as it is on record; nil: there is none yet.
func (p *Provisioner) fitFactory(ctx context.Context, tx *store.Tx, t *registry.Credential, device *registry.Entry, f *ra.Factory) error {
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
	revoked, err := p.Operators.Revoked(ctx, tx, f.Token)
	if err == nil && revoked {
		err = countersign.Errorf(countersign.CredentialExpire, "the operator token was revoked").WithNext("ask an admin for a new one")
	}
	t.Source = source
	return err
}

// endOf bounds the end of a token or claim by that of the operator token that makes it.
func endOf(f *ra.Factory, start, end time.Time) (time.Time, error) {
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
