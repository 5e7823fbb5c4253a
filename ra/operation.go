package ra

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/hold"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// operation is an act on its way to the record.
type operation struct {
	*Authority
	Act
	hold *hold.Hold // the emergency hold that it records; nil: none

	// In the transaction, with the device locked:
	dev   registry.Entry
	certs []countersign.Certificate
	out   *countersign.Revocation
}

// change does the act in one transaction, with the device locked, and waits a little for
// the lists that show it.
func (o *operation) change(ctx context.Context, do func(context.Context, *store.Tx) error) (*countersign.Revocation, error) {
	var shown []countersign.CertRef // what the lists have to show
	err := o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		o.out = &countersign.Revocation{Device: o.Device, At: o.Now()}
		if o.dev, o.certs, err = o.lock(ctx, tx, o.Device); err != nil {
			return err
		}
		err = do(ctx, tx)
		if shown = o.out.Certificates; o.out.Already {
			for i := range o.certs {
				shown = append(shown, o.certs[i].Ref())
			}
		}
		return err
	})
	if err != nil {
		return nil, NotRecorded(err)
	}
	o.awaitCRL(ctx, shown)
	return o.out, nil
}

// event returns an event of that type about the act.
func (o *operation) event(t countersign.EventType) countersign.Event {
	e := countersign.Event{Type: t, Actor: o.Actor, Device: o.dev.ID, Fleet: o.dev.Fleet, Via: o.Via, Reason: o.Note}
	if o.Alert != "" {
		note(&e, "alert", o.Alert)
	}
	return e
}

// certEvent returns an event of that type about one of the device's certificates.
func (o *operation) certEvent(t countersign.EventType, c *countersign.Certificate) countersign.Event {
	e := certEvent(t, c, o.Actor, o.Note)
	e.Via = o.Via
	return e
}

// awaitCRL waits a little for the lists that show what was done to certificates.
func (o *operation) awaitCRL(ctx context.Context, shown []countersign.CertRef) {
	if o.CRLs == nil || len(shown) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, crlWait)
	defer cancel()
	issuers := map[string]bool{}
	for _, c := range shown {
		if !issuers[c.Issuer] {
			issuers[c.Issuer] = true
			o.out.CRLNumber = o.CRLs.Wait(ctx, c.Issuer)
		}
	}
}
