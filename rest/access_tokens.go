package rest

import (
	"cmp"
	"context"
	"time"

	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/danielgtaylor/huma/v2"
)

func (s *Server) routeAccessTokens(a huma.API) {
	const tag = "Access tokens"
	route(s, a, get("/access-tokens", tag, "List the access tokens that are good now"), s.listAccessTokens)
	route(s, a, add("/access-tokens", tag, "Make a token with which a web application connects to the devices named"), s.createAccessToken)
	route(s, a, act("/access-tokens/{id}/revoke", tag, "End a token and its sessions at once"), s.revokeAccessToken)
}

func (s *Server) listAccessTokens(ctx context.Context, in *api.Paging) (api.Page[api.AccessToken], error) {
	list, next, err := s.Provisioner.Tokens.List(ctx, in.After, limitOf(*in))
	return page(list, next, shapeAccessToken), err
}

func (s *Server) createAccessToken(ctx context.Context, in *struct{ Body api.NewAccessToken }) (api.IssuedAccessToken, error) {
	c, _ := ctx.Value(callerKey).(caller)
	k := access.Token{
		Subject: operatorSubject(c.name), Source: provision.OperatorSource(cmp.Or(c.token, c.name)),
		Devices: in.Body.Devices, Until: c.until, ReadOnly: in.Body.ReadOnly || !c.role.May(operator.Control),
	}
	ttl := cmp.Or(time.Duration(in.Body.TTLSeconds)*time.Second, access.DefaultTokenTTL)
	made, text, err := s.Provisioner.CreateAccessToken(ctx, k, ttl, s.by(ctx))
	return IssuedAccessToken(made, text), err
}

func (s *Server) revokeAccessToken(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"64"`
},
) (api.AccessToken, error) {
	k, err := s.Provisioner.RevokeAccessToken(ctx, in.ID, s.by(ctx))
	return shapeAccessToken(k), err
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
