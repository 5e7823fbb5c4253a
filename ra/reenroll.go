package ra

import (
	"context"
	"errors"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Reenroll grants the next certificate to the holder of a current one.
func (d *Authority) Reenroll(ctx context.Context, req countersign.EnrollRequest) (*countersign.Grant, error) {
	r := d.received(ctx, req)
	g, err := d.reenroll(ctx, r)
	act := "renew"
	if r.Recovery {
		act = "recover"
	}
	d.observe(Outcome{act, countersign.MethodCertificate, r.Door, countersign.CodeOf(err)})
	if err != nil {
		return nil, d.refused(ctx, r, err)
	}
	return g, nil
}

func (d *Authority) reenroll(ctx context.Context, r *request) (*countersign.Grant, error) {
	if len(r.Evidence.Peer) == 0 {
		return nil, countersign.Errorf(countersign.Unauthenticated, "no client certificate was shown").
			WithNext("renew over mutual TLS with the device's current certificate")
	}
	if err := d.parse(r); err != nil {
		return nil, err
	}
	shown, err := d.shown(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := d.Holds.Refuse(shown.Device); err != nil {
		return nil, err
	}
	if err := d.Ledger.CheckProven(r.Remote.Addr()); err != nil {
		return nil, err
	}
	fleet, err := d.Registry.Fleet(ctx, d.DB, shown.Fleet)
	if err != nil {
		return nil, err
	}
	if err := d.sameSubject(ctx, r, &fleet); err != nil {
		return nil, err
	}
	profile, err := d.CA.Profile(ctx, d.DB, fleet.Profile)
	if err != nil {
		return nil, err
	}
	if err := serverKeys(r, &profile); err != nil {
		return nil, err
	}
	before, err := d.judge(ctx, d.DB, r, shown.Ref())
	if err != nil {
		return nil, err
	}
	o := ca.Order{
		Profile: profile, Fleet: fleet, Device: shown.Device, PublicKey: r.csr.PublicKey, Predecessor: shown.Ref(),
		Evidence: "certificate:" + shown.Fingerprint, Method: countersign.MethodCertificate,
	}
	if r.Recovery && before.outcome != isFork {
		if err := d.recoverable(ctx, r, &fleet, &before, &o); err != nil {
			return nil, err
		}
	}
	var issued *ca.Issued
	r.overlap, r.budget = fleet.Overlap, fleet.Rules.Budget
	if before.outcome == grantNew {
		if err := d.withinRenewals(ctx, d.DB, r, r.budget); err != nil {
			return nil, err
		}
		if err := d.keyIsFree(ctx, d.DB, r); err != nil {
			return nil, err
		}
		if issued, err = d.issue(ctx, o); err != nil {
			return nil, err
		}
	}
	g, err := d.renew(ctx, r, shown.Ref(), issued)
	if errors.Is(err, ca.ErrBlockClosed) { // costs another signature, not the request
		if issued, err = d.issue(ctx, o); err == nil {
			g, err = d.renew(ctx, r, shown.Ref(), issued)
		}
	}
	return g, err
}

// shown finds the certificate that the device showed on record.
func (d *Authority) shown(ctx context.Context, r *request) (countersign.Certificate, error) {
	cert, err := d.CA.Shown(ctx, d.DB, r.Evidence.Peer[0])
	if err != nil && countersign.CodeOf(err) != countersign.NotFound {
		return cert, err
	}
	if err != nil || cert.Device == "" {
		return cert, countersign.Errorf(countersign.CertUnknown, "the client certificate was not issued to a device by this authority").
			WithNext("enroll with a token")
	}
	r.device, r.fleet, r.cert = cert.Device, cert.Fleet, cert.Ref()
	if r.Fleet != "" && r.Fleet != cert.Fleet {
		return cert, countersign.Errorf(countersign.NotAllowed, "the device is not of fleet %.80q", r.Fleet).WithNext("renew at the device's own fleet")
	}
	return cert, nil
}

// outcome is what a renewal comes to.
type outcome int

const (
	grantNew outcome = iota // sign a new certificate
	grantOld                // the same request again: the same certificate
	isFork                  // two holders of one identity
)

// judgment is an outcome with what it rests on.
type judgment struct {
	outcome outcome
	device  registry.Entry
	certs   []countersign.Certificate // of the device
	shown   *countersign.Certificate  // in certs, unless replaced or very old
	same    *countersign.Certificate  // in certs, for grantOld
	replace *countersign.Certificate  // in certs: pending, given up by this request
	why     string                    // of a fork
}

// judge reads the device's record and decides a renewal by it.
func (d *Authority) judge(ctx context.Context, rd store.Reader, r *request, shown countersign.CertRef) (judgment, error) {
	var j judgment
	var err error
	if j.device, err = d.Registry.Device(ctx, rd, r.device); err != nil {
		return j, err
	}
	if j.certs, err = d.CA.DeviceCertificates(ctx, rd, r.device); err != nil {
		return j, err
	}
	if j.shown = find(j.certs, shown); j.shown == nil { // replaced, or older than all that are looked at
		c, err := d.CA.Certificate(ctx, rd, shown)
		if err != nil {
			return j, err
		}
		j.shown = &c
	}
	use := access.Renewing
	if r.Recovery {
		use = access.Recovering
	}
	standing, err := d.Access.Standing(ctx, rd, shown, use, r.Evidence.Peer)
	if err == nil {
		err = standing.Err()
	}
	if err != nil {
		return j, err
	}
	return j, j.decide(d.Now(), r)
}

// maxGood bounds how many certificates of one device are good at once, since each
// has to be seen whenever something is decided or taken away. A device has two or
// three; this many come from renewing and connecting without pause.
const maxGood = 128

// decide is the rule of rotation. A device that lost its power, an answer or a
// key before it used the new certificate asks again, and is served: with the same
// certificate for the same key, with another in place of the unused one otherwise.
// Once the new certificate has been used, the old one renews no more; if it tries
// to with another key, somebody else holds it. Likewise if a certificate shows up
// that its device gave up. A request that began before what it would undo is the
// device's own, delayed: it is refused and proves nothing. A successor that an
// operator took away, or that expired unused, is as if it had never been.
func (j *judgment) decide(now time.Time, r *request) error {
	c := j.shown
	if c.Replaced {
		j.outcome, j.why = isFork, "a certificate renewed that its device had replaced before using it"
		return nil
	}
	var used *countersign.Certificate
	good := 0
	for i := range j.certs {
		s := &j.certs[i]
		if s.State != countersign.CertRevoked && now.Before(s.NotAfter) {
			good++
		}
		lost := s.State == countersign.CertRevoked && s.Reason != countersign.Superseded
		lapsed := s.UsedAt.IsZero() && now.After(s.NotAfter)
		switch {
		case s.Predecessor != c.Ref() || lost || lapsed:
		case s.KeyHash == r.keyHash && s.State != countersign.CertRevoked:
			j.outcome, j.same = grantOld, s
		case s.State == countersign.CertPending:
			j.replace = s
		case !s.UsedAt.IsZero():
			used = s
		}
	}
	switch {
	case j.same != nil:
		return nil
	case used != nil && !r.overtaken(used.UsedAt, used.UsedPos):
		j.outcome, j.why = isFork, "a certificate renewed with another key after its successor had been used"
		return nil
	case used != nil || j.replace != nil && r.overtaken(j.replace.IssuedAt, j.replace.IssuedPos):
		return errOvertaken()
	case c.State == countersign.CertRevoked || c.State == countersign.CertSuperseded:
		return countersign.Errorf(countersign.CertIsRevoked, "the certificate has been superseded").WithNext("enroll anew with a token")
	case good >= maxGood:
		return countersign.Errorf(countersign.RateLimited, "device %s has %d certificates that are good", c.Device, good).
			WithNext("wait until an overlap ends, or shorten it: countersign fleet set " + c.Fleet).WithRetry(sweepEvery)
	}
	j.outcome = grantNew
	return nil
}

// renew decides again with the device locked and writes the outcome.
func (d *Authority) renew(ctx context.Context, r *request, shown countersign.CertRef, issued *ca.Issued) (*countersign.Grant, error) {
	var j judgment
	err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := d.lockFor(ctx, tx, r); err != nil {
			return err
		}
		var err error
		if j, err = d.judge(ctx, tx, r, shown); err != nil {
			return err
		}
		switch j.outcome {
		case isFork:
			return d.fork(ctx, tx, &j, r.event(countersign.FindingFork, j.why))
		case grantOld:
			return nil
		}
		if issued == nil {
			// Before the lock this was a retry; its certificate has gone meanwhile.
			return countersign.Errorf(countersign.Conflict, "the device's certificates changed meanwhile").WithNext("try again")
		}
		if err := d.keyIsFree(ctx, tx, r); err != nil {
			return err
		}
		if err := d.recoverableStill(ctx, tx, r, &j); err != nil {
			return err
		}
		if err := d.withinRenewals(ctx, tx, r, r.budget); err != nil {
			return err
		}
		return d.succeed(ctx, tx, r, &j, issued)
	})
	switch {
	case err != nil:
		return nil, err
	case j.outcome == isFork:
		return nil, countersign.Errorf(countersign.ForkDetected, "%s: device %s is suspended", j.why, r.device).WithNext("ask the operator")
	case j.outcome == grantOld:
		return d.grant(j.same, true)
	}
	return d.grant(&issued.Certificate, false)
}

// succeed records the next certificate of a device.
func (d *Authority) succeed(ctx context.Context, tx *store.Tx, r *request, j *judgment, issued *ca.Issued) error {
	var events []countersign.Event
	if j.shown.State == countersign.CertPending { // to renew with it is to use it
		more, err := d.activate(ctx, tx, r.overlap, j.certs, j.shown)
		if err != nil {
			return err
		}
		events = append(events, more...)
	}
	if j.replace != nil {
		more, err := d.replace(ctx, tx, r, []countersign.Certificate{*j.replace})
		if err != nil {
			return err
		}
		events = append(events, more...)
	}
	if r.approved != "" {
		if err := d.Registry.Finish(ctx, tx, r.approved); err != nil {
			return err
		}
	}
	if err := d.CA.Record(ctx, tx, issued); err != nil {
		return err
	}
	e := r.event(countersign.CertIssued, "renewal")
	e.Cert = issued.Ref()
	e.Data = issuedData(&issued.Certificate)
	e.Data["predecessor"] = string(j.shown.Serial)
	return d.Events.Append(ctx, tx, append(events, e)...)
}

// activate records the first use of a certificate: it is active from now, and the
// one that was active is superseded and accepted for the overlap.
func (d *Authority) activate(ctx context.Context, tx *store.Tx, overlap time.Duration, certs []countersign.Certificate, c *countersign.Certificate) ([]countersign.Event, error) {
	if err := d.CA.Activate(ctx, tx, c); err != nil {
		return nil, err
	}
	actor := countersign.DeviceActor(c.Device)
	events := []countersign.Event{certEvent(countersign.CertActivated, c, actor, "first use")}
	until := d.Now().Add(overlap)
	for i := range certs {
		old := &certs[i]
		if old.State != countersign.CertActive || old.Ref() == c.Ref() {
			continue
		}
		end := until
		if old.NotAfter.Before(end) {
			end = old.NotAfter
		}
		if err := d.CA.Supersede(ctx, tx, old, end); err != nil {
			return nil, err
		}
		e := certEvent(countersign.CertSupersededEv, old, actor, "its successor has been used")
		e.Data = map[string]string{"successor": string(c.Serial), "accepted_until": end.UTC().Format(time.RFC3339)}
		events = append(events, e)
	}
	return events, nil
}

// fork answers two holders of one identity. The record cannot say which of them is the
// device, so it is suspended, its newest certificate in use is held and an operator is
// alerted. The others are revoked: reactivation must bring back the certificate of one
// holder, not those of both. A holder that shows one of them afterwards is refused and
// reported, as a fork if it renews.
func (d *Authority) fork(ctx context.Context, tx *store.Tx, j *judgment, finding countersign.Event) error {
	kept := newestUsed(j.certs)
	finding.Actor, finding.Data = countersign.System, map[string]string{}
	var certs []countersign.Event
	for i := range j.certs {
		c := &j.certs[i]
		switch {
		case c.State == countersign.CertRevoked || c.State == countersign.CertHeld:
		case c == kept:
			if err := d.CA.Hold(ctx, tx, c); err != nil {
				return err
			}
			finding.Data["held"] = string(c.Serial)
			certs = append(certs, certEvent(countersign.CertHeldEv, c, countersign.System, "fork"))
		default:
			if err := d.CA.Revoke(ctx, tx, c, countersign.Superseded); err != nil {
				return err
			}
			e := certEvent(countersign.CertRevokedEv, c, countersign.System, "fork")
			e.Data = map[string]string{"reason": countersign.Superseded.String()}
			certs = append(certs, e)
		}
	}
	events := append([]countersign.Event{finding}, certs...)
	if err := d.Registry.Move(ctx, tx, &j.device, countersign.DeviceSuspended, "two holders of one identity"); err != nil {
		return err
	}
	events = append(events, countersign.Event{
		Type: countersign.DeviceSuspendedEv, Actor: countersign.System, Device: j.device.ID, Fleet: j.device.Fleet, Reason: "two holders of one identity",
	})
	return d.Events.Append(ctx, tx, events...)
}

// newestUsed returns the certificate that was first used last among those that are not
// revoked or held; nil if none was used.
func newestUsed(certs []countersign.Certificate) *countersign.Certificate {
	var newest *countersign.Certificate
	for i := range certs {
		c := &certs[i]
		good := c.State == countersign.CertActive || c.State == countersign.CertSuperseded
		if good && !c.UsedAt.IsZero() && (newest == nil || c.UsedAt.After(newest.UsedAt)) {
			newest = c
		}
	}
	return newest
}
