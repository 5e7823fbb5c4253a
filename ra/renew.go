package ra

import (
	"context"
	"crypto/x509"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
)

// Reenroll grants the next certificate to the holder of a current one.
func (d *Authority) Reenroll(ctx context.Context, req countersign.EnrollRequest) (*countersign.Grant, error) {
	e := &renewal{request: d.received(ctx, req)}
	g, err := e.renew(ctx)
	act := "renew"
	if e.Recovery {
		act = "recover"
	}
	d.observe(Outcome{act, countersign.MethodCertificate, e.Door, countersign.CodeOf(err)})
	if err != nil {
		return nil, e.refused(ctx, err)
	}
	return g, nil
}

func (e *renewal) renew(ctx context.Context) (*countersign.Grant, error) {
	if len(e.Evidence.Peer) == 0 {
		return nil, countersign.Errorf(countersign.Unauthenticated, "no client certificate was shown").
			WithNext("renew over mutual TLS with the device's current certificate")
	}
	if err := e.parse(); err != nil {
		return nil, err
	}
	shown, err := e.find(ctx)
	if err != nil {
		return nil, err
	}
	e.shown = shown.Ref()
	if err := e.Holds.Refuse(shown.Device); err != nil {
		return nil, err
	}
	if err := e.Ledger.CheckProven(e.Remote.Addr()); err != nil {
		return nil, err
	}
	if e.fleet, err = e.Registry.Fleet(ctx, e.DB, shown.Fleet); err != nil {
		return nil, err
	}
	if err := e.sameSubject(ctx); err != nil {
		return nil, err
	}
	o := ca.Order{
		Fleet: e.fleet, Device: shown.Device, PublicKey: e.csr.PublicKey, Predecessor: e.shown,
		Evidence: "certificate:" + shown.Fingerprint, Method: countersign.MethodCertificate,
	}
	if o.Profile, err = ca.ReadProfile(ctx, e.DB, e.fleet.Profile); err != nil {
		return nil, err
	}
	if err := e.serverKeys(&o.Profile); err != nil {
		return nil, err
	}
	if err := e.decide(ctx, e.DB); err != nil {
		return nil, err
	}
	if e.Recovery && e.outcome != isFork {
		if err := e.recoverable(ctx, &o); err != nil {
			return nil, err
		}
	}
	if e.outcome != grantNew {
		return e.settle(ctx, nil)
	}
	if err := e.permitted(ctx, e.DB); err != nil {
		return nil, err
	}
	var g *countersign.Grant
	_, err = e.issue(ctx, o, func(ctx context.Context, issued *ca.Issued) (err error) {
		g, err = e.settle(ctx, issued)
		return err
	})
	return g, err
}

// find finds the certificate that the device showed on record.
func (r *request) find(ctx context.Context) (countersign.Certificate, error) {
	cert, err := ca.Shown(ctx, r.DB, r.Evidence.Peer[0])
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

// settle decides again with the device locked and writes the outcome; issued is nil where
// none was to be signed before.
func (e *renewal) settle(ctx context.Context, issued *ca.Issued) (*countersign.Grant, error) {
	err := e.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := e.lockFor(ctx, tx); err != nil {
			return err
		}
		if err := e.decide(ctx, tx); err != nil {
			return err
		}
		switch {
		case e.outcome == isFork:
			return e.fork(ctx, tx, &e.rotation, e.event(countersign.FindingFork, e.why))
		case e.outcome == grantOld:
			return nil
		case issued == nil:
			// Before the lock this was a retry; its certificate has gone meanwhile.
			return countersign.Errorf(countersign.Conflict, "the device's certificates changed meanwhile").WithNext("try again")
		}
		if err := e.recoverableStill(ctx, tx); err != nil {
			return err
		}
		if err := e.permitted(ctx, tx); err != nil {
			return err
		}
		return e.succeed(ctx, tx, issued)
	})
	switch {
	case err != nil:
		return nil, err
	case e.outcome == isFork:
		return nil, countersign.Errorf(countersign.ForkDetected, "%s: device %s is suspended", e.why, e.request.device).WithNext("ask the operator")
	case e.outcome == grantOld:
		return e.grant(e.same, true)
	}
	return e.grant(&issued.Certificate, false)
}

// permitted refuses a certificate that the fleet's budget or another device's key forbids.
func (e *renewal) permitted(ctx context.Context, rd store.Reader) error {
	if err := e.withinRenewals(ctx, rd, e.fleet.Rules.Budget); err != nil {
		return err
	}
	return e.keyIsFree(ctx, rd)
}

// succeed records the next certificate of a device.
func (e *renewal) succeed(ctx context.Context, tx *store.Tx, issued *ca.Issued) error {
	var events []countersign.Event
	if e.current.State == countersign.CertPending { // to renew with it is to use it
		more, err := e.activate(ctx, tx, e.fleet.Overlap, e.certs, e.current)
		if err != nil {
			return err
		}
		events = append(events, more...)
	}
	if e.unused != nil {
		more, err := e.replace(ctx, tx, []countersign.Certificate{*e.unused})
		if err != nil {
			return err
		}
		events = append(events, more...)
	}
	if e.approved != "" {
		if err := e.Registry.Finish(ctx, tx, e.approved); err != nil {
			return err
		}
	}
	if err := e.CA.Record(ctx, tx, issued); err != nil {
		return err
	}
	ev := e.issuedEvent(countersign.CertIssued, "renewal", &issued.Certificate)
	ev.Data["predecessor"] = string(e.current.Serial)
	return e.Events.Append(ctx, tx, append(events, ev)...)
}

// sameSubject refuses a renewal for another identity (RFC 7030, 4.2.2). Its common name is
// the device's id, that of a certificate of the device, or empty.
func (e *renewal) sameSubject(ctx context.Context) error {
	own, err := e.ownName(ctx)
	if err != nil {
		return err
	}
	if !own {
		return countersign.Errorf(countersign.SubjectMismatch, "the request is for %.140q, the certificate for %s", e.csr.Subject.CommonName, e.request.device).
			WithNext("ask for the same subject as in the current certificate")
	}
	return e.namesAnother(&e.fleet)
}

// ownName reports whether the common name of a renewal is the device's own. The one in a
// manufacturer's certificate need not be the device's id, and a device that was introduced
// with it may go on using it.
func (e *renewal) ownName(ctx context.Context) (bool, error) {
	cn := e.csr.Subject.CommonName
	if cn == "" || cn == e.request.device || cn == e.Evidence.Peer[0].Subject.CommonName {
		return true, nil
	}
	list, err := ca.FactoryCertificates(ctx, e.DB, e.request.device)
	if err != nil {
		return false, err
	}
	for i := range list {
		if cert, err := x509.ParseCertificate(list[i].DER); err == nil && cert.Subject.CommonName == cn {
			return true, nil
		}
	}
	return false, nil
}

// Recovery is the Enroller of the recovery door: it renews, expired certificates
// too, and can do nothing else.
type Recovery struct{ RA *Authority }

var _ countersign.Enroller = Recovery{}

// Enroll is refused: this door grants no first certificate.
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
