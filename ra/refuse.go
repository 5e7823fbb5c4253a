package ra

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
)

// refused writes down why, slows the guesser, and returns the error that the door may show.
func (r *request) refused(ctx context.Context, err error) error {
	err = r.unblocked(err)
	code := countersign.CodeOf(err)
	if code == countersign.Internal || code == countersign.Unavailable {
		r.Log.ErrorContext(ctx, "enrollment failed", "door", r.Door, "device", r.device, "error", countersign.Detail(err))
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	e := r.event(countersign.EnrollRefused, countersign.Public(err).Message)
	e.Code = code
	r.later(e, "")
	switch {
	case r.dry:
	case code == countersign.OverBudget:
		r.exceeded(e)
	default:
		r.guessed(ctx, code)
	}
	return r.wornOut(err)
}

// mayGuess refuses an address that an operator blocked. One that is blocked for
// guessing may show what cannot be guessed, which all evidence of an enrollment is,
// and is refused for the block unless it proves something: see refused. What is asked
// of an operator's voucher is asked of the operator instead.
func (r *request) mayGuess() error {
	if r.Evidence.Voucher != nil || r.dry {
		return nil
	}
	r.blocked = r.Ledger.Check(r.Remote.Addr())
	return r.Ledger.Try(r.Remote.Addr())
}

// unblocked returns why a request is refused: an address that is blocked learns
// nothing of evidence that proved nothing.
func (r *request) unblocked(err error) error {
	if r.blocked != nil && r.by == "" {
		return r.blocked
	}
	return err
}

// guessed counts a wrong secret, slows the answer, and alerts an operator where a
// credential or a device's name draws many. Only secrets count: what is signed
// cannot be guessed, and a device with a stale certificate is no attacker.
func (r *request) guessed(ctx context.Context, code countersign.Code) {
	if code != countersign.BadCredential || r.dry {
		return
	}
	f := lockout.Failure{Addr: r.Remote.Addr(), Credential: string(r.actor()), Device: r.device, Door: r.Door, Code: code}
	r.wrong(ctx, f, r.event(countersign.FindingGuessing, ""))
}

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
func (r *request) wornOut(err error) error {
	if r.dry || r.actor() == unknown || r.Evidence.Voucher != nil || slices.Contains(unworn, countersign.CodeOf(err)) {
		return err
	}
	src, _ := countersign.SourceOf(r.Remote.Addr())
	if r.refusals.Take(string(r.actor())+" "+src.String(), refusalsPerMinute, refusalsPerMinute, r.Now()) {
		return err
	}
	e := countersign.Public(err)
	return countersign.Errorf(countersign.RateLimited, "%s, and it has been refused more than %d times within a minute", e.Message, refusalsPerMinute).
		WithNext(e.Next).WithRetry(time.Minute).WithCause(err)
}

// exceeded records that a device wanted more renewals than its budget has.
func (r *request) exceeded(e countersign.Event) {
	e.Type, e.Code = countersign.BudgetExceeded, countersign.OverBudget
	e.Data = map[string]string{"budget": "renewals", "limit": strconv.Itoa(r.most)}
	r.later(e, r.device)
}
