package provision

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
)

// CreateOperatorToken makes an operator token and returns it with its secret.
func (p *Provisioner) CreateOperatorToken(ctx context.Context, t operator.Token, ttl time.Duration, by ra.By) (made operator.Token, secret string, err error) {
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if made, secret, err = p.Operators.Create(ctx, tx, t.Name, t.Role, ttl); err != nil {
			return err
		}
		e := by.Event(countersign.OperatorTokenAdded)
		e.Data = map[string]string{"token": made.ID, "name": made.Name, "role": string(made.Role)}
		return p.Events.Append(ctx, tx, e)
	})
	return made, secret, err
}

// RevokeOperatorToken ends an operator token at once, and the access tokens that
// were given out for it.
func (p *Provisioner) RevokeOperatorToken(ctx context.Context, id string, by ra.By) (t operator.Token, err error) {
	err = p.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Lock(ctx, OperatorSource(id)); err != nil { // see CreateAccessToken
			return err
		}
		if t, err = p.Operators.Revoke(ctx, tx, id); err != nil {
			return err
		}
		e := by.Event(countersign.OperatorTokenRevoked)
		e.Data = map[string]string{"token": t.ID, "name": t.Name}
		ended, err := p.Registry.StopSource(ctx, tx, OperatorSource(t.ID), "the operator token that made it was revoked")
		if err != nil {
			return err
		}
		e.Data["credentials"] = strconv.Itoa(ended)
		given, err := ra.EndTokens(ctx, tx, p.Tokens, OperatorSource(t.ID), by)
		if err != nil {
			return err
		}
		return p.Events.Append(ctx, tx, append([]countersign.Event{e}, given...)...)
	})
	return t, err
}

// OperatorSource is the source of access tokens that were given out for an
// operator token.
func OperatorSource(id string) string { return operatorSource + id }

const operatorSource = "operator_token:"

// CreateAccessToken makes an access token; see access.Tokens. It refuses with
// BadCredential where the operator token that it is for was revoked meanwhile.
func (p *Provisioner) CreateAccessToken(ctx context.Context, k access.Token, ttl time.Duration, by ra.By) (made access.Token, text string, err error) {
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		// Else one that is given out while its source is revoked would be missed there.
		if err := tx.Lock(ctx, k.Source); err != nil {
			return err
		}
		if id, ok := strings.CutPrefix(k.Source, operatorSource); ok {
			switch revoked, err := p.Operators.Revoked(ctx, tx, id); {
			case err != nil:
				return err
			case revoked:
				return countersign.Errorf(countersign.BadCredential, "the operator token was revoked").WithNext("ask an admin for a new one")
			}
		}
		if made, text, err = p.Tokens.Issue(ctx, tx, k, ttl); err != nil {
			return err
		}
		return p.Events.Append(ctx, tx, ra.TokenEvent(countersign.AccessTokenIssued, made, by))
	})
	return made, text, err
}

// RevokeAccessToken ends an access token at once, with the sessions that rest on it.
func (p *Provisioner) RevokeAccessToken(ctx context.Context, id string, by ra.By) (k access.Token, err error) {
	err = p.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		if k, err = p.Tokens.Revoke(ctx, tx, id); err != nil {
			return err
		}
		return p.Events.Append(ctx, tx, ra.TokenEvent(countersign.AccessTokenRevoked, k, by))
	})
	return k, err
}
