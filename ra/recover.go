package ra

import (
	"context"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
)

// Recovery is the Enroller of the recovery door: it renews, expired certificates
// too, and can do nothing else.
type Recovery struct{ RA *Authority }

var _ countersign.Enroller = Recovery{}

// Enroll is refused: this door gives no first certificate.
func (Recovery) Enroll(context.Context, countersign.EnrollRequest) (*countersign.Grant, error) {
	return nil, countersign.Errorf(countersign.NotAllowed, "the recovery door renews only").WithNext("enroll at the enrollment listener")
}

// Reenroll renews with a certificate that may have expired.
func (v Recovery) Reenroll(ctx context.Context, req countersign.EnrollRequest) (*countersign.Grant, error) {
	req.Recovery = true
	return v.RA.Reenroll(ctx, req)
}

// Revoke is refused.
func (Recovery) Revoke(context.Context, countersign.RevokeRequest) (*countersign.Revocation, error) {
	return nil, countersign.Errorf(countersign.NotAllowed, "the recovery door renews only")
}

// recoveries counts how often a device was recovered since it last lost its identity. A
// certificate that it gave up unused for another one does not count, nor does the one that
// this request gives up.
func (d *Authority) recoveries(ctx context.Context, rd store.Reader, j *judgment) (int, error) {
	n, err := d.CA.Recoveries(ctx, rd, j.device.ID, j.device.RevokedPos)
	if j.replace != nil && j.replace.Method == string(countersign.MethodRecovery) {
		n--
	}
	return n, err
}

// recoverableStill counts again with the device locked, because another request of the
// device may have recovered it meanwhile.
func (d *Authority) recoverableStill(ctx context.Context, tx *store.Tx, r *request, j *judgment) error {
	if r.maxRecoveries == 0 {
		return nil
	}
	times, err := d.recoveries(ctx, tx, j)
	if err == nil && times >= r.maxRecoveries {
		err = errRecovered(r.device, times)
	}
	return err
}

func errRecovered(device string, times int) error {
	return countersign.Errorf(countersign.NotAllowed, "device %s has been recovered %d times already", device, times).
		WithNext("to let it back: countersign device revoke " + device + ", then countersign enroll token --device " + device)
}

// recoverable holds the renewal of an expired certificate against the fleet's
// bounds. Revocation, suspension and forks were judged before: expiry is all that
// this door forgives.
func (d *Authority) recoverable(ctx context.Context, r *request, fleet *countersign.Fleet, j *judgment, o *ca.Order) error {
	age := d.Now().Sub(j.shown.NotAfter)
	if age <= 0 || j.outcome == grantOld {
		return nil
	}
	rule := fleet.Rules.Recovery
	readmit := "to let it back: countersign device revoke " + r.device + ", then countersign enroll token --device " + r.device
	if rule == nil {
		return countersign.Errorf(countersign.CertExpired, "the certificate expired at %s, and fleet %s knows no recovery", j.shown.NotAfter.UTC().Format(time.RFC3339), fleet.Name).WithNext(readmit)
	}
	times, err := d.recoveries(ctx, d.DB, j)
	if err != nil {
		return err
	}
	evidence := "recovery:" + j.shown.Fingerprint
	err = d.inTime(ctx, d.DB, r, waitingOn{evidence, r.device}, func(now time.Time) error {
		if now.Sub(j.shown.NotAfter) <= time.Duration(rule.MaxAge) {
			return nil
		}
		return countersign.Errorf(countersign.CertExpired, "the certificate expired %s ago, fleet %s recovers up to %s", age.Round(time.Second), fleet.Name, time.Duration(rule.MaxAge)).WithNext(readmit)
	})
	switch {
	case err != nil:
		return err
	case times >= rule.MaxTimes:
		return errRecovered(r.device, times)
	case !countersign.Contains(rule.Networks, r.Remote.Addr()):
		return countersign.Errorf(countersign.NotAllowed, "fleet %s does not recover from this address", fleet.Name).WithNext("recover in the fleet's own network")
	}
	o.Method, r.maxRecoveries = countersign.MethodRecovery, rule.MaxTimes
	if after := time.Duration(rule.ApproveAfter); after == 0 || age <= after {
		return r.late
	}
	c := &consideration{fleet: *fleet, appraisal: &appraisal{
		method: countersign.MethodRecovery, evidence: evidence, fleet: fleet.Name, device: r.device,
		facts: map[string]string{"expired": j.shown.NotAfter.UTC().Format(time.RFC3339), "recovered_before": strconv.Itoa(times)},
	}}
	r.approved, err = d.approval(ctx, r, c)
	switch {
	case err != nil || r.approved != "":
		return err
	case r.late != nil:
		return r.late
	}
	return d.await(ctx, r, c)
}
