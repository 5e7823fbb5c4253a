package ra

import (
	"context"
	"fmt"

	"github.com/countersign-iot/countersign"
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
