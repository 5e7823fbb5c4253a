package ra

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/hold"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Revoke takes certificates away for good. A device that loses all of them is
// registered again and may enroll anew with a token made for it.
func (d *Authority) Revoke(ctx context.Context, req countersign.RevokeRequest) (*countersign.Revocation, error) {
	switch req.Reason {
	case countersign.CertificateHold:
		return nil, countersign.Errorf(countersign.BadRequest, "certificateHold is no revocation").WithNext("suspend the device instead")
	case countersign.RemoveFromCRL, countersign.CACompromise, countersign.AACompromise:
		return nil, countersign.Errorf(countersign.BadRequest, "%s is no reason to revoke a device's certificate", req.Reason)
	}
	if req.Device == "" {
		return d.revokeOne(ctx, req)
	}
	o := &operation{Authority: d, Act: Act{Device: req.Device, Actor: req.Actor, Note: req.Note, Via: req.Via, Alert: req.Alert}}
	out, err := o.withdraw(ctx, countersign.DeviceRegistered, req.Reason)
	return out, o.holdBack(ctx, hold.Hold{Act: hold.Revoke, Reason: req.Reason}, err)
}

// Retire ends a device's life; its id is not used again.
func (d *Authority) Retire(ctx context.Context, act Act) (*countersign.Revocation, error) {
	o := &operation{Authority: d, Act: act}
	out, err := o.withdraw(ctx, countersign.DeviceRetired, countersign.CessationOfOperation)
	return out, o.holdBack(ctx, hold.Hold{Act: hold.Retire, Reason: countersign.CessationOfOperation}, err)
}

func (o *operation) withdraw(ctx context.Context, to countersign.DeviceState, reason countersign.ReasonCode) (*countersign.Revocation, error) {
	return o.change(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		var events []countersign.Event
		o.out.Reason = reason
		for i := range o.certs {
			e, done, err := o.revokeFor(ctx, tx, &o.certs[i])
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
		secrets, err := o.stopSecrets(ctx, tx, &o.dev, By{Actor: o.Actor, Via: o.Via}, "the device was "+what)
		if err != nil {
			return err
		}
		events = append(events, secrets...)
		e := o.event(kind)
		note(&e, "reason", reason.String())
		// A retired device has lost all that a revocation takes, and stays retired when its
		// key turns out to be compromised.
		switch there := o.dev.State == to || o.dev.State == countersign.DeviceRetired; {
		case !there:
			if err := o.Registry.Move(ctx, tx, &o.dev, to, o.Note); err != nil {
				return err
			}
		case len(events) > 0: // a registered device that has not connected yet
		case o.dev.RevokedAt.IsZero() && len(o.certs) == 0:
			return countersign.Errorf(countersign.Conflict, "device %s holds no certificate", o.dev.ID).WithNext("look at the events of the device")
		default:
			since := o.dev.RevokedAt
			if len(o.certs) > 0 { // all revoked, the newest first
				o.out.Reason = o.certs[0].Reason
				if since.IsZero() {
					since = o.certs[0].RevokedAt
				}
			}
			Again(o.out, &e, since)
		}
		return o.append(ctx, tx, append([]countersign.Event{e}, events...))
	})
}

// revokeFor revokes a certificate for the reason of out, or raises the one for which it is
// revoked already, and adds it to o.out. done is false where the record stays as it is: one that has expired
// keeps its reason, because no list shows it any more.
func (o *operation) revokeFor(ctx context.Context, tx *store.Tx, c *countersign.Certificate) (e countersign.Event, done bool, err error) {
	reason := o.out.Reason
	before, raise := c.Reason, c.State == countersign.CertRevoked
	switch {
	case !raise:
		err = o.CA.Revoke(ctx, tx, c, reason)
	case !reason.Graver(before) || o.Now().After(c.NotAfter):
		return e, false, nil
	default:
		err = o.CA.RaiseReason(ctx, tx, c, reason)
	}
	if err != nil {
		return e, false, err
	}
	o.out.Certificates = append(o.out.Certificates, c.Ref())
	e = o.certEvent(countersign.CertRevokedEv, c)
	note(&e, "reason", reason.String())
	if raise {
		o.out.Raised = true
		note(&e, "reason_before", before.String())
	}
	return e, true, nil
}

func (d *Authority) revokeOne(ctx context.Context, req countersign.RevokeRequest) (*countersign.Revocation, error) {
	cert, err := ca.Certificate(ctx, d.DB, req.Cert)
	if err != nil {
		return nil, err
	}
	if cert.Device == "" {
		return nil, countersign.Errorf(countersign.Conflict, "certificate %s is the authority's own", cert.Serial).
			WithNext("its server and responder certificates are short-lived and made anew at each start")
	}
	o := &operation{Authority: d, Act: Act{Device: cert.Device, Actor: req.Actor, Note: req.Note, Via: req.Via}}
	err = d.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		o.out = &countersign.Revocation{Device: cert.Device, At: d.Now(), Reason: req.Reason}
		if err := registry.LockDevice(ctx, tx, cert.Device); err != nil {
			return err
		}
		c, err := ca.Certificate(ctx, tx, cert.Ref())
		if err != nil {
			return err
		}
		e, done, err := o.revokeFor(ctx, tx, &c)
		if err != nil {
			return err
		}
		if !done {
			e = o.certEvent(countersign.CertRevokedEv, &c)
			note(&e, "reason", c.Reason.String())
			o.out.Reason, o.out.Certificates = c.Reason, []countersign.CertRef{c.Ref()}
			Again(o.out, &e, c.RevokedAt)
			return d.Events.AppendAct(ctx, tx, o.out, e)
		}
		tokens, err := EndTokens(ctx, tx, d.Access.Tokens, certificateSource(c.Ref()), By{Actor: req.Actor, Via: req.Via})
		if err != nil {
			return err
		}
		return d.Events.AppendAct(ctx, tx, o.out, append([]countersign.Event{e}, tokens...)...)
	})
	if err != nil {
		return nil, NotRecorded(err)
	}
	o.awaitCRL(ctx, o.out.Certificates)
	return o.out, nil
}

// Suspend puts a device and its certificates on hold.
func (d *Authority) Suspend(ctx context.Context, act Act) (*countersign.Revocation, error) {
	o := &operation{Authority: d, Act: act}
	out, err := o.suspend(ctx)
	return out, o.holdBack(ctx, hold.Hold{Act: hold.Suspend, Reason: countersign.CertificateHold}, err)
}

func (o *operation) suspend(ctx context.Context) (*countersign.Revocation, error) {
	return o.change(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		since := o.dev.UpdatedAt
		there := o.dev.State == countersign.DeviceSuspended
		if !there {
			if err := o.Registry.Move(ctx, tx, &o.dev, countersign.DeviceSuspended, o.Note); err != nil {
				return err
			}
		}
		events := []countersign.Event{o.event(countersign.DeviceSuspendedEv)}
		for i := range o.certs {
			c := &o.certs[i]
			if c.State == countersign.CertRevoked || c.State == countersign.CertHeld {
				continue
			}
			if err := o.CA.Hold(ctx, tx, c); err != nil {
				return err
			}
			o.out.Certificates = append(o.out.Certificates, c.Ref())
			events = append(events, o.certEvent(countersign.CertHeldEv, c))
		}
		if there && len(events) == 1 {
			Again(o.out, &events[0], since)
		}
		return o.append(ctx, tx, events)
	})
}

// Reactivate brings a suspended device back with the certificates it had.
func (d *Authority) Reactivate(ctx context.Context, act Act) (*countersign.Revocation, error) {
	o := &operation{Authority: d, Act: act}
	return o.change(ctx, func(ctx context.Context, tx *store.Tx) error {
		if o.dev.State != countersign.DeviceSuspended {
			return countersign.Errorf(countersign.Conflict, "device %s is %s, not suspended", o.dev.ID, o.dev.State)
		}
		to := countersign.DeviceRegistered
		var events []countersign.Event
		for i := range o.certs {
			c := &o.certs[i]
			if c.State != countersign.CertHeld {
				continue
			}
			if err := d.CA.Release(ctx, tx, c); err != nil {
				return err
			}
			to = countersign.DeviceActive
			o.out.Certificates = append(o.out.Certificates, c.Ref())
			events = append(events, o.certEvent(countersign.CertReleased, c))
		}
		if to == countersign.DeviceRegistered {
			bySecret, err := o.connectsBySecret(ctx, tx)
			if err != nil {
				return err
			}
			if bySecret {
				to = countersign.DeviceActive
			}
		}
		if err := d.Registry.Move(ctx, tx, &o.dev, to, ""); err != nil {
			return err
		}
		return d.Events.AppendAct(ctx, tx, o.out, append([]countersign.Event{o.event(countersign.DeviceReactivated)}, events...)...)
	})
}

// connectsBySecret reports whether a device without a certificate has what it needs to
// connect: a secret, or a symmetric key that it has used.
func (o *operation) connectsBySecret(ctx context.Context, tx *store.Tx) (bool, error) {
	secrets, err := o.Access.Secrets.Of(ctx, tx, o.dev.ID)
	if err != nil {
		return false, err
	}
	for i := range secrets {
		if secrets[i].Active() {
			return true, nil
		}
	}
	fleet, err := o.Registry.Fleet(ctx, tx, o.dev.Fleet)
	return access.Accepts(fleet.Rules.Access, countersign.AccessSAS) && !o.dev.LastSeen.IsZero() && o.dev.Newer(o.dev.SeenPos), err
}
