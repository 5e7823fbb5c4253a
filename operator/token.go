package operator

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// TokenPrefix starts every operator token so that a leaked one is recognized by
// secret scanners and by people.
const TokenPrefix = "csop_"

// A token is TokenPrefix, its id and 256 random bits. The id is in it to find
// the row without asking the database about the secret, whose comparison must
// take the same time however much of it is right.
const (
	idLen     = 16 // 80 bits in base32
	secretLen = 52 // 256 bits in base32
	tokenLen  = len(TokenPrefix) + idLen + secretLen
)

// The bounds of a token's life: long enough for a first command, short enough
// that a forgotten one dies.
const (
	minTTL = time.Minute
	maxTTL = 365 * 24 * time.Hour
)

// usedEvery bounds the writes that a busy token causes: its last use is known to the
// minute.
const usedEvery = time.Minute

// Token is an operator token without its secret.
type Token struct {
	ID        string
	Name      string // who or what uses it; in events it is operator:<name>
	Role      Role
	CreatedAt time.Time
	ExpiresAt time.Time
	UsedAt    time.Time // to the minute; zero if never
	Revoked   bool
}

// Accounts keeps the operator tokens.
type Accounts struct {
	DB  *store.DB
	Now func() time.Time
	Log *slog.Logger // nil discards
}

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Create records a new token within tx. The secret is in no other answer and in
// no record: only its SHA-256 is kept, which is enough for 256 random bits.
func (d *Accounts) Create(ctx context.Context, tx *store.Tx, name string, role Role, ttl time.Duration) (t Token, secret string, err error) {
	if err := countersign.CheckName(name); err != nil {
		return Token{}, "", err
	}
	if err := CheckRole(role); err != nil {
		return Token{}, "", err
	}
	if ttl < minTTL || ttl > maxTTL {
		return Token{}, "", countersign.Errorf(countersign.BadRequest, "a life of %s is not between %s and %s", ttl, minTTL, maxTTL).
			WithNext("choose another one")
	}
	var id [idLen * 5 / 8]byte
	var random [32]byte
	_, _ = rand.Read(id[:]) // never fails
	_, _ = rand.Read(random[:])
	now := d.Now().UTC().Truncate(time.Microsecond)
	t = Token{ID: encoding.EncodeToString(id[:]), Name: name, Role: role, CreatedAt: now, ExpiresAt: now.Add(ttl)}
	secret = TokenPrefix + t.ID + encoding.EncodeToString(random[:])
	sum := sha256.Sum256([]byte(secret))
	_, err = tx.Exec(ctx, `INSERT INTO operator_token (id, name, role, hash, created_at, expires_at, used_at, revoked)
		VALUES ($1, $2, $3, $4, $5, $6, 0, FALSE)`,
		t.ID, t.Name, string(t.Role), sum[:], store.Micros(t.CreatedAt), store.Micros(t.ExpiresAt))
	if err != nil {
		return Token{}, "", fmt.Errorf("couldn't record operator token: %w", err)
	}
	return t, secret, nil
}

// errWrong is the one answer for all tokens that are not good, and never were
// known to be, so that a stranger learns nothing.
func errWrong() *countersign.Error {
	return countersign.Errorf(countersign.BadCredential, "the operator token is wrong").
		WithNext("ask an admin for a new one")
}

// errStopped marks the refusal of a token that was right and has been revoked.
var errStopped = errors.New("the operator token was revoked")

// Authenticate finds the token with this secret. It refuses with BadCredential a
// secret that is wrong or revoked, with CredentialExpire one that was good once.
func (d *Accounts) Authenticate(ctx context.Context, secret string) (Token, error) {
	if secret == "" {
		return Token{}, countersign.Errorf(countersign.Unauthenticated, "no operator token was shown").
			WithNext("send one as Authorization: Bearer")
	}
	if len(secret) != tokenLen || !strings.HasPrefix(secret, TokenPrefix) {
		return Token{}, errWrong()
	}
	var hash []byte
	id := secret[len(TokenPrefix) : len(TokenPrefix)+idLen]
	t, err := scan(d.DB.QueryRow(ctx, `SELECT `+columns+`, hash FROM operator_token WHERE id = $1`, id), &hash)
	if err := store.RowError(err, nil, "couldn't look up operator token"); err != nil {
		return Token{}, err
	}
	sum := sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(sum[:], hash) != 1 {
		return Token{}, errWrong()
	}
	if t.Revoked {
		return Token{}, errWrong().WithCause(errStopped)
	}
	now := d.Now()
	if !now.Before(t.ExpiresAt) {
		return Token{}, countersign.Errorf(countersign.CredentialExpire, "the operator token expired at %s", t.ExpiresAt.Format(time.RFC3339)).
			WithNext("ask an admin for a new one")
	}
	if now.Sub(t.UsedAt) >= usedEvery {
		d.markUsed(ctx, t.ID, now)
	}
	return t, nil
}

// markUsed keeps an operator out for no failure: on a full disk they are needed most.
func (d *Accounts) markUsed(ctx context.Context, id string, now time.Time) {
	err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE operator_token SET used_at = $1 WHERE id = $2 AND used_at < $1`, store.Micros(now), id)
		return err
	})
	if err != nil && d.Log != nil {
		d.Log.WarnContext(ctx, "couldn't note the use of an operator token", "token", id, "error", err)
	}
}

// Revoke ends a token at once. Again is no error.
func (d *Accounts) Revoke(ctx context.Context, tx *store.Tx, id string) (Token, error) {
	t, err := scan(tx.QueryRow(ctx, `UPDATE operator_token SET revoked = TRUE WHERE id = $1 RETURNING `+columns, id))
	missing := countersign.Errorf(countersign.NotFound, "there is no operator token %.40q", id).WithNext("list the tokens")
	return t, store.RowError(err, missing, "couldn't revoke operator token")
}

// Revoked says within tx whether there is a token with this id that was revoked.
func (d *Accounts) Revoked(ctx context.Context, tx *store.Tx, id string) (revoked bool, err error) {
	err = tx.QueryRow(ctx, `SELECT revoked FROM operator_token WHERE id = $1`, id).Scan(&revoked)
	return revoked, store.RowError(err, nil, "couldn't read operator token")
}

// List reads tokens by id, those after the id after; next is empty on the last
// page.
func (d *Accounts) List(ctx context.Context, after string, limit int) (list []Token, next string, err error) {
	limit = store.PageSize(limit)
	list, err = store.List(ctx, d.DB, func(row store.Row) (Token, error) { return scan(row) },
		`SELECT `+columns+` FROM operator_token WHERE id > $1 ORDER BY id LIMIT $2`, after, limit+1)
	if err != nil {
		return nil, "", fmt.Errorf("couldn't list operator tokens: %w", err)
	}
	list, next = store.Page(list, limit, func(t *Token) string { return t.ID })
	return list, next, nil
}

const columns = `id, name, role, created_at, expires_at, used_at, revoked`

func scan(row store.Row, extra ...any) (t Token, err error) {
	var created, expires, used int64
	dest := []any{&t.ID, &t.Name, &t.Role, &created, &expires, &used, &t.Revoked}
	if err := row.Scan(append(dest, extra...)...); err != nil {
		return Token{}, err
	}
	t.CreatedAt, t.ExpiresAt, t.UsedAt = store.Time(created), store.Time(expires), store.Time(used)
	return t, nil
}
