package ra

import (
	"context"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/hold"
	"github.com/countersign-iot/countersign/store"
)

// holdBack is the answer to an act on a device whose error was err. Where the database
// could not record the act, this node holds the device back by itself until it can:
// this is the one exception to recording before acting. The answer is still an error,
// because the act is not on record, and says what is in force, and where.
func (o *operation) holdBack(ctx context.Context, h hold.Hold, err error) error {
	if o.hold != nil || o.Holds == nil || countersign.CodeOf(err) != countersign.Unavailable || countersign.CheckDeviceID(o.Device) != nil {
		return err
	}
	h.Device, h.Actor, h.Note, h.Via, h.Alert = o.Device, o.Actor, o.Note, o.Via, o.Alert
	in, _, saved, failed := o.Holds.Place(h)
	if failed != nil {
		return countersign.Errorf(countersign.Unavailable, "%s; %s", countersign.Public(err).Message, countersign.Public(failed).Message).
			WithNext("bring the database back, then do it again").WithRetry(crlWait).WithCause(err)
	}
	sessions := o.Events.Announce(o.holdEvent(countersign.HoldPlaced, &in))
	o.Log.ErrorContext(ctx, "act not recorded: emergency hold", "device", in.Device, "act", string(in.Act), "hold", in.ID, "sessions", sessions, "error", countersign.Detail(err))
	what := "this was not recorded: the database cannot be written now"
	if store.Unconfirmed(err) {
		what = "the database did not confirm this; it may or may not be recorded"
	}
	text := fmt.Sprintf("%s. The emergency hold %s is in force on this node alone: %d live sessions of %s were cut, and it is refused here", what, in.ID, sessions, in.Device)
	if o.DB.Postgres() {
		text += "; other nodes do not know of it"
	}
	if saved != nil {
		text += "; the hold could not be saved, so a restart of this node forgets it"
	}
	return countersign.Errorf(countersign.Unavailable, "%s", text).WithRetry(crlWait).WithCause(err).
		WithNext("bring the database back: the act is retried until it is recorded. The holds of a node can be listed, retried and dropped")
}

func (d *Authority) holdEvent(t countersign.EventType, h *hold.Hold) countersign.Event {
	e := countersign.Event{
		Type: t, Actor: h.Actor, Device: h.Device, Via: h.Via, Reason: h.Note,
		Data: map[string]string{"hold": h.ID, "act": string(h.Act), "node": d.Events.Node},
	}
	if t == countersign.HoldPlaced {
		e.At = h.At
	}
	return e
}

// append records the events of an o. The hold that the act ends is recorded with them.
// Where the act was in force already, its event is not recorded again.
func (o *operation) append(ctx context.Context, tx *store.Tx, events []countersign.Event) error {
	if o.hold == nil {
		return o.Events.AppendAct(ctx, tx, o.out, events...)
	}
	if o.out.Already {
		events = nil
	}
	all := append([]countersign.Event{o.holdEvent(countersign.HoldPlaced, o.hold)}, events...)
	recorded := o.holdEvent(countersign.HoldRecorded, o.hold)
	recorded.Actor = countersign.System
	return o.Events.AppendAct(ctx, tx, o.out, append(all, recorded)...)
}

const (
	// holdWait bounds one attempt to record an emergency hold.
	holdWait = 10 * time.Second
	// holdEvents bounds how far back a hold that was recorded without an answer is
	// looked for in the log of its device.
	holdEvents = 100
)

// recordHolds tries to record each emergency hold of this node.
func (d *Authority) recordHolds(ctx context.Context) {
	if d.Holds == nil {
		return
	}
	d.Holds.Save()
	for _, h := range d.Holds.List() {
		if _, lost := d.DB.Lost(); lost || ctx.Err() != nil {
			return
		}
		_ = d.RetryHold(ctx, h.ID) // the hold has it
	}
}

// RetryHold records the act of an emergency hold, once, or that the hold was dropped.
func (d *Authority) RetryHold(ctx context.Context, id string) error {
	return d.Holds.Record(id, func(h hold.Hold) error {
		ctx, cancel := context.WithTimeout(ctx, holdWait)
		defer cancel()
		if err := d.recordHold(ctx, h); err != nil {
			return err
		}
		d.Log.InfoContext(ctx, "emergency hold recorded", "device", h.Device, "hold", h.ID)
		return nil
	})
}

func (d *Authority) recordHold(ctx context.Context, h hold.Hold) error {
	known, err := d.holdKnown(ctx, &h)
	if err != nil || known {
		return err
	}
	if h.Dropped() {
		dropped := d.holdEvent(countersign.HoldDropped, &h)
		dropped.Actor, dropped.Via = h.DroppedBy, h.DroppedVia
		return d.endHold(ctx, &h, dropped)
	}
	o := &operation{Authority: d, Act: Act{Device: h.Device, Actor: h.Actor, Note: h.Note, Via: h.Via, Alert: h.Alert}, hold: &h}
	switch h.Act {
	case hold.Revoke:
		_, err = o.withdraw(ctx, countersign.DeviceRegistered, h.Reason)
	case hold.Retire:
		_, err = o.withdraw(ctx, countersign.DeviceRetired, h.Reason)
	default:
		_, err = o.suspend(ctx)
	}
	switch countersign.CodeOf(err) {
	case countersign.NotFound, countersign.Conflict, countersign.DeviceGone, countersign.BadRequest:
		// The record has no use for the act: there is no such device, or it has less left.
		dropped := d.holdEvent(countersign.HoldDropped, &h)
		dropped.Actor, dropped.Reason = countersign.System, countersign.Public(err).Message
		return d.endHold(ctx, &h, dropped)
	}
	return err
}

// endHold records a hold that ends without its act. That it was placed is not recorded as
// an event of its own, which would cut the device's sessions on every node.
func (d *Authority) endHold(ctx context.Context, h *hold.Hold, dropped countersign.Event) error {
	dropped.Data["placed_at"] = h.At.UTC().Format(time.RFC3339)
	return d.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		return d.Events.Append(ctx, tx, dropped)
	})
}

// holdKnown reports whether the end of a hold is on record: an earlier attempt may have
// succeeded without an answer.
func (d *Authority) holdKnown(ctx context.Context, h *hold.Hold) (bool, error) {
	list, _, err := d.Events.List(ctx, event.Filter{Device: h.Device, Newest: true, Limit: holdEvents})
	for _, e := range list {
		if (e.Type == countersign.HoldRecorded || e.Type == countersign.HoldDropped) && e.Data["hold"] == h.ID {
			return true, nil
		}
	}
	return false, err
}

// DropHold ends an emergency hold of this node without recording its act.
func (d *Authority) DropHold(id string, by By) (hold.Hold, error) {
	h, err := d.Holds.Drop(id, by.Actor, by.Via)
	if err == nil {
		e := d.holdEvent(countersign.HoldDropped, &h)
		e.Actor, e.Via = by.Actor, by.Via
		d.Events.Announce(e)
	}
	return h, err
}
