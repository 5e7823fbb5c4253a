package access

import (
	"cmp"
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
	// MaxSecret is the longest secret, in octets, that a CONNECT can carry (MQTT 5, 3.1.3.6).
	MaxSecret = 65535
	// minPassword is the shortest password, in octets: NIST SP 800-63B, 3.1.1.2.
	minPassword = 8

	// DefaultSecretOverlap is how long a secret stays valid after it was rotated.
	DefaultSecretOverlap = 24 * time.Hour
	// MaxSecretOverlap bounds the overlap: it must end, else nothing was rotated.
	MaxSecretOverlap = 30 * 24 * time.Hour
	minSecretTTL     = time.Minute
	// MaxSecretTTL bounds the life of a secret that expires. A longer one is like none.
	MaxSecretTTL = 10 * 365 * 24 * time.Hour

	// maxSecrets bounds the secrets of a device: in each of two slots the present one and
	// its predecessor.
	maxSecrets = 4
	// keepStopped is how many stopped secrets of a device are kept, so that a device that
	// presents one learns the reason.
	keepStopped = 4
	// maxReason bounds, in octets, an operator's reason for stopping a secret.
	maxReason = 200
	// changePause is how long a device must wait before it changes its own secret again.
	changePause = time.Minute

	secretActive  = "active"
	secretStopped = "stopped"
)

// Slot is one of the two places that a device has for secrets.
type Slot = attest.KeySlot

// Secret is the record of a secret that a device connects with. It does not contain the
// secret itself.
type Secret struct {
	ID        string
	Device    string
	Slot      Slot
	Kind      countersign.AccessKind // AccessSecret: made by the server; AccessPassword: chosen by a person
	SCRAM     bool                   // a client can prove it by SCRAM, without sending it
	State     string                 // active, stopped
	Reason    string                 // why it was stopped
	CreatedBy countersign.Actor
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
	UsedAt    time.Time // last accepted connection; zero if never

	verifier []byte // keyed hash, or argon2id in PHC form
	scram    []byte // sealed keys
	made     countersign.Position
}

// Credential returns the name of the secret in verdicts and cuts.
func (s *Secret) Credential() string { return "secret:" + s.ID }

// Active reports whether the secret was not stopped. It may have expired.
func (s *Secret) Active() bool { return s.State == secretActive }

// Ended reports whether the secret has expired.
func (s *Secret) Ended(now time.Time) bool { return !s.ExpiresAt.IsZero() && now.After(s.ExpiresAt) }

// SecretOrder describes a secret to be made.
type SecretOrder struct {
	Device string
	Slot   Slot          // empty: primary
	Given  []byte        // a chosen password, any octets; nil: the server makes a secret
	Binary bool          // a secret that the server makes is 32 raw octets and not text
	TTL    time.Duration // zero: it does not expire
	// Rotate replaces the slot's present secret, which stays valid for Overlap. Without
	// it the slot must be free.
	Rotate  bool
	Overlap time.Duration
	By      countersign.Actor
}

// NewSecret is a secret that is not on record yet.
type NewSecret struct {
	Secret
	Text []byte // the secret itself, which is not stored; nil for a chosen password

	order SecretOrder
}

// Prepare makes a secret. It may take the time of a password hash, so the caller must call
// it before the transaction that records the secret.
func (k *Secrets) Prepare(ctx context.Context, o SecretOrder) (NewSecret, error) {
	n := NewSecret{order: o, Secret: Secret{
		Device: o.Device, Slot: cmp.Or(o.Slot, attest.Primary), Kind: countersign.AccessSecret, State: secretActive,
		CreatedBy: o.By, CreatedAt: k.Now().UTC().Truncate(time.Microsecond),
	}}
	if err := o.check(n.Slot); err != nil {
		return n, err
	}
	if o.TTL > 0 {
		n.ExpiresAt = n.CreatedAt.Add(o.TTL)
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	n.ID = hex.EncodeToString(id[:])
	if o.Given == nil {
		err := k.draw(&n)
		return n, err
	}
	n.Kind = countersign.AccessPassword
	err := k.hasher.run(ctx, k.Now, regular{device: n.Device}, func() { n.verifier = argonRecord(o.Given) })
	return n, err
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
		return bad("a chosen secret must not have the form of a token or of a secret that the server makes").WithNext("choose another, or have one made")
	case string(o.Given) == o.Device:
		return bad("the secret is the device's id").WithNext("choose another, or have one made")
	}
	return nil
}

func (k *Secrets) draw(n *NewSecret) (err error) {
	n.Text = make([]byte, secretOctets)
	_, _ = rand.Read(n.Text) // never fails
	if !n.order.Binary {
		n.Text = []byte(SecretPrefix + base64.RawURLEncoding.EncodeToString(n.Text))
		keys, err := k.scramKeysOf(n.Device, string(n.Text))
		if err != nil {
			return err
		}
		n.scram, n.SCRAM = k.Sealer.Seal(keys, scramContext(n.ID)), true
	}
	n.verifier, err = k.hash(n.Device, n.Text)
	return err
}

// Save records a secret and returns those that it stops. The caller must have locked the
// device.
func (k *Secrets) Save(ctx context.Context, tx *store.Tx, n NewSecret) (stopped []Secret, err error) {
	now := k.Now()
	all, err := k.Of(ctx, tx, n.Device)
	if err != nil {
		return nil, err
	}
	inSlot := slices.DeleteFunc(all, func(s Secret) bool { return !s.Active() || s.Slot != n.Slot })
	for i := range inSlot { // the first is the newest, the present one
		s := &inSlot[i]
		switch over := !s.ExpiresAt.IsZero() && !now.Before(s.ExpiresAt); {
		case i > 0 || over || n.order.Rotate && n.order.Overlap == 0:
			err = s.stop(ctx, tx, "rotated")
			stopped = append(stopped, *s)
		case !n.order.Rotate:
			err = countersign.Errorf(countersign.Conflict, "device %s has a secret in slot %s", n.Device, n.Slot).WithNext("rotate it")
		default:
			err = s.end(ctx, tx, now.Add(n.order.Overlap))
		}
		if err != nil {
			return nil, err
		}
	}
	_, err = tx.Exec(ctx, `INSERT INTO device_secret (id, device, slot, kind, verifier, scram, state, reason, created_by, created_at, expires_at, used_at, created_pos)
		VALUES ($1, $2, $3, $4, $5, $6, $7, '', $8, $9, $10, 0, `+event.PositionSQL+`)`,
		n.ID, n.Device, string(n.Slot), string(n.Kind), n.verifier, n.scram, secretActive, string(n.CreatedBy), store.Micros(n.CreatedAt), store.Micros(n.ExpiresAt))
	if err != nil {
		return nil, fmt.Errorf("couldn't record a secret: %w", err)
	}
	// Keep the newest of the stopped secrets.
	_, err = tx.Exec(ctx, `DELETE FROM device_secret WHERE device = $1 AND state = $2 AND id NOT IN (
		SELECT id FROM device_secret WHERE device = $1 AND state = $2 ORDER BY created_pos DESC, created_at DESC, id LIMIT $3)`, n.Device, secretStopped, keepStopped)
	if err != nil {
		return nil, fmt.Errorf("couldn't clear old secrets: %w", err)
	}
	return stopped, nil
}

// Stop ends one secret of a device. It cannot be undone.
func (k *Secrets) Stop(ctx context.Context, tx *store.Tx, device, id, why string) (Secret, error) {
	s, err := scanSecret(tx.QueryRow(ctx, `SELECT `+secretColumns+` FROM device_secret s WHERE id = $1 AND device = $2`, id, device))
	if errors.Is(err, sql.ErrNoRows) {
		return s, countersign.Errorf(countersign.NotFound, "device %.140q has no secret %.40q", device, id).WithNext("list the secrets of the device")
	}
	if err != nil {
		return s, fmt.Errorf("couldn't read secret %s: %w", id, err)
	}
	why = strings.ToValidUTF8(strings.ReplaceAll(why[:min(len(why), maxReason)], "\x00", ""), "")
	err = s.stop(ctx, tx, why)
	return s, err
}

// StopAll ends all secrets of a device and returns those that it stopped.
func (k *Secrets) StopAll(ctx context.Context, tx *store.Tx, device, why string) ([]Secret, error) {
	all, err := k.Of(ctx, tx, device)
	if err != nil {
		return nil, err
	}
	active := slices.DeleteFunc(all, func(s Secret) bool { return !s.Active() })
	for i := range active {
		if err := active[i].stop(ctx, tx, why); err != nil {
			return nil, err
		}
	}
	return active, nil
}

func (s *Secret) stop(ctx context.Context, tx *store.Tx, why string) error {
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

// end sets the time when a secret expires, unless it expires earlier.
func (s *Secret) end(ctx context.Context, tx *store.Tx, at time.Time) error {
	if s.ExpiresAt.IsZero() || at.Before(s.ExpiresAt) {
		s.ExpiresAt = at
	}
	if _, err := tx.Exec(ctx, `UPDATE device_secret SET expires_at = $2 WHERE id = $1`, s.ID, store.Micros(s.ExpiresAt)); err != nil {
		return fmt.Errorf("couldn't end secret %s: %w", s.ID, err)
	}
	return nil
}

// MayChange returns RateLimited if the device changed its own secret less than
// changePause ago.
func (k *Secrets) MayChange(ctx context.Context, tx *store.Tx, device string) error {
	all, err := k.Of(ctx, tx, device)
	if err != nil {
		return err
	}
	for i := range all {
		next := all[i].CreatedAt.Add(changePause)
		if all[i].CreatedBy == countersign.DeviceActor(device) && k.Now().Before(next) {
			return countersign.Errorf(countersign.RateLimited, "the device changed its secret less than %v ago", changePause).
				WithNext("try again later").WithRetry(next.Sub(k.Now()))
		}
	}
	return nil
}

// Used records when secrets were last used, by their ids.
func (k *Secrets) Used(ctx context.Context, tx *store.Tx, used map[string]time.Time) error {
	for _, id := range slices.Sorted(maps.Keys(used)) { // in order, so that two nodes do not deadlock
		if _, err := tx.Exec(ctx, `UPDATE device_secret SET used_at = $2 WHERE id = $1 AND used_at < $2`, id, store.Micros(used[id])); err != nil {
			return fmt.Errorf("couldn't record the use of secret %s: %w", id, err)
		}
	}
	return nil
}

// Of lists the secrets of a device, the newest first, with the stopped ones that are kept.
func (k *Secrets) Of(ctx context.Context, rd store.Reader, device string) ([]Secret, error) {
	return listSecrets(ctx, rd, `WHERE device = $1 ORDER BY created_pos DESC, created_at DESC, id LIMIT $2`, device, 2*(maxSecrets+keepStopped))
}

// Overdue lists active secrets that have expired, at most limit.
func (k *Secrets) Overdue(ctx context.Context, limit int) ([]Secret, error) {
	return listSecrets(ctx, k.DB, `WHERE state = 'active' AND expires_at > 0 AND expires_at <= $1 ORDER BY id LIMIT $2`, store.Micros(k.Now()), limit)
}

// ActiveSecrets lists one page of the secrets, of all devices, that are not stopped. They
// are sorted by id and begin after the id after. next is empty on the last page.
func ActiveSecrets(ctx context.Context, rd store.Reader, after string) (list []Secret, next string, err error) {
	list, err = listSecrets(ctx, rd, `WHERE id > $1 AND state = 'active' ORDER BY id LIMIT $2`, after, store.MaxPage+1)
	list, next = store.Page(list, store.MaxPage, func(s *Secret) string { return s.ID })
	return list, next, err
}

// SecretByID reads one secret of any device, and reports whether there is one.
func SecretByID(ctx context.Context, rd store.Reader, id string) (Secret, bool, error) {
	list, err := listSecrets(ctx, rd, `WHERE id = $1`, id)
	if len(list) == 0 {
		return Secret{}, false, err
	}
	return list[0], true, nil
}

// Usable reports whether a client can still connect with the secret.
func (s *Secret) Usable(now time.Time) bool {
	return s.State == secretActive && (s.ExpiresAt.IsZero() || s.ExpiresAt.After(now))
}

// Holders returns those of the devices that have an active secret.
func Holders(ctx context.Context, rd store.Reader, devices []string) ([]string, error) {
	var q store.Query
	list, err := store.List(ctx, rd, store.Scan[string],
		`SELECT DISTINCT device FROM device_secret WHERE state = 'active' AND device IN `+store.In(&q, devices), q.Args...)
	if err != nil {
		return nil, fmt.Errorf("read which devices have secrets: %w", err)
	}
	return list, nil
}

func listSecrets(ctx context.Context, rd store.Reader, rest string, args ...any) ([]Secret, error) {
	list, err := store.List(ctx, rd, scanSecret, `SELECT `+secretColumns+` FROM device_secret s `+rest, args...)
	if err != nil {
		return nil, fmt.Errorf("couldn't read secrets: %w", err)
	}
	return list, nil
}

// secretColumns are the columns of device_secret s. In an outer join they may be null.
//
//nolint:gosec // names of columns
const secretColumns = `COALESCE(s.id, ''), COALESCE(s.device, ''), COALESCE(s.slot, ''), COALESCE(s.kind, ''), s.verifier, s.scram, COALESCE(s.state, ''),
	COALESCE(s.reason, ''), COALESCE(s.created_by, ''), COALESCE(s.created_at, 0), COALESCE(s.expires_at, 0), COALESCE(s.used_at, 0), COALESCE(s.created_pos, 0)`

func scanSecret(row store.Row) (s Secret, err error) {
	err = s.scan(row)
	return s, store.Wrap(err)
}

// scan reads secretColumns, and the columns before them into before.
func (s *Secret) scan(row store.Row, before ...any) error {
	var created, expires, used int64
	err := row.Scan(append(before, &s.ID, &s.Device, &s.Slot, &s.Kind, &s.verifier, &s.scram, &s.State,
		&s.Reason, &s.CreatedBy, &created, &expires, &used, &s.made)...)
	s.CreatedAt, s.ExpiresAt, s.UsedAt, s.SCRAM = store.Time(created), store.Time(expires), store.Time(used), s.scram != nil
	return err
}
