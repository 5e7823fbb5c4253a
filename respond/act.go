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
)

// By says who acts on an alert, and what he says to it.
type By struct {
	ra.By
	Note string
}

// change does one thing to an alert that is not closed, with its line and event.
func (d *Responder) change(ctx context.Context, id, act string, by By, do func(a *Alert) (text string, err error)) (a Alert, err error) {
	err = d.RA.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Lock(ctx, lock); err != nil {
			return err
		}
		if a, err = get(ctx, tx, id); err != nil {
			return err
		}
		if a.State == Closed && act != "comment" {
			return countersign.Errorf(countersign.Conflict, "alert %s is closed", id).WithNext("a new finding opens another one; comment on this one if you like")
		}
		text, err := do(&a)
		if err != nil {
			return err
		}
		a.ChangedAt = d.now()
		a.add(Line{At: a.ChangedAt, Actor: by.Actor, Act: act, Outcome: Done, Text: text})
		if err := a.save(ctx, tx); err != nil {
			return err
		}
		e := a.event(countersign.AlertChanged, by.Actor, text)
		e.Via, e.Data["act"] = by.Via, act
		return d.RA.Events.Append(ctx, tx, e)
	})
	return a, err
}

// Acknowledge records that a person works on the alert. Channels are notified again only if it gets
// worse.
func (d *Responder) Acknowledge(ctx context.Context, id string, by By) (Alert, error) {
	return d.change(ctx, id, "acknowledge", by, func(a *Alert) (string, error) {
		a.State, a.SnoozedUntil = Acknowledged, time.Time{}
		return by.Note, nil
	})
}

// Assign assigns the alert to an operator, by name; empty: to no one.
func (d *Responder) Assign(ctx context.Context, id, to string, by By) (Alert, error) {
	if len(to) > maxAssignee {
		return Alert{}, countersign.Errorf(countersign.BadRequest, "the name is longer than %d octets", maxAssignee)
	}
	return d.change(ctx, id, "assign", by, func(a *Alert) (string, error) {
		a.Assignee = clip(to)
		text := "to " + a.Assignee
		if to == "" {
			text = "to nobody"
		}
		return join(text, by.Note), nil
	})
}

// maxAssignee bounds a name, as that of an operator's token.
const maxAssignee = 63

func join(text, note string) string {
	if note == "" {
		return text
	}
	return text + ": " + note
}

// Comment adds a note, to a closed alert too.
func (d *Responder) Comment(ctx context.Context, id string, by By) (Alert, error) {
	if by.Note == "" {
		return Alert{}, countersign.Errorf(countersign.BadRequest, "the comment is empty").WithNext("say something")
	}
	return d.change(ctx, id, "comment", by, func(*Alert) (string, error) { return by.Note, nil })
}

// Snooze silences the alert for a time: it goes on to count, and neither tells nor
// acts. It opens by itself when the time is over.
func (d *Responder) Snooze(ctx context.Context, id string, length time.Duration, by By) (Alert, error) {
	if length < minSnooze || length > maxSnooze {
		return Alert{}, countersign.Errorf(countersign.BadRequest, "a snooze of %s is not between %s and %s", length, minSnooze, maxSnooze)
	}
	return d.change(ctx, id, "snooze", by, func(a *Alert) (string, error) {
		a.State, a.SnoozedUntil = Snoozed, d.now().Add(length)
		return join("until "+a.SnoozedUntil.Format(time.RFC3339), by.Note), nil
	})
}

// Close ends the alert. A later finding of the same kind opens a new one.
func (d *Responder) Close(ctx context.Context, id string, how Resolution, by By) (Alert, error) {
	if how != Resolved && how != NotAnIssue {
		return Alert{}, countersign.Errorf(countersign.BadRequest, "%.40q is neither %s nor %s", how, Resolved, NotAnIssue)
	}
	return d.change(ctx, id, "close", by, func(a *Alert) (string, error) {
		a.State, a.Resolution, a.SnoozedUntil = Closed, how, time.Time{}
		return join(string(how), by.Note), nil
	})
}

// subject is the device of an alert.
func (d *Responder) subject(ctx context.Context, id string) (Alert, error) {
	a, err := get(ctx, d.RA.DB, id)
	if err == nil && a.Device == "" {
		err = countersign.Errorf(countersign.Conflict, "alert %s names no device", id).WithNext("see what can be done: countersign alert show " + id)
	}
	return a, err
}

// act is an operator's act on the device of an alert.
func (a *Alert) act(by By) ra.Act {
	return ra.Act{Device: a.Device, Actor: by.Actor, Via: by.Via, Note: join("alert "+a.ID, by.Note), Alert: a.ID}
}

// Suspend puts the device of an alert on hold.
func (d *Responder) Suspend(ctx context.Context, id string, by By) (Alert, *countersign.Revocation, error) {
	a, err := d.subject(ctx, id)
	if err != nil {
		return a, nil, err
	}
	r, err := d.RA.Suspend(ctx, a.act(by))
	if err != nil {
		return a, nil, err
	}
	return d.acted(ctx, a, countersign.MitigateSuspend, by, told(r, "on hold")), r, nil
}

// Reactivate brings the device of an alert back.
func (d *Responder) Reactivate(ctx context.Context, id string, by By) (Alert, *countersign.Revocation, error) {
	a, err := d.subject(ctx, id)
	if err != nil {
		return a, nil, err
	}
	r, err := d.RA.Reactivate(ctx, a.act(by))
	if err != nil {
		return a, nil, err
	}
	return d.acted(ctx, a, reactivate, by, count(len(r.Certificates), "certificate")+" good again"), r, nil
}

// Revoke takes the certificates of an alert's device away for good.
func (d *Responder) Revoke(ctx context.Context, id string, reason countersign.ReasonCode, by By) (Alert, *countersign.Revocation, error) {
	a, err := d.subject(ctx, id)
	if err != nil {
		return a, nil, err
	}
	act := a.act(by)
	r, err := d.RA.Revoke(ctx, countersign.RevokeRequest{Device: a.Device, Reason: reason, Note: act.Note, Actor: act.Actor, Via: act.Via, Alert: a.ID})
	if err != nil {
		return a, nil, err
	}
	return d.acted(ctx, a, countersign.MitigateRevoke, by, told(r, "revoked")), r, nil
}

// Block refuses the address of an alert for a time, as an operator's block does.
func (d *Responder) Block(ctx context.Context, id string, length time.Duration, by By) (Alert, lockout.Block, error) {
	a, err := get(ctx, d.RA.DB, id)
	if err != nil {
		return a, lockout.Block{}, err
	}
	network, err := a.network()
	if err != nil {
		return a, lockout.Block{}, err
	}
	b, err := d.RA.Ledger.Block(ctx, lockout.Block{Prefix: network, Reason: join("alert "+id, by.Note), Until: d.RA.Now().Add(length)}, by.Actor, by.Via)
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
	err := d.RA.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Lock(ctx, lock); err != nil {
			return err
		}
		now, err := get(ctx, tx, a.ID)
		if err != nil {
			return err
		}
		now.ChangedAt = d.now()
		now.add(Line{At: now.ChangedAt, Actor: by.Actor, Act: string(act), Outcome: Done, Text: join(text, by.Note)})
		if err := now.save(ctx, tx); err != nil {
			return err
		}
		a = now
		e := now.event(countersign.MitigationDone, by.Actor, text)
		e.Via, e.Data["act"] = by.Via, string(act)
		return d.RA.Events.Append(ctx, tx, e)
	})
	if err != nil {
		d.RA.Log.ErrorContext(ctx, "act not written onto its alert", "alert", a.ID, "act", act, "error", err)
	}
	return a
}
