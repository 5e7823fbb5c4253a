package ra

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
)

// signedElsewhere returns why a SAS token that no key for fleet made is no guess: a
// key that is or was on record made it. It returns nil if none did. An error of
// the database counts as none: the token is refused either way.
func (d *Authority) signedElsewhere(ctx context.Context, r *request, sas *attest.SAS, fleet, device string) error {
	for k, err := range d.Access.FormerKeys(ctx, fleet, device, r.Remote.Addr()) {
		if err != nil {
			return err
		}
		if k.Made(sas, device) {
			r.by = countersign.Actor(k.Evidence())
			return k.Fault
		}
	}
	return nil
}
