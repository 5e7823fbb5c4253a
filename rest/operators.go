package rest

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
)

// operators serves operator tokens.
type operators struct {
	accounts    *operator.Accounts
	provisioner *provision.Provisioner
}

func (o *operators) list(ctx context.Context, in *api.Paging) (api.Page[api.OperatorToken], error) {
	return asPage(shapeOperatorToken)(o.accounts.List(ctx, in.After, limitOf(*in)))
}

func (o *operators) create(ctx context.Context, in *body[api.NewOperatorToken]) (api.IssuedOperatorToken, error) {
	t := operator.Token{Name: in.Body.Name, Role: operator.Role(in.Body.Role)}
	made, secret, err := o.provisioner.CreateOperatorToken(ctx, t, time.Duration(in.Body.TTLSeconds)*time.Second, byOf(ctx))
	return api.IssuedOperatorToken{OperatorToken: shapeOperatorToken(made), Secret: secret}, err
}

func (o *operators) revoke(ctx context.Context, in *struct {
	ID string `path:"id" maxLength:"64"`
},
) (api.OperatorToken, error) {
	return as(shapeOperatorToken)(o.provisioner.RevokeOperatorToken(ctx, in.ID, byOf(ctx)))
}
