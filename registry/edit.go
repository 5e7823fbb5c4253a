package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// Change is what an operator changes of a device. A nil field stays as it is.
type Change struct {
	Owner   *string
	Purpose *string
	Fleet   *string
	// Tags to set; a nil value removes the tag. Tags that are not named stay.
	Tags map[string]*string
}

// Edit changes a device in a transaction that holds LockDevice, and returns each
// value that changed under its name, and what it was before under <name>_before; a
// tag is named tag.<name>. Nothing changed: nothing is written.
//
// With the fleet go the device's own enrollment credentials. Conflict if a request
// of the device waits for approval, since it was made to the fleet that it is in.
func (r *Registry) Edit(ctx context.Context, tx *store.Tx, e *Entry, c Change) (changed map[string]string, err error) {
	d := e.Device
	d.Tags = maps.Clone(d.Tags)
	c.apply(&d)
	if err := checkDevice(d); err != nil {
		return nil, err
	}
	changed = differences(e.Device, d)
	if len(changed) == 0 {
		return nil, nil
	}
	if d.Fleet != e.Fleet {
		if err := r.move(ctx, tx, e, d.Fleet); err != nil {
			return nil, err
		}
	}
	tags, err := encodeTags(d.Tags)
	if err != nil {
		return nil, err
	}
	now := store.Time(store.Micros(r.Now()))
	_, err = tx.Exec(ctx, `UPDATE device SET fleet = $2, owner = $3, purpose = $4, tags = $5, updated_at = $6 WHERE id = $1`,
		d.ID, d.Fleet, d.Owner, d.Purpose, tags, store.Micros(now))
	if err != nil {
		return nil, fmt.Errorf("change device %s: %w", d.ID, err)
	}
	d.UpdatedAt = now
	e.Device = d
	return changed, nil
}

func (c Change) apply(d *countersign.Device) {
	for _, f := range []struct{ to, from *string }{{&d.Owner, c.Owner}, {&d.Purpose, c.Purpose}, {&d.Fleet, c.Fleet}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	for k, v := range c.Tags {
		switch {
		case v == nil:
			delete(d.Tags, k)
		case d.Tags == nil:
			d.Tags = map[string]string{k: *v}
		default:
			d.Tags[k] = *v
		}
	}
}

func differences(before, after countersign.Device) map[string]string {
	changed := map[string]string{}
	note := func(name, was, is string) {
		if was != is {
			changed[name], changed[name+"_before"] = is, was
		}
	}
	note("owner", before.Owner, after.Owner)
	note("purpose", before.Purpose, after.Purpose)
	note("fleet", before.Fleet, after.Fleet)
	for k, v := range before.Tags {
		is, kept := after.Tags[k]
		if note("tag."+k, v, is); !kept && v == "" {
			changed["tag."+k+"_before"] = ""
		}
	}
	for k, v := range after.Tags {
		if _, had := before.Tags[k]; !had {
			changed["tag."+k], changed["tag."+k+"_before"] = v, ""
		}
	}
	return changed
}

// move takes a device to another fleet, with what it may enroll with.
func (r *Registry) move(ctx context.Context, tx *store.Tx, e *Entry, to string) error {
	fleet, err := r.Fleet(ctx, tx, to)
	if err != nil {
		return err
	}
	if err := countersign.CheckDevice(fleet, e.ID); err != nil {
		return err
	}
	switch e.State {
	case countersign.DeviceRetired:
		return countersign.Errorf(countersign.DeviceGone, "device %s is retired and stays in fleet %s", e.ID, e.Fleet)
	case countersign.DevicePending:
		return countersign.Errorf(countersign.Conflict, "a request of device %s to fleet %s waits for approval", e.ID, e.Fleet).
			WithNext("approve or reject the request, then move the device")
	}
	var key string
	err = tx.QueryRow(ctx, `SELECT id FROM credential WHERE device = $1 AND kind = 'key' AND state = 'active' LIMIT 1`, e.ID).Scan(&key)
	if err == nil {
		return countersign.Errorf(countersign.Conflict, "device %s has the symmetric key %s, which is one of fleet %s: its tokens name the fleet", e.ID, key, e.Fleet).
			WithNext("stop the key, move the device, then make a key in fleet " + fleet.Name)
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("look for keys of device %s: %w", e.ID, store.Wrap(err))
	}
	if _, err := tx.Exec(ctx, `UPDATE credential SET fleet = $2 WHERE device = $1 AND state = 'active'`, e.ID, fleet.Name); err != nil {
		return fmt.Errorf("move the credentials of device %s: %w", e.ID, err)
	}
	return nil
}
