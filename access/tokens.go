package access

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// DefaultTokenTTL is how long an access token is valid by default.
	DefaultTokenTTL = 15 * time.Minute
	// MinTokenTTL is the shortest life of a token that is of use.
	MinTokenTTL = time.Minute
	// MaxTokenTTL is the longest life of a token. Its holder can get the next one with the
	// credential that it was issued for, which lasts longer.
	MaxTokenTTL = time.Hour
	// MaxScope bounds the devices of one token, because each adds a few filters to the
	// permissions of the session.
	MaxScope = 100
	// maxLiveTokens bounds the tokens of one source that are valid at the same time.
	maxLiveTokens = 100
	// tokenIssuer and tokenAudience distinguish the server's tokens from those of other issuers.
	tokenIssuer   = "countersign"
	tokenAudience = "countersign:connect"
)

// Token is the record of an access token, the right to connect for a short time. The token
// itself is a JWT (RFC 7519) under a key that only the nodes have, so only they can verify
// it.
type Token struct {
	ID        string
	Subject   string // device id, or operator/<name>
	Source    string // the credential that it was issued for, as kind:id
	Fleet     string
	Devices   []string // scope of an operator's; none for a device's
	ReadOnly  bool     // its holder may only subscribe
	IssuedAt  time.Time
	IssuedPos countersign.Position // of the log, when it was issued
	ExpiresAt time.Time
	RevokedAt time.Time // zero: it was not

	// Until is when the credential that it is issued for expires, and with it the token;
	// zero: never. Only Issue reads it.
	Until time.Time
}

// Credential returns the name of the token in verdicts and sessions.
func (t *Token) Credential() string { return "token:" + t.ID }

// Tokens makes, checks and revokes access tokens.
type Tokens struct {
	DB  *store.DB
	Now func() time.Time
	Key []byte // 32 octets
}

// claims are the claims of a token. What it permits is read from the record.
type claims struct {
	jwt.Claims
	Fleet   string   `json:"fleet"`
	Devices []string `json:"devices,omitempty"`
}

// Issue records a token and returns its text, which is not stored. The devices of its scope
// must be of one fleet, which becomes the token's; a token for a device has no scope and
// must have the fleet set. Issue returns BadRequest for a ttl or scope out of bounds,
// NotFound for an unknown device, and RateLimited if the source has maxLiveTokens already.
func (t *Tokens) Issue(ctx context.Context, tx *store.Tx, k Token, ttl time.Duration) (Token, string, error) {
	if ttl < MinTokenTTL || ttl > MaxTokenTTL {
		return k, "", countersign.Errorf(countersign.BadRequest, "a life of %s is not between %s and %s", ttl, MinTokenTTL, MaxTokenTTL).
			WithNext("choose another one")
	}
	now := t.Now().UTC().Truncate(time.Microsecond)
	k.ID, k.IssuedAt, k.ExpiresAt = strings.ToLower(rand.Text()), now, now.Add(ttl)
	if !k.Until.IsZero() && k.Until.Before(k.ExpiresAt) {
		k.ExpiresAt = k.Until.UTC().Truncate(time.Microsecond)
	}
	if err := t.checkScope(ctx, tx, &k); err != nil {
		return k, "", err
	}
	live, err := store.Count(ctx, tx, `SELECT COUNT(*) FROM access_token WHERE source = $1 AND expires_at > $2 AND revoked_at = 0`, k.Source, store.Micros(now))
	if err != nil {
		return k, "", fmt.Errorf("count access tokens: %w", err)
	}
	if live >= maxLiveTokens {
		return k, "", countersign.Errorf(countersign.RateLimited, "%d access tokens of this source are valid now, which is the limit", live).
			WithNext("use one of them, or wait").WithRetry(MinTokenTTL)
	}
	devices, err := json.Marshal(k.Devices)
	if err != nil {
		return k, "", fmt.Errorf("encode a scope: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO access_token (id, subject, source, fleet, devices, read_only, issued_at, expires_at, revoked_at, issued_pos)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, `+event.PositionSQL+`)`,
		k.ID, k.Subject, k.Source, k.Fleet, string(devices), k.ReadOnly, store.Micros(k.IssuedAt), store.Micros(k.ExpiresAt))
	if err != nil {
		return k, "", fmt.Errorf("record an access token: %w", err)
	}
	text, err := t.sign(k)
	return k, text, err
}

// checkScope checks that the devices are on record and of one fleet.
func (t *Tokens) checkScope(ctx context.Context, tx *store.Tx, k *Token) error {
	if len(k.Devices) > MaxScope {
		return countersign.Errorf(countersign.BadRequest, "%d devices are more than %d", len(k.Devices), MaxScope).WithNext("ask for several tokens")
	}
	slices.Sort(k.Devices)
	k.Devices = slices.Compact(k.Devices)
	for _, id := range k.Devices {
		var fleet string
		err := tx.QueryRow(ctx, `SELECT fleet FROM device WHERE id = $1`, id).Scan(&fleet)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return countersign.Errorf(countersign.NotFound, "there is no device %.140q", id).WithNext("list the devices")
		case err != nil:
			return fmt.Errorf("read device %.140q: %w", id, err)
		case k.Fleet != "" && fleet != k.Fleet:
			return countersign.Errorf(countersign.BadRequest, "device %s is not of fleet %s", id, k.Fleet).WithNext("ask for one token for each fleet")
		}
		k.Fleet = fleet
	}
	return nil
}

func (t *Tokens) sign(k Token) (string, error) {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: t.Key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("sign an access token: %w", err)
	}
	text, err := jwt.Signed(s).Claims(claims{Claims: jwt.Claims{
		Issuer: tokenIssuer, Audience: jwt.Audience{tokenAudience}, Subject: k.Subject, ID: k.ID,
		IssuedAt: jwt.NewNumericDate(k.IssuedAt), Expiry: jwt.NewNumericDate(k.ExpiresAt),
	}, Fleet: k.Fleet, Devices: k.Devices}).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign an access token: %w", err)
	}
	return text, nil
}

// Verify returns the record of a token that a client presents. It returns BadCredential for
// a token that this server did not issue or that was altered, and CredentialExpire for one
// that was revoked or has expired. The latter is no guess: a web page that keeps
// presenting it must not get its address blocked.
func (t *Tokens) Verify(ctx context.Context, text string) (Token, error) {
	bad := countersign.Errorf(countersign.BadCredential, "the access token was not issued by this server").WithNext("ask for a new one")
	if len(text) > maxTokenText {
		return Token{}, bad
	}
	parsed, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		return Token{}, bad
	}
	var c claims
	if err := parsed.Claims(t.Key, &c); err != nil {
		return Token{}, bad
	}
	expected := jwt.Expected{Issuer: tokenIssuer, AnyAudience: jwt.Audience{tokenAudience}, Time: t.Now()}
	switch err := c.ValidateWithLeeway(expected, clockSkew); {
	case errors.Is(err, jwt.ErrExpired):
		return Token{}, expiredToken()
	case err != nil || c.Expiry == nil: // it is signed with the right key, so it is no guess
		return Token{}, countersign.Errorf(countersign.CredentialExpire, "the access token is not valid now, or not for connections").WithNext("ask for a new one")
	}
	k, err := t.Get(ctx, t.DB, c.ID)
	switch {
	case countersign.CodeOf(err) == countersign.NotFound:
		return Token{}, expiredToken() // it is signed with the right key, and Prune has deleted its record
	case err != nil:
		return Token{}, err
	case !k.RevokedAt.IsZero():
		return k, countersign.Errorf(countersign.CredentialExpire, "the access token was revoked").WithNext("ask for a new one")
	case !t.Now().Before(k.ExpiresAt):
		return k, expiredToken()
	}
	return k, nil
}

func expiredToken() error {
	return countersign.Errorf(countersign.CredentialExpire, "the access token has expired").WithNext("ask for a new one")
}

//nolint:gosec // names of columns
const tokenColumns = `id, subject, source, fleet, devices, read_only, issued_at, expires_at, revoked_at, issued_pos`

func scanToken(row store.Row) (k Token, err error) {
	var devices string
	var issued, expires, revoked int64
	if err := row.Scan(&k.ID, &k.Subject, &k.Source, &k.Fleet, &devices, &k.ReadOnly, &issued, &expires, &revoked, &k.IssuedPos); err != nil {
		return k, store.Wrap(err)
	}
	k.IssuedAt, k.ExpiresAt, k.RevokedAt = store.Time(issued), store.Time(expires), store.Time(revoked)
	err = json.Unmarshal([]byte(devices), &k.Devices)
	return k, err
}

// Get reads one token. It returns NotFound if there is none.
func (t *Tokens) Get(ctx context.Context, rd store.Reader, id string) (Token, error) {
	k, err := scanToken(rd.QueryRow(ctx, `SELECT `+tokenColumns+` FROM access_token WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return k, noToken(id)
	}
	if err != nil {
		return k, fmt.Errorf("read access token %.40q: %w", id, err)
	}
	return k, nil
}

func noToken(id string) error {
	return countersign.Errorf(countersign.NotFound, "there is no access token %.40q", id).WithNext("list the access tokens")
}

// Revoke ends a token. It is no error if the token was revoked before.
func (t *Tokens) Revoke(ctx context.Context, tx *store.Tx, id string) (Token, error) {
	k, err := scanToken(tx.QueryRow(ctx, `UPDATE access_token SET revoked_at = CASE WHEN revoked_at = 0 THEN $2 ELSE revoked_at END
		WHERE id = $1 RETURNING `+tokenColumns, id, store.Micros(t.Now())))
	if errors.Is(err, sql.ErrNoRows) {
		return k, noToken(id)
	}
	if err != nil {
		return k, fmt.Errorf("revoke access token %.40q: %w", id, err)
	}
	return k, nil
}

// RevokeSource ends all tokens of a source that are valid now and returns them.
func (t *Tokens) RevokeSource(ctx context.Context, tx *store.Tx, source string) (list []Token, err error) {
	list, err = store.List(ctx, tx, scanToken, `UPDATE access_token SET revoked_at = $2 WHERE source = $1 AND expires_at > $2 AND revoked_at = 0 RETURNING `+tokenColumns,
		source, store.Micros(t.Now()))
	if err != nil {
		return nil, fmt.Errorf("revoke access tokens: %w", err)
	}
	return list, nil
}

// List reads one page of the tokens that are valid now. They are sorted by id and begin
// after the id after. next is empty on the last page.
func (t *Tokens) List(ctx context.Context, after string, limit int) (list []Token, next string, err error) {
	limit = store.PageSize(limit)
	list, err = store.List(ctx, t.DB, scanToken, `SELECT `+tokenColumns+` FROM access_token WHERE id > $1 AND expires_at > $2 AND revoked_at = 0 ORDER BY id LIMIT $3`,
		after, store.Micros(t.Now()), limit+1)
	if err != nil {
		return nil, "", fmt.Errorf("list access tokens: %w", err)
	}
	list, next = store.Page(list, limit, func(k *Token) string { return k.ID })
	return list, next, nil
}

// Prune deletes tokens that expired more than a day ago.
func (t *Tokens) Prune(ctx context.Context) error {
	err := t.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM access_token WHERE expires_at < $1`, store.Micros(t.Now().Add(-24*time.Hour)))
		return err
	})
	if err != nil {
		return fmt.Errorf("forget access tokens: %w", err)
	}
	return nil
}
