package ra

import (
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
)

// refusalsPerMinute is how often a client that is known, by a credential that was good
// once or by a certificate, is answered with the reason of a refusal from one address. A
// device that tries again each two seconds stays below it.
const refusalsPerMinute = 30

// unworn are refusals that repeat for a good reason, or have a time to come back.
var unworn = []countersign.Code{
	countersign.Pending, countersign.RateLimited, countersign.OverBudget, countersign.Conflict, countersign.Unavailable, countersign.Internal,
}

// wornOut answers one who is known and shows the same in vain over and over with the
// time to come back. It is no guess and blocks no address, yet its work has a bound.
func (d *Authority) wornOut(r *request, err error) error {
	if r.dry || r.actor() == nobody || r.Evidence.Voucher != nil || slices.Contains(unworn, countersign.CodeOf(err)) {
		return err
	}
	src, _ := countersign.SourceOf(r.Remote.Addr())
	if d.refusals.Take(string(r.actor())+" "+src.String(), refusalsPerMinute, refusalsPerMinute, d.Now()) {
		return err
	}
	e := countersign.Public(err)
	return countersign.Errorf(countersign.RateLimited, "%s, and it has been refused more than %d times within a minute", e.Message, refusalsPerMinute).
		WithNext(e.Next).WithRetry(time.Minute).WithCause(err)
}
