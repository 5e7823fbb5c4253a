package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// tokenOctets of randomness: a token is never guessed, so its hash needs no salt
	// and no slow function.
	tokenOctets = 32
	// MaxTokenUses bounds what one leaked token can admit.
	MaxTokenUses = 100_000
	// MaxTokenTTL bounds for how long.
	MaxTokenTTL = 366 * 24 * time.Hour
	// maxTokenText is the longest token that is hashed at all.
	maxTokenText = 256
)

// Token is an enrollment token as the registry keeps it: without the secret.
type Token struct {
	ID        string
	Fleet     string
	Device    string // empty: any device
	UsesMax   int
	Uses      int
	CreatedBy countersign.Actor
	CreatedAt time.Time
	ExpiresAt time.Time
}

// CreateToken adds a token and gives it with its secret, which is kept nowhere.
// Fleet, Device, UsesMax and CreatedBy are taken from t; ttl counts from now.
func (r *Registry) CreateToken(ctx context.Context, tx *store.Tx, t Token, ttl time.Duration) (Token, string, error) {
	switch {
	case t.UsesMax < 1 || t.UsesMax > MaxTokenUses:
		return t, "", countersign.Errorf(countersign.BadRequest, "uses %d is not between 1 and %d", t.UsesMax, MaxTokenUses)
	case ttl < time.Second || ttl > MaxTokenTTL:
		return t, "", countersign.Errorf(countersign.BadRequest, "ttl %v is not between 1s and %v", ttl, MaxTokenTTL)
	}
	if t.Device != "" {
		if err := countersign.CheckDeviceID(t.Device); err != nil {
			return t, "", err
		}
	}
	if _, err := r.Fleet(ctx, tx, t.Fleet); err != nil {
		return t, "", err
	}
	var b [tokenOctets + 8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return t, "", fmt.Errorf("draw a token: %w", err)
	}
	secret := countersign.TokenPrefix + base64.RawURLEncoding.EncodeToString(b[:tokenOctets])
	t.ID = hex.EncodeToString(b[tokenOctets:])
	t.Uses, t.CreatedAt = 0, r.Now()
	t.ExpiresAt = t.CreatedAt.Add(ttl)
	_, err := tx.Exec(ctx, `INSERT INTO enrollment_token (id, hash, fleet, device, uses_max, uses, created_by, created_at, expires_at)
		VALUES ($1, $2, $3, $4, $5, 0, $6, $7, $8)`,
		t.ID, tokenHash(secret), t.Fleet, t.Device, t.UsesMax, string(t.CreatedBy), store.Micros(t.CreatedAt), store.Micros(t.ExpiresAt))
	if err != nil {
		return t, "", fmt.Errorf("record token: %w", err)
	}
	return t, secret, nil
}

// tokenHash is looked up in the database, so no comparison of ours can leak time:
// who could steer the index would have to steer SHA-256.
func tokenHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

const tokenColumns = `id, fleet, device, uses_max, uses, created_by, created_at, expires_at` //nolint:gosec // names of columns

func scanToken(row interface{ Scan(dest ...any) error }) (t Token, err error) {
	var created, expires int64
	err = row.Scan(&t.ID, &t.Fleet, &t.Device, &t.UsesMax, &t.Uses, &t.CreatedBy, &created, &expires)
	t.CreatedAt, t.ExpiresAt = store.Time(created), store.Time(expires)
	return t, store.Wrap(err)
}

// TokenBySecret finds the token that a device showed: BadCredential if there is
// none. It does not look at expiry or uses.
func (r *Registry) TokenBySecret(ctx context.Context, rd store.Reader, secret string) (Token, error) {
	if len(secret) > maxTokenText {
		return Token{}, badToken()
	}
	t, err := scanToken(rd.QueryRow(ctx, `SELECT `+tokenColumns+` FROM enrollment_token WHERE hash = $1`, tokenHash(secret)))
	if errors.Is(err, sql.ErrNoRows) {
		return t, badToken()
	}
	if err != nil {
		return t, fmt.Errorf("look up a token: %w", err)
	}
	return t, nil
}

func badToken() error {
	return countersign.Errorf(countersign.BadCredential, "the enrollment token is not one of ours").
		WithNext("ask the operator for a new token: countersign enroll token")
}

// Usable says whether a token can still be spent at now.
func (t *Token) Usable(now time.Time) error {
	switch {
	case now.After(t.ExpiresAt):
		return countersign.Errorf(countersign.CredentialExpire, "the enrollment token expired at %s", t.ExpiresAt.UTC().Format(time.RFC3339)).
			WithNext("ask the operator for a new token: countersign enroll token")
	case t.Uses >= t.UsesMax:
		return spent(t.UsesMax)
	}
	return nil
}

func spent(uses int) error {
	return countersign.Errorf(countersign.CredentialSpent, "the enrollment token has been used as often as it may be: %d times", uses).
		WithNext("ask the operator for a new token: countersign enroll token")
}

// Spend uses a token once. Of two that race for the last use one gets CredentialSpent.
func (r *Registry) Spend(ctx context.Context, tx *store.Tx, t Token) error {
	n, err := tx.Exec(ctx, `UPDATE enrollment_token SET uses = uses + 1 WHERE id = $1 AND uses < uses_max`, t.ID)
	if err != nil {
		return fmt.Errorf("spend token %s: %w", t.ID, err)
	}
	if n != 1 {
		return spent(t.UsesMax)
	}
	return nil
}

// Tokens lists tokens, newest first; after and next are the id of the last of a page.
// limit is at most maxPage; 0 is that.
func (r *Registry) Tokens(ctx context.Context, after string, limit int) (list []Token, next string, err error) {
	limit = pageOf(limit)
	q := `SELECT ` + tokenColumns + ` FROM enrollment_token ORDER BY created_at DESC, id DESC LIMIT $1`
	args := []any{limit + 1}
	if after != "" {
		q = `SELECT ` + tokenColumns + ` FROM enrollment_token
			WHERE (created_at, id) < (SELECT created_at, id FROM enrollment_token WHERE id = $2) ORDER BY created_at DESC, id DESC LIMIT $1`
		args = append(args, after)
	}
	rows, err := r.DB.Query(ctx, q, args...)
	if err != nil {
		return nil, "", fmt.Errorf("list tokens: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		t, err := scanToken(rows)
		if err != nil {
			return nil, "", fmt.Errorf("list tokens: %w", err)
		}
		list = append(list, t)
	}
	if len(list) > limit {
		list = list[:limit]
		next = list[limit-1].ID
	}
	return list, next, store.Wrap(rows.Err())
}
