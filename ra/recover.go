package ra

import (
	"context"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
)

// Recovery is the Enroller of the recovery door: it renews, expired certificates
// too, and can do nothing else.
type Recovery struct{ Desk *Desk }

var _ countersign.Enroller = Recovery{}

// Enroll is refused: this door gives no first certificate.
func (Recovery) Enroll(context.Context, countersign.EnrollRequest) (*countersign.Grant, error) {
	return nil, countersign.Errorf(countersign.NotAllowed, "the recovery door renews only").WithNext("enroll at the enrollment listener")
}

// Reenroll renews with a certificate that may have expired.
func (v Recovery) Reenroll(ctx context.Context, req countersign.EnrollRequest) (*countersign.Grant, error) {
	req.Recovery = true
	return v.Desk.Reenroll(ctx, req)
}

// Revoke is refused.
func (Recovery) Revoke(context.Context, countersign.RevokeRequest) (*countersign.Revocation, error) {
	return nil, countersign.Errorf(countersign.NotAllowed, "the recovery door renews only")
}

// recoverable holds the renewal of an expired certificate against the fleet's
// bounds. Revocation, suspension and forks were judged before: expiry is all that
// this door forgives.
func (d *Desk) recoverable(ctx context.Context, r *request, fleet *countersign.Fleet, j *judgment, o *ca.Order) error {
	age := d.Now().Sub(j.shown.NotAfter)
	if age <= 0 || j.outcome == grantOld {
		return nil
	}
	rule := fleet.Rules.Recovery
	readmit := "to let it back: countersign device revoke " + r.device + ", then countersign enroll token --device " + r.device
	if rule == nil {
		return countersign.Errorf(countersign.CertExpired, "the certificate expired at %s, and fleet %s knows no recovery", j.shown.NotAfter.UTC().Format(time.RFC3339), fleet.Name).WithNext(readmit)
	}
	times := 0
	for i := range j.certs {
		if c := &j.certs[i]; c.Method == string(countersign.MethodRecovery) && !c.Replaced && !formerLife(&j.device, c) {
			times++
		}
	}
	switch {
	case age > time.Duration(rule.MaxAge):
		return countersign.Errorf(countersign.CertExpired, "the certificate expired %s ago, fleet %s recovers up to %s", age.Round(time.Second), fleet.Name, time.Duration(rule.MaxAge)).WithNext(readmit)
	case times >= rule.MaxTimes:
		return countersign.Errorf(countersign.NotAllowed, "device %s has been recovered %d times already", r.device, times).WithNext(readmit)
	case !countersign.Contains(rule.Networks, r.Remote.Addr()):
		return countersign.Errorf(countersign.NotAllowed, "fleet %s does not recover from this address", fleet.Name).WithNext("recover in the fleet's own network")
	}
	o.Method = countersign.MethodRecovery
	if after := time.Duration(rule.ApproveAfter); after == 0 || age <= after {
		return nil
	}
	c := &consideration{fleet: *fleet, appraisal: &appraisal{
		method: countersign.MethodRecovery, evidence: "recovery:" + j.shown.Fingerprint, fleet: fleet.Name, device: r.device,
		facts: map[string]string{"expired": j.shown.NotAfter.UTC().Format(time.RFC3339), "recovered_before": strconv.Itoa(times)},
	}}
	var err error
	if r.approved, err = d.approval(ctx, r, c); err == nil && r.approved == "" {
		err = d.await(ctx, r, c)
	}
	return err
}
