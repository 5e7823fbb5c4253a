package ra

import (
	"context"
	"net/netip"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/lockout"
)

// ExplainTo is Explain for an operator, whose wrong tokens count as those at a door do:
// the answer says which token is good.
func (d *Authority) ExplainTo(ctx context.Context, req countersign.EnrollRequest, by By, from netip.AddrPort) (api.Explanation, error) {
	if err := d.Ledger.Check(from.Addr()); err != nil {
		return api.Explanation{}, err
	}
	e, err := d.Explain(ctx, req)
	if err == nil && e.Code == string(countersign.BadCredential) {
		f := lockout.Failure{Addr: from.Addr(), Credential: string(by.Actor), Door: req.Door, Code: countersign.BadCredential}
		d.wrong(ctx, f, countersign.Event{Actor: by.Actor, Remote: written(from), Via: by.Via})
	}
	return e, err
}

// Explain takes a first enrollment as far as the decision and issues nothing. A
// webhook is not asked; TLS proof of a client certificate's key is the caller's
// word here, so the answer is for operators only.
func (d *Authority) Explain(ctx context.Context, req countersign.EnrollRequest) (api.Explanation, error) {
	c := &enrollment{request: d.received(ctx, req)}
	c.dry = true
	err := c.decide(ctx)
	e := api.Explanation{Device: c.request.device, Fleet: c.request.fleet}
	if err != nil && countersign.CodeOf(err) != countersign.Pending {
		p := countersign.Public(err)
		if p.Code == countersign.Internal || p.Code == countersign.Unavailable {
			return e, err
		}
		e.Decision, e.Code, e.Reason, e.Next = "refuse", string(p.Code), p.Message, p.Next
		return e, nil
	}
	e.Method, e.Evidence, e.Profile, e.Facts = string(c.method), c.evidence, c.profile.Name, c.facts
	switch {
	case c.again != nil:
		e.Decision, e.Reason = "again", "the same request was granted before; it gets the same certificate"
	case c.waits && c.waiting == "":
		e.Decision, e.Reason = "wait", "enrollment by "+string(c.method)+" waits for an operator in fleet "+c.fleet.Name
	default:
		e.Decision, e.Reason = "issue", "the "+string(c.method)+" is good for "+e.Device+" in fleet "+c.fleet.Name
	}
	return e, nil
}
