package provision

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// TemporaryClaim is how long the claim of a trusted user is good, as at AWS.
const TemporaryClaim = 5 * time.Minute

// create records a credential and its event.
func (p *Provisioner) create(ctx context.Context, c registry.Credential, l registry.Lookup, by ra.By) (made registry.Credential, err error) {
	c.CreatedBy = by.Actor
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		want := c
		if err := p.fitDevice(ctx, tx, &want, by); err != nil {
			return err
		}
		if made, err = p.Registry.CreateCredential(ctx, tx, want, l); err != nil {
			return err
		}
		return p.Events.Append(ctx, tx, credentialEvent(by, countersign.CredentialCreated, &made))
	})
	return made, err
}

func credentialEvent(by ra.By, t countersign.EventType, c *registry.Credential) countersign.Event {
	e := by.Event(t)
	e.Device, e.Fleet, e.Reason = c.Device, c.Fleet, c.Reason
	e.Data = map[string]string{"credential": c.ID, "kind": string(c.Kind), "label": c.Label}
	return e
}

// StopCredential ends a credential at once, with the sessions and the access tokens
// that rest on it. One that is stopped already is no error: its sessions are cut again.
func (p *Provisioner) StopCredential(ctx context.Context, id, why string, by ra.By) (c registry.Credential, done countersign.Revocation, err error) {
	err = p.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		done = countersign.Revocation{At: p.Registry.Now()}
		c, err = p.Registry.Stop(ctx, tx, id, why)
		e := credentialEvent(by, countersign.CredentialStopped, &c)
		switch {
		case countersign.CodeOf(err) == countersign.Conflict && c.State == registry.CredentialStopped:
			ra.Again(&done, &e, done.At)
			return p.Events.AppendAct(ctx, tx, &done, e)
		case err != nil:
			return err
		}
		given, err := ra.EndTokens(ctx, tx, p.Tokens, c.Evidence(), by)
		if err != nil {
			return err
		}
		return p.Events.AppendAct(ctx, tx, &done, append([]countersign.Event{e}, given...)...)
	})
	if err != nil {
		err = ra.NotRecorded(err)
	}
	return c, done, err
}

// SymmetricKeys are a device's or a group's keys in base64; an empty primary is
// drawn here. They are shown once.
type SymmetricKeys struct{ Primary, Secondary string }

// CreateKey registers the symmetric key of one device (kind key) or of a group
// (kind group), which is named by the credential's label.
func (p *Provisioner) CreateKey(ctx context.Context, c registry.Credential, k SymmetricKeys, by ra.By) (registry.Credential, SymmetricKeys, error) {
	fleet, err := p.fleetFor(ctx, &c)
	if err != nil {
		return c, k, err
	}
	if c.Kind == countersign.MethodGroup {
		if c.Label == "" || c.Device != "" {
			return c, k, countersign.Errorf(countersign.BadRequest, "a group key has a label and no device")
		}
	} else if c.Kind = countersign.MethodKey; c.Device == "" {
		return c, k, countersign.Errorf(countersign.BadRequest, "a key is for one device: name it").WithNext("for many devices make a group key")
	}
	c.Fleet = fleet
	var plain attest.SymmetricKeys
	for _, slot := range []struct {
		text *string
		into *[]byte
	}{{&k.Primary, &plain.Primary}, {&k.Secondary, &plain.Secondary}} {
		if *slot.text == "" {
			b := make([]byte, 64)
			if _, err := rand.Read(b); err != nil {
				return c, k, fmt.Errorf("draw a key: %w", err)
			}
			*slot.text = base64.StdEncoding.EncodeToString(b)
		}
		b, err := attest.ParseSymmetricKey(*slot.text)
		if err != nil {
			return c, k, err
		}
		*slot.into = b
	}
	lookup, err := registry.SealKeys(p.Sealer, &c, plain)
	if err != nil {
		return c, k, err
	}
	made, err := p.create(ctx, c, lookup, by)
	return made, k, err
}

// fleetFor returns the fleet of a credential: the one named, else that of the device if
// it is on record, else the default.
func (p *Provisioner) fleetFor(ctx context.Context, c *registry.Credential) (string, error) {
	if c.Fleet != "" || c.Device == "" {
		return cmp.Or(c.Fleet, countersign.DefaultFleet), nil
	}
	d, err := p.Registry.Device(ctx, p.DB, c.Device)
	if countersign.CodeOf(err) == countersign.NotFound {
		return countersign.DefaultFleet, nil
	}
	return d.Fleet, err
}

// CreateThumbprint registers a device's self-signed certificate, and a second one.
func (p *Provisioner) CreateThumbprint(ctx context.Context, c registry.Credential, primary, secondary string, by ra.By) (registry.Credential, error) {
	if c.Device == "" {
		return c, countersign.Errorf(countersign.BadRequest, "a thumbprint is for one device: name it")
	}
	first, err := attest.ParseThumbprint(primary)
	if err != nil {
		return c, err
	}
	l := registry.Lookup{First: first.String()}
	if secondary != "" {
		s, err := attest.ParseThumbprint(secondary)
		if err != nil {
			return c, err
		}
		l.Second = s.String()
	}
	c.Kind = countersign.MethodThumbprint
	return p.create(ctx, c, l, by)
}

// CreateTPM registers the endorsement key of a TPM: its public area as the TPM
// returns it, or the SHA-256 of that in hex.
func (p *Provisioner) CreateTPM(ctx context.Context, c registry.Credential, ekPublic []byte, ekHash string, by ra.By) (registry.Credential, error) {
	if len(ekPublic) > 0 {
		h, err := attest.EKHash(ekPublic, p.CA.WeakKeys)
		if err != nil {
			return c, err
		}
		ekHash = hex.EncodeToString(h[:])
	}
	if b, err := hex.DecodeString(ekHash); err != nil || len(b) != 32 {
		return c, countersign.Errorf(countersign.BadRequest, "the endorsement key is neither its public area nor a SHA-256 in hex").WithNext("take: tpm2_createek -u ek.pub; sha256sum ek.pub")
	}
	c.Kind = countersign.MethodTPM
	return p.create(ctx, c, registry.Lookup{First: ekHash}, by)
}

// Claim is a claim certificate with its chain, PEM, and its key where the server
// made it: a claim's key is shared by its nature.
type Claim struct {
	registry.Credential
	Chain string
	Key   string
}

// CreateClaim issues a claim certificate within the bounds of c. Temporary is the
// trusted user's: one use, five minutes. csr is PKCS #10; empty: the server makes
// the key and shows it once.
func (p *Provisioner) CreateClaim(ctx context.Context, c registry.Credential, csr []byte, temporary bool, by ra.By) (Claim, error) {
	now := p.CA.Now()
	if temporary {
		c.UsesMax, c.ExpiresAt = 1, now.Add(TemporaryClaim)
	}
	if c.UsesMax < 1 || !c.ExpiresAt.After(now) || c.ExpiresAt.Sub(now) > ca.ClaimValidity {
		return Claim{}, countersign.Errorf(countersign.BadRequest, "a claim needs uses and an end within %v", ca.ClaimValidity).WithNext("bound it: who holds it can enroll")
	}
	end, err := endOf(by.Factory, now, c.ExpiresAt)
	if err != nil {
		return Claim{}, err
	}
	c.Kind, c.CreatedBy, c.ExpiresAt = countersign.MethodClaim, by.Actor, end
	if c.Fleet == "" {
		c.Fleet = countersign.DefaultFleet
	}
	fleet, err := p.Registry.Fleet(ctx, p.DB, c.Fleet)
	if err != nil {
		return Claim{}, err
	}
	pub, key, err := p.claimKey(csr)
	if err != nil {
		return Claim{}, err
	}
	issued, err := p.CA.IssueClaim(ctx, fleet.Issuer, c.Label, c.ExpiresAt, pub)
	if err != nil {
		return Claim{}, err
	}
	made, err := p.create(ctx, c, registry.Lookup{First: issued.Fingerprint}, by)
	if err != nil {
		return Claim{}, err
	}
	chain, err := p.CA.Chain(fleet.Issuer)
	if err != nil {
		return Claim{}, err
	}
	out := Claim{Credential: made, Key: key}
	for _, der := range append([][]byte{issued.DER}, chain[:len(chain)-1]...) {
		out.Chain += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return out, nil
}

func (p *Provisioner) claimKey(csr []byte) (pub any, key string, err error) {
	if len(csr) == 0 {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, "", fmt.Errorf("make a claim's key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, "", fmt.Errorf("encode a claim's key: %w", err)
		}
		return &k.PublicKey, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
	}
	req, err := pkcs10.Parse(csr)
	if err != nil {
		return nil, "", err
	}
	if _, err := req.Key(); err != nil {
		return nil, "", err
	}
	if _, err := p.CA.AcceptKey(req.PublicKey); err != nil {
		return nil, "", err
	}
	if err := req.CheckSignature(); err != nil {
		return nil, "", err
	}
	return req.PublicKey, "", nil
}
