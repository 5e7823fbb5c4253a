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

// certificateSource is the source of those that a device got with its certificate.
func certificateSource(ref countersign.CertRef) string { return "certificate:" + ref.String() }

// TokenEvent returns an event about an access token.
func TokenEvent(t countersign.EventType, k access.Token, by By) countersign.Event {
	e := by.Event(t)
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

// EndTokens ends the access tokens of a source; nil tokens: there are none.
func EndTokens(ctx context.Context, tx *store.Tx, tokens *access.Tokens, source string, by By) ([]countersign.Event, error) {
	if tokens == nil {
		return nil, nil
	}
	given, err := tokens.RevokeSource(ctx, tx, source)
	events := make([]countersign.Event, 0, len(given))
	for _, k := range given {
		events = append(events, TokenEvent(countersign.AccessTokenRevoked, k, by))
	}
	return events, err
}
