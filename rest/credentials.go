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
	"github.com/danielgtaylor/huma/v2"
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

func (s *Server) routeCredentials(a huma.API) {
	const tag = "Credentials"
	route(s, a, get("/credentials", tag, "List what earns a first certificate, newest first, without secrets"), s.listCredentials)
	route(s, a, get("/credentials/{id}", tag, "Get a credential without its secret"), s.getCredential)
	route(s, a, act("/credentials/{id}/stop", tag, "End a credential at once"), s.stopCredential)
	route(s, a, get("/tokens", tag, "List enrollment tokens, newest first"), s.listTokens)
	route(s, a, add("/tokens", tag, "Make an enrollment token; only this answer holds its secret").upTo(maxListBody), s.createToken)
	route(s, a, add("/tokens/bulk", tag, "Make a token for each of many devices; all or none").upTo(maxBulkBody), s.createTokens)
	route(s, a, add("/claims", tag, "Issue a claim certificate; only this answer holds its key").upTo(maxListBody), s.createClaim)
	route(s, a, add("/keys", tag, "Register the symmetric key of a device; only this answer holds it"), s.createKey)
	route(s, a, add("/group-keys", tag, "Register a key from which those of many devices are derived"), s.createGroupKey)
	route(s, a, add("/thumbprints", tag, "Register a device's self-signed certificate"), s.createThumbprint)
	route(s, a, add("/tpms", tag, "Register the endorsement key of a TPM"), s.createTPM)
}

func (s *Server) listCredentials(ctx context.Context, in *struct {
	api.CredentialFilter
	api.Paging
},
) (api.Page[api.Credential], error) {
	list, next, err := s.Registry.Credentials(ctx, registry.CredentialFilter{
		Kind: countersign.Method(in.Kind), Fleet: in.Fleet, Device: in.Device, After: in.After, Limit: limitOf(in.Paging),
	})
	return page(list, next, shapeCredential), err
}

func (s *Server) listTokens(ctx context.Context, in *api.Paging) (api.Page[api.Credential], error) {
	list, next, err := s.Registry.Credentials(ctx, registry.CredentialFilter{Kind: countersign.MethodToken, After: in.After, Limit: limitOf(*in)})
	return page(list, next, shapeCredential), err
}

func (s *Server) getCredential(ctx context.Context, in *CredentialID) (api.Credential, error) {
	c, err := s.Registry.Credential(ctx, s.Registry.DB, in.ID)
	return shapeCredential(c), err
}

func (s *Server) stopCredential(ctx context.Context, in *struct {
	CredentialID
	Body *api.Act `required:"false"`
},
) (api.StoppedCredential, error) {
	why := ""
	if in.Body != nil {
		why = in.Body.Note
	}
	c, done, err := s.Provisioner.StopCredential(ctx, in.ID, why, s.by(ctx))
	return api.StoppedCredential{Credential: shapeCredential(c), Sessions: done.Sessions, Already: done.Already}, err
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

func (s *Server) createToken(ctx context.Context, in *struct{ Body api.NewToken }) (api.IssuedToken, error) {
	b := in.Body
	c, ttl, err := bounded(api.Bounds{
		Fleet: b.Fleet, Label: b.Label, Uses: b.Uses, TTLSeconds: b.TTLSeconds, NotBefore: b.NotBefore, PerMinute: b.PerMinute, Networks: b.Networks,
	})
	if err != nil {
		return api.IssuedToken{}, err
	}
	if b.Device != "" && len(b.Devices) > 0 {
		return api.IssuedToken{}, countersign.Errorf(countersign.BadRequest, "a token is bound to one device, or to several").WithNext("give device or devices")
	}
	c.Device, c.Devices = b.Device, b.Devices
	made, secret, err := s.Provisioner.CreateToken(ctx, c, ttl, s.by(ctx))
	return api.IssuedToken{Credential: shapeCredential(made), Secret: secret}, err
}

func (s *Server) createTokens(ctx context.Context, in *struct{ Body api.NewTokens }) (api.IssuedTokens, error) {
	c, ttl, err := bounded(in.Body.Bounds)
	if err != nil {
		return api.IssuedTokens{}, err
	}
	secrets, err := s.Provisioner.CreateTokens(ctx, c, in.Body.IDs, ttl, s.by(ctx))
	if err != nil {
		return api.IssuedTokens{}, err
	}
	out := api.IssuedTokens{Tokens: make([]api.DeviceToken, 0, len(secrets))}
	for i, secret := range secrets {
		out.Tokens = append(out.Tokens, api.DeviceToken{ID: in.Body.IDs[i], Token: secret})
	}
	return out, nil
}

func (s *Server) createClaim(ctx context.Context, in *struct{ Body api.NewClaim }) (api.IssuedClaim, error) {
	c, ttl, err := bounded(in.Body.Bounds)
	if err != nil {
		return api.IssuedClaim{}, err
	}
	c.Devices = in.Body.Devices
	start := s.Now()
	if c.NotBefore.After(start) {
		start = c.NotBefore
	}
	c.ExpiresAt = start.Add(ttl)
	var csr []byte
	if in.Body.CSR != "" {
		if csr, err = pkcs10.Decode([]byte(in.Body.CSR)); err != nil {
			return api.IssuedClaim{}, err
		}
	}
	made, err := s.Provisioner.CreateClaim(ctx, c, csr, in.Body.Temporary, s.by(ctx))
	return api.IssuedClaim{Credential: shapeCredential(made.Credential), Chain: made.Chain, Key: made.Key}, err
}

func (s *Server) createKey(ctx context.Context, in *struct{ Body api.NewKey }) (api.IssuedKey, error) {
	b := in.Body
	c := registry.Credential{Kind: countersign.MethodKey, Device: b.Device, Fleet: b.Fleet, Label: b.Label}
	return s.key(ctx, c, provision.SymmetricKeys{Primary: b.Primary, Secondary: b.Secondary})
}

func (s *Server) createGroupKey(ctx context.Context, in *struct{ Body api.NewGroupKey }) (api.IssuedKey, error) {
	b := in.Body
	c := registry.Credential{Kind: countersign.MethodGroup, Fleet: b.Fleet, Label: b.Label}
	return s.key(ctx, c, provision.SymmetricKeys{Primary: b.Primary, Secondary: b.Secondary})
}

func (s *Server) key(ctx context.Context, c registry.Credential, k provision.SymmetricKeys) (api.IssuedKey, error) {
	made, k, err := s.Provisioner.CreateKey(ctx, c, k, s.by(ctx))
	if err != nil {
		return api.IssuedKey{}, err
	}
	return api.IssuedKey{Credential: shapeCredential(made), Primary: k.Primary, Secondary: k.Secondary}, nil
}

func (s *Server) createThumbprint(ctx context.Context, in *struct{ Body api.NewThumbprint }) (api.Credential, error) {
	b := in.Body
	c, err := s.Provisioner.CreateThumbprint(ctx, registry.Credential{Device: b.Device, Fleet: b.Fleet, Label: b.Label}, b.Primary, b.Secondary, s.by(ctx))
	return shapeCredential(c), err
}

func (s *Server) createTPM(ctx context.Context, in *struct{ Body api.NewTPM }) (api.Credential, error) {
	b := in.Body
	if len(b.EKPublic) > 0 && b.EKHash != "" {
		return api.Credential{}, countersign.Errorf(countersign.BadRequest, "an endorsement key and a hash were given").WithNext("give one of them")
	}
	c, err := s.Provisioner.CreateTPM(ctx, registry.Credential{Device: b.Device, Fleet: b.Fleet, Label: b.Label}, b.EKPublic, b.EKHash, s.by(ctx))
	return shapeCredential(c), err
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
