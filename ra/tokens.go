package ra

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/store"
)

// OperatorSource is the source of access tokens that were given out for an
// operator token.
func OperatorSource(id string) string { return "operator_token:" + id }

// CreateAccessToken gives out an access token; see access.Tokens.
func (o *Office) CreateAccessToken(ctx context.Context, k access.Token, ttl time.Duration, by By) (made access.Token, text string, err error) {
	err = o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if made, text, err = o.Tokens.Issue(ctx, tx, k, ttl); err != nil {
			return err
		}
		return o.Events.Append(ctx, tx, tokenEvent(countersign.AccessTokenIssued, made, by))
	})
	return made, text, err
}

// RevokeAccessToken ends an access token at once, with the sessions that rest on it.
func (o *Office) RevokeAccessToken(ctx context.Context, id string, by By) (k access.Token, err error) {
	err = o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if k, err = o.Tokens.Revoke(ctx, tx, id); err != nil {
			return err
		}
		return o.Events.Append(ctx, tx, tokenEvent(countersign.AccessTokenRevoked, k, by))
	})
	return k, err
}

func tokenEvent(t countersign.EventType, k access.Token, by By) countersign.Event {
	e := by.event(t)
	e.Fleet = k.Fleet
	e.Data = map[string]string{
		"token": k.ID, "subject": k.Subject, "source": k.Source, "devices": strings.Join(k.Devices, " "),
		"read_only": strconv.FormatBool(k.ReadOnly), "expires_at": k.ExpiresAt.Format(time.RFC3339),
	}
	if !strings.Contains(k.Subject, "/") {
		e.Device = k.Subject
	}
	return e
}
