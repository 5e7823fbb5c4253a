package ra

import (
	"context"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// standing is what the record says of a device that evidence asks for.
type standing struct {
	known  bool
	device registry.Entry
	again  *countersign.Certificate  // granted before for the same request
	unused []countersign.Certificate // to be replaced
	same   bool                      // what it has and never used was earned with the same evidence
}

// admission says whether evidence may give the device a first certificate. It
// completes an enrollment; it never takes over a device that is active.
func (d *Authority) admission(ctx context.Context, rd store.Reader, r *request, a *appraisal) (standing, error) {
	var s standing
	var err error
	s.device, err = d.Registry.Device(ctx, rd, r.device)
	if countersign.CodeOf(err) == countersign.NotFound {
		if err := a.onlyDevice(nil); err != nil {
			return s, err
		}
		return s, d.usable(ctx, rd, r, a)
	}
	if err != nil {
		return s, err
	}
	s.known = true
	certs, err := d.CA.DeviceCertificates(ctx, rd, r.device)
	if err != nil {
		return s, err
	}
	if s.again = r.sameAgain(certs, a, d.Now()); s.again != nil {
		return s, nil
	}
	spent := d.usable(ctx, rd, r, a)
	if spent != nil && (countersign.CodeOf(spent) != countersign.CredentialSpent || s.device.State != countersign.DeviceActive) {
		return s, spent
	}
	if err := a.onlyDevice(certs); err != nil {
		return s, err
	}
	id := s.device.ID
	if s.device.Fleet != a.fleet {
		return s, countersign.Errorf(countersign.NotAllowed, "device %s is not of fleet %s", id, a.fleet).WithNext("enroll it in its own fleet")
	}
	switch s.device.State {
	case countersign.DeviceRegistered, countersign.DevicePending:
		if !s.device.RevokedAt.IsZero() && (!a.leave || !a.bound(id) || !s.device.Newer(a.made)) {
			return s, countersign.Errorf(countersign.NotAllowed, "device %s had its identity revoked", id).
				WithNext("to let it back: countersign enroll token --device " + id)
		}
		return s, nil
	case countersign.DeviceActive:
		err := s.neverUsed(r, a, certs, d.Now())
		// What the device spent on a certificate that it never used is good for another.
		s.same = slices.ContainsFunc(certs, func(c countersign.Certificate) bool { return c.UsedAt.IsZero() && c.Evidence == a.evidence })
		if spent != nil && (!s.same || err != nil && countersign.CodeOf(err) != countersign.Conflict) {
			return s, spent
		}
		return s, err
	case countersign.DeviceSuspended:
		return s, countersign.Errorf(countersign.DeviceOnHold, "device %s is suspended", id).WithNext("to let it back: countersign device reactivate " + id)
	}
	return s, countersign.Errorf(countersign.DeviceGone, "device %s is retired", id).WithNext("choose another id")
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
func (r *request) sameAgain(certs []countersign.Certificate, a *appraisal, now time.Time) *countersign.Certificate {
	for i := range certs {
		c := &certs[i]
		if c.KeyHash == r.keyHash && c.Evidence == a.evidence && now.Before(c.NotAfter) && (c.State == countersign.CertPending || c.State == countersign.CertActive) {
			return c
		}
	}
	return nil
}

// neverUsed lets evidence that is bound to the device complete an enrollment whose
// certificate was never used: the device lost its key before the first connect.
// A certificate that expired unused is no identity and needs no replacing.
func (s *standing) neverUsed(r *request, a *appraisal, certs []countersign.Certificate, now time.Time) error {
	active := countersign.Errorf(countersign.DeviceIsActive, "device %s has an identity already", s.device.ID).
		WithNext("renew with its certificate; if that is lost: countersign device revoke " + s.device.ID + ", then a new token")
	if !a.bound(s.device.ID) {
		return active
	}
	lapsed := false
	for i := range certs {
		c := &certs[i]
		switch {
		case formerLife(&s.device, c) || c.State == countersign.CertRevoked && c.UsedAt.IsZero():
		case c.State != countersign.CertPending:
			return active
		case now.After(c.NotAfter):
			lapsed = true
		case !a.leave && c.Evidence != a.evidence: // another maker's device of the same name
			return active
		case r.overtaken(c.IssuedAt, c.IssuedPos):
			return errOvertaken()
		default:
			s.unused = append(s.unused, *c)
		}
	}
	if len(s.unused) == 0 && !lapsed {
		return active
	}
	return nil
}

// formerLife says whether a certificate was issued before the device last lost its
// identity. Such a one is revoked and says nothing about the device of today.
func formerLife(dev *registry.Entry, c *countersign.Certificate) bool {
	return !dev.Newer(c.IssuedPos)
}
