package ra

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/hold"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// crlWait is how long an operator's act waits for the list that shows it. The
// sessions are cut before; a list of a million entries may come later.
const crlWait = time.Second

// Act is an operator's act on a device.
type Act struct {
	Device string
	Actor  countersign.Actor
	Note   string // why, in the operator's words
	Via    string // cli, rest
	Alert  string // id of the alert that it is about; empty: none

	hold *hold.Hold // the emergency hold that it records; nil: none
}

// Revoke takes certificates away for good. A device that loses all of them is
// registered again and may enroll anew with a token made for it.
func (d *Authority) Revoke(ctx context.Context, req countersign.RevokeRequest) (*countersign.Revocation, error) {
	switch req.Reason {
	case countersign.CertificateHold:
		return nil, countersign.Errorf(countersign.BadRequest, "certificateHold is no revocation").WithNext("use: countersign device suspend")
	case countersign.RemoveFromCRL, countersign.CACompromise, countersign.AACompromise:
		return nil, countersign.Errorf(countersign.BadRequest, "%s is no reason to revoke a device's certificate", req.Reason)
	}
	if req.Device == "" {
		return d.revokeOne(ctx, req)
	}
	act := Act{Device: req.Device, Actor: req.Actor, Note: req.Note, Via: req.Via, Alert: req.Alert}
	out, err := d.withdraw(ctx, act, countersign.DeviceRegistered, req.Reason)
	return out, d.holdBack(ctx, act, hold.Hold{Act: hold.Revoke, Reason: req.Reason}, err)
}

// Retire ends a device's life; its id is not used again.
func (d *Authority) Retire(ctx context.Context, act Act) (*countersign.Revocation, error) {
	out, err := d.withdraw(ctx, act, countersign.DeviceRetired, countersign.CessationOfOperation)
	return out, d.holdBack(ctx, act, hold.Hold{Act: hold.Retire, Reason: countersign.CessationOfOperation}, err)
}

func (d *Authority) withdraw(ctx context.Context, act Act, to countersign.DeviceState, reason countersign.ReasonCode) (*countersign.Revocation, error) {
	return d.change(store.Emergency(ctx), act.Device, func(ctx context.Context, tx *store.Tx, dev *registry.Entry, certs []countersign.Certificate, out *countersign.Revocation) error {
		var events []countersign.Event
		out.Reason = reason
		for i := range certs {
			e, done, err := d.revokeFor(ctx, tx, act, &certs[i], out)
			if err != nil {
				return err
			}
			if done {
				events = append(events, e)
			}
		}
		kind, what := countersign.DeviceRevoked, "revoked"
		if to == countersign.DeviceRetired {
			kind, what = countersign.DeviceRetiredEv, "retired"
		}
		secrets, err := d.stopSecrets(ctx, tx, dev, By{Actor: act.Actor, Via: act.Via}, "the device was "+what)
		if err != nil {
			return err
		}
		events = append(events, secrets...)
		e := act.event(kind, dev)
		note(&e, "reason", reason.String())
		// A retired device has lost all that a revocation takes, and stays retired when its
		// key turns out to be compromised.
		switch there := dev.State == to || dev.State == countersign.DeviceRetired; {
		case !there:
			if err := d.Registry.Move(ctx, tx, dev, to, act.Note); err != nil {
				return err
			}
		case len(events) > 0: // a registered device that has not connected yet
		case dev.RevokedAt.IsZero() && len(certs) == 0:
			return countersign.Errorf(countersign.Conflict, "device %s holds no certificate", dev.ID).WithNext("look at it with: countersign device events " + dev.ID)
		default:
			since := dev.RevokedAt
			if len(certs) > 0 { // all revoked, the newest first
				out.Reason = certs[0].Reason
				if since.IsZero() {
					since = certs[0].RevokedAt
				}
			}
			Again(out, &e, since)
		}
		return d.append(ctx, tx, act, out, append([]countersign.Event{e}, events...))
	})
}

// revokeFor revokes a certificate for the reason of out, or raises the one for which it is
// revoked already, and adds it to out. done is false where the record stays as it is: one that has expired
// keeps its reason, because no list shows it any more.
func (d *Authority) revokeFor(ctx context.Context, tx *store.Tx, act Act, c *countersign.Certificate, out *countersign.Revocation) (e countersign.Event, done bool, err error) {
	reason := out.Reason
	before, raise := c.Reason, c.State == countersign.CertRevoked
	switch {
	case !raise:
		err = d.CA.Revoke(ctx, tx, c, reason)
	case !reason.Graver(before) || d.Now().After(c.NotAfter):
		return e, false, nil
	default:
		err = d.CA.RaiseReason(ctx, tx, c, reason)
	}
	if err != nil {
		return e, false, err
	}
	out.Certificates = append(out.Certificates, c.Ref())
	e = act.certEvent(countersign.CertRevokedEv, c)
	note(&e, "reason", reason.String())
	if raise {
		out.Raised = true
		note(&e, "reason_before", before.String())
	}
	return e, true, nil
}

func (d *Authority) revokeOne(ctx context.Context, req countersign.RevokeRequest) (*countersign.Revocation, error) {
	cert, err := d.CA.Certificate(ctx, d.DB, req.Cert)
	if err != nil {
		return nil, err
	}
	if cert.Device == "" {
		return nil, countersign.Errorf(countersign.Conflict, "certificate %s is the authority's own", cert.Serial).
			WithNext("its server and responder certificates are short-lived and made anew at each start")
	}
	var out *countersign.Revocation
	err = d.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		out = &countersign.Revocation{Device: cert.Device, At: d.Now(), Reason: req.Reason}
		if err := registry.LockDevice(ctx, tx, cert.Device); err != nil {
			return err
		}
		c, err := d.CA.Certificate(ctx, tx, cert.Ref())
		if err != nil {
			return err
		}
		act := Act{Device: cert.Device, Actor: req.Actor, Note: req.Note, Via: req.Via}
		e, done, err := d.revokeFor(ctx, tx, act, &c, out)
		if err != nil {
			return err
		}
		if !done {
			e = act.certEvent(countersign.CertRevokedEv, &c)
			note(&e, "reason", c.Reason.String())
			out.Reason, out.Certificates = c.Reason, []countersign.CertRef{c.Ref()}
			Again(out, &e, c.RevokedAt)
			return d.Events.AppendAct(ctx, tx, out, e)
		}
		tokens, err := d.endGiven(ctx, tx, certificateSource(c.Ref()), By{Actor: req.Actor, Via: req.Via})
		if err != nil {
			return err
		}
		return d.Events.AppendAct(ctx, tx, out, append([]countersign.Event{e}, tokens...)...)
	})
	if err != nil {
		return nil, NotRecorded(err)
	}
	d.awaitCRL(ctx, out, out.Certificates)
	return out, nil
}

// Suspend puts a device and its certificates on hold.
func (d *Authority) Suspend(ctx context.Context, act Act) (*countersign.Revocation, error) {
	out, err := d.suspend(ctx, act)
	return out, d.holdBack(ctx, act, hold.Hold{Act: hold.Suspend, Reason: countersign.CertificateHold}, err)
}

func (d *Authority) suspend(ctx context.Context, act Act) (*countersign.Revocation, error) {
	return d.change(store.Emergency(ctx), act.Device, func(ctx context.Context, tx *store.Tx, dev *registry.Entry, certs []countersign.Certificate, out *countersign.Revocation) error {
		since := dev.UpdatedAt
		there := dev.State == countersign.DeviceSuspended
		if !there {
			if err := d.Registry.Move(ctx, tx, dev, countersign.DeviceSuspended, act.Note); err != nil {
				return err
			}
		}
		events := []countersign.Event{act.event(countersign.DeviceSuspendedEv, dev)}
		for i := range certs {
			c := &certs[i]
			if c.State == countersign.CertRevoked || c.State == countersign.CertHeld {
				continue
			}
			if err := d.CA.Hold(ctx, tx, c); err != nil {
				return err
			}
			out.Certificates = append(out.Certificates, c.Ref())
			events = append(events, act.certEvent(countersign.CertHeldEv, c))
		}
		if there && len(events) == 1 {
			Again(out, &events[0], since)
		}
		return d.append(ctx, tx, act, out, events)
	})
}

// Reactivate brings a suspended device back with the certificates it had.
func (d *Authority) Reactivate(ctx context.Context, act Act) (*countersign.Revocation, error) {
	return d.change(ctx, act.Device, func(ctx context.Context, tx *store.Tx, dev *registry.Entry, certs []countersign.Certificate, out *countersign.Revocation) error {
		if dev.State != countersign.DeviceSuspended {
			return countersign.Errorf(countersign.Conflict, "device %s is %s, not suspended", dev.ID, dev.State)
		}
		to := countersign.DeviceRegistered
		var events []countersign.Event
		for i := range certs {
			c := &certs[i]
			if c.State != countersign.CertHeld {
				continue
			}
			if err := d.CA.Release(ctx, tx, c); err != nil {
				return err
			}
			to = countersign.DeviceActive
			out.Certificates = append(out.Certificates, c.Ref())
			events = append(events, act.certEvent(countersign.CertReleased, c))
		}
		if to == countersign.DeviceRegistered {
			bySecret, err := d.connectsBySecret(ctx, tx, dev)
			if err != nil {
				return err
			}
			if bySecret {
				to = countersign.DeviceActive
			}
		}
		if err := d.Registry.Move(ctx, tx, dev, to, ""); err != nil {
			return err
		}
		return d.Events.AppendAct(ctx, tx, out, append([]countersign.Event{act.event(countersign.DeviceReactivated, dev)}, events...)...)
	})
}

// connectsBySecret says whether a device without a certificate has what it needs to
// connect: a secret, or a symmetric key that it has used.
func (d *Authority) connectsBySecret(ctx context.Context, tx *store.Tx, dev *registry.Entry) (bool, error) {
	secrets, err := d.Access.Secrets.Of(ctx, tx, dev.ID)
	if err != nil {
		return false, err
	}
	for i := range secrets {
		if secrets[i].Active() {
			return true, nil
		}
	}
	fleet, err := d.Registry.Fleet(ctx, tx, dev.Fleet)
	return access.Accepts(fleet.Rules.Access, countersign.AccessSAS) && !dev.LastSeen.IsZero() && dev.Newer(dev.SeenPos), err
}

// change does one act on a device in one transaction, with the device locked, and
// waits a little for the lists that show it.
func (d *Authority) change(ctx context.Context, device string, do func(context.Context, *store.Tx, *registry.Entry, []countersign.Certificate, *countersign.Revocation) error) (*countersign.Revocation, error) {
	var out *countersign.Revocation
	var shown []countersign.CertRef // what the lists have to show
	err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		out = &countersign.Revocation{Device: device, At: d.Now()}
		dev, certs, err := d.lock(ctx, tx, device)
		if err != nil {
			return err
		}
		err = do(ctx, tx, &dev, certs, out)
		if shown = out.Certificates; out.Already {
			for i := range certs {
				shown = append(shown, certs[i].Ref())
			}
		}
		return err
	})
	if err != nil {
		return nil, NotRecorded(err)
	}
	d.awaitCRL(ctx, out, shown)
	return out, nil
}

func (d *Authority) lock(ctx context.Context, tx *store.Tx, id string) (registry.Entry, []countersign.Certificate, error) {
	if err := registry.LockDevice(ctx, tx, id); err != nil {
		return registry.Entry{}, nil, err
	}
	dev, err := d.Registry.Device(ctx, tx, id)
	if err != nil {
		return dev, nil, err
	}
	certs, err := d.CA.DeviceCertificates(ctx, tx, id)
	return dev, certs, err
}

func (a Act) event(t countersign.EventType, dev *registry.Entry) countersign.Event {
	e := countersign.Event{Type: t, Actor: a.Actor, Device: dev.ID, Fleet: dev.Fleet, Via: a.Via, Reason: a.Note}
	if a.Alert != "" {
		note(&e, "alert", a.Alert)
	}
	return e
}

func (a Act) certEvent(t countersign.EventType, c *countersign.Certificate) countersign.Event {
	e := certEvent(t, c, a.Actor, a.Note)
	e.Via = a.Via
	return e
}

// awaitCRL waits a little for the lists that show what was done to certificates.
func (d *Authority) awaitCRL(ctx context.Context, out *countersign.Revocation, shown []countersign.CertRef) {
	if d.CRLs == nil || len(shown) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, crlWait)
	defer cancel()
	issuers := map[string]bool{}
	for _, c := range shown {
		if !issuers[c.Issuer] {
			issuers[c.Issuer] = true
			out.CRLNumber = d.CRLs.Wait(ctx, c.Issuer)
		}
	}
}
