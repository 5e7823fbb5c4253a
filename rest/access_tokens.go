package rest

import (
	"cmp"
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
)

// accessTokens serves access tokens and introductions.
type accessTokens struct {
	ra          *ra.Authority
	provisioner *provision.Provisioner
}

func (a *accessTokens) list(ctx context.Context, in *api.Paging) (api.Page[api.AccessToken], error) {
	return asPage(ra.ShapeAccessToken)(a.provisioner.Tokens.List(ctx, in.After, limitOf(*in)))
}

func (a *accessTokens) create(ctx context.Context, in *body[api.NewAccessToken]) (api.IssuedAccessToken, error) {
	c := callerOf(ctx)
	k := access.Token{
		Subject: operatorSubject(c.name), Source: provision.OperatorSource(cmp.Or(c.token, c.name)),
		Devices: in.Body.Devices, Until: c.until, ReadOnly: in.Body.ReadOnly || !c.role.May(operator.Control),
	}
	ttl := cmp.Or(time.Duration(in.Body.TTLSeconds)*time.Second, access.DefaultTokenTTL)
	made, text, err := a.provisioner.CreateAccessToken(ctx, k, ttl, byOf(ctx))
	return ra.IssuedAccessToken(made, text), err
}

func (a *accessTokens) revoke(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"64"`
},
) (api.AccessToken, error) {
	return as(ra.ShapeAccessToken)(a.provisioner.RevokeAccessToken(ctx, in.ID, byOf(ctx)))
}

// operatorSubject is an operator as the subject of a token and of its sessions.
func operatorSubject(name string) string { return "operator/" + name }

func (a *accessTokens) introduce(ctx context.Context, in *body[api.NewIntroduction]) (api.SignedIntroduction, error) {
	if in.Body.Device == "" {
		return api.SignedIntroduction{}, countersign.Errorf(countersign.BadRequest, "an operator names both devices").WithNext("add device")
	}
	return a.ra.IntroduceBoth(ctx, in.Body, byOf(ctx))
}
