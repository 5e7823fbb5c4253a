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

// introduce registers a device that connects for the first time with the
// certificate of a manufacturer, where a fleet lets such a certificate connect
// (just-in-time registration). It reports whether the device is known from now on;
// an error is why it is not, CertUnknown if no fleet has an opinion.
func (d *Authority) introduce(ctx context.Context, conn countersign.Connection) error {
	fleets, err := d.Registry.Fleets(ctx)
	if err != nil {
		return err
	}
	refusal := error(countersign.Errorf(countersign.CertUnknown, "the certificate was not issued by this authority"))
	for i := range fleets {
		f := &fleets[i]
		if !f.Rules.Connect || !slices.Contains(f.Methods, countersign.MethodIDevID) {
			continue
		}
		err := d.introduceTo(ctx, conn, f)
		if countersign.CodeOf(err) != countersign.CertUnknown {
			return err
		}
	}
	return refusal
}

func (d *Authority) introduceTo(ctx context.Context, conn countersign.Connection, f *countersign.Fleet) error {
	r, err := d.introduction(ctx, conn, f.Name)
	if err != nil {
		return err
	}
	c := &consideration{fleet: *f}
	if c.appraisal, err = d.appraiseIDevID(ctx, r, f.Name); err != nil {
		return err
	}
	if err := r.bind(c.appraisal); err != nil {
		return err
	}
	if c.standing, err = d.admission(ctx, d.DB, r, c.appraisal); err != nil || r.onRecord(c) {
		return err
	}
	if err := d.mayBegin(ctx, r, c); err != nil {
		return err
	}
	if err := within(r, c.appraisal, f, c.known); err != nil {
		return err
	}
	if c.waits = slices.Contains(f.Rules.Approval, countersign.MethodIDevID); c.waits {
		if c.waiting, err = d.approval(ctx, r, c); err != nil {
			return err
		}
	}
	if err := d.policy.permit(ctx, d, r, c); err != nil {
		return err
	}
	if c.waits && c.waiting == "" {
		return d.await(ctx, r, c)
	}
	cert := countersign.Certificate{
		Issuer: c.facts["authority"], Device: r.device, Fleet: f.Name, Profile: "external", State: countersign.CertActive,
		Evidence: c.evidence, Method: string(countersign.MethodIDevID), IssuedAt: d.Now(), UsedAt: d.Now(),
	}
	return d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := d.lockFor(ctx, tx, r); err != nil {
			return err
		}
		if c.standing, err = d.admission(ctx, tx, r, c.appraisal); err != nil || r.onRecord(c) {
			return err
		}
		if err := d.keyIsFree(ctx, tx, r); err != nil {
			return err
		}
		issued, err := d.CA.RecordExternal(ctx, tx, c.path, cert)
		if err != nil {
			return err
		}
		return d.welcome(ctx, tx, r, c, &issued)
	})
}

// onRecord reports whether the factory certificate is the device's on record by now:
// another of its connections was first.
func (r *request) onRecord(c *consideration) bool {
	return c.again != nil && c.again.Fingerprint == attest.ThumbprintOf(r.Evidence.Peer[0]).String()
}

// introduction puts a connection into the form that appraisal and rules know.
func (d *Authority) introduction(ctx context.Context, conn countersign.Connection, fleet string) (*request, error) {
	leaf := conn.Peer[0]
	r := d.received(ctx, countersign.EnrollRequest{
		Evidence: countersign.Evidence{Peer: conn.Peer}, Fleet: fleet, Door: conn.Gateway, Remote: conn.Remote,
	})
	r.csr = &pkcs10.Request{PublicKey: leaf.PublicKey, DNSNames: leaf.DNSNames}
	for _, u := range leaf.URIs {
		r.csr.URIs = append(r.csr.URIs, u.String())
	}
	var err error
	r.keyHash, err = ca.KeyHash(leaf.PublicKey)
	return r, err
}

// welcome writes what goes with a factory certificate that connects.
func (d *Authority) welcome(ctx context.Context, tx *store.Tx, r *request, c *consideration, cert *countersign.Certificate) error {
	if c.waiting != "" {
		if err := d.Registry.Finish(ctx, tx, c.waiting); err != nil {
			return err
		}
	}
	events, err := d.settle(ctx, tx, r, c)
	if err != nil {
		return err
	}
	e := r.event(countersign.CertAccepted, "factory certificate, first connection")
	e.Cert = cert.Ref()
	e.Data = issuedData(cert)
	return d.Events.Append(ctx, tx, append(events, e)...)
}

// introduceTime bounds what a stranger's first connection may cost in waiting,
// a webhook included.
const introduceTime = 8 * time.Second
