package ra

import (
	"context"
	"net/netip"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/registry"
)

// maxFormer bounds the keys that a SAS token is compared with once no key that it
// could have been made with for this purpose made it. Each costs the opening of a
// sealed key, and whoever shows such a token is unknown so far.
const maxFormer = 64

// formerKeys lists the symmetric keys that a device may honestly have although they
// are not the ones for fleet: those of the device that were stopped, or that are of
// another fleet, and such group keys.
func (d *Authority) formerKeys(ctx context.Context, device string) ([]registry.Credential, error) {
	own, _, err := d.Registry.Credentials(ctx, registry.CredentialFilter{Kind: countersign.MethodKey, Device: device, Limit: maxFormer})
	if err != nil {
		return nil, err
	}
	groups, _, err := d.Registry.Credentials(ctx, registry.CredentialFilter{Kind: countersign.MethodGroup, Limit: maxFormer})
	return append(own, groups...), err
}

// signedElsewhere returns why a SAS token that no key for fleet made is no guess: a
// key that is or was on record made it. It returns nil where none did. An error of
// the database counts as none: the token is refused either way.
func (d *Authority) signedElsewhere(ctx context.Context, r *request, sas *attest.SAS, fleet, device string) error {
	list, err := d.formerKeys(ctx, device)
	if err != nil {
		return err
	}
	for i := range list {
		c := &list[i]
		keys, err := c.OpenKeys(d.Sealer)
		if err != nil {
			return err
		}
		if c.Kind == countersign.MethodGroup {
			keys = keys.Derive(device)
		}
		if sas.SignedBy(keys) {
			r.by = countersign.Actor(c.Evidence())
			return formerFault(c, fleet)
		}
	}
	return nil
}

// formerFault says what is wrong with a key that made a token for fleet.
func formerFault(c *registry.Credential, fleet string) *countersign.Error {
	switch {
	case c.State != registry.CredentialActive:
		return countersign.Errorf(countersign.CredentialExpire, "the %s that made the SAS token has been stopped", keyName(c)).WithNext("give the device its present key")
	case c.Fleet != fleet:
		return countersign.Errorf(countersign.Misconfigured, "the %s that made the SAS token is of fleet %s, not of %.80q", keyName(c), c.Fleet, fleet).WithNext("sign for that fleet")
	}
	return countersign.Errorf(countersign.Misconfigured, "the SAS token was made with a %s, and the device has a key of its own", keyName(c)).WithNext("sign with the device's own key")
}

func keyName(c *registry.Credential) string {
	if c.Kind == countersign.MethodGroup {
		return "key derived from group " + c.Label
	}
	return "key"
}

// FormerKeys finds the keys that a device may have made a token with although
// ConnectKeys has them not, each with what is wrong with it. It is
// access.Decider.FormerKeys.
func (d *Authority) FormerKeys(ctx context.Context, fleet, device string, from netip.Addr) ([]access.SymmetricKey, error) {
	list, err := d.formerKeys(ctx, device)
	if err != nil {
		return nil, err
	}
	out := make([]access.SymmetricKey, 0, len(list))
	for i := range list {
		c := &list[i]
		keys, err := c.OpenKeys(d.Sealer)
		if err != nil {
			return nil, err
		}
		fault := error(formerFault(c, fleet))
		if c.State == registry.CredentialActive && c.Fleet == fleet {
			if e := c.Usable(d.Now(), from); e != nil {
				fault = e
			}
		}
		k := symmetricKey(c, keys)
		k.Fault = countersign.Public(fault)
		out = append(out, k)
	}
	return out, nil
}

func symmetricKey(c *registry.Credential, keys attest.SymmetricKeys) access.SymmetricKey {
	return access.SymmetricKey{
		Credential: c.Evidence(), Group: c.Kind == countersign.MethodGroup, Keys: keys, Made: c.CreatedPos, Until: c.ExpiresAt,
	}
}
