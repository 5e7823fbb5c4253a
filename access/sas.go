package access

import (
	"context"
	"strings"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
)

const sasPath = "/devices/"

// bySAS identifies a device by a token that it made with its symmetric key for the
// resource <host>/devices/<id>. The host must be that of the user name, if it has one:
// several services may know the device's key, and a token is for one of them.
func (d *Decider) bySAS(ctx context.Context, c countersign.Connection) Decision {
	host, device := azureUser(c.Username)
	token, err := attest.ParseSAS(string(c.Password))
	if err != nil { // it cannot be parsed, so it is no guess of a key
		dec := refuse(countersign.CodeOf(err), countersign.Public(err).Message)
		dec.Kind, dec.Claims = countersign.AccessSAS, device
		return dec
	}
	h, err := d.holder(ctx, device)
	if err != nil {
		return unreadable()
	}
	if !h.known() {
		return d.sasOfStranger(ctx, c, token, device)
	}
	if host == "" {
		host, _, _ = strings.Cut(token.Resource, sasPath)
	}
	resource := host + sasPath + h.device
	for k, err := range d.symmetricKeys(ctx, h.fleet, h.device, c.Remote.Addr()) {
		if err != nil {
			return unreadable()
		}
		refusal := k.refusal(token, resource, h.device, d.Now())
		if refusal != nil && refusal.Code == countersign.BadCredential {
			continue
		}
		dec := d.decide(ctx, c, h, k.proof(token))
		if refusal != nil && dec.Code != countersign.DeviceGone && dec.Code != countersign.DeviceOnHold {
			dec.Code, dec.Reason, dec.FirstUse = refusal.Code, refusal.Message, false
		}
		if refusal != nil && refusal.Code == countersign.CredentialExpire && k.Fault == nil {
			dec.Ended = token.Expiry
		}
		return dec
	}
	return d.wrong(c, countersign.AccessSAS, device, h)
}

// azureUser parses the user name of a device with a SAS token: its id or, as Azure's SDKs
// send it, <host>/<id>/?api-version=….
func azureUser(name string) (host, device string) {
	name, _, _ = strings.Cut(name, "/?")
	if host, device, ok := strings.Cut(name, "/"); ok {
		return host, device
	}
	return "", name
}

// sasOfStranger refuses the token of a device that is not on record. Its key may be on
// record, because keys are registered before devices. The token is then no guess.
func (d *Decider) sasOfStranger(ctx context.Context, c countersign.Connection, token *attest.SAS, device string) Decision {
	dec := d.wrong(c, countersign.AccessSAS, device, &holder{})
	if !countersign.IsDeviceID(device) {
		return dec
	}
	for k, err := range d.FormerKeys(ctx, "", device, c.Remote.Addr()) {
		if err != nil {
			return unreadable()
		}
		if k.Made(token, device) {
			dec.Code, dec.Reason, dec.Tried = countersign.Misconfigured, "the SAS token is right, but its device is not registered", ""
			break
		}
	}
	return dec
}
