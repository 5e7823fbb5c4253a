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

// appraise determines what the evidence of a first enrollment proves. Where two kinds
// are shown, HTTP's and TLS's, both must hold and name the same device.
func (r *request) appraise(ctx context.Context) (*appraisal, error) {
	ev := &r.Evidence
	switch {
	case ev.Voucher != nil:
		return r.appraiseVoucher()
	case ev.TPM != nil:
		return r.appraiseTPM(ctx)
	case ev.Token != "":
		a, err := r.appraiseSecret(ctx)
		if err != nil || len(ev.Peer) == 0 {
			return a, err
		}
		return r.withPeer(ctx, a)
	case len(ev.Peer) > 0:
		return r.appraisePeer(ctx, r.Fleet)
	}
	return nil, countersign.Errorf(countersign.Unauthenticated, "no evidence was shown: no token and no client certificate").
		WithNext("send a token as the password of HTTP Basic, or as Bearer; docs/enrollment.md lists the other ways")
}

// withPeer holds a client certificate that came with a token against it. One that
// says nothing here, such as a self-signed one, is no objection.
func (r *request) withPeer(ctx context.Context, a *appraisal) (*appraisal, error) {
	by := r.by
	p, err := r.appraisePeer(ctx, a.fleet)
	r.by = by
	switch {
	case countersign.CodeOf(err) == countersign.CertUnknown:
		return a, nil
	case err != nil:
		return nil, err
	case p.fleet != a.fleet || p.device != "" && a.device != "" && p.device != a.device:
		return nil, countersign.Errorf(countersign.SubjectMismatch, "the token and the client certificate are for different devices").WithNext("show one of them")
	}
	if a.device == "" { // then the certificate is the leave, and no newer token adds to it
		a.device, a.leave, a.made = p.device, p.leave, p.made
	}
	a.beside = p.credential
	a.facts["client_certificate"] = p.evidence
	return a, nil
}

func (r *request) appraiseVoucher() (*appraisal, error) {
	v := r.Evidence.Voucher
	r.by = v.Actor
	return &appraisal{
		method: countersign.MethodFactory, evidence: "factory:" + v.Item, fleet: cmp.Or(r.Fleet, countersign.DefaultFleet), profile: v.Profile,
		facts: map[string]string{"operator": string(v.Actor)},
	}, nil
}

// appraiseSecret distinguishes the secrets by their form.
func (r *request) appraiseSecret(ctx context.Context) (*appraisal, error) {
	if strings.HasPrefix(r.Evidence.Token, "SharedAccessSignature ") {
		return r.appraiseSAS(ctx)
	}
	c, err := r.Registry.TokenBySecret(ctx, r.DB, r.Evidence.Token)
	if err != nil {
		return nil, err
	}
	return r.byCredential(c), nil
}

func (r *request) byCredential(c registry.Credential) *appraisal {
	r.by = countersign.Actor(c.Evidence())
	return &appraisal{
		method: c.Kind, evidence: c.Evidence(), fleet: c.Fleet, device: c.Device, leave: true, made: c.CreatedPos, credential: &c,
		facts: map[string]string{"credential": c.ID, "label": c.Label},
	}
}

// appraiseSAS checks a SAS token for <fleet>/registrations/<device>: by the device's
// own key if it has one, else by its fleet's group keys. BadCredential is left to a
// token that no key on record made: see signedElsewhere.
func (r *request) appraiseSAS(ctx context.Context) (*appraisal, error) {
	sas, err := attest.ParseSAS(r.Evidence.Token)
	if err != nil {
		return nil, err
	}
	fleet, device, ok := strings.Cut(sas.Resource, "/registrations/")
	if !ok || !countersign.IsDeviceID(device) {
		return nil, countersign.Errorf(countersign.BadRequest, "the SAS token is for %.200q, not for <fleet>/registrations/<device>", sas.Resource).WithNext("sign that resource")
	}
	a, err := r.appraiseKey(ctx, sas, fleet, device)
	if countersign.CodeOf(err) != countersign.BadCredential {
		return a, err
	}
	if fault := r.signedElsewhere(ctx, sas, fleet, device); fault != nil {
		return nil, fault
	}
	return nil, err
}

func (r *request) appraiseKey(ctx context.Context, sas *attest.SAS, fleet, device string) (*appraisal, error) {
	c, err := r.Registry.DeviceKey(ctx, r.DB, fleet, device)
	if countersign.CodeOf(err) == countersign.NotFound {
		return r.appraiseGroup(ctx, sas, fleet, device)
	}
	if err != nil {
		return nil, err
	}
	keys, err := c.OpenKeys(r.Sealer)
	if err != nil {
		return nil, err
	}
	var slot attest.KeySlot
	err = r.inTime(ctx, r.DB, waitingOn{c.Evidence(), c.Device}, func(now time.Time) (err error) {
		slot, err = sas.Verify(fleet+"/registrations/"+device, keys, now)
		return err
	})
	if err != nil {
		if sas.SignedBy(keys) {
			r.by = countersign.Actor(c.Evidence())
		}
		return nil, err
	}
	a := r.byCredential(c)
	a.facts["key"] = string(slot)
	return a, nil
}

func (r *request) appraiseGroup(ctx context.Context, sas *attest.SAS, fleet, device string) (*appraisal, error) {
	groups, _, err := r.Registry.Credentials(ctx, registry.CredentialFilter{Kind: countersign.MethodGroup, Fleet: fleet})
	if err != nil {
		return nil, err
	}
	for i := range groups {
		c := &groups[i]
		if c.State != registry.CredentialActive {
			continue
		}
		keys, err := c.OpenKeys(r.Sealer)
		if err != nil {
			return nil, err
		}
		var slot attest.KeySlot
		err = r.inTime(ctx, r.DB, waitingOn{c.Evidence(), device}, func(now time.Time) (err error) {
			slot, err = sas.VerifyGroup(fleet+"/registrations/"+device, device, keys, now)
			return err
		})
		if countersign.CodeOf(err) == countersign.BadCredential {
			continue
		}
		if err != nil {
			r.by = countersign.Actor(c.Evidence())
			if countersign.CodeOf(err) == countersign.NotAllowed { // the group's own key is out
				r.finding(countersign.FindingGroupKey, c, "a device showed the group key itself")
			}
			return nil, err
		}
		a := r.byCredential(*c)
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
func (r *request) appraisePeer(ctx context.Context, fleet string) (*appraisal, error) {
	leaf := r.Evidence.Peer[0]
	print := attest.ThumbprintOf(leaf)
	c, err := r.Registry.Find(ctx, r.DB, countersign.MethodClaim, print.String())
	if err == nil {
		return r.appraiseClaim(ctx, c, leaf)
	}
	if countersign.CodeOf(err) != countersign.NotFound {
		return nil, err
	}
	c, err = r.Registry.Find(ctx, r.DB, countersign.MethodThumbprint, print.String())
	if err == nil {
		r.by = countersign.Actor(c.Evidence())
		var slot attest.KeySlot
		err = r.inTime(ctx, r.DB, waitingOn{c.Evidence(), c.Device}, func(now time.Time) (err error) {
			slot, err = r.registered(&c).Verify(leaf, now)
			return err
		})
		if err != nil {
			return nil, err
		}
		a := r.byCredential(c)
		a.facts["certificate"] = string(slot)
		return a, nil
	}
	if countersign.CodeOf(err) != countersign.NotFound {
		return nil, err
	}
	return r.appraiseIDevID(ctx, fleet)
}

// registered returns the thumbprints of a credential.
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
// outside of them is in wrong hands: it is stopped, and an operator is alerted.
func (r *request) appraiseClaim(ctx context.Context, c registry.Credential, leaf *x509.Certificate) (*appraisal, error) {
	a := r.byCredential(c)
	err := r.inTime(ctx, r.DB, waitingOn{c.Evidence(), cmp.Or(c.Device, r.csr.Subject.CommonName)}, func(now time.Time) error {
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
		if err := r.stopClaim(ctx, c, why); err != nil {
			return nil, err
		}
		return nil, countersign.Errorf(countersign.NotAllowed, "the claim does not cover this device or this network, and has been stopped").WithNext("ask the operator for another claim")
	}
	return a, nil
}

func (r *request) stopClaim(ctx context.Context, c registry.Credential, why string) error {
	err := r.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if _, err := r.Registry.Stop(ctx, tx, c.ID, why); err != nil {
			return err
		}
		e := r.event(countersign.FindingClaim, why)
		e.Fleet, e.Data = c.Fleet, map[string]string{"credential": c.ID, "label": c.Label}
		return r.Events.Append(ctx, tx, e)
	})
	if countersign.CodeOf(err) == countersign.Conflict { // stopped by another use at the same time
		return nil
	}
	return err
}

// appraiseIDevID validates a manufacturer's certificate (802.1AR) by the
// authorities of the fleet that the request is for.
func (r *request) appraiseIDevID(ctx context.Context, name string) (*appraisal, error) {
	fleet, err := r.Registry.Fleet(ctx, r.DB, cmp.Or(name, countersign.DefaultFleet))
	if err != nil {
		return nil, err
	}
	unknown := countersign.Errorf(countersign.CertUnknown, "the client certificate is neither a claim, nor registered, nor of a manufacturer that fleet %s trusts", fleet.Name).
		WithNext("register the manufacturer's CA and name it in the fleet's rules")
	if len(fleet.Rules.Authorities) == 0 {
		return nil, unknown
	}
	anchors, ids, err := r.CA.Anchors(ctx, r.DB, fleet.Rules.Authorities)
	if err != nil {
		return nil, err
	}
	path, err := attest.ValidatePath(r.Evidence.Peer, anchors, attest.PathOptions{Now: r.Now(), AllowNoEKU: true})
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
func (r *request) appraiseTPM(ctx context.Context) (*appraisal, error) {
	proof := r.Evidence.TPM
	fleet, err := r.Registry.Fleet(ctx, r.DB, cmp.Or(r.Fleet, countersign.DefaultFleet))
	if err != nil {
		return nil, err
	}
	c, err := r.Registry.Find(ctx, r.DB, countersign.MethodTPM, proof.EKHash)
	var a *appraisal
	switch {
	case err == nil:
		a = r.byCredential(c)
	case countersign.CodeOf(err) != countersign.NotFound:
		return nil, err
	case !proof.EKVerified:
		return nil, countersign.Errorf(countersign.NotAllowed, "the TPM's endorsement key is neither registered nor certified by a manufacturer that fleet %s trusts", fleet.Name).
			WithNext("register the TPM, or register the manufacturer's CA and name it in the fleet's rules")
	case !fleet.Rules.TPMID:
		// A manufacturer vouches for a chip and not for a name: one chip could take many.
		return nil, countersign.Errorf(countersign.NotAllowed, "fleet %s does not take device ids from the chip, and this one is not registered", fleet.Name).
			WithNext("set tpm_id in the fleet's rules, or register the chip for one device")
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

// finding records something for an operator that is no refusal of its own.
func (r *request) finding(t countersign.EventType, c *registry.Credential, why string) {
	if r.dry {
		return
	}
	e := r.event(t, why)
	e.Fleet, e.Data = c.Fleet, map[string]string{"credential": c.ID, "label": c.Label}
	r.Events.Later(e)
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

// signedElsewhere returns why a SAS token that no key for fleet made is no guess: a
// key that is or was on record made it. It returns nil if none did. An error of
// the database counts as none: the token is refused either way.
func (r *request) signedElsewhere(ctx context.Context, sas *attest.SAS, fleet, device string) error {
	for k, err := range r.Access.FormerKeys(ctx, fleet, device, r.Remote.Addr()) {
		if err != nil {
			return err
		}
		if k.Made(sas, device) {
			r.by = countersign.Actor(k.Evidence())
			return k.Fault
		}
	}
	return nil
}
