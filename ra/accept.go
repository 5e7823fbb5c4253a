package ra

import (
	"context"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
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
func (a *arrival) accept(ctx context.Context) error {
	fleets, err := a.Registry.Fleets(ctx)
	if err != nil {
		return err
	}
	for i := range fleets {
		f := &fleets[i]
		if !f.Rules.Connect || !slices.Contains(f.Methods, countersign.MethodIDevID) {
			continue
		}
		if err := a.acceptInto(ctx, f); countersign.CodeOf(err) != countersign.CertUnknown {
			return err
		}
	}
	return countersign.Errorf(countersign.CertUnknown, "the certificate was not issued by this authority")
}

func (a *arrival) acceptInto(ctx context.Context, f *countersign.Fleet) error {
	e, err := a.enrollment(ctx, f)
	if err != nil {
		return err
	}
	proven, err := e.appraiseIDevID(ctx, f.Name)
	if err != nil {
		return err
	}
	e.appraisal = *proven
	if err := e.bind(proven); err != nil {
		return err
	}
	if err := e.eligible(ctx, a.DB); err != nil || e.onRecord() {
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
		Evidence: e.evidence, Method: string(countersign.MethodIDevID), IssuedAt: a.Now(), UsedAt: a.Now(),
	}
	return a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := e.lockFor(ctx, tx); err != nil {
			return err
		}
		if err := e.eligible(ctx, tx); err != nil || e.onRecord() {
			return err
		}
		if err := e.keyIsFree(ctx, tx); err != nil {
			return err
		}
		recorded, err := a.CA.RecordExternal(ctx, tx, e.path, cert)
		if err != nil {
			return err
		}
		events, err := e.activateDevice(ctx, tx)
		if err != nil {
			return err
		}
		return a.Events.Append(ctx, tx, append(events, e.issuedEvent(countersign.CertAccepted, "factory certificate, first connection", &recorded))...)
	})
}

// enrollment puts the connection into the form that appraisal and rules know.
func (a *arrival) enrollment(ctx context.Context, f *countersign.Fleet) (*enrollment, error) {
	leaf := a.conn.Peer[0]
	r := a.received(ctx, countersign.EnrollRequest{
		Evidence: countersign.Evidence{Peer: a.conn.Peer}, Fleet: f.Name, Door: a.conn.Gateway, Remote: a.conn.Remote,
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

// arrival is a connection on its way to a verdict.
type arrival struct {
	*Authority
	conn countersign.Connection
	dec  access.Decision
}
