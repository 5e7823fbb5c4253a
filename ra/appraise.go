package ra

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// appraisal is what evidence proved (RFC 9334: the attestation result).
type appraisal struct {
	method   countersign.Method
	evidence string               // its fingerprint, for the record
	fleet    string               // that it is good for
	device   string               // that it proves or is bound to; empty: any that the request names
	leave    bool                 // an operator made it, for this device if it is bound to one
	made     countersign.Position // of the log, when he did
	profile  string               // empty: the fleet's
	facts    map[string]string    // for rules, events and the operator's eyes
	path     []*x509.Certificate  // of a manufacturer's certificate: that one first, the anchor last

	credential *registry.Credential // spent with the certificate; nil if none
	beside     *registry.Credential // of a client certificate that came with a token
}

func (a *appraisal) credentials() []*registry.Credential {
	return slices.DeleteFunc([]*registry.Credential{a.credential, a.beside}, func(c *registry.Credential) bool { return c == nil })
}

// bound reports whether the evidence is for this one device, so that it may
// complete an enrollment which was never used.
func (a *appraisal) bound(device string) bool { return a.device == device }

// appraise says what the evidence of a first enrollment proves. Where two kinds
// are shown, HTTP's and TLS's, both must hold and name the same device.
func (d *Authority) appraise(ctx context.Context, r *request) (*appraisal, error) {
	ev := &r.Evidence
	switch {
	case ev.Voucher != nil:
		return d.appraiseVoucher(r)
	case ev.TPM != nil:
		return d.appraiseTPM(ctx, r)
	case ev.Token != "":
		a, err := d.appraiseSecret(ctx, r)
		if err != nil || len(ev.Peer) == 0 {
			return a, err
		}
		return d.withPeer(ctx, r, a)
	case len(ev.Peer) > 0:
		return d.appraisePeer(ctx, r, r.Fleet)
	}
	return nil, countersign.Errorf(countersign.Unauthenticated, "no evidence was shown: no token and no client certificate").
		WithNext("send a token as the password of HTTP Basic, or as Bearer; docs/enrollment.md lists the other ways")
}

// withPeer holds a client certificate that came with a token against it. One that
// says nothing here, such as a self-signed one, is no objection.
func (d *Authority) withPeer(ctx context.Context, r *request, a *appraisal) (*appraisal, error) {
	by := r.by
	p, err := d.appraisePeer(ctx, r, a.fleet)
	r.by = by
	switch {
	case countersign.CodeOf(err) == countersign.CertUnknown:
		return a, nil
	case err != nil:
		return nil, err
	case p.fleet != a.fleet || p.device != "" && a.device != "" && p.device != a.device:
		return nil, countersign.Errorf(countersign.SubjectMismatch, "the token and the client certificate are for different devices").WithNext("show one of them")
	}
	if a.device == "" { // then it is the certificate that gives leave, and no newer token adds to it
		a.device, a.leave, a.made = p.device, p.leave, p.made
	}
	a.beside = p.credential
	a.facts["client_certificate"] = p.evidence
	return a, nil
}

func (d *Authority) appraiseVoucher(r *request) (*appraisal, error) {
	v := r.Evidence.Voucher
	r.by = v.Actor
	return &appraisal{
		method: countersign.MethodFactory, evidence: "factory:" + v.Item, fleet: cmp.Or(r.Fleet, countersign.DefaultFleet), profile: v.Profile,
		facts: map[string]string{"operator": string(v.Actor)},
	}, nil
}

// appraiseSecret tells the secrets apart by their form.
func (d *Authority) appraiseSecret(ctx context.Context, r *request) (*appraisal, error) {
	if strings.HasPrefix(r.Evidence.Token, "SharedAccessSignature ") {
		return d.appraiseSAS(ctx, r)
	}
	c, err := d.Registry.TokenBySecret(ctx, d.DB, r.Evidence.Token)
	if err != nil {
		return nil, err
	}
	return d.byCredential(r, c), nil
}

func (d *Authority) byCredential(r *request, c registry.Credential) *appraisal {
	r.by = countersign.Actor(c.Evidence())
	return &appraisal{
		method: c.Kind, evidence: c.Evidence(), fleet: c.Fleet, device: c.Device, leave: true, made: c.CreatedPos, credential: &c,
		facts: map[string]string{"credential": c.ID, "label": c.Label},
	}
}

// appraiseSAS checks a SAS token for <fleet>/registrations/<device>: by the device's
// own key if it has one, else by its fleet's group keys. BadCredential is left to a
// token that no key on record made: see signedElsewhere.
func (d *Authority) appraiseSAS(ctx context.Context, r *request) (*appraisal, error) {
	sas, err := attest.ParseSAS(r.Evidence.Token)
	if err != nil {
		return nil, err
	}
	fleet, device, ok := strings.Cut(sas.Resource, "/registrations/")
	if !ok || !countersign.IsDeviceID(device) {
		return nil, countersign.Errorf(countersign.BadRequest, "the SAS token is for %.200q, not for <fleet>/registrations/<device>", sas.Resource).WithNext("sign that resource")
	}
	a, err := d.appraiseKey(ctx, r, sas, fleet, device)
	if countersign.CodeOf(err) != countersign.BadCredential {
		return a, err
	}
	if fault := d.signedElsewhere(ctx, r, sas, fleet, device); fault != nil {
		return nil, fault
	}
	return nil, err
}

func (d *Authority) appraiseKey(ctx context.Context, r *request, sas *attest.SAS, fleet, device string) (*appraisal, error) {
	c, err := d.Registry.DeviceKey(ctx, d.DB, fleet, device)
	if countersign.CodeOf(err) == countersign.NotFound {
		return d.appraiseGroup(ctx, r, sas, fleet, device)
	}
	if err != nil {
		return nil, err
	}
	keys, err := c.OpenKeys(d.Sealer)
	if err != nil {
		return nil, err
	}
	var slot attest.KeySlot
	err = d.inTime(ctx, d.DB, r, waitingOn{c.Evidence(), c.Device}, func(now time.Time) (err error) {
		slot, err = sas.Verify(fleet+"/registrations/"+device, keys, now)
		return err
	})
	if err != nil {
		if sas.SignedBy(keys) {
			r.by = countersign.Actor(c.Evidence())
		}
		return nil, err
	}
	a := d.byCredential(r, c)
	a.facts["key"] = string(slot)
	return a, nil
}

func (d *Authority) appraiseGroup(ctx context.Context, r *request, sas *attest.SAS, fleet, device string) (*appraisal, error) {
	groups, _, err := d.Registry.Credentials(ctx, registry.CredentialFilter{Kind: countersign.MethodGroup, Fleet: fleet})
	if err != nil {
		return nil, err
	}
	for i := range groups {
		c := &groups[i]
		if c.State != registry.CredentialActive {
			continue
		}
		keys, err := c.OpenKeys(d.Sealer)
		if err != nil {
			return nil, err
		}
		var slot attest.KeySlot
		err = d.inTime(ctx, d.DB, r, waitingOn{c.Evidence(), device}, func(now time.Time) (err error) {
			slot, err = sas.VerifyGroup(fleet+"/registrations/"+device, device, keys, now)
			return err
		})
		if countersign.CodeOf(err) == countersign.BadCredential {
			continue
		}
		if err != nil {
			r.by = countersign.Actor(c.Evidence())
			if countersign.CodeOf(err) == countersign.NotAllowed { // the group's own key is out
				d.finding(r, countersign.FindingGroupKey, c, "a device showed the group key itself")
			}
			return nil, err
		}
		a := d.byCredential(r, *c)
		a.device = device // the derived key is this device's alone
		a.leave = false   // yet it was not made for this device, so it readmits none
		a.facts["key"] = string(slot)
		return a, nil
	}
	return nil, countersign.Errorf(countersign.BadCredential, "no key is registered for %.140q in fleet %.80q that made the SAS token", device, fleet).
		WithNext("register the device's key, or a group key for the fleet")
}

// appraisePeer judges a client certificate: a claim, a registered self-signed one,
// or a manufacturer's.
func (d *Authority) appraisePeer(ctx context.Context, r *request, fleet string) (*appraisal, error) {
	leaf := r.Evidence.Peer[0]
	print := attest.ThumbprintOf(leaf)
	c, err := d.Registry.Find(ctx, d.DB, countersign.MethodClaim, print.String())
	if err == nil {
		return d.appraiseClaim(ctx, r, c, leaf)
	}
	if countersign.CodeOf(err) != countersign.NotFound {
		return nil, err
	}
	c, err = d.Registry.Find(ctx, d.DB, countersign.MethodThumbprint, print.String())
	if err == nil {
		r.by = countersign.Actor(c.Evidence())
		var slot attest.KeySlot
		err = d.inTime(ctx, d.DB, r, waitingOn{c.Evidence(), c.Device}, func(now time.Time) (err error) {
			slot, err = d.registered(&c).Verify(leaf, now)
			return err
		})
		if err != nil {
			return nil, err
		}
		a := d.byCredential(r, c)
		a.facts["certificate"] = string(slot)
		return a, nil
	}
	if countersign.CodeOf(err) != countersign.NotFound {
		return nil, err
	}
	return d.appraiseIDevID(ctx, r, fleet)
}

// registered gives the thumbprints of a credential.
func (d *Authority) registered(c *registry.Credential) attest.Thumbprints {
	t := attest.Thumbprints{WeakKeys: d.CA.WeakKeys}
	first, second := c.Fingerprints()
	t.Primary, _ = attest.ParseThumbprint(first) // it was checked when it was registered
	if second != "" {
		t.Secondary, _ = attest.ParseThumbprint(second)
	}
	return t
}

// appraiseClaim takes a claim certificate within its bounds. One that is seen
// outside of them is in wrong hands: it stops, and somebody is told.
func (d *Authority) appraiseClaim(ctx context.Context, r *request, c registry.Credential, leaf *x509.Certificate) (*appraisal, error) {
	a := d.byCredential(r, c)
	err := d.inTime(ctx, d.DB, r, waitingOn{c.Evidence(), cmp.Or(c.Device, r.csr.Subject.CommonName)}, func(now time.Time) error {
		if now.After(leaf.NotAfter) || now.Add(countersign.ClockSkew).Before(leaf.NotBefore) {
			return countersign.Errorf(countersign.CertExpired, "the claim certificate is not valid now").WithNext("ask the operator for another claim")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	device := r.csr.Subject.CommonName
	outside := !countersign.Contains(c.Networks, r.Remote.Addr()) || countersign.IsDeviceID(device) && !c.Covers(device)
	if outside && c.State == registry.CredentialActive && !r.dry {
		why := fmt.Sprintf("the claim was used for %.140q from %s, outside of its bounds", device, r.Remote.Addr())
		if err := d.stopClaim(ctx, r, c, why); err != nil {
			return nil, err
		}
		return nil, countersign.Errorf(countersign.NotAllowed, "the claim does not cover this device or this network, and has been stopped").WithNext("ask the operator for another claim")
	}
	return a, nil
}

func (d *Authority) stopClaim(ctx context.Context, r *request, c registry.Credential, why string) error {
	err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if _, err := d.Registry.Stop(ctx, tx, c.ID, why); err != nil {
			return err
		}
		e := r.event(countersign.FindingClaim, why)
		e.Fleet, e.Data = c.Fleet, map[string]string{"credential": c.ID, "label": c.Label}
		return d.Events.Append(ctx, tx, e)
	})
	if countersign.CodeOf(err) == countersign.Conflict { // stopped by another use at the same time
		return nil
	}
	return err
}

// appraiseIDevID validates a manufacturer's certificate (802.1AR) by the
// authorities of the fleet that the request is for.
func (d *Authority) appraiseIDevID(ctx context.Context, r *request, name string) (*appraisal, error) {
	fleet, err := d.Registry.Fleet(ctx, d.DB, cmp.Or(name, countersign.DefaultFleet))
	if err != nil {
		return nil, err
	}
	unknown := countersign.Errorf(countersign.CertUnknown, "the client certificate is neither a claim, nor registered, nor of a manufacturer that fleet %s trusts", fleet.Name).
		WithNext("register the manufacturer's CA: countersign ca register; and name it in the fleet's rules")
	if len(fleet.Rules.Authorities) == 0 {
		return nil, unknown
	}
	anchors, ids, err := d.CA.Anchors(ctx, d.DB, fleet.Rules.Authorities)
	if err != nil {
		return nil, err
	}
	path, err := attest.ValidatePath(r.Evidence.Peer, anchors, attest.PathOptions{Now: d.Now(), AllowNoEKU: true})
	if err != nil {
		if countersign.CodeOf(err) == countersign.CertUnknown {
			return nil, unknown
		}
		return nil, err
	}
	rule := attest.IDRule{
		Field: attest.IDField(cmp.Or(fleet.Rules.ID.Field, string(attest.IDCommonName))), Prefix: fleet.Rules.ID.Prefix, Suffix: fleet.Rules.ID.Suffix,
	}
	device, err := rule.DeviceID(path.Certificates[0])
	if err != nil {
		return nil, err
	}
	print := attest.ThumbprintOf(path.Certificates[0]).String()
	r.by = countersign.Actor("idevid:" + print[:16])
	return &appraisal{
		method: countersign.MethodIDevID, evidence: "idevid:" + print, fleet: fleet.Name, device: device, path: path.Certificates,
		facts: map[string]string{
			"authority": ids[path.Anchor], "subject": path.Certificates[0].Subject.String(), "revocation_checked": fmt.Sprint(path.Revocation),
		},
	}, nil
}

// appraiseTPM takes what the TPM proved in the door's exchange, see tpm.go.
func (d *Authority) appraiseTPM(ctx context.Context, r *request) (*appraisal, error) {
	proof := r.Evidence.TPM
	fleet, err := d.Registry.Fleet(ctx, d.DB, cmp.Or(r.Fleet, countersign.DefaultFleet))
	if err != nil {
		return nil, err
	}
	c, err := d.Registry.Find(ctx, d.DB, countersign.MethodTPM, proof.EKHash)
	var a *appraisal
	switch {
	case err == nil:
		a = d.byCredential(r, c)
	case countersign.CodeOf(err) != countersign.NotFound:
		return nil, err
	case !proof.EKVerified:
		return nil, countersign.Errorf(countersign.NotAllowed, "the TPM's endorsement key is neither registered nor certified by a manufacturer that fleet %s trusts", fleet.Name).
			WithNext("register it: countersign enroll tpm; or register the manufacturer's CA and name it in the fleet's rules")
	case !fleet.Rules.TPMID:
		// A manufacturer vouches for a chip and not for a name: one chip could take many.
		return nil, countersign.Errorf(countersign.NotAllowed, "fleet %s does not take device ids from the chip, and this one is not registered", fleet.Name).
			WithNext("set tpm_id in the fleet's rules, or register the chip for one device: countersign enroll tpm")
	default:
		r.by = countersign.Actor("tpm:" + proof.EKHash[:16])
		a = &appraisal{method: countersign.MethodTPM, evidence: "tpm:" + proof.EKHash, fleet: fleet.Name, facts: map[string]string{}}
	}
	maps.Copy(a.facts, proof.Facts)
	if fleet.Rules.TPMID {
		a.device = proof.RegistrationID
	}
	return a, nil
}

// finding tells a person of something that is no refusal of its own.
func (d *Authority) finding(r *request, t countersign.EventType, c *registry.Credential, why string) {
	if r.dry {
		return
	}
	e := r.event(t, why)
	e.Fleet, e.Data = c.Fleet, map[string]string{"credential": c.ID, "label": c.Label}
	d.Events.Later(e)
}

// bind settles device and fleet from the request and what the evidence proved.
func (r *request) bind(a *appraisal) error {
	if r.Fleet != "" && r.Fleet != a.fleet {
		return countersign.Errorf(countersign.NotAllowed, "the %s is for another fleet than %.80q", a.method, r.Fleet).WithNext("enroll at the fleet that it was made for")
	}
	r.fleet = a.fleet
	claimed := r.csr.Subject.CommonName
	switch {
	case a.device != "" && claimed != "" && claimed != a.device:
		return countersign.Errorf(countersign.SubjectMismatch, "the %s is for device %s, the request for %.140q", a.method, a.device, claimed).
			WithNext("put that device id into the common name of the request")
	case a.device != "":
		r.device = a.device
	case !countersign.IsDeviceID(claimed):
		return countersign.Errorf(countersign.BadRequest, "the request names no device: its common name %.140q is not 1 to 128 of A-Z a-z 0-9 . _ : -", claimed).
			WithNext("put the device id into the common name of the request")
	}
	for _, c := range a.credentials() {
		if !c.Covers(r.device) {
			return countersign.Errorf(countersign.NotAllowed, "the %s does not cover device %s", c.Kind, r.device).WithNext("ask the operator for one that does")
		}
	}
	return nil
}

// usable says whether the evidence can be used now from where it comes, or could when
// a request that waits for approval showed it.
func (d *Authority) usable(ctx context.Context, rd store.Reader, r *request, a *appraisal) error {
	for _, c := range a.credentials() {
		err := d.inTime(ctx, rd, r, waitingOn{a.evidence, r.device}, func(now time.Time) error { return c.Usable(now, r.Remote.Addr()) })
		if err != nil {
			return err
		}
	}
	return nil
}

// atRate counts a use against the rate of what is shared. It is asked once for a
// request; what an operator has approved was counted when it came.
func (d *Authority) atRate(r *request, c *consideration) error {
	if r.dry || c.waiting != "" {
		return nil
	}
	for _, used := range c.credentials() {
		if used.PerMinute > 0 && !d.rates.Take(used.ID, used.PerMinute, used.PerMinute, d.Now()) {
			return countersign.Errorf(countersign.RateLimited, "the %s is used more than %d times a minute", used.Kind, used.PerMinute).
				WithNext("slow down").WithRetry(time.Minute / time.Duration(max(used.PerMinute, 1)))
		}
	}
	return nil
}

// within holds the request against the fleet's rules that need nobody's opinion.
func within(r *request, a *appraisal, fleet *countersign.Fleet, known bool) error {
	if a.method != countersign.MethodFactory && !slices.Contains(fleet.Methods, a.method) {
		return countersign.Errorf(countersign.NotAllowed, "fleet %s does not enroll by %s", fleet.Name, a.method).
			WithNext("open the method with: countersign fleet set " + fleet.Name)
	}
	// Behind a voucher is the address of the operator's station, and no device's: what
	// bounds that is the operator token.
	if a.method != countersign.MethodFactory && !countersign.Contains(fleet.Rules.Networks, r.Remote.Addr()) {
		return countersign.Errorf(countersign.NotAllowed, "fleet %s does not enroll from this address", fleet.Name).WithNext("enroll in the fleet's own network")
	}
	if !known && slices.Contains(fleet.Rules.Registered, a.method) {
		return countersign.Errorf(countersign.NotAllowed, "fleet %s enrolls registered devices only, and %s is not", fleet.Name, r.device).
			WithNext("register it: countersign device create " + r.device)
	}
	return r.namesAnother(fleet)
}

// mayPick refuses a voucher's profile that the fleet does not name: one with serverAuth
// or without an end is for nobody who may only bring devices in.
func mayPick(a *appraisal, f *countersign.Fleet) error {
	if a.profile == "" || a.profile == f.Profile || slices.Contains(f.Rules.FactoryProfiles, a.profile) {
		return nil
	}
	return countersign.Errorf(countersign.NotAllowed, "fleet %s does not let a factory pick profile %.80q", f.Name, a.profile).
		WithNext("name it in factory_profiles of the fleet's rules")
}
