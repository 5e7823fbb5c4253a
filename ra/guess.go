package ra

import (
	"context"
	"strconv"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

// mayGuess refuses an address that an operator blocked. One that is blocked for
// guessing may show what cannot be guessed, which all evidence of an enrollment is,
// and is refused for the block unless it proves something: see refused. What is asked
// of an operator's voucher is asked of the operator instead.
func (d *Authority) mayGuess(r *request) error {
	if r.Evidence.Voucher != nil || r.dry {
		return nil
	}
	r.blocked = d.Ledger.Check(r.Remote.Addr())
	return d.Ledger.Try(r.Remote.Addr())
}

// unblocked returns why a request is refused: an address that is blocked learns
// nothing of evidence that proved nothing.
func (r *request) unblocked(err error) error {
	if r.blocked != nil && r.by == "" {
		return r.blocked
	}
	return err
}

// guessed counts a wrong secret, slows the answer, and tells a person where a
// credential or a device's name draws many. Only secrets count: what is signed
// cannot be guessed, and a device with a stale certificate is no attacker.
func (d *Authority) guessed(ctx context.Context, r *request, code countersign.Code) {
	if code != countersign.BadCredential || r.dry {
		return
	}
	f := lockout.Failure{Addr: r.Remote.Addr(), Credential: string(r.actor()), Device: r.device, Door: r.Door, Code: code}
	d.wrong(ctx, f, r.event(countersign.FindingGuessing, ""))
}

// wrong counts a wrong secret at any door; e is the finding, should it come to one.
func (d *Authority) wrong(ctx context.Context, f lockout.Failure, e countersign.Event) {
	o := d.Ledger.Count(ctx, f)
	if o.ByDevice || o.ByCredential {
		e.Type, e.Reason = countersign.FindingGuessing, "many wrong secrets within an hour; nobody is locked out by it, addresses are"
		e.Data = map[string]string{"for_device": strconv.Itoa(o.DeviceFailures), "for_credential": strconv.Itoa(o.CredentialFailures)}
		d.Events.Later(e)
	}
	d.Ledger.Hold(ctx, o)
}
