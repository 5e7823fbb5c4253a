package provision

import (
	"context"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// CreateDevice registers a device. Its fleet must exist; empty is the default one.
func (p *Provisioner) CreateDevice(ctx context.Context, d countersign.Device, by ra.By) (countersign.Device, error) {
	if d.Fleet == "" {
		d.Fleet = countersign.DefaultFleet
	}
	d.State = countersign.DeviceRegistered
	err := p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		fleet, err := p.Registry.Fleet(ctx, tx, d.Fleet)
		if err != nil {
			return err
		}
		if err := countersign.CheckDevice(fleet, d.ID); err != nil {
			return err
		}
		if err := p.Registry.Create(ctx, tx, d); err != nil {
			return err
		}
		made, err := p.Registry.Device(ctx, tx, d.ID)
		if err != nil {
			return err
		}
		d = made.Device
		e := by.Event(countersign.DeviceCreated)
		e.Device, e.Fleet = d.ID, d.Fleet
		return p.Events.Append(ctx, tx, e)
	})
	return d, err
}

// EditDevice changes owner, purpose, tags or fleet of a device. The sessions of its
// fleet are then compared with what the fleet's policy allows, which may depend on
// tags. A device that is moved to another fleet is disconnected, because the
// session was admitted by the rules of the former one; it may come back at once.
// Its certificate keeps issuer, profile and names until it renews. done says what
// was cut on this node.
func (p *Provisioner) EditDevice(ctx context.Context, id string, c registry.Change, by ra.By) (d countersign.Device, changed map[string]string, done countersign.Revocation, err error) {
	err = p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		done = countersign.Revocation{} // the transaction may be tried again
		if err := registry.LockDevice(ctx, tx, id); err != nil {
			return err
		}
		e, err := p.Registry.Device(ctx, tx, id)
		if err != nil {
			return err
		}
		if changed, err = p.Registry.Edit(ctx, tx, &e, c); err != nil {
			return err
		}
		if d = e.Device; len(changed) == 0 {
			return nil
		}
		edited := by.Event(countersign.DeviceChanged)
		edited.Device, edited.Fleet, edited.Data = d.ID, d.Fleet, changed
		events := []countersign.Event{edited}
		if from := changed["fleet_before"]; from != "" {
			moved := by.Event(countersign.SessionEnded)
			moved.Device, moved.Fleet, moved.Reason = d.ID, from, "the device was moved to fleet "+d.Fleet
			events = append(events, moved)
		}
		return p.Events.AppendAct(ctx, tx, &done, events...)
	})
	return d, changed, done, err
}

// Disconnect ends all live sessions of a device on every node, or with session that
// one. The device keeps everything it has and may come back at once. The answer
// counts the sessions of this node.
func (p *Provisioner) Disconnect(ctx context.Context, a ra.Act, session string) (*countersign.Revocation, error) {
	if session != "" && a.Device == "" {
		var err error
		if a.Device, err = p.elsewhere(ctx, session); err != nil {
			return nil, err
		}
	}
	done := &countersign.Revocation{Device: a.Device}
	err := p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		done.Sessions, done.CutIn = 0, 0 // the transaction may be tried again
		done.At = p.Registry.Now()
		e := countersign.Event{Type: countersign.SessionEnded, At: done.At, Actor: a.Actor, Via: a.Via, Reason: a.Note, Device: a.Device}
		if session != "" {
			e.Data = map[string]string{"session": session}
		} else {
			d, err := p.Registry.Device(ctx, tx, a.Device)
			if err != nil {
				return err
			}
			e.Fleet = d.Fleet
		}
		return p.Events.AppendAct(ctx, tx, done, e)
	})
	return done, err
}

// openingWritten is how soon the opening of a session is on record: what a gateway saw is
// written behind, some twenty times a second.
const openingWritten = 500 * time.Millisecond

// elsewhere returns the device of a session that this node has not: NotFound if no node
// has it. Nodes share a PostgreSQL database. A session whose opening is older than what
// is searched has no device here, and is ended all the same by whichever node has it.
func (p *Provisioner) elsewhere(ctx context.Context, session string) (device string, err error) {
	none := countersign.Errorf(countersign.NotFound, "there is no live session %.64q on any node", session).
		WithNext("list the sessions of each node, or end all those of the device")
	if !p.DB.Postgres() {
		return "", none
	}
	opened, found, sure, err := p.Events.OpenSession(ctx, session)
	if err == nil && !found {
		select { // it may be new
		case <-time.After(openingWritten):
		case <-ctx.Done():
		}
		opened, found, sure, err = p.Events.OpenSession(ctx, session)
	}
	if err != nil {
		return "", err
	}
	if !found && sure {
		return "", none
	}
	return opened.Device, nil
}
