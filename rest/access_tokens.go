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
	return asPage(shapeAccessToken)(a.provisioner.Tokens.List(ctx, in.After, limitOf(*in)))
}

func (a *accessTokens) create(ctx context.Context, in *body[api.NewAccessToken]) (api.IssuedAccessToken, error) {
	c := callerOf(ctx)
	k := access.Token{
		Subject: operatorSubject(c.name), Source: provision.OperatorSource(cmp.Or(c.token, c.name)),
		Devices: in.Body.Devices, Until: c.until, ReadOnly: in.Body.ReadOnly || !c.role.May(operator.Control),
	}
	ttl := cmp.Or(time.Duration(in.Body.TTLSeconds)*time.Second, access.DefaultTokenTTL)
	made, text, err := a.provisioner.CreateAccessToken(ctx, k, ttl, byOf(ctx))
	return IssuedAccessToken(made, text), err
}

func (a *accessTokens) revoke(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"64"`
},
) (api.AccessToken, error) {
	return as(shapeAccessToken)(a.provisioner.RevokeAccessToken(ctx, in.ID, byOf(ctx)))
}

// operatorSubject is an operator as the subject of a token and of its sessions.
func operatorSubject(name string) string { return "operator/" + name }

// IssuedAccessToken is the answer that shows the text of a new token.
func IssuedAccessToken(k access.Token, text string) api.IssuedAccessToken {
	return api.IssuedAccessToken{AccessToken: shapeAccessToken(k), Token: text}
}

func shapeAccessToken(k access.Token) api.AccessToken {
	return api.AccessToken{
		ID: k.ID, Subject: k.Subject, Fleet: k.Fleet, Devices: append([]string{}, k.Devices...), ReadOnly: k.ReadOnly,
		IssuedAt: k.IssuedAt.UTC(), ExpiresAt: k.ExpiresAt.UTC(), RevokedAt: k.RevokedAt.UTC(),
	}
}

func (a *accessTokens) introduce(ctx context.Context, in *body[api.NewIntroduction]) (api.SignedIntroduction, error) {
	if in.Body.Device == "" {
		return api.SignedIntroduction{}, countersign.Errorf(countersign.BadRequest, "an operator names both devices").WithNext("add device")
	}
	return a.ra.IntroduceBoth(ctx, Introduction(in.Body), byOf(ctx))
}

// Introduction reads the request for an introduction.
func Introduction(in api.NewIntroduction) ra.Introduction {
	return ra.Introduction{Device: in.Device, Peer: in.Peer, Purpose: in.Purpose, TTL: time.Duration(in.TTLSeconds) * time.Second}
}
