package access

import (
	"context"
	"iter"
	"net/netip"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/registry"
)

// SymmetricKey is a credential of kind key or group, with the keys that a device, or
// each device of the group, makes SAS tokens with.
type SymmetricKey struct {
	registry.Credential
	Keys attest.SymmetricKeys
	// Fault is why a token made with it is refused nevertheless; nil if it is not.
	Fault *countersign.Error
}

// Made reports whether the key made a token of a device, whatever the token's resource and
// expiry.
func (k *SymmetricKey) Made(token *attest.SAS, device string) bool {
	if k.Kind == countersign.MethodGroup {
		return token.SignedBy(k.Keys.Derive(device))
	}
	return token.SignedBy(k.Keys)
}

// refusal returns why a token of a device for a resource is refused: BadCredential if the
// key did not make it, nil if it is valid.
func (k *SymmetricKey) refusal(token *attest.SAS, resource, device string, now time.Time) *countersign.Error {
	var err error
	if k.Kind == countersign.MethodGroup {
		_, err = token.VerifyGroup(resource, device, k.Keys, now)
	} else {
		_, err = token.Verify(resource, k.Keys, now)
	}
	if err != nil {
		return countersign.Public(err)
	}
	return k.Fault
}

// proof returns what a token that the key made proves.
func (k *SymmetricKey) proof(token *attest.SAS) proof {
	until := token.Expiry.Add(attest.SASSkew)
	if !k.ExpiresAt.IsZero() && k.ExpiresAt.Before(until) {
		until = k.ExpiresAt
	}
	return proof{kind: countersign.AccessSAS, credential: k.Evidence(), made: k.CreatedPos, until: until}
}

// symmetricKeys returns the keys that may have made a token of a device: those that it may
// use in its fleet, then those of FormerKeys. It reads and opens a key only when the loop
// comes to it.
func (d *Decider) symmetricKeys(ctx context.Context, fleet, device string, from netip.Addr) iter.Seq2[SymmetricKey, error] {
	return func(yield func(SymmetricKey, error) bool) {
		present, err := d.presentKeys(ctx, fleet, device)
		if err != nil {
			yield(SymmetricKey{}, err)
			return
		}
		for i := range present {
			if keyUsable(&present[i], d.Now(), from) && !yield(d.open(&present[i])) {
				return
			}
		}
		for k, err := range d.FormerKeys(ctx, fleet, device, from) {
			if !yield(k, err) {
				return
			}
		}
	}
}

// presentKeys lists the credentials of a device in its fleet: its own key if it has one,
// else those of the fleet's groups that it belongs to.
func (d *Decider) presentKeys(ctx context.Context, fleet, device string) (list []registry.Credential, err error) {
	own, err := d.Registry.DeviceKey(ctx, d.DB, fleet, device)
	if err == nil && own.State == registry.CredentialActive && own.Device == device { // the lookup ignores case
		return []registry.Credential{own}, nil
	}
	if err != nil && countersign.CodeOf(err) != countersign.NotFound {
		return nil, err
	}
	groups, _, err := d.Registry.Credentials(ctx, registry.CredentialFilter{Kind: countersign.MethodGroup, Fleet: fleet})
	for _, g := range groups {
		if g.Covers(device) {
			list = append(list, g)
		}
	}
	return list, err
}

// keyUsable reports whether a device may connect with a symmetric key now. A key that may
// enroll no more devices can still be used to connect.
func keyUsable(k *registry.Credential, now time.Time, from netip.Addr) bool {
	err := k.Usable(now, from)
	return err == nil || countersign.CodeOf(err) == countersign.CredentialSpent
}

// maxFormer bounds the former keys of each kind that a SAS token is compared with, after
// no present key matched. Each costs the opening of a sealed key, for a client that has
// proved nothing yet.
const maxFormer = 64

// FormerKeys returns keys that an honest device may have although they are not valid for
// fleet: keys of the device that were stopped or are of another fleet, and such group
// keys. Each has a Fault. A token that one of them made is refused, but is no guess.
func (d *Decider) FormerKeys(ctx context.Context, fleet, device string, from netip.Addr) iter.Seq2[SymmetricKey, error] {
	return func(yield func(SymmetricKey, error) bool) {
		for _, f := range []registry.CredentialFilter{
			{Kind: countersign.MethodKey, Device: device, Limit: maxFormer}, {Kind: countersign.MethodGroup, Limit: maxFormer},
		} {
			list, _, err := d.Registry.Credentials(ctx, f)
			if err != nil {
				yield(SymmetricKey{}, err)
				return
			}
			for i := range list {
				k, err := d.open(&list[i])
				k.Fault = countersign.Public(formerFault(&k.Credential, fleet, d.Now(), from))
				if !yield(k, err) {
					return
				}
			}
		}
	}
}

func (d *Decider) open(c *registry.Credential) (SymmetricKey, error) {
	keys, err := c.OpenKeys(d.Secrets.Sealer)
	return SymmetricKey{Credential: *c, Keys: keys}, err
}

// formerFault returns why a token for fleet is refused if a former key made it.
func formerFault(c *registry.Credential, fleet string, now time.Time, from netip.Addr) error {
	name := "key"
	if c.Kind == countersign.MethodGroup {
		name = "key derived from group " + c.Label
	}
	switch {
	case c.State != registry.CredentialActive:
		return countersign.Errorf(countersign.CredentialExpire, "the %s that made the SAS token has been stopped", name).WithNext("give the device its present key")
	case c.Fleet != fleet:
		return countersign.Errorf(countersign.Misconfigured, "the %s that made the SAS token is of fleet %s, not of %.80q", name, c.Fleet, fleet).WithNext("sign for that fleet")
	}
	if err := c.Usable(now, from); err != nil {
		return err
	}
	return countersign.Errorf(countersign.Misconfigured, "the SAS token was made with a %s, and the device has a key of its own", name).WithNext("sign with the device's own key")
}
