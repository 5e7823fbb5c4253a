package ra

import (
	"cmp"
	"context"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
)

// Enroll grants a first certificate on the evidence.
func (d *Authority) Enroll(ctx context.Context, req countersign.EnrollRequest) (*countersign.Grant, error) {
	e := &enrollment{request: d.received(ctx, req)}
	g, err := e.enroll(ctx)
	d.observe(Outcome{"enroll", e.method, e.Door, countersign.CodeOf(err)})
	if err != nil {
		return nil, e.refused(ctx, err)
	}
	d.Ledger.Succeed(e.request.device)
	return g, nil
}

func (e *enrollment) enroll(ctx context.Context) (*countersign.Grant, error) {
	if err := e.decide(ctx); err != nil {
		return nil, err
	}
	if err := e.Holds.Refuse(e.request.device); err != nil {
		return nil, err
	}
	if e.again == nil && e.waits && e.waiting == "" {
		if err := e.await(ctx); err != nil {
			return nil, err
		}
	}
	if e.again != nil {
		return e.grant(e.again, true)
	}
	issued, err := e.issue(ctx, ca.Order{
		Profile: e.profile, Fleet: e.fleet, Device: e.request.device, PublicKey: e.csr.PublicKey, Evidence: e.evidence, Method: e.method,
	}, e.record)
	switch {
	case err != nil:
		return nil, err
	case e.again != nil:
		return e.grant(e.again, true)
	}
	return e.grant(&issued.Certificate, false)
}

// decide takes a first enrollment as far as the decision, and changes nothing. With
// again set the request was granted before.
func (e *enrollment) decide(ctx context.Context) error {
	if err := e.mayGuess(); err != nil {
		return err
	}
	if err := e.parse(); err != nil {
		return err
	}
	a, err := e.appraise(ctx)
	if err != nil {
		return err
	}
	e.appraisal = *a
	if err := e.bind(a); err != nil {
		return err
	}
	if e.fleet, err = e.Registry.Fleet(ctx, e.DB, e.request.fleet); err != nil {
		return err
	}
	if e.profile, err = ca.ReadProfile(ctx, e.DB, cmp.Or(e.appraisal.profile, e.fleet.Profile)); err != nil {
		return err
	}
	if err := e.eligible(ctx, e.DB); err != nil || e.again != nil { // before anything is signed in vain
		return err
	}
	if err := e.serverKeys(&e.profile); err != nil {
		return err
	}
	return e.permitted(ctx)
}

// permitted refuses what the fleet does not permit an eligible device: by its bounds, an
// operator's approval, and its rules.
func (e *enrollment) permitted(ctx context.Context) error {
	if err := e.mayBegin(ctx); err != nil {
		return err
	}
	if err := e.mayPick(); err != nil {
		return err
	}
	if err := e.anotherFirst(ctx, e.DB); err != nil {
		return err
	}
	if err := e.inBounds(); err != nil {
		return err
	}
	if err := e.keyIsFree(ctx, e.DB); err != nil {
		return err
	}
	if e.waits = slices.Contains(e.fleet.Rules.Approval, e.method); e.waits {
		var err error
		if e.waiting, err = e.approval(ctx); err != nil { // a poll is not another use
			return err
		}
	}
	if e.late != nil && e.waiting == "" { // no operator has to approve any more, and the time is over
		return e.late
	}
	if err := e.atRate(); err != nil {
		return err
	}
	return e.consult(ctx)
}

// consult asks the fleet's expression and its webhook; each must allow the enrollment.
func (e *enrollment) consult(ctx context.Context) error {
	if text := e.fleet.Rules.Expression; text != "" {
		ok, err := e.rules.evaluate(ctx, text, e.variables())
		if err != nil { // fail closed, with the reason
			return countersign.Errorf(countersign.NotAllowed, "the rule of fleet %s could not be applied: %v", e.fleet.Name, err).WithNext("correct the fleet's expression")
		}
		if !ok {
			return countersign.Errorf(countersign.NotAllowed, "the rule of fleet %s refuses the device", e.fleet.Name).WithNext("read the expression in the fleet's rules")
		}
	}
	if e.fleet.Rules.Webhook == nil || e.dry {
		return nil
	}
	claim := ""
	if e.method == countersign.MethodClaim {
		claim = e.credential.ID
	}
	return e.rules.hooks.ask(ctx, hookCall{
		fleet: e.fleet.Name, webhook: e.fleet.Rules.Webhook, secret: e.Secret, now: e.Now(),
		request: hookRequest{
			ClaimCertificateID: claim, CertificateID: e.keyHash, TemplateArn: "fleet:" + e.request.fleet, ClientID: e.request.device, Parameters: e.facts,
			CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: e.csr.Raw})),
		},
	})
}

// variables are what an expression sees.
func (e *enrollment) variables() map[string]any {
	kind, _ := ca.CheckKey(e.csr.PublicKey) // parse has checked it
	evidence := map[string]string{"method": string(e.method), "fingerprint": e.evidence}
	maps.Copy(evidence, e.facts)
	dev := &e.standing.device
	return map[string]any{
		"csr":      map[string]any{"cn": e.csr.Subject.CommonName, "subject": e.csr.Subject.String(), "key": kind, "dns": e.csr.DNSNames, "uris": e.csr.URIs},
		"evidence": evidence,
		"device":   map[string]any{"id": e.request.device, "known": e.known, "state": string(dev.State), "owner": dev.Owner, "tags": dev.Tags},
		"fleet":    e.request.fleet, "remote": e.Remote.Addr().String(), "now": e.Now(),
	}
}

// record decides again with the device locked, and writes a first certificate.
func (e *enrollment) record(ctx context.Context, issued *ca.Issued) error {
	return e.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := e.lockFor(ctx, tx); err != nil {
			return err
		}
		if err := e.eligible(ctx, tx); err != nil || e.again != nil {
			return err
		}
		if err := e.keyIsFree(ctx, tx); err != nil {
			return err
		}
		if err := e.anotherFirst(ctx, tx); err != nil {
			return err
		}
		return e.complete(ctx, tx, issued)
	})
}

// mayBegin refuses first contact under an id that no new device can have. Ids are
// one name space over all fleets, and a device on record keeps the id it has.
func (e *enrollment) mayBegin(ctx context.Context) error {
	if e.known {
		return nil
	}
	return e.Registry.CheckNew(ctx, e.DB, e.fleet, e.request.device)
}

// complete writes a first certificate with all that goes with it.
func (e *enrollment) complete(ctx context.Context, tx *store.Tx, issued *ca.Issued) error {
	if err := e.spend(ctx, tx); err != nil {
		return err
	}
	events, err := e.activateDevice(ctx, tx)
	if err != nil {
		return err
	}
	replaced, err := e.replace(ctx, tx, e.unused)
	if err != nil {
		return err
	}
	if err := e.CA.Record(ctx, tx, issued); err != nil {
		return err
	}
	ev := e.issuedEvent(countersign.CertIssued, "first certificate", &issued.Certificate)
	return e.Events.Append(ctx, tx, append(append(events, replaced...), ev)...)
}

// spend uses the credentials of the evidence once. A device that lost the key of a
// certificate which it never used has spent its own on that.
func (e *enrollment) spend(ctx context.Context, tx *store.Tx) error {
	for _, used := range e.credentials() {
		do := e.Registry.Spend
		if e.same && used.Evidence() == e.evidence {
			do = e.Registry.SpendAgain
		}
		if err := do(ctx, tx, *used); err != nil {
			return err
		}
		if used.Kind == countersign.MethodTPM {
			if err := e.Registry.Bind(ctx, tx, *used, e.request.device); err != nil {
				return err
			}
		}
	}
	return nil
}

// activateDevice makes the device active, with the approval that it has: a new one is
// created, a known one completed.
func (e *enrollment) activateDevice(ctx context.Context, tx *store.Tx) ([]countersign.Event, error) {
	if e.waiting != "" {
		if err := e.Registry.Finish(ctx, tx, e.waiting); err != nil {
			return nil, err
		}
	}
	if e.known {
		if e.standing.device.State == countersign.DeviceActive {
			return nil, nil
		}
		return nil, e.Registry.Move(ctx, tx, &e.standing.device, countersign.DeviceActive, "")
	}
	dev := countersign.Device{ID: e.request.device, Fleet: e.request.fleet, State: countersign.DeviceActive}
	if err := e.Registry.Create(ctx, tx, dev); err != nil {
		return nil, err
	}
	return []countersign.Event{e.event(countersign.DeviceCreated, "first enrollment")}, nil
}

// anotherFirst holds a device that asks for another first certificate, since it lost the
// key of an unused one, to the bound of its renewals.
func (e *enrollment) anotherFirst(ctx context.Context, rd store.Reader) error {
	if !e.known || e.standing.device.State != countersign.DeviceActive {
		return nil
	}
	return e.withinRenewals(ctx, rd, e.fleet.Rules.Budget)
}

// atRate counts a use against the rate of what is shared. It is asked once for a
// request; what an operator has approved was counted when it came.
func (e *enrollment) atRate() error {
	if e.dry || e.waiting != "" {
		return nil
	}
	for _, used := range e.credentials() {
		if used.PerMinute > 0 && !e.rates.Take(used.ID, used.PerMinute, used.PerMinute, e.Now()) {
			return countersign.Errorf(countersign.RateLimited, "the %s is used more than %d times a minute", used.Kind, used.PerMinute).
				WithNext("slow down").WithRetry(time.Minute / time.Duration(max(used.PerMinute, 1)))
		}
	}
	return nil
}

// inBounds refuses what is outside of the fleet's methods, networks and names.
func (e *enrollment) inBounds() error {
	fleet := &e.fleet
	if e.method != countersign.MethodFactory && !slices.Contains(fleet.Methods, e.method) {
		return countersign.Errorf(countersign.NotAllowed, "fleet %s does not enroll by %s", fleet.Name, e.method).
			WithNext("open the method in the fleet, or use one of " + fmt.Sprint(fleet.Methods))
	}
	// Behind a voucher is the address of the operator's station, and no device's: what
	// bounds that is the operator token.
	if e.method != countersign.MethodFactory && !countersign.Contains(fleet.Rules.Networks, e.Remote.Addr()) {
		return countersign.Errorf(countersign.NotAllowed, "fleet %s does not enroll from this address", fleet.Name).WithNext("enroll in the fleet's own network")
	}
	if !e.known && slices.Contains(fleet.Rules.Registered, e.method) {
		return countersign.Errorf(countersign.NotAllowed, "fleet %s enrolls registered devices only, and %s is not", fleet.Name, e.request.device).
			WithNext("have an operator register the device")
	}
	return e.namesAnother(fleet)
}

// mayPick refuses a voucher's profile that the fleet does not name: one with serverAuth
// or without an end is not for those who may only bring devices in.
func (e *enrollment) mayPick() error {
	a, f := &e.appraisal, &e.fleet
	if a.profile == "" || a.profile == f.Profile || slices.Contains(f.Rules.FactoryProfiles, a.profile) {
		return nil
	}
	return countersign.Errorf(countersign.NotAllowed, "fleet %s does not let a factory pick profile %.80q", f.Name, a.profile).
		WithNext("name it in factory_profiles of the fleet's rules")
}
