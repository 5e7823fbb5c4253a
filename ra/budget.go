package ra

import (
	"context"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// renewalWindow is the time of Budget.Renewals.
	renewalWindow = time.Hour
	// leastRetry keeps a device that is over its budget from coming back at once.
	leastRetry = time.Second
)

// withinRenewals refuses with OverBudget a device another certificate that had as many
// within the hour as its fleet allows, whatever became of them: each that it gives up
// stays on the CRL until it expires (RFC 5280, 3.3). The certificates on record are
// counted, so the bound holds over a restart and on all nodes; in the transaction that
// records the next one, with the device locked, it is exact.
func (d *Authority) withinRenewals(ctx context.Context, rd store.Reader, r *request, b countersign.Budget) error {
	most, now := b.WithDefaults().Renewals, d.Now()
	at, over, err := d.CA.IssuedWithin(ctx, rd, r.device, now.Add(-renewalWindow), most)
	if err != nil || !over {
		return err
	}
	r.most = most
	wait := min(max(at.Add(renewalWindow).Sub(now), leastRetry), renewalWindow)
	return countersign.Errorf(countersign.OverBudget, "device %s got %d certificates within an hour, as many as fleet %s allows", r.device, most, r.fleet).
		WithNext("keep the key and the certificate that the device has; the fleet's rules have budget.renewals").WithRetry(wait)
}

// anotherFirst holds a device that asks for another first certificate, since it lost the
// key of an unused one, to the bound of its renewals.
func (d *Authority) anotherFirst(ctx context.Context, rd store.Reader, r *request, c *consideration) error {
	if !c.known || c.standing.device.State != countersign.DeviceActive {
		return nil
	}
	return d.withinRenewals(ctx, rd, r, c.fleet.Rules.Budget)
}

// exceeded records that a device wanted more renewals than its budget has.
func (d *Authority) exceeded(r *request, e countersign.Event) {
	e.Type, e.Code = countersign.BudgetExceeded, countersign.OverBudget
	e.Data = map[string]string{"budget": "renewals", "limit": strconv.Itoa(r.most)}
	d.later(e, r.device)
}

// Exceeded records that a session used more than its budget, or wanted to.
func (d *Authority) Exceeded(s countersign.Session, budget string, limit int64) {
	e := sessionEvent(countersign.BudgetExceeded, s)
	e.Code, e.Reason = countersign.OverBudget, "the device uses more than its budget of "+budget
	e.Data = map[string]string{"budget": budget, "limit": strconv.FormatInt(limit, 10)}
	if s.ID != "" {
		e.Data["session"] = s.ID
	}
	d.later(e, s.Device)
}
