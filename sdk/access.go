package sdk

import (
	"context"
	"iter"

	"github.com/countersign-iot/countersign/api"
)

// CreateAccessToken makes a token with which a web application connects to the
// devices named. The answer is the only one that holds its text.
func (a *Admin) CreateAccessToken(ctx context.Context, t api.NewAccessToken) (*api.IssuedAccessToken, error) {
	return post[api.IssuedAccessToken](ctx, a, "/access-tokens", t)
}

// AccessTokens lists the access tokens that are valid now.
func (a *Admin) AccessTokens(ctx context.Context) iter.Seq2[api.AccessToken, error] {
	return list[api.AccessToken](ctx, a, "/access-tokens", query())
}

// RevokeAccessToken ends an access token and its sessions at once.
func (a *Admin) RevokeAccessToken(ctx context.Context, id string) (*api.AccessToken, error) {
	return post[api.AccessToken](ctx, a, "/access-tokens/"+segment(id)+"/revoke", nil)
}

// Introduce introduces two devices to each other; they may be of two fleets. Each
// needs the signed form.
func (a *Admin) Introduce(ctx context.Context, i api.NewIntroduction) (*api.SignedIntroduction, error) {
	return post[api.SignedIntroduction](ctx, a, "/introductions", i)
}
