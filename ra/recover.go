package ra

import (
	"context"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
)

// recoverable refuses the renewal of an expired certificate outside of the bounds of the
// fleet. Revocation, suspension and forks were decided before: expiry is all that this
// door forgives.
func (e *renewal) recoverable(ctx context.Context, o *ca.Order) error {
	age := e.Now().Sub(e.current.NotAfter)
	if age <= 0 || e.outcome == grantOld {
		return nil
	}
	rule := e.fleet.Rules.Recovery
	if rule == nil {
		return countersign.Errorf(countersign.CertExpired, "the certificate expired at %s, and fleet %s knows no recovery", e.current.NotAfter.UTC().Format(time.RFC3339), e.fleet.Name).WithNext(readmit)
	}
	times, err := e.recoveries(ctx, e.DB)
	if err != nil {
		return err
	}
	evidence := "recovery:" + e.current.Fingerprint
	err = e.inTime(ctx, e.DB, waitingOn{evidence, e.request.device}, func(now time.Time) error {
		if now.Sub(e.current.NotAfter) <= time.Duration(rule.MaxAge) {
			return nil
		}
		return countersign.Errorf(countersign.CertExpired, "the certificate expired %s ago, fleet %s recovers up to %s", age.Round(time.Second), e.fleet.Name, time.Duration(rule.MaxAge)).WithNext(readmit)
	})
	switch {
	case err != nil:
		return err
	case times >= rule.MaxTimes:
		return errRecovered(e.request.device, times)
	case !countersign.Contains(rule.Networks, e.Remote.Addr()):
		return countersign.Errorf(countersign.NotAllowed, "fleet %s does not recover from this address", e.fleet.Name).WithNext("recover in the fleet's own network")
	}
	o.Method, e.maxRecoveries = countersign.MethodRecovery, rule.MaxTimes
	if after := time.Duration(rule.ApproveAfter); after == 0 || age <= after {
		return e.late
	}
	w := &enrollment{request: e.request, fleet: e.fleet, appraisal: appraisal{
		method: countersign.MethodRecovery, evidence: evidence, fleet: e.fleet.Name, device: e.request.device,
		facts: map[string]string{"expired": e.current.NotAfter.UTC().Format(time.RFC3339), "recovered_before": strconv.Itoa(times)},
	}}
	e.approved, err = w.approval(ctx)
	switch {
	case err != nil || e.approved != "":
		return err
	case e.late != nil:
		return e.late
	}
	return w.await(ctx)
}

// recoveries counts how often a device was recovered since it last lost its identity. A
// certificate that it gave up unused for another one does not count, nor does the one that
// this request gives up.
func (e *renewal) recoveries(ctx context.Context, rd store.Reader) (int, error) {
	n, err := ca.Recoveries(ctx, rd, e.rotation.device.ID, e.rotation.device.RevokedPos)
	if e.unused != nil && e.unused.Method == string(countersign.MethodRecovery) {
		n--
	}
	return n, err
}

// recoverableStill counts again with the device locked, because another request of the
// device may have recovered it meanwhile.
func (e *renewal) recoverableStill(ctx context.Context, tx *store.Tx) error {
	if e.maxRecoveries == 0 {
		return nil
	}
	times, err := e.recoveries(ctx, tx)
	if err == nil && times >= e.maxRecoveries {
		err = errRecovered(e.request.device, times)
	}
	return err
}

// readmit is how a device comes back that may not recover.
const readmit = "to let it back, have an operator revoke the device and make a token for it"

func errRecovered(device string, times int) error {
	return countersign.Errorf(countersign.NotAllowed, "device %s has been recovered %d times already", device, times).
		WithNext(readmit)
}
