package rest

import (
	"cmp"
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/registry"
)

const (
	// defaultTTL of a token or a claim: time to carry it to the device.
	defaultTTL = time.Hour
	// maxBulkBody is room for api.MaxBulk device ids and the bounds.
	maxBulkBody = 256 << 10
	// maxListBody is room for a thousand patterns of a shared credential.
	maxListBody = 256 << 10
)

// CredentialID is a path parameter.
type CredentialID struct {
	ID string `path:"id" maxLength:"64"`
}

// noteOn is an act on a credential, or on an enrollment that waits, with a note.
type noteOn struct {
	CredentialID
	Body *api.Act `required:"false"`
}

// credentials serves what earns a first certificate.
type credentials struct {
	registry    *registry.Registry
	provisioner *provision.Provisioner
	now         func() time.Time
}

func (c *credentials) list(ctx context.Context, in *struct {
	api.CredentialFilter
	api.Paging
},
) (api.Page[api.Credential], error) {
	return asPage(shapeCredential)(c.registry.Credentials(ctx, registry.CredentialFilter{
		Kind: countersign.Method(in.Kind), Fleet: in.Fleet, Device: in.Device, After: in.After, Limit: limitOf(in.Paging),
	}))
}

func (c *credentials) tokens(ctx context.Context, in *api.Paging) (api.Page[api.Credential], error) {
	return asPage(shapeCredential)(c.registry.Credentials(ctx, registry.CredentialFilter{Kind: countersign.MethodToken, After: in.After, Limit: limitOf(*in)}))
}

func (c *credentials) get(ctx context.Context, in *CredentialID) (api.Credential, error) {
	return as(shapeCredential)(c.registry.Credential(ctx, c.registry.DB, in.ID))
}

func (c *credentials) stop(ctx context.Context, in *noteOn) (api.StoppedCredential, error) {
	stopped, done, err := c.provisioner.StopCredential(ctx, in.ID, value(in.Body).Note, byOf(ctx))
	return api.StoppedCredential{Credential: shapeCredential(stopped), Sessions: done.Sessions, Already: done.Already}, err
}

// bounded reads the bounds of a credential that is to be made.
func bounded(b api.Bounds) (registry.Credential, time.Duration, error) {
	c := registry.Credential{
		Fleet: b.Fleet, Label: b.Label, UsesMax: cmp.Or(b.Uses, 1), PerMinute: b.PerMinute, NotBefore: b.NotBefore,
	}
	for _, text := range b.Networks {
		p, err := countersign.ParseNetwork(text)
		if err != nil {
			return c, 0, err
		}
		c.Networks = append(c.Networks, p)
	}
	return c, cmp.Or(time.Duration(b.TTLSeconds)*time.Second, defaultTTL), nil
}

func (c *credentials) createToken(ctx context.Context, in *body[api.NewToken]) (api.IssuedToken, error) {
	b := in.Body
	cred, ttl, err := bounded(api.Bounds{
		Fleet: b.Fleet, Label: b.Label, Uses: b.Uses, TTLSeconds: b.TTLSeconds, NotBefore: b.NotBefore, PerMinute: b.PerMinute, Networks: b.Networks,
	})
	if err != nil {
		return api.IssuedToken{}, err
	}
	if b.Device != "" && len(b.Devices) > 0 {
		return api.IssuedToken{}, countersign.Errorf(countersign.BadRequest, "a token is bound to one device, or to several").WithNext("give device or devices")
	}
	cred.Device, cred.Devices = b.Device, b.Devices
	made, secret, err := c.provisioner.CreateToken(ctx, cred, ttl, byOf(ctx))
	return api.IssuedToken{Credential: shapeCredential(made), Secret: secret}, err
}

func (c *credentials) createTokens(ctx context.Context, in *body[api.NewTokens]) (api.IssuedTokens, error) {
	cred, ttl, err := bounded(in.Body.Bounds)
	if err != nil {
		return api.IssuedTokens{}, err
	}
	secrets, err := c.provisioner.CreateTokens(ctx, cred, in.Body.IDs, ttl, byOf(ctx))
	if err != nil {
		return api.IssuedTokens{}, err
	}
	out := api.IssuedTokens{Tokens: make([]api.DeviceToken, 0, len(secrets))}
	for i, secret := range secrets {
		out.Tokens = append(out.Tokens, api.DeviceToken{ID: in.Body.IDs[i], Token: secret})
	}
	return out, nil
}

func (c *credentials) createClaim(ctx context.Context, in *body[api.NewClaim]) (api.IssuedClaim, error) {
	cred, ttl, err := bounded(in.Body.Bounds)
	if err != nil {
		return api.IssuedClaim{}, err
	}
	cred.Devices = in.Body.Devices
	start := c.now()
	if cred.NotBefore.After(start) {
		start = cred.NotBefore
	}
	cred.ExpiresAt = start.Add(ttl)
	var csr []byte
	if in.Body.CSR != "" {
		if csr, err = pkcs10.Decode([]byte(in.Body.CSR)); err != nil {
			return api.IssuedClaim{}, err
		}
	}
	made, err := c.provisioner.CreateClaim(ctx, cred, csr, in.Body.Temporary, byOf(ctx))
	return api.IssuedClaim{Credential: shapeCredential(made.Credential), Chain: made.Chain, Key: made.Key}, err
}

func (c *credentials) createKey(ctx context.Context, in *body[api.NewKey]) (api.IssuedKey, error) {
	b := in.Body
	cred := registry.Credential{Kind: countersign.MethodKey, Device: b.Device, Fleet: b.Fleet, Label: b.Label}
	return c.key(ctx, cred, provision.SymmetricKeys{Primary: b.Primary, Secondary: b.Secondary})
}

func (c *credentials) createGroupKey(ctx context.Context, in *body[api.NewGroupKey]) (api.IssuedKey, error) {
	b := in.Body
	cred := registry.Credential{Kind: countersign.MethodGroup, Fleet: b.Fleet, Label: b.Label}
	return c.key(ctx, cred, provision.SymmetricKeys{Primary: b.Primary, Secondary: b.Secondary})
}

func (c *credentials) key(ctx context.Context, cred registry.Credential, k provision.SymmetricKeys) (api.IssuedKey, error) {
	made, k, err := c.provisioner.CreateKey(ctx, cred, k, byOf(ctx))
	if err != nil {
		return api.IssuedKey{}, err
	}
	return api.IssuedKey{Credential: shapeCredential(made), Primary: k.Primary, Secondary: k.Secondary}, nil
}

func (c *credentials) createThumbprint(ctx context.Context, in *body[api.NewThumbprint]) (api.Credential, error) {
	b := in.Body
	return as(shapeCredential)(c.provisioner.CreateThumbprint(ctx, registry.Credential{Device: b.Device, Fleet: b.Fleet, Label: b.Label}, b.Primary, b.Secondary, byOf(ctx)))
}

func (c *credentials) createTPM(ctx context.Context, in *body[api.NewTPM]) (api.Credential, error) {
	b := in.Body
	if len(b.EKPublic) > 0 && b.EKHash != "" {
		return api.Credential{}, countersign.Errorf(countersign.BadRequest, "an endorsement key and a hash were given").WithNext("give one of them")
	}
	return as(shapeCredential)(c.provisioner.CreateTPM(ctx, registry.Credential{Device: b.Device, Fleet: b.Fleet, Label: b.Label}, b.EKPublic, b.EKHash, byOf(ctx)))
}

func shapeCredential(c registry.Credential) api.Credential {
	out := api.Credential{
		ID: c.ID, Kind: string(c.Kind), Fleet: c.Fleet, Device: c.Device, Label: c.Label, State: string(c.State), Reason: c.Reason,
		Uses: c.UsesMax, Used: c.Uses, PerMinute: c.PerMinute, Devices: c.Devices, NotBefore: c.NotBefore.UTC(), ExpiresAt: c.ExpiresAt.UTC(),
		CreatedAt: c.CreatedAt.UTC(), CreatedBy: string(c.CreatedBy),
	}
	for _, p := range c.Networks {
		out.Networks = append(out.Networks, p.String())
	}
	return out
}
