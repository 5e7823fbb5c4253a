// Package registry keeps devices, fleets, enrollment credentials and the requests
// that wait for approval, and the table of the device's life. It decides nothing
// about certificates; package ra brings the
// two together in one transaction.
package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
)

const (
	// maxTags and maxTag bound what an operator may hang on a device.
	maxTags = 64
	maxTag  = 256
	// maxText bounds owner and reason.
	maxText = 512
)

// Registry reads and writes devices, fleets, credentials and waiting enrollments.
type Registry struct {
	DB  *store.DB
	Now func() time.Time
	// Reserved reports whether an id is a name of the server itself, which no new
	// device can have. Nil: none is. A function, because only the server knows its names.
	Reserved func(id string) bool
}

// moves is the life of a device. Retired is the end. Active or suspended to
// registered is a revocation: the device stays known and may enroll anew.
var moves = map[countersign.DeviceState][]countersign.DeviceState{
	countersign.DeviceRegistered: {countersign.DevicePending, countersign.DeviceActive, countersign.DeviceSuspended, countersign.DeviceRetired},
	countersign.DevicePending:    {countersign.DeviceRegistered, countersign.DeviceActive, countersign.DeviceRetired},
	countersign.DeviceActive:     {countersign.DeviceRegistered, countersign.DeviceSuspended, countersign.DeviceRetired},
	countersign.DeviceSuspended:  {countersign.DeviceRegistered, countersign.DeviceActive, countersign.DeviceRetired},
	countersign.DeviceRetired:    nil,
}

// Entry is a device as the registry keeps it.
type Entry struct {
	countersign.Device
	RevokedAt time.Time // last loss of its identity
	// RevokedPos is the first position of the log after that loss: a token or
	// certificate made at a smaller one neither readmits the device nor identifies it.
	RevokedPos countersign.Position
	// SeenPos is the position at which the device was last seen active.
	SeenPos countersign.Position
}

// Newer reports whether something that was made at a position came after the
// device last lost its identity.
func (e *Entry) Newer(made countersign.Position) bool { return made >= e.RevokedPos }

const deviceColumns = `id, fleet, state, reason, owner, purpose, tags, revoked_at, created_at, updated_at, last_seen, last_addr, revoked_pos, seen_pos`

func scanDevice(row store.Row) (e Entry, err error) {
	var tags string
	var revoked, created, updated, seen int64
	err = row.Scan(&e.ID, &e.Fleet, &e.State, &e.Reason, &e.Owner, &e.Purpose, &tags, &revoked, &created, &updated, &seen, &e.LastAddr, &e.RevokedPos, &e.SeenPos)
	if err != nil {
		return e, store.Wrap(err)
	}
	e.RevokedAt, e.CreatedAt, e.UpdatedAt, e.LastSeen = store.Time(revoked), store.Time(created), store.Time(updated), store.Time(seen)
	if tags != "" {
		err = json.Unmarshal([]byte(tags), &e.Tags)
	}
	return e, err
}

// Device reads one device: NotFound if there is none.
func (r *Registry) Device(ctx context.Context, rd store.Reader, id string) (Entry, error) {
	e, err := scanDevice(rd.QueryRow(ctx, `SELECT `+deviceColumns+` FROM device WHERE id = $1`, id))
	missing := countersign.Errorf(countersign.NotFound, "there is no device %.140q", id).WithNext("look for it in the list of devices")
	return e, store.RowError(err, missing, "read device "+id)
}

// DevicesByID reads those of the devices that are on record; at most store.MaxPage ids.
func DevicesByID(ctx context.Context, rd store.Reader, ids []string) (map[string]countersign.Device, error) {
	found := map[string]countersign.Device{}
	var q store.Query
	for e, err := range store.Rows(ctx, rd, scanDevice, `SELECT `+deviceColumns+` FROM device WHERE id IN `+store.In(&q, ids), q.Args...) {
		if err != nil {
			return nil, fmt.Errorf("read devices: %w", err)
		}
		found[e.ID] = e.Device
	}
	return found, nil
}

// LockDevice makes the transaction the only one that works on the device.
func LockDevice(ctx context.Context, tx *store.Tx, id string) error {
	return tx.Lock(ctx, "device:"+id)
}

// CheckNew reports whether a device of that id can be created in the fleet. It
// refuses with BadRequest an id that no new device can have, and with Conflict one
// that differs from another device's in letter case only.
func (r *Registry) CheckNew(ctx context.Context, rd store.Reader, fleet countersign.Fleet, id string) error {
	if err := countersign.CheckDevice(fleet, id); err != nil {
		return err
	}
	if err := r.checkReserved(id); err != nil {
		return err
	}
	return foldFree(ctx, rd, id)
}

func (r *Registry) checkReserved(id string) error {
	if r.Reserved == nil || !r.Reserved(id) {
		return nil
	}
	return countersign.Errorf(countersign.BadRequest, "device id %.140q is a name of this server: a certificate with it could pass for the server's", id).
		WithNext("choose another id")
}

// foldFree refuses with Conflict an id that equals another one but for letter case.
func foldFree(ctx context.Context, rd store.Reader, id string) error {
	var other string
	err := rd.QueryRow(ctx, `SELECT id FROM device WHERE folded = $1`, countersign.FoldDeviceID(id)).Scan(&other)
	switch {
	case errors.Is(err, sql.ErrNoRows) || err == nil && other == id:
		return nil
	case err != nil:
		return fmt.Errorf("look for ids like %s: %w", id, store.Wrap(err))
	}
	return countersign.Errorf(countersign.Conflict, "device id %s differs from that of device %s in letter case only", id, other).
		WithNext("use the id as it is on record, or choose another one")
}

// Create adds a device. It refuses with BadRequest an id that no new device can
// have, and with Conflict one that is taken, also if only its letter case differs.
func (r *Registry) Create(ctx context.Context, tx *store.Tx, d countersign.Device) error {
	if err := checkDevice(d); err != nil {
		return err
	}
	if err := r.checkReserved(d.ID); err != nil {
		return err
	}
	tags, err := encodeTags(d.Tags)
	if err != nil {
		return err
	}
	now := store.Micros(r.Now())
	n, err := tx.Exec(ctx, `INSERT INTO device (id, folded, fleet, state, reason, owner, purpose, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
		VALUES ($1, $8, $2, $3, $4, $5, $9, $6, 0, $7, $7, 0, '') ON CONFLICT DO NOTHING`,
		d.ID, d.Fleet, string(d.State), d.Reason, d.Owner, tags, now, countersign.FoldDeviceID(d.ID), d.Purpose)
	if err != nil {
		return fmt.Errorf("create device %s: %w", d.ID, err)
	}
	if n == 1 {
		return nil
	}
	if err := foldFree(ctx, tx, d.ID); err != nil {
		return err
	}
	return countersign.Errorf(countersign.Conflict, "there is a device %s already", d.ID).WithNext("choose another id, or look at the device")
}

func checkDevice(d countersign.Device) error {
	if err := countersign.CheckDeviceID(d.ID); err != nil {
		return err
	}
	for _, s := range []string{d.Owner, d.Purpose, d.Reason} {
		if len(s) > maxText || !printable(s) {
			return countersign.Errorf(countersign.BadRequest, "owner, purpose or reason is longer than %d octets, or not text", maxText)
		}
	}
	if len(d.Tags) > maxTags {
		return countersign.Errorf(countersign.BadRequest, "%d tags are more than %d", len(d.Tags), maxTags)
	}
	for k, v := range d.Tags {
		if k == "" || len(k) > maxTag || len(v) > maxTag || !printable(k) || !printable(v) {
			return countersign.Errorf(countersign.BadRequest, "tag %.40q is empty, longer than %d octets, or not text", k, maxTag)
		}
	}
	return nil
}

// printable reports whether s is text that both databases keep as it is.
func printable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

func encodeTags(tags map[string]string) (string, error) {
	if len(tags) == 0 {
		return "", nil
	}
	b, err := json.Marshal(tags)
	if err != nil {
		return "", fmt.Errorf("encode tags: %w", err)
	}
	return string(b), nil
}

// Move takes a device to another state and says why. A move that the table does
// not have is a Conflict. Staying is none either: callers say what they mean.
func (r *Registry) Move(ctx context.Context, tx *store.Tx, e *Entry, to countersign.DeviceState, reason string) error {
	if !slices.Contains(moves[e.State], to) {
		return countersign.Errorf(countersign.Conflict, "device %s is %s and cannot become %s", e.ID, e.State, to)
	}
	// A reason comes from many places and must not stop a suspension: it is made to fit.
	reason = clip(reason)
	now := r.Now()
	revoked, pos := e.RevokedAt, "revoked_pos"
	// A device that waited for its first identity has none to lose.
	if to == countersign.DeviceRetired || to == countersign.DeviceRegistered && e.State != countersign.DevicePending {
		revoked, pos = now, event.PositionSQL+" + 1"
	}
	err := tx.QueryRow(ctx, `UPDATE device SET state = $2, reason = $3, revoked_at = $4, updated_at = $5, revoked_pos = `+pos+`
		WHERE id = $1 AND state = $6 RETURNING revoked_pos`,
		e.ID, string(to), reason, store.Micros(revoked), store.Micros(now), string(e.State)).Scan(&e.RevokedPos)
	if err != nil {
		changed := countersign.Errorf(countersign.Conflict, "device %s changed meanwhile", e.ID).WithNext("try again")
		return store.RowError(err, changed, fmt.Sprintf("set device %s %s", e.ID, to))
	}
	e.State, e.Reason, e.RevokedAt, e.UpdatedAt = to, reason, revoked, now
	return nil
}

func clip(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s[:min(len(s), maxText)], "\x00", ""), "")
}

// Sighting is an accepted connection.
type Sighting struct {
	Device string
	At     time.Time
	Addr   string
}

// Saw records when devices were last seen, by id, so that two nodes that do it at
// once do not lock each other out. An older sighting never replaces a newer one.
func (r *Registry) Saw(ctx context.Context, tx *store.Tx, seen []Sighting) error {
	seen = slices.Clone(seen)
	slices.SortStableFunc(seen, func(a, b Sighting) int { return strings.Compare(a.Device, b.Device) })
	for _, s := range seen {
		// A sighting that is written after a revocation says nothing of the life after it.
		// The position does not hang on the clock, which may have been set back since.
		_, err := tx.Exec(ctx, `UPDATE device SET last_addr = CASE WHEN last_seen < $2 THEN $3 ELSE last_addr END,
				last_seen = CASE WHEN last_seen < $2 THEN $2 ELSE last_seen END,
				seen_pos = CASE WHEN state = 'active' THEN `+event.PositionSQL+` ELSE seen_pos END
			WHERE id = $1 AND (last_seen < $2 OR state = 'active' AND seen_pos < revoked_pos)`, s.Device, store.Micros(s.At), s.Addr)
		if err != nil {
			return fmt.Errorf("record that %s was seen: %w", s.Device, err)
		}
	}
	return nil
}

// Filter chooses devices for a list.
type Filter struct {
	Fleet  string
	State  countersign.DeviceState
	Prefix string // of the id, for completion
	After  string // keyset: the last id of the page before
	Limit  int    // at most store.MaxPage; 0 is that
}

// query returns the query of a list: by the primary key, or by the index that begins with
// what is asked for.
func (f *Filter) query(q *store.Query, limit int) string {
	states := slices.Sorted(maps.Keys(moves))
	switch {
	case f.State != "":
		states = []countersign.DeviceState{f.State}
	case f.Fleet == "":
		return `SELECT ` + deviceColumns + ` FROM device` + q.Where() + ` ORDER BY id LIMIT ` + q.Arg(limit)
	}
	parts := store.Parts[countersign.DeviceState]{Columns: deviceColumns, Table: "device", Column: "state", Values: states, Order: "id", Limit: limit}
	return parts.Text(q)
}

// Devices lists devices by id; next is the After of the following page, empty at the end.
func (r *Registry) Devices(ctx context.Context, f Filter) (list []countersign.Device, next string, err error) {
	var q store.Query
	q.And("id > ?", f.After)
	q.If(f.Fleet != "", "fleet = ?", f.Fleet)
	q.If(f.Prefix != "", "id >= ? AND id < ?", f.Prefix, f.Prefix+"\x7f") // ids are ASCII below 0x7f
	limit := store.PageSize(f.Limit)
	list, err = store.List(ctx, r.DB, func(row store.Row) (countersign.Device, error) {
		e, err := scanDevice(row)
		return e.Device, err
	}, f.query(&q, limit+1), q.Args...)
	if err != nil {
		return nil, "", fmt.Errorf("list devices: %w", err)
	}
	list, next = store.Page(list, limit, func(d *countersign.Device) string { return d.ID })
	return list, next, nil
}
