package ra

import (
	"context"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/store"
)

// acceptTime bounds how long the first connection of an unknown device may wait,
// a webhook included.
const acceptTime = 8 * time.Second

// accept registers a device that connects for the first time with the certificate of a
// manufacturer, where a fleet lets such a certificate connect (just-in-time registration).
// No error: the device is known from now on. CertUnknown: no fleet trusts its maker.
func (d *Authority) accept(ctx context.Context, conn countersign.Connection) error {
	fleets, err := d.Registry.Fleets(ctx)
	if err != nil {
		return err
	}
	for i := range fleets {
		f := &fleets[i]
		if !f.Rules.Connect || !slices.Contains(f.Methods, countersign.MethodIDevID) {
			continue
		}
		if err := d.acceptInto(ctx, conn, f); countersign.CodeOf(err) != countersign.CertUnknown {
			return err
		}
	}
	return countersign.Errorf(countersign.CertUnknown, "the certificate was not issued by this authority")
}

func (d *Authority) acceptInto(ctx context.Context, conn countersign.Connection, f *countersign.Fleet) error {
	e, err := d.connecting(ctx, conn, f)
	if err != nil {
		return err
	}
	a, err := e.appraiseIDevID(ctx, f.Name)
	if err != nil {
		return err
	}
	e.appraisal = *a
	if err := e.bind(a); err != nil {
		return err
	}
	if err := e.eligible(ctx, d.DB); err != nil || e.onRecord() {
		return err
	}
	if err := e.permitted(ctx); err != nil {
		return err
	}
	if e.waits && e.waiting == "" {
		return e.await(ctx)
	}
	cert := countersign.Certificate{
		Issuer: e.facts["authority"], Device: e.request.device, Fleet: f.Name, Profile: "external", State: countersign.CertActive,
		Evidence: e.evidence, Method: string(countersign.MethodIDevID), IssuedAt: d.Now(), UsedAt: d.Now(),
	}
	return d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := e.lockFor(ctx, tx); err != nil {
			return err
		}
		if err := e.eligible(ctx, tx); err != nil || e.onRecord() {
			return err
		}
		if err := e.keyIsFree(ctx, tx); err != nil {
			return err
		}
		recorded, err := d.CA.RecordExternal(ctx, tx, e.path, cert)
		if err != nil {
			return err
		}
		events, err := e.activateDevice(ctx, tx)
		if err != nil {
			return err
		}
		return d.Events.Append(ctx, tx, append(events, e.issuedEvent(countersign.CertAccepted, "factory certificate, first connection", &recorded))...)
	})
}

// connecting puts a connection into the form that appraisal and rules know.
func (d *Authority) connecting(ctx context.Context, conn countersign.Connection, f *countersign.Fleet) (*enrollment, error) {
	leaf := conn.Peer[0]
	r := d.received(ctx, countersign.EnrollRequest{
		Evidence: countersign.Evidence{Peer: conn.Peer}, Fleet: f.Name, Door: conn.Gateway, Remote: conn.Remote,
	})
	r.csr = &pkcs10.Request{PublicKey: leaf.PublicKey, DNSNames: leaf.DNSNames}
	for _, u := range leaf.URIs {
		r.csr.URIs = append(r.csr.URIs, u.String())
	}
	var err error
	r.keyHash, err = ca.KeyHash(leaf.PublicKey)
	return &enrollment{request: r, fleet: *f}, err
}

// onRecord reports whether the factory certificate is the device's on record by now:
// another of its connections was first.
func (e *enrollment) onRecord() bool {
	return e.again != nil && e.again.Fingerprint == attest.ThumbprintOf(e.Evidence.Peer[0]).String()
}
