package respond

import (
	"context"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
)

const (
	// minSnooze and maxSnooze bound a snooze: what may be silent for longer is closed.
	minSnooze = time.Minute
	maxSnooze = 90 * 24 * time.Hour
	// maxAssignee bounds a name, as that of an operator's token.
	maxAssignee = 63
)

// By is the operator who acts on an alert, and a note about the act.
type By struct {
	ra.By
	Note string
}

// Acknowledge records that a person works on the alert. Channels are notified again only if it gets
// worse.
func (d *Responder) Acknowledge(ctx context.Context, id string, by By) (Alert, error) {
	return d.change(ctx, id, "acknowledge", by, func(a *Alert) string {
		a.State, a.SnoozedUntil = Acknowledged, time.Time{}
		return by.Note
	})
}

// Assign assigns the alert to an operator, by name; empty: to no one.
func (d *Responder) Assign(ctx context.Context, id, to string, by By) (Alert, error) {
	if len(to) > maxAssignee {
		return Alert{}, countersign.Errorf(countersign.BadRequest, "the name is longer than %d octets", maxAssignee)
	}
	return d.change(ctx, id, "assign", by, func(a *Alert) string {
		a.Assignee = clip(to)
		text := "to " + a.Assignee
		if to == "" {
			text = "to no one"
		}
		return join(text, by.Note)
	})
}

// Comment adds a note, to a closed alert too.
func (d *Responder) Comment(ctx context.Context, id string, by By) (Alert, error) {
	if by.Note == "" {
		return Alert{}, countersign.Errorf(countersign.BadRequest, "the comment is empty").WithNext("write a comment")
	}
	return d.change(ctx, id, "comment", by, func(*Alert) string { return by.Note })
}

// Snooze silences the alert for a time: it goes on to count, and neither notifies nor
// acts. It opens by itself when the time is over.
func (d *Responder) Snooze(ctx context.Context, id string, length time.Duration, by By) (Alert, error) {
	if length < minSnooze || length > maxSnooze {
		return Alert{}, countersign.Errorf(countersign.BadRequest, "a snooze of %s is not between %s and %s", length, minSnooze, maxSnooze)
	}
	return d.change(ctx, id, "snooze", by, func(a *Alert) string {
		a.State, a.SnoozedUntil = Snoozed, d.now().Add(length)
		return join("until "+a.SnoozedUntil.Format(time.RFC3339), by.Note)
	})
}

// Close ends the alert. A later finding of the same kind opens a new one.
func (d *Responder) Close(ctx context.Context, id string, how Resolution, by By) (Alert, error) {
	if how != Resolved && how != NotAnIssue {
		return Alert{}, countersign.Errorf(countersign.BadRequest, "%.40q is neither %s nor %s", how, Resolved, NotAnIssue)
	}
	return d.change(ctx, id, "close", by, func(a *Alert) string {
		a.State, a.Resolution, a.SnoozedUntil = Closed, how, time.Time{}
		return join(string(how), by.Note)
	})
}

// change does one thing to an alert that is not closed; do returns the text of its line.
func (d *Responder) change(ctx context.Context, id, act string, by By, do func(a *Alert) (text string)) (Alert, error) {
	return d.edit(ctx, id, func(a *Alert) (entry, error) {
		if a.State == Closed && act != "comment" {
			return entry{}, countersign.Errorf(countersign.Conflict, "alert %s is closed", id).WithNext("a new finding opens another one; comment on this one if you like")
		}
		return entry{Line{Actor: by.Actor, Act: act, Outcome: Done, Text: do(a)}, countersign.AlertChanged, by.Via, ""}, nil
	})
}

// edit has do change an alert, and records the entry that it returns.
func (d *Responder) edit(ctx context.Context, id string, do func(a *Alert) (entry, error)) (a Alert, err error) {
	err = d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		t, err := d.begin(ctx, tx)
		if err != nil {
			return err
		}
		if a, err = get(ctx, tx, id); err != nil {
			return err
		}
		e, err := do(&a)
		if err != nil {
			return err
		}
		return t.record(ctx, &a, e)
	})
	return a, err
}

func join(text, note string) string {
	if note == "" {
		return text
	}
	return text + ": " + note
}

// Suspend puts the device of an alert on hold.
func (d *Responder) Suspend(ctx context.Context, id string, by By) (Alert, *countersign.Revocation, error) {
	return d.onDevice(ctx, id, countersign.MitigateSuspend, by, func(act ra.Act) (r *countersign.Revocation, text string, err error) {
		if r, err = d.Devices.Suspend(ctx, act); err == nil {
			text = taken(r, "on hold")
		}
		return r, text, err
	})
}

// Reactivate brings the device of an alert back.
func (d *Responder) Reactivate(ctx context.Context, id string, by By) (Alert, *countersign.Revocation, error) {
	return d.onDevice(ctx, id, reactivate, by, func(act ra.Act) (r *countersign.Revocation, text string, err error) {
		if r, err = d.Devices.Reactivate(ctx, act); err == nil {
			text = count(len(r.Certificates), "certificate") + " good again"
		}
		return r, text, err
	})
}

// Revoke takes the certificates of an alert's device away for good.
func (d *Responder) Revoke(ctx context.Context, id string, reason countersign.ReasonCode, by By) (Alert, *countersign.Revocation, error) {
	return d.onDevice(ctx, id, countersign.MitigateRevoke, by, func(act ra.Act) (r *countersign.Revocation, text string, err error) {
		r, err = d.Devices.Revoke(ctx, countersign.RevokeRequest{
			Device: act.Device, Reason: reason, Note: act.Note, Actor: act.Actor, Via: act.Via, Alert: act.Alert,
		})
		if err == nil {
			text = taken(r, "revoked")
		}
		return r, text, err
	})
}

// onDevice has do act on the device of an alert, and puts the text that it returns on the alert.
func (d *Responder) onDevice(
	ctx context.Context, id string, m countersign.Mitigation, by By, do func(ra.Act) (r *countersign.Revocation, text string, err error),
) (Alert, *countersign.Revocation, error) {
	a, err := get(ctx, d.DB, id)
	if err == nil && a.Device == "" {
		err = countersign.Errorf(countersign.Conflict, "alert %s names no device", id).WithNext("see in the alert what can be done about it")
	}
	if err != nil {
		return a, nil, err
	}
	r, text, err := do(ra.Act{Device: a.Device, Actor: by.Actor, Via: by.Via, Note: join("alert "+a.ID, by.Note), Alert: a.ID})
	if err != nil {
		return a, nil, err
	}
	return d.acted(ctx, a, m, by, text), r, nil
}

// Block refuses the address of an alert for a time, as an operator's block does.
func (d *Responder) Block(ctx context.Context, id string, length time.Duration, by By) (Alert, lockout.Block, error) {
	a, err := get(ctx, d.DB, id)
	if err != nil {
		return a, lockout.Block{}, err
	}
	network, err := a.network()
	if err != nil {
		return a, lockout.Block{}, err
	}
	b, err := d.Ledger.Block(ctx, lockout.Block{Prefix: network, Reason: join("alert "+id, by.Note), Until: d.Now().Add(length)}, by.Actor, by.Via)
	if err != nil {
		return a, b, err
	}
	text := fmt.Sprintf("%s until %s", b.Prefix, b.Until.UTC().Format(time.RFC3339))
	return d.acted(ctx, a, countersign.MitigateBlock, by, text), b, nil
}

// acted puts an operator's act on the alert. The act itself is done and on record:
// a failure here is logged and takes nothing back.
func (d *Responder) acted(ctx context.Context, a Alert, act countersign.Mitigation, by By, text string) Alert {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	now, err := d.edit(ctx, a.ID, func(*Alert) (entry, error) {
		return entry{Line{Actor: by.Actor, Act: string(act), Outcome: Done, Text: join(text, by.Note)}, countersign.MitigationDone, by.Via, text}, nil
	})
	if err != nil {
		d.Log.ErrorContext(ctx, "act not written onto its alert", "alert", a.ID, "act", act, "error", err)
		return a
	}
	return now
}
