package respond

import (
	"context"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
)

// mitigate carries out the mitigation that is due first; more: there may be another.
func (d *Responder) mitigate(ctx context.Context) (more bool, err error) {
	j, err := d.claim(ctx)
	if err != nil || j == nil {
		return false, err
	}
	if j.refused != "" {
		return true, j.settle(ctx, result{text: j.refused, failed: true})
	}
	r, err := j.carryOut(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return false, nil // the next process sees whether it was done
		}
		r = result{text: countersign.Public(err).Message, failed: true, again: passing(err) && j.attempts < maxAttempts}
		d.Log.WarnContext(ctx, "mitigation failed", "alert", j.alert, "act", j.act, "attempts", j.attempts, "error", err)
	}
	return true, j.settle(ctx, r)
}

// passing reports whether the same may succeed later.
func passing(err error) bool {
	switch countersign.CodeOf(err) {
	case countersign.Unavailable, countersign.Internal, countersign.RateLimited:
		return true
	}
	return false
}

// result is how an attempt ended.
type result struct {
	text   string
	failed bool
	again  bool // try again later
	idle   bool // there was nothing to do: it counts against no limit
}

func (j *job) carryOut(ctx context.Context) (result, error) {
	if j.attempts > 1 {
		if done, err := j.wasDone(ctx); err != nil || done {
			return result{text: "done; the server was interrupted before it could say so"}, err
		}
	}
	if j.closed {
		return result{text: "not done: the alert was closed first", idle: true}, nil
	}
	switch j.act {
	case countersign.MitigateSuspend:
		return j.suspend(ctx)
	case countersign.MitigateRevoke:
		return j.revoke(ctx)
	case countersign.MitigateBlock:
		return j.block(ctx)
	}
	return result{}, countersign.Errorf(countersign.BadRequest, "there is no mitigation %.40q", j.act)
}

// wasDone looks in the log whether an earlier attempt, cut short, had its effect:
// meanwhile an operator may have undone it.
func (j *job) wasDone(ctx context.Context) (bool, error) {
	of, ok := map[countersign.Mitigation]countersign.EventType{
		countersign.MitigateSuspend: countersign.DeviceSuspendedEv, countersign.MitigateRevoke: countersign.DeviceRevoked,
	}[j.act]
	if !ok || j.finding.Device == "" {
		return false, nil // a block that is there already stays as it is
	}
	list, _, err := j.Events.List(ctx, event.Filter{Device: j.finding.Device, Type: of, Since: j.began})
	if err != nil {
		return false, err
	}
	for _, e := range list {
		// An event of an earlier version has no alert; it is of this time and this package.
		if alert, named := e.Data["alert"]; e.Via == via && (!named || alert == j.alert) {
			return true, nil
		}
	}
	return false, nil
}

func (j *job) device(ctx context.Context) (countersign.Device, error) {
	if j.finding.Device == "" {
		return countersign.Device{}, countersign.Errorf(countersign.BadRequest, "the finding names no device")
	}
	e, err := j.Registry.Device(ctx, j.DB, j.finding.Device)
	return e.Device, err
}

func (j *job) suspend(ctx context.Context) (result, error) {
	dev, err := j.device(ctx)
	if err != nil {
		return result{}, err
	}
	if dev.State == countersign.DeviceSuspended || dev.State == countersign.DeviceRetired {
		return result{text: "it was " + string(dev.State) + " already", idle: true}, nil
	}
	r, err := j.Devices.Suspend(ctx, ra.Act{Device: dev.ID, Actor: countersign.System, Note: j.note(), Via: via, Alert: j.alert})
	if err != nil {
		return result{}, err
	}
	return result{text: taken(r, "on hold") + "; to undo it, reactivate " + dev.ID}, nil
}

func (j *job) revoke(ctx context.Context) (result, error) {
	dev, err := j.device(ctx)
	if err != nil {
		return result{}, err
	}
	if dev.State != countersign.DeviceActive && dev.State != countersign.DeviceSuspended {
		return result{text: "it is " + string(dev.State) + " and has nothing to lose", idle: true}, nil
	}
	r, err := j.Devices.Revoke(ctx, countersign.RevokeRequest{
		Device: dev.ID, Reason: countersign.PrivilegeWithdrawn, Note: j.note(), Actor: countersign.System, Via: via, Alert: j.alert,
	})
	if err != nil {
		return result{}, err
	}
	return result{text: taken(r, "revoked")}, nil
}

func (j *job) block(ctx context.Context) (result, error) {
	network, err := networkOf(j.finding.Remote)
	if err != nil {
		return result{}, err
	}
	b, made, err := j.Ledger.Refuse(ctx, lockout.Block{Prefix: network, Reason: j.note(), Until: j.Now().Add(blockFor)}, via)
	if err != nil {
		return result{}, err
	}
	if !made {
		return result{text: fmt.Sprintf("%s was blocked already", b.Prefix), idle: true}, nil
	}
	return result{text: fmt.Sprintf("%s blocked until %s; to undo it, remove the block", b.Prefix, b.Until.UTC().Format(time.RFC3339))}, nil
}

// settle records how a mitigation ended, or when it is tried again.
func (j *job) settle(ctx context.Context, r result) error {
	// Not ctx: what was done is recorded although the server is being stopped.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	if r.again {
		return j.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE mitigation SET next_at = $2 WHERE id = $1 AND state = 'running'`,
				j.id, store.Micros(j.now().Add(pause(j.attempts))))
			return err
		})
	}
	state, kind := Done, countersign.MitigationDone
	if r.failed {
		state, kind = Failed, countersign.MitigationFailed
	}
	return j.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		t, err := j.begin(ctx, tx)
		if err != nil {
			return err
		}
		n, err := tx.Exec(ctx, `UPDATE mitigation SET state = $2, began_at = CASE WHEN $3 THEN 0 ELSE began_at END WHERE id = $1 AND state = 'running'`,
			j.id, state, r.idle || r.failed)
		if err != nil || n == 0 { // another node took it for dead and was faster
			return err
		}
		tx.AfterCommit(func() { j.observe("mitigation", string(j.act), state) })
		a, err := get(ctx, tx, j.alert)
		if err != nil {
			return err
		}
		text := r.text
		if dev := j.finding.Device; dev != "" && a.Subject != "device:"+dev {
			text = dev + ": " + text // the alert is not about it alone
		}
		if r.failed && a.State == Acknowledged {
			a.State = Open
		}
		line := Line{Actor: countersign.System, Act: string(j.act), Outcome: state, Text: text}
		if err := t.record(ctx, &a, entry{line, kind, via, r.text}); err != nil || !r.failed {
			return err
		}
		return t.announceLast(ctx, NewsFailed, &a)
	})
}
