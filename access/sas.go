package access

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
)

// SymmetricKey is a key that a device may make SAS tokens with.
type SymmetricKey struct {
	Credential string // kind:id
	Group      bool   // Keys are those of a group, from which the device's are derived
	Keys       attest.SymmetricKeys
	Made       countersign.Position // of the log, when the keys were registered
	Until      time.Time            // zero: never
	// Fault is why a token made with it is refused all the same; nil: it is not.
	Fault *countersign.Error
}

// FindKeys gives the keys of a device that are good now from an address. Package
// ra has it, which knows the credentials that devices enroll with.
type FindKeys func(ctx context.Context, fleet, device string, from netip.Addr) ([]SymmetricKey, error)

const (
	sasScheme = "sharedaccesssignature "
	sasPath   = "/devices/"
)

func looksLikeSAS(password []byte) bool {
	return len(password) > len(sasScheme) && strings.EqualFold(string(password[:len(sasScheme)]), sasScheme)
}

// azureUser reads the user name of a device that brings a SAS token: its id, or as
// Azure's SDKs have it, <host>/<id>/?api-version=….
func azureUser(name string) (host, device string) {
	name, _, _ = strings.Cut(name, "/?")
	if host, device, ok := strings.Cut(name, "/"); ok {
		return host, device
	}
	return "", name
}

// bySAS identifies a device by a token that it made with its symmetric key for
// <host>/devices/<id>. The host is that of the user name, if it names one: several
// services may know the device's key, and a token is for one of them.
func (d *Decider) bySAS(ctx context.Context, c countersign.Connection) Decision {
	host, device := azureUser(c.Username)
	token, err := attest.ParseSAS(string(c.Password))
	if d.Keys == nil {
		return d.wrong(c, countersign.AccessSAS, device, nil)
	}
	if err != nil { // it cannot be read, so it was made with no key and is no guess
		dec := refuse(countersign.CodeOf(err), countersign.Public(err).Message)
		dec.Kind, dec.Claims = countersign.AccessSAS, device
		return dec
	}
	h, err := d.holder(ctx, device)
	switch {
	case errors.Is(err, errNobody):
		return d.sasOfNobody(ctx, c, token, device)
	case err != nil:
		return unreadable()
	}
	keys, err := d.Keys(ctx, h.fleet, h.device, c.Remote.Addr())
	if err != nil {
		return unreadable()
	}
	signed, _, _ := strings.Cut(token.Resource, sasPath)
	if host == "" {
		host = signed
	}
	dec, found := d.trySAS(ctx, c, h, signedSAS{token, host + sasPath + h.device}, keys)
	if !found && d.FormerKeys != nil {
		if keys, err = d.FormerKeys(ctx, h.fleet, h.device, c.Remote.Addr()); err != nil {
			return unreadable()
		}
		dec, found = d.trySAS(ctx, c, h, signedSAS{token, host + sasPath + h.device}, keys)
	}
	if !found {
		return d.wrong(c, countersign.AccessSAS, device, h)
	}
	return dec
}

// sasOfNobody refuses the token of a device that is not on record. Its key may be,
// since keys are registered before devices: then it is no guess.
func (d *Decider) sasOfNobody(ctx context.Context, c countersign.Connection, token *attest.SAS, device string) Decision {
	dec := d.wrong(c, countersign.AccessSAS, device, nil)
	if d.FormerKeys == nil || !countersign.IsDeviceID(device) {
		return dec
	}
	keys, err := d.FormerKeys(ctx, "", device, c.Remote.Addr())
	if err != nil {
		return unreadable()
	}
	for _, k := range keys {
		if k.Group {
			k.Keys = k.Keys.Derive(device)
		}
		if token.SignedBy(k.Keys) {
			dec.Code, dec.Reason, dec.Tried = countersign.Misconfigured, "the SAS token is right, and its device is not registered", ""
			break
		}
	}
	return dec
}

// signedSAS is a token with the resource that it has to be for.
type signedSAS struct {
	*attest.SAS
	resource string
}

// trySAS holds a device to the record by the first of the keys that made the token.
func (d *Decider) trySAS(ctx context.Context, c countersign.Connection, h *holder, token signedSAS, keys []SymmetricKey) (dec Decision, found bool) {
	for _, k := range keys {
		code, reason := d.verifySAS(token.SAS, k, token.resource, h.device)
		if code == countersign.BadCredential {
			continue
		}
		if code == "" && k.Fault != nil {
			code, reason = k.Fault.Code, k.Fault.Message
		}
		dec := d.decideSAS(ctx, c, h, k, token.Expiry.Add(attest.SASSkew))
		if code != "" && dec.Code != countersign.DeviceGone && dec.Code != countersign.DeviceOnHold {
			dec.Code, dec.Reason, dec.FirstUse = code, reason, false
		}
		if code == countersign.CredentialExpire && k.Fault == nil {
			dec.Ended = token.Expiry
		}
		return dec, true
	}
	return dec, false
}

func (d *Decider) verifySAS(token *attest.SAS, k SymmetricKey, resource, device string) (countersign.Code, string) {
	var err error
	if k.Group {
		_, err = token.VerifyGroup(resource, device, k.Keys, d.Now())
	} else {
		_, err = token.Verify(resource, k.Keys, d.Now())
	}
	if err == nil {
		return "", ""
	}
	return countersign.CodeOf(err), countersign.Public(err).Message
}

func (d *Decider) decideSAS(ctx context.Context, c countersign.Connection, h *holder, k SymmetricKey, until time.Time) Decision {
	if !k.Until.IsZero() && k.Until.Before(until) {
		until = k.Until
	}
	return d.decide(ctx, c, h, proof{kind: countersign.AccessSAS, credential: k.Credential, made: k.Made, until: until})
}
