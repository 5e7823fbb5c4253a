package ra

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// renewal is a request for the next certificate on its way to a decision.
type renewal struct {
	*request
	fleet countersign.Fleet
	shown countersign.CertRef
	// approved is the approval of a recovery, spent with the certificate.
	approved string
	// maxRecoveries bounds how often the device may be recovered; 0: this is no recovery.
	maxRecoveries int
	rotation
}

// outcome is what a renewal comes to.
type outcome int

const (
	grantNew outcome = iota // sign a new certificate
	grantOld                // the same request again: the same certificate
	isFork                  // two holders of one identity
)

// rotation is an outcome with what it rests on.
type rotation struct {
	outcome outcome
	device  registry.Entry
	certs   []countersign.Certificate // of the device
	current *countersign.Certificate  // the one shown: in certs, unless replaced or very old
	same    *countersign.Certificate  // in certs, for grantOld
	unused  *countersign.Certificate  // in certs: pending, given up by this request
	why     string                    // of a fork
}

// decide reads the device's record and decides the renewal by it.
func (e *renewal) decide(ctx context.Context, rd store.Reader) (err error) {
	e.rotation = rotation{}
	if e.rotation.device, err = e.Registry.Device(ctx, rd, e.request.device); err != nil {
		return err
	}
	if e.certs, err = ca.DeviceCertificates(ctx, rd, e.request.device); err != nil {
		return err
	}
	if e.current = find(e.certs, e.shown); e.current == nil { // replaced, or older than all that are looked at
		c, err := ca.Certificate(ctx, rd, e.shown)
		if err != nil {
			return err
		}
		e.current = &c
	}
	use := access.Renewing
	if e.Recovery {
		use = access.Recovering
	}
	standing, err := e.Access.Standing(ctx, rd, e.shown, use, e.Evidence.Peer)
	if err == nil {
		err = standing.Err()
	}
	if err != nil {
		return err
	}
	return e.rotate()
}

// maxGood bounds how many certificates of one device are good at once, since each
// has to be seen whenever something is decided or taken away. A device has two or
// three; this many come from renewing and connecting without pause.
const maxGood = 128

// rotate is the rule of rotation. A device that lost its power, an answer or a
// key before it used the new certificate asks again, and is served: with the same
// certificate for the same key, with another in place of the unused one otherwise.
// Once the new certificate has been used, the old one renews no more; if it tries
// to with another key, there is another holder of it. Likewise if a certificate shows up
// that its device gave up. A request that began before what it would undo is the
// device's own, delayed: it is refused and proves nothing. A successor that an
// operator took away, or that expired unused, is as if it had never been.
func (e *renewal) rotate() error {
	c, now := e.current, e.Now()
	if c.Replaced {
		e.outcome, e.why = isFork, "a certificate renewed that its device had replaced before using it"
		return nil
	}
	var used *countersign.Certificate
	good := 0
	for i := range e.certs {
		s := &e.certs[i]
		if s.State != countersign.CertRevoked && now.Before(s.NotAfter) {
			good++
		}
		lost := s.State == countersign.CertRevoked && s.Reason != countersign.Superseded
		lapsed := s.UsedAt.IsZero() && now.After(s.NotAfter)
		switch {
		case s.Predecessor != c.Ref() || lost || lapsed:
		case s.KeyHash == e.keyHash && s.State != countersign.CertRevoked:
			e.outcome, e.same = grantOld, s
		case s.State == countersign.CertPending:
			e.unused = s
		case !s.UsedAt.IsZero():
			used = s
		}
	}
	switch {
	case e.same != nil:
		return nil
	case used != nil && !e.overtaken(used.UsedAt, used.UsedPos):
		e.outcome, e.why = isFork, "a certificate renewed with another key after its successor had been used"
		return nil
	case used != nil || e.unused != nil && e.overtaken(e.unused.IssuedAt, e.unused.IssuedPos):
		return errOvertaken()
	case c.State == countersign.CertRevoked || c.State == countersign.CertSuperseded:
		return countersign.Errorf(countersign.CertIsRevoked, "the certificate has been superseded").WithNext("enroll anew with a token")
	case good >= maxGood:
		return countersign.Errorf(countersign.RateLimited, "device %s has %d certificates that are good", c.Device, good).
			WithNext("wait until an overlap ends, or shorten the overlap of the fleet").WithRetry(sweepEvery)
	}
	e.outcome = grantNew
	return nil
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
func (d *Authority) fork(ctx context.Context, tx *store.Tx, j *rotation, finding countersign.Event) error {
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

func find(certs []countersign.Certificate, ref countersign.CertRef) *countersign.Certificate {
	for i := range certs {
		if certs[i].Ref() == ref {
			return &certs[i]
		}
	}
	return nil
}
