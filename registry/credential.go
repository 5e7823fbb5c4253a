package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

const (
	// tokenOctets of randomness: a token is never guessed, so its hash needs no salt
	// and no slow function.
	tokenOctets = 32
	// MaxUses bounds what one leaked credential can admit.
	MaxUses = 100_000
	// MaxTTL bounds for how long.
	MaxTTL = 366 * 24 * time.Hour
	// maxTokenText is the longest token that is hashed at all.
	maxTokenText = 256
	// maxNetworks and maxPatterns bound the lists that every use is held against.
	maxNetworks = 64
	maxPatterns = 1000
	// MaxPerMinute bounds a rate that is worth the name.
	MaxPerMinute = 60_000
)

// Credential is what earns a first certificate, as the registry keeps it: by a
// fingerprint, never by the secret. Its kind is the method of enrollment.
type Credential struct {
	ID        string
	Kind      countersign.Method
	Fleet     string
	Device    string // bound to this id; empty: any that Devices allow
	Label     string // the operator's name for it
	NotBefore time.Time
	ExpiresAt time.Time // zero: never
	UsesMax   int       // 0: any number, for keys that belong to one device
	Uses      int
	PerMinute int // 0: any rate
	Networks  []netip.Prefix
	Devices   []string // ids, patterns with * and ?, ranges such as pump-0001..pump-0500; empty: any
	State     CredentialState
	Reason    string // why it is stopped
	Source    string // kind:id of what it ends with; empty: nothing
	CreatedBy countersign.Actor
	CreatedAt time.Time
	// CreatedPos is the position of the log when it was made. By it a token for a
	// device that was revoked is known to be newer than the revocation.
	CreatedPos countersign.Position

	lookup, second string // fingerprints by which evidence finds it
	sealed         []byte // symmetric keys, sealed
}

// CredentialState reports whether a credential may be used.
type CredentialState string

// The states of a credential. Stopped is the end.
const (
	CredentialActive  CredentialState = "active"
	CredentialStopped CredentialState = "stopped"
)

// Evidence is the name of the credential in events and certificates.
func (c *Credential) Evidence() string { return string(c.Kind) + ":" + c.ID }

// CreateToken adds a one-time token and returns it with its secret, which is kept
// nowhere. ttl counts from now, or from NotBefore where that is later.
func (r *Registry) CreateToken(ctx context.Context, tx *store.Tx, c Credential, ttl time.Duration) (Credential, string, error) {
	if ttl < time.Second || ttl > MaxTTL {
		return c, "", countersign.Errorf(countersign.BadRequest, "ttl %v is not between 1s and %v", ttl, MaxTTL)
	}
	if c.UsesMax < 1 {
		return c, "", countersign.Errorf(countersign.BadRequest, "uses %d is not between 1 and %d", c.UsesMax, MaxUses)
	}
	var b [tokenOctets]byte
	if _, err := rand.Read(b[:]); err != nil {
		return c, "", fmt.Errorf("draw a token: %w", err)
	}
	secret := countersign.TokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	c.Kind = countersign.MethodToken
	start := r.Now()
	if c.NotBefore.After(start) {
		start = c.NotBefore
	}
	c.ExpiresAt = start.Add(ttl)
	c, err := r.CreateCredential(ctx, tx, c, Lookup{First: tokenHash(secret)})
	return c, secret, err
}

// Lookup is what a credential is found by and, for symmetric keys, holds.
type Lookup struct {
	First  string // unique among active credentials of the kind
	Second string // another fingerprint that finds it too; may be empty
	Sealed []byte // see keystore.Sealer
}

// CreateCredential adds a credential. Conflict if an active one of its kind has the
// same lookup already; a stopped one may be followed by another.
func (r *Registry) CreateCredential(ctx context.Context, tx *store.Tx, c Credential, l Lookup) (Credential, error) {
	if err := c.check(); err != nil {
		return c, err
	}
	fleet, err := r.Fleet(ctx, tx, c.Fleet)
	if err != nil {
		return c, err
	}
	if err := r.checkBound(ctx, tx, fleet, c.Device); err != nil {
		return c, err
	}
	c.Networks = countersign.NormalNetworks(c.Networks)
	if err := r.fingerprintsFree(ctx, tx, c.Kind, l); err != nil {
		return c, err
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return c, fmt.Errorf("draw an id: %w", err)
	}
	c.ID, c.Uses, c.State, c.CreatedAt = hex.EncodeToString(id[:]), 0, CredentialActive, r.Now()
	networks, err := json.Marshal(c.Networks)
	if err != nil {
		return c, fmt.Errorf("encode networks: %w", err)
	}
	devices, err := json.Marshal(c.Devices)
	if err != nil {
		return c, fmt.Errorf("encode devices: %w", err)
	}
	err = tx.QueryRow(ctx, `INSERT INTO credential (id, kind, lookup, second, sealed, fleet, device, label, not_before, expires_at, uses_max, uses,
			per_minute, networks, devices, state, reason, created_by, created_at, created_pos, source)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, $12, $13, $14, $15, '', $16, $17, `+event.PositionSQL+`, $18)
		ON CONFLICT (kind, lookup) WHERE state = 'active' DO NOTHING RETURNING created_pos`,
		c.ID, string(c.Kind), l.First, l.Second, l.Sealed, c.Fleet, c.Device, c.Label, store.Micros(c.NotBefore), store.Micros(c.ExpiresAt), c.UsesMax,
		c.PerMinute, string(networks), string(devices), string(c.State), string(c.CreatedBy), store.Micros(c.CreatedAt), c.Source).Scan(&c.CreatedPos)
	return c, store.RowError(err, errRegistered(c.Kind), "record a "+string(c.Kind))
}

// checkBound refuses to bind a credential to a device that it could not create.
func (r *Registry) checkBound(ctx context.Context, tx *store.Tx, fleet countersign.Fleet, device string) error {
	if device == "" {
		return nil
	}
	_, err := r.Device(ctx, tx, device)
	if countersign.CodeOf(err) == countersign.NotFound {
		return r.CheckNew(ctx, tx, fleet, device)
	}
	return err
}

func errRegistered(kind countersign.Method) error {
	return countersign.Errorf(countersign.Conflict, "this %s is registered already", kind).WithNext("look for it in the list of credentials")
}

// fingerprintsFree refuses a fingerprint that finds an active credential of the
// kind, first or second: evidence must not name two devices. Only kinds that have
// second ones pay for the lock; the index keeps first ones apart.
func (r *Registry) fingerprintsFree(ctx context.Context, tx *store.Tx, kind countersign.Method, l Lookup) error {
	if kind != countersign.MethodThumbprint {
		return nil
	}
	if err := tx.Lock(ctx, "credential:"+string(kind)); err != nil {
		return err
	}
	for _, f := range []string{l.First, l.Second} {
		c, err := r.Find(ctx, tx, kind, f)
		switch {
		case countersign.CodeOf(err) == countersign.NotFound:
		case err != nil:
			return err
		case c.State == CredentialActive:
			return errRegistered(kind)
		}
	}
	return nil
}

func (c *Credential) check() error {
	bad := func(format string, args ...any) error {
		return countersign.Errorf(countersign.BadRequest, format, args...)
	}
	switch {
	case !slices.Contains(methods, c.Kind): // a list by fleet has those only
		return bad("there is no credential of kind %.40q", c.Kind)
	case c.UsesMax < 0 || c.UsesMax > MaxUses:
		return bad("uses %d is not between 1 and %d", c.UsesMax, MaxUses)
	case c.PerMinute < 0 || c.PerMinute > MaxPerMinute:
		return bad("rate %d is not between 1 and %d per minute", c.PerMinute, MaxPerMinute)
	case !c.ExpiresAt.IsZero() && !c.ExpiresAt.After(c.NotBefore):
		return bad("it would expire before it starts")
	case len(c.Networks) > maxNetworks:
		return bad("%d networks are more than %d", len(c.Networks), maxNetworks)
	case len(c.Devices) > maxPatterns:
		return bad("%d device patterns are more than %d", len(c.Devices), maxPatterns)
	case len(c.Label) > maxText || !printable(c.Label):
		return bad("the label is longer than %d octets, or not text", maxText)
	}
	if c.Device != "" {
		if !countersign.IsDeviceID(c.Device) {
			return countersign.CheckDeviceID(c.Device)
		}
	}
	for _, p := range c.Devices {
		if err := checkPattern(p); err != nil {
			return err
		}
	}
	return nil
}

// checkPattern accepts an id, a pattern with * and ?, or a range of two ids of
// the same length that differ in a run of digits at their end.
func checkPattern(p string) error {
	if from, to, ok := strings.Cut(p, ".."); ok {
		if _, _, _, err := parseRange(from, to); err != nil {
			return err
		}
		return nil
	}
	plain := strings.NewReplacer("*", "", "?", "").Replace(p)
	if plain != "" && !countersign.IsDeviceID(plain) || len(p) > countersign.MaxDeviceID || p == "" {
		return countersign.Errorf(countersign.BadRequest, "device pattern %.140q is neither an id, a pattern with * and ?, nor a range such as pump-0001..pump-0500", p)
	}
	return nil
}

func parseRange(from, to string) (prefix, low, high string, err error) {
	i := len(from)
	for i > 0 && from[i-1] >= '0' && from[i-1] <= '9' {
		i--
	}
	digits := len(from) - i
	prefix, low = from[:i], from[i:]
	high, ok := strings.CutPrefix(to, prefix)
	if !ok || digits == 0 || len(high) != digits || strings.Trim(high, "0123456789") != "" || low > high || !countersign.IsDeviceID(from) {
		return "", "", "", countersign.Errorf(countersign.BadRequest, "range %.140q..%.140q is not two ids of one length that count up at their end", from, to)
	}
	return prefix, low, high, nil
}

// Covers reports whether the credential may enroll the device.
func (c *Credential) Covers(device string) bool {
	if c.Device != "" {
		return c.Device == device
	}
	if len(c.Devices) == 0 {
		return true
	}
	for _, p := range c.Devices {
		if from, to, ok := strings.Cut(p, ".."); ok {
			prefix, low, high, err := parseRange(from, to)
			n, under := strings.CutPrefix(device, prefix)
			if err == nil && under && len(n) == len(low) && strings.Trim(n, "0123456789") == "" && low <= n && n <= high {
				return true
			}
			continue
		}
		// Ids have no slash and no bracket, so path.Match knows * and ? only.
		if ok, err := path.Match(p, device); err == nil && ok {
			return true
		}
	}
	return false
}

// Usable reports whether the credential can be used at now from addr.
func (c *Credential) Usable(now time.Time, addr netip.Addr) error {
	again := "ask the operator for another one"
	switch {
	case c.State != CredentialActive:
		return stopped(c.Kind)
	case now.Before(c.NotBefore):
		return countersign.Errorf(countersign.CredentialExpire, "the %s is not valid before %s", c.Kind, c.NotBefore.UTC().Format(time.RFC3339)).WithNext("try again then")
	case !c.ExpiresAt.IsZero() && now.After(c.ExpiresAt):
		return countersign.Errorf(countersign.CredentialExpire, "the %s expired at %s", c.Kind, c.ExpiresAt.UTC().Format(time.RFC3339)).WithNext(again)
	case !countersign.Contains(c.Networks, addr):
		return countersign.Errorf(countersign.NotAllowed, "the %s may not be used from this address", c.Kind).WithNext("use it in the network it was made for")
	case c.UsesMax > 0 && c.Uses >= c.UsesMax:
		return countersign.Errorf(countersign.CredentialSpent, "the %s has been used %d of %d times", c.Kind, c.Uses, c.UsesMax).WithNext(again)
	}
	return nil
}

// Spend uses a credential once. Of two that race for the last use one gets
// CredentialSpent; one that was stopped meanwhile is refused.
func (r *Registry) Spend(ctx context.Context, tx *store.Tx, c Credential) error {
	n, err := tx.Exec(ctx, `UPDATE credential SET uses = uses + 1 WHERE id = $1 AND state = 'active' AND (uses_max = 0 OR uses < uses_max)`, c.ID)
	if err != nil {
		return fmt.Errorf("spend %s %s: %w", c.Kind, c.ID, err)
	}
	if n != 1 {
		return countersign.Errorf(countersign.CredentialSpent, "the %s has been used %d of %d times, or was stopped", c.Kind, c.UsesMax, c.UsesMax).
			WithNext("ask the operator for another one")
	}
	return nil
}

// SpendAgain counts as a use of a credential that its device has spent already. It
// refuses one that was stopped meanwhile.
func (r *Registry) SpendAgain(ctx context.Context, tx *store.Tx, c Credential) error {
	now, err := r.Credential(ctx, tx, c.ID)
	if err == nil && now.State != CredentialActive {
		err = stopped(c.Kind)
	}
	return err
}

// Bind binds a credential that was registered without a device to the first one that it
// enrolls: a chip is in one device. It refuses another with NotAllowed.
func (r *Registry) Bind(ctx context.Context, tx *store.Tx, c Credential, device string) error {
	n, err := tx.Exec(ctx, `UPDATE credential SET device = $2 WHERE id = $1 AND device IN ('', $2)`, c.ID, device)
	if err != nil {
		return fmt.Errorf("bind %s %s to %s: %w", c.Kind, c.ID, device, err)
	}
	if n != 1 {
		return countersign.Errorf(countersign.NotAllowed, "the %s has enrolled another device", c.Kind).
			WithNext("register it anew if it was built into another device")
	}
	return nil
}

func stopped(kind countersign.Method) error {
	return countersign.Errorf(countersign.CredentialExpire, "the %s has been stopped", kind).WithNext("ask the operator for another one")
}

// StopSource ends the tokens and claims that were made with source and returns their
// number. What is registered for one device stays: it is that device's identity.
func (r *Registry) StopSource(ctx context.Context, tx *store.Tx, source, why string) (int, error) {
	n, err := tx.Exec(ctx, `UPDATE credential SET state = $2, reason = $3 WHERE source = $1 AND state = 'active' AND kind IN ('token', 'claim')`,
		source, string(CredentialStopped), clip(why))
	if err != nil {
		return 0, fmt.Errorf("stop what was made with %s: %w", source, err)
	}
	return int(n), nil
}

// Stop ends a credential for good and says why.
func (r *Registry) Stop(ctx context.Context, tx *store.Tx, id, why string) (Credential, error) {
	c, err := r.Credential(ctx, tx, id)
	if err != nil {
		return c, err
	}
	stopped := countersign.Errorf(countersign.Conflict, "%s %s is stopped already", c.Kind, id)
	if c.State == CredentialStopped {
		return c, stopped
	}
	c.State, c.Reason = CredentialStopped, clip(why)
	n, err := tx.Exec(ctx, `UPDATE credential SET state = $2, reason = $3 WHERE id = $1 AND state = 'active'`, id, string(c.State), c.Reason)
	if err != nil {
		return c, fmt.Errorf("stop %s %s: %w", c.Kind, id, err)
	}
	if n != 1 {
		return c, stopped
	}
	return c, nil
}

// tokenHash is looked up in the database, so no comparison of ours can leak time:
// who could steer the index would have to steer SHA-256.
func tokenHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// TokenBySecret finds the token that a device showed: BadCredential if there is
// none. It does not look at its bounds.
func (r *Registry) TokenBySecret(ctx context.Context, rd store.Reader, secret string) (Credential, error) {
	if len(secret) > maxTokenText {
		return Credential{}, badToken()
	}
	c, err := r.Find(ctx, rd, countersign.MethodToken, tokenHash(secret))
	if countersign.CodeOf(err) == countersign.NotFound {
		return c, badToken()
	}
	return c, err
}

func badToken() error {
	return countersign.Errorf(countersign.BadCredential, "the enrollment token is not one of ours").
		WithNext("ask the operator for a new token")
}
