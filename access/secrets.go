package access

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

const (
	// SecretPrefix starts every secret that we make as text, so that a leaked one is
	// recognized by secret scanners and by people.
	SecretPrefix = "csds_"
	// secretOctets of randomness: none is guessed, and a fast hash is enough.
	secretOctets = 32
	secretText   = 43 // octets of that in base64, unpadded

	// MaxSecret is the longest that a CONNECT carries (MQTT 5, 3.1.3.6).
	MaxSecret = 65535
	// minPassword is the shortest that somebody may bring along: NIST SP 800-63B, 3.1.1.2.
	minPassword = 8

	// DefaultSecretOverlap is how long a secret that was rotated is still good.
	DefaultSecretOverlap = 24 * time.Hour
	// MaxSecretOverlap bounds it: two that are good for ever are not a rotation.
	MaxSecretOverlap = 30 * 24 * time.Hour
	minSecretTTL     = time.Minute
	// MaxSecretTTL bounds a secret that is to end by itself: longer is for ever.
	MaxSecretTTL = 10 * 365 * 24 * time.Hour

	// maxSecrets bounds what a device may have: in each of two slots the present one,
	// and the one that it has been rotated from.
	maxSecrets = 4
	// keepStopped is how many of a device's stopped secrets are remembered, so that
	// whoever shows one is told so.
	keepStopped = 4
	// maxReason bounds an operator's words on why a secret was stopped.
	maxReason = 200
	// changePause is how soon a device may change its own secret again.
	changePause = time.Minute

	secretActive  = "active"
	secretStopped = "stopped"
)

// Slot is one of the two places that a device has for secrets.
type Slot = attest.KeySlot

// Secret is what a device proves itself with when it connects, without the secret.
type Secret struct {
	ID        string
	Device    string
	Slot      Slot
	Kind      countersign.AccessKind // AccessSecret: made by us; AccessPassword: brought along
	SCRAM     bool                   // it can be used without being sent
	State     string                 // active, stopped
	Reason    string                 // why it was stopped
	CreatedBy countersign.Actor
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
	UsedAt    time.Time // last accepted connection; zero if never
}

// Credential is its name in verdicts and cuts.
func (s *Secret) Credential() string { return "secret:" + s.ID }

// Active says that it was not stopped; its time may be over.
func (s *Secret) Active() bool { return s.State == secretActive }

// SecretOrder is a secret to be made.
type SecretOrder struct {
	Device string
	Slot   Slot          // empty: primary
	Given  []byte        // brought along, any octets; nil: one is drawn
	Binary bool          // the one that is drawn is 32 raw octets and not text
	TTL    time.Duration // zero: it does not end by itself
	// Rotate replaces the slot's present secret, which stays good for Overlap. Else
	// the slot must be free.
	Rotate  bool
	Overlap time.Duration
	By      countersign.Actor
}

// NewSecret is a secret that is not on record yet.
type NewSecret struct {
	Secret
	Text []byte // the secret itself, which is kept nowhere; nil if it was brought along

	order    SecretOrder
	verifier []byte
	scram    []byte
}

// PrepareSecret makes a secret. It takes the time of a hash, so it is done before the
// transaction that records it.
func (d *Decider) PrepareSecret(ctx context.Context, o SecretOrder) (NewSecret, error) {
	n := NewSecret{order: o, Secret: Secret{
		Device: o.Device, Slot: o.Slot, Kind: countersign.AccessSecret, State: secretActive, CreatedBy: o.By, CreatedAt: d.Now().UTC().Truncate(time.Microsecond),
	}}
	if n.Slot == "" {
		n.Slot = attest.Primary
	}
	if d.Sealer == nil {
		return n, countersign.Errorf(countersign.Unavailable, "this server keeps no secrets")
	}
	if err := o.check(n.Slot); err != nil {
		return n, err
	}
	if o.TTL > 0 {
		n.ExpiresAt = n.CreatedAt.Add(o.TTL)
	}
	var raw [8]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return n, fmt.Errorf("couldn't draw an id: %w", err)
	}
	n.ID = hex.EncodeToString(raw[:])
	if o.Given != nil {
		return n, d.hashGiven(ctx, &n)
	}
	return n, d.draw(&n)
}

func (o *SecretOrder) check(slot attest.KeySlot) error {
	bad := func(format string, args ...any) *countersign.Error {
		return countersign.Errorf(countersign.BadRequest, format, args...)
	}
	switch {
	case slot != attest.Primary && slot != attest.Secondary:
		return bad("slot %.20q is neither primary nor secondary", slot)
	case o.TTL != 0 && (o.TTL < minSecretTTL || o.TTL > MaxSecretTTL):
		return bad("ttl %v is not between %v and %v", o.TTL, minSecretTTL, MaxSecretTTL)
	case o.Overlap < 0 || o.Overlap > MaxSecretOverlap:
		return bad("overlap %v is not between 0 and %v", o.Overlap, MaxSecretOverlap)
	case o.Given == nil:
		return nil
	case len(o.Given) < minPassword || len(o.Given) > MaxSecret:
		return bad("the secret has %d octets, not %d to %d", len(o.Given), minPassword, MaxSecret)
	case strings.HasPrefix(string(o.Given), SecretPrefix), looksLikeToken(o.Given), looksLikeSAS(o.Given):
		return bad("a secret that is brought along may not look like a token or like one that is made here").WithNext("choose another, or have one made")
	case string(o.Given) == o.Device:
		return bad("the secret is the device's id").WithNext("choose another, or have one made")
	}
	return nil
}

func (d *Decider) hashGiven(ctx context.Context, n *NewSecret) error {
	n.Kind = countersign.AccessPassword
	var failed error
	err := d.hasher.run(ctx, d.Now, regular{device: n.Device}, func() { n.verifier, failed = argonRecord(n.order.Given) })
	return errors.Join(err, failed)
}

func (d *Decider) draw(n *NewSecret) (err error) {
	raw := make([]byte, secretOctets)
	if _, err := rand.Read(raw); err != nil {
		return fmt.Errorf("couldn't draw a secret: %w", err)
	}
	n.Text = raw
	if !n.order.Binary {
		n.Text = []byte(SecretPrefix + base64.RawURLEncoding.EncodeToString(raw))
		keys, err := d.scramKeysOf(n.Device, string(n.Text))
		if err != nil {
			return err
		}
		n.scram, n.SCRAM = d.Sealer.Seal(keys, scramContext(n.ID)), true
	}
	n.verifier, err = d.secretHash(n.Device, n.Text)
	return err
}

// SaveSecret records a secret, with the device locked, and gives those that it stops.
func (d *Decider) SaveSecret(ctx context.Context, tx *store.Tx, n NewSecret) (stopped []Secret, err error) {
	now := d.Now()
	all, err := d.Secrets(ctx, tx, n.Device)
	if err != nil {
		return nil, err
	}
	inSlot := slices.DeleteFunc(all, func(s Secret) bool { return s.State != secretActive || s.Slot != n.Slot })
	for i := range inSlot { // the newest first: that is the present one
		s := &inSlot[i]
		over := !s.ExpiresAt.IsZero() && !now.Before(s.ExpiresAt)
		switch {
		case i > 0 || over:
			err = d.stopSecret(ctx, tx, s, "rotated")
		case !n.order.Rotate:
			return nil, countersign.Errorf(countersign.Conflict, "device %s has a secret in slot %s", n.Device, n.Slot).
				WithNext("rotate it: countersign device secret rotate " + n.Device)
		case n.order.Overlap == 0:
			err = d.stopSecret(ctx, tx, s, "rotated")
		default:
			err = d.endSecret(ctx, tx, s, now.Add(n.order.Overlap))
		}
		if err != nil {
			return nil, err
		}
		if s.State == secretStopped {
			stopped = append(stopped, *s)
		}
	}
	_, err = tx.Exec(ctx, `INSERT INTO device_secret (id, device, slot, kind, verifier, scram, state, reason, created_by, created_at, expires_at, used_at, created_pos)
		VALUES ($1, $2, $3, $4, $5, $6, $7, '', $8, $9, $10, 0, `+event.PositionSQL+`)`,
		n.ID, n.Device, string(n.Slot), string(n.Kind), n.verifier, n.scram, secretActive, string(n.CreatedBy), store.Micros(n.CreatedAt), store.Micros(n.ExpiresAt))
	if err != nil {
		return nil, fmt.Errorf("couldn't record a secret: %w", err)
	}
	return stopped, d.forgetSecrets(ctx, tx, n.Device)
}

// forgetSecrets keeps the newest of a device's stopped secrets.
func (d *Decider) forgetSecrets(ctx context.Context, tx *store.Tx, device string) error {
	_, err := tx.Exec(ctx, `DELETE FROM device_secret WHERE device = $1 AND state = $2 AND id NOT IN (
		SELECT id FROM device_secret WHERE device = $1 AND state = $2 ORDER BY created_pos DESC, created_at DESC, id LIMIT $3)`, device, secretStopped, keepStopped)
	if err != nil {
		return fmt.Errorf("couldn't clear old secrets: %w", err)
	}
	return nil
}

func (d *Decider) endSecret(ctx context.Context, tx *store.Tx, s *Secret, at time.Time) error {
	if s.ExpiresAt.IsZero() || at.Before(s.ExpiresAt) {
		s.ExpiresAt = at
	}
	if _, err := tx.Exec(ctx, `UPDATE device_secret SET expires_at = $2 WHERE id = $1`, s.ID, store.Micros(s.ExpiresAt)); err != nil {
		return fmt.Errorf("couldn't end secret %s: %w", s.ID, err)
	}
	return nil
}

func (d *Decider) stopSecret(ctx context.Context, tx *store.Tx, s *Secret, why string) error {
	n, err := tx.Exec(ctx, `UPDATE device_secret SET state = $2, reason = $3 WHERE id = $1 AND state = $4`, s.ID, secretStopped, why, secretActive)
	if err != nil {
		return fmt.Errorf("couldn't stop secret %s: %w", s.ID, err)
	}
	if n != 1 {
		return countersign.Errorf(countersign.Conflict, "secret %s is stopped already", s.ID)
	}
	s.State, s.Reason = secretStopped, why
	return nil
}

// StopSecret ends one secret of a device for good.
func (d *Decider) StopSecret(ctx context.Context, tx *store.Tx, device, id, why string) (Secret, error) {
	s, err := scanSecret(tx.QueryRow(ctx, `SELECT `+secretColumns+` FROM device_secret WHERE id = $1 AND device = $2`, id, device))
	if errors.Is(err, sql.ErrNoRows) {
		return s, countersign.Errorf(countersign.NotFound, "device %.140q has no secret %.40q", device, id).
			WithNext("list them with: countersign device secret list " + device)
	}
	if err != nil {
		return s, fmt.Errorf("couldn't read secret %s: %w", id, err)
	}
	why = strings.ToValidUTF8(strings.ReplaceAll(why[:min(len(why), maxReason)], "\x00", ""), "")
	return s, d.stopSecret(ctx, tx, &s, why)
}

// StopSecrets ends all secrets of a device, and gives those that it stopped.
func (d *Decider) StopSecrets(ctx context.Context, tx *store.Tx, device, why string) ([]Secret, error) {
	all, err := d.Secrets(ctx, tx, device)
	if err != nil {
		return nil, err
	}
	active := slices.DeleteFunc(all, func(s Secret) bool { return s.State != secretActive })
	for i := range active {
		if err := d.stopSecret(ctx, tx, &active[i], why); err != nil {
			return nil, err
		}
	}
	return active, nil
}

// OverdueSecrets are active ones whose time is over, at most limit.
func (d *Decider) OverdueSecrets(ctx context.Context, limit int) ([]Secret, error) {
	return d.querySecrets(ctx, d.DB, `WHERE state = 'active' AND expires_at > 0 AND expires_at <= $1 ORDER BY id LIMIT $2`, store.Micros(d.Now()), limit)
}

// Secrets lists the secrets of a device, the newest first, and those stopped last.
func (d *Decider) Secrets(ctx context.Context, rd store.Reader, device string) ([]Secret, error) {
	return d.querySecrets(ctx, rd, `WHERE device = $1 ORDER BY created_pos DESC, created_at DESC, id LIMIT $2`, device, 2*(maxSecrets+keepStopped))
}

// MayChange refuses a device that changes its own secret too often.
func (d *Decider) MayChange(ctx context.Context, tx *store.Tx, device string) error {
	all, err := d.Secrets(ctx, tx, device)
	if err != nil {
		return err
	}
	for i := range all {
		next := all[i].CreatedAt.Add(changePause)
		if all[i].CreatedBy == countersign.DeviceActor(device) && d.Now().Before(next) {
			return countersign.Errorf(countersign.RateLimited, "the device changed its secret less than %v ago", changePause).
				WithNext("try again later").WithRetry(next.Sub(d.Now()))
		}
	}
	return nil
}

// UsedSecrets records when secrets were last used, by their ids.
func (d *Decider) UsedSecrets(ctx context.Context, tx *store.Tx, used map[string]time.Time) error {
	for _, id := range slices.Sorted(maps.Keys(used)) { // in order, for two nodes that do it at once
		if _, err := tx.Exec(ctx, `UPDATE device_secret SET used_at = $2 WHERE id = $1 AND used_at < $2`, id, store.Micros(used[id])); err != nil {
			return fmt.Errorf("couldn't record the use of secret %s: %w", id, err)
		}
	}
	return nil
}

//nolint:gosec // names of columns
const secretColumns = `id, device, slot, kind, scram IS NOT NULL, state, reason, created_by, created_at, expires_at, used_at`

func (d *Decider) querySecrets(ctx context.Context, rd store.Reader, rest string, args ...any) (list []Secret, err error) {
	list, err = store.List(ctx, rd, scanSecret, `SELECT `+secretColumns+` FROM device_secret `+rest, args...)
	if err != nil {
		return nil, fmt.Errorf("couldn't read secrets: %w", err)
	}
	return list, nil
}

func scanSecret(row store.Row) (s Secret, err error) {
	var created, expires, used int64
	err = row.Scan(&s.ID, &s.Device, &s.Slot, &s.Kind, &s.SCRAM, &s.State, &s.Reason, &s.CreatedBy, &created, &expires, &used)
	s.CreatedAt, s.ExpiresAt, s.UsedAt = store.Time(created), store.Time(expires), store.Time(used)
	if err != nil {
		err = store.Wrap(err)
	}
	return s, err
}
