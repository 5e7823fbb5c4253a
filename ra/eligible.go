package ra

import (
	"context"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// standing is the record of the device that a request is for.
type standing struct {
	known  bool
	device registry.Entry
	again  *countersign.Certificate  // granted before for the same request
	unused []countersign.Certificate // to be replaced
	same   bool                      // what it has and never used was earned with the same evidence
}

// eligible reads the standing of the device and refuses where the evidence may not earn
// it a first certificate: that completes an enrollment and never takes over a device that
// is active. No error with again set: the request has its certificate.
func (e *enrollment) eligible(ctx context.Context, rd store.Reader) (err error) {
	e.standing = standing{}
	id := e.request.device
	e.standing.device, err = e.Registry.Device(ctx, rd, id)
	if countersign.CodeOf(err) == countersign.NotFound {
		if err := e.onlyDevice(nil); err != nil {
			return err
		}
		return e.usable(ctx, rd)
	}
	if err != nil {
		return err
	}
	e.known = true
	dev := &e.standing.device
	certs, err := ca.DeviceCertificates(ctx, rd, id)
	if err != nil {
		return err
	}
	if e.again = e.sameAgain(certs); e.again != nil {
		return nil
	}
	spent := e.usable(ctx, rd)
	if spent != nil && (countersign.CodeOf(spent) != countersign.CredentialSpent || dev.State != countersign.DeviceActive) {
		return spent
	}
	if err := e.onlyDevice(certs); err != nil {
		return err
	}
	if dev.Fleet != e.appraisal.fleet {
		return countersign.Errorf(countersign.NotAllowed, "device %s is not of fleet %s", id, e.appraisal.fleet).WithNext("enroll it in its own fleet")
	}
	switch dev.State {
	case countersign.DeviceRegistered, countersign.DevicePending:
		if !dev.RevokedAt.IsZero() && (!e.leave || !e.bound(id) || !dev.Newer(e.made)) {
			return countersign.Errorf(countersign.NotAllowed, "device %s had its identity revoked", id).
				WithNext("to let it back, have an operator make a token for the device")
		}
		return nil
	case countersign.DeviceActive:
		err := e.neverUsed(certs)
		// What the device spent on a certificate that it never used is good for another.
		e.same = slices.ContainsFunc(certs, func(c countersign.Certificate) bool { return c.UsedAt.IsZero() && c.Evidence == e.evidence })
		if spent != nil && (!e.same || err != nil && countersign.CodeOf(err) != countersign.Conflict) {
			return spent
		}
		return err
	case countersign.DeviceSuspended:
		return countersign.Errorf(countersign.DeviceOnHold, "device %s is suspended", id).WithNext("have an operator reactivate the device")
	}
	return countersign.Errorf(countersign.DeviceGone, "device %s is retired", id).WithNext("choose another id")
}

// usable refuses evidence that cannot be used now from where it comes, nor could when a
// request that waits for approval showed it.
func (e *enrollment) usable(ctx context.Context, rd store.Reader) error {
	for _, c := range e.credentials() {
		err := e.inTime(ctx, rd, waitingOn{e.evidence, e.request.device}, func(now time.Time) error { return c.Usable(now, e.Remote.Addr()) })
		if err != nil {
			return err
		}
	}
	return nil
}

// onlyDevice refuses a chip that was registered for no device in particular, and used
// before it was bound to its first one by Registry.Bind, all but the devices that it
// enrolled.
func (a *appraisal) onlyDevice(certs []countersign.Certificate) error {
	c := a.credential
	if c == nil || c.Kind != countersign.MethodTPM || c.Device != "" || c.Uses == 0 {
		return nil
	}
	if slices.ContainsFunc(certs, func(k countersign.Certificate) bool { return k.Evidence == a.evidence }) {
		return nil
	}
	return countersign.Errorf(countersign.NotAllowed, "the tpm has enrolled another device").WithNext("register it anew if it was built into another device")
}

// sameAgain finds the certificate of a request that was granted before: same
// evidence, same device, same key. The answer was lost on the way; the grant remains.
func (e *enrollment) sameAgain(certs []countersign.Certificate) *countersign.Certificate {
	now := e.Now()
	for i := range certs {
		c := &certs[i]
		if c.KeyHash == e.keyHash && c.Evidence == e.evidence && now.Before(c.NotAfter) && (c.State == countersign.CertPending || c.State == countersign.CertActive) {
			return c
		}
	}
	return nil
}

// neverUsed lets evidence that is bound to the device complete an enrollment whose
// certificate was never used: the device lost its key before the first connect.
// A certificate that expired unused is no identity and needs no replacing.
func (e *enrollment) neverUsed(certs []countersign.Certificate) error {
	active := countersign.Errorf(countersign.DeviceIsActive, "device %s has an identity already", e.standing.device.ID).
		WithNext("renew with its certificate; if that is lost, have an operator revoke the device and make a token for it")
	if !e.bound(e.standing.device.ID) {
		return active
	}
	lapsed := false
	for i := range certs {
		c := &certs[i]
		switch {
		case formerLife(&e.standing.device, c) || c.State == countersign.CertRevoked && c.UsedAt.IsZero():
		case c.State != countersign.CertPending:
			return active
		case e.Now().After(c.NotAfter):
			lapsed = true
		case !e.leave && c.Evidence != e.evidence: // another maker's device of the same name
			return active
		case e.overtaken(c.IssuedAt, c.IssuedPos):
			return errOvertaken()
		default:
			e.unused = append(e.unused, *c)
		}
	}
	if len(e.unused) == 0 && !lapsed {
		return active
	}
	return nil
}

// formerLife reports whether a certificate was issued before the device last lost its
// identity. Such a one is revoked and says nothing about the device of today.
func formerLife(dev *registry.Entry, c *countersign.Certificate) bool {
	return !dev.Newer(c.IssuedPos)
}

// enrollment is a request for a first certificate on its way to a decision.
type enrollment struct {
	*request
	appraisal
	standing
	fleet   countersign.Fleet
	profile ca.Profile
	waits   bool   // an operator must approve
	waiting string // the approval that it has
}
