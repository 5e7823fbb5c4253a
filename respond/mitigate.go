package respond

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
)

const (
	// againAfter is how soon the same is done again about one alert: a device that was
	// brought back and misbehaves again is held again, a detector that repeats itself
	// changes nothing.
	againAfter = 5 * time.Minute
	// turn is how long a mitigation that was begun is left alone. After it the process
	// that had it is taken for dead. An act takes a second or two.
	turn = time.Minute
	// maxAttempts, with a pause that doubles from firstPause to maxPause, is about half
	// an hour: a database that was away for longer wants a person anyway.
	maxAttempts = 12
	firstPause  = 2 * time.Second
	maxPause    = 5 * time.Minute
	// limitWindow is the time in which automatic acts are counted.
	limitWindow = time.Hour
	// fewHeld devices of a fleet, or heldShare of a hundred, are held by the server
	// itself within limitWindow. A detector that is wrong is wrong about many, and must
	// not take a fleet down.
	fewHeld   = 3
	heldShare = 1
	// maxBlocked is the same for addresses, over all fleets.
	maxBlocked = 20
	// blockFor is how long an automatic block lasts: it ends by itself if no one acts.
	blockFor = time.Hour
	// via names this package in events.
	via = "respond"
)

// job is one mitigation that is to be carried out.
type job struct {
	id       string
	alert    string
	act      countersign.Mitigation
	fleet    string
	finding  countersign.Finding
	attempts int
	began    time.Time
	refused  string // why it is not to be done at all
	closed   bool   // its alert: a person has settled the matter
}

// queue puts a mitigation on record, unless the same is waiting or was just done.
func (t *taking) queue(ctx context.Context, a *Alert, m countersign.Mitigation, f countersign.Finding) error {
	object := f.Device
	if m == countersign.MitigateBlock {
		object = f.Remote
		if p, err := networkOf(f.Remote); err == nil {
			object = p.String() // whatever the port
		}
	}
	var n int
	err := t.tx.QueryRow(ctx, `SELECT COUNT(*) FROM mitigation
		WHERE alert = $1 AND act = $2 AND object = $3 AND (state IN ('waiting', 'running') OR made_at > $4)`,
		a.ID, string(m), object, store.Micros(t.now.Add(-againAfter))).Scan(&n)
	if err != nil {
		return fmt.Errorf("look for %s of alert %s: %w", m, a.ID, store.Wrap(err))
	}
	if n > 0 {
		return nil
	}
	text, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode finding: %w", err)
	}
	_, err = t.tx.Exec(ctx, `INSERT INTO mitigation (id, alert, act, object, fleet, finding, state, attempts, made_at, began_at, next_at)
		VALUES ($1, $2, $3, $4, $5, $6, 'waiting', 0, $7, 0, $7)`, newID(), a.ID, string(m), object, f.Fleet, string(text), store.Micros(t.now))
	if err != nil {
		return fmt.Errorf("queue %s: %w", m, err)
	}
	return nil
}

// queued returns what is still to be done about an alert.
func (d *Responder) queued(ctx context.Context, alert string) (list []Line, err error) {
	rows, err := d.RA.DB.Query(ctx, `SELECT act, made_at FROM mitigation WHERE alert = $1 AND state IN ('waiting', 'running') ORDER BY made_at`, alert)
	if err != nil {
		return nil, fmt.Errorf("read mitigations: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		l := Line{Actor: countersign.System, Outcome: Waiting}
		var at int64
		if err := rows.Scan(&l.Act, &at); err != nil {
			return nil, fmt.Errorf("read mitigations: %w", store.Wrap(err))
		}
		l.At = store.Time(at)
		list = append(list, l)
	}
	return list, store.Wrap(rows.Err())
}

// mitigate carries out the mitigation that is due first; more: there may be another.
func (d *Responder) mitigate(ctx context.Context) (more bool, err error) {
	j, err := d.claim(ctx)
	if err != nil || j == nil {
		return false, err
	}
	if j.refused != "" {
		return true, d.settle(ctx, j, result{text: j.refused, failed: true})
	}
	r, err := d.carryOut(ctx, j)
	if err != nil {
		if ctx.Err() != nil {
			return false, nil // the next process sees whether it was done
		}
		r = result{text: countersign.Public(err).Message, failed: true, again: passing(err) && j.attempts < maxAttempts}
		d.RA.Log.WarnContext(ctx, "mitigation failed", "alert", j.alert, "act", j.act, "attempts", j.attempts, "error", err)
	}
	return true, d.settle(ctx, j, r)
}

// passing reports whether the same may succeed later.
func passing(err error) bool {
	switch countersign.CodeOf(err) {
	case countersign.Unavailable, countersign.Internal, countersign.RateLimited:
		return true
	}
	return false
}

// claim takes the mitigation that is due first. From here on it was begun: whoever
// takes it after a crash looks whether it was done.
func (d *Responder) claim(ctx context.Context) (j *job, err error) {
	err = d.RA.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		j = nil // the transaction may be tried again
		if err := tx.Lock(ctx, lock); err != nil {
			return err
		}
		now := d.now()
		var c job
		var text string
		var began int64
		err := tx.QueryRow(ctx, `SELECT id, alert, act, fleet, finding, attempts, began_at,
			EXISTS (SELECT 1 FROM alert a WHERE a.id = mitigation.alert AND a.state = 'closed') FROM mitigation
			WHERE state IN ('waiting', 'running') AND next_at <= $1 ORDER BY next_at, id LIMIT 1`, store.Micros(now)).
			Scan(&c.id, &c.alert, &c.act, &c.fleet, &text, &c.attempts, &began, &c.closed)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return store.Wrap(err)
		}
		if err := json.Unmarshal([]byte(text), &c.finding); err != nil {
			return fmt.Errorf("decode finding: %w", err)
		}
		c.attempts++
		if c.began = store.Time(began); began == 0 {
			c.began = now
		}
		if began == 0 && !c.closed {
			if c.refused, err = d.overLimit(ctx, tx, &c, now); err != nil {
				return err
			}
		}
		began = store.Micros(c.began)
		if c.refused != "" {
			began = 0 // it counts against no limit
		}
		_, err = tx.Exec(ctx, `UPDATE mitigation SET state = 'running', attempts = $2, began_at = $3, next_at = $4 WHERE id = $1`,
			c.id, c.attempts, began, store.Micros(now.Add(turn)))
		j = &c
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claim a mitigation: %w", err)
	}
	return j, nil
}

// overLimit says why the server is not to do this by itself now; empty: it may.
func (d *Responder) overLimit(ctx context.Context, tx *store.Tx, j *job, now time.Time) (string, error) {
	since := store.Micros(now.Add(-limitWindow))
	var n int
	if j.act == countersign.MitigateBlock {
		err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM mitigation WHERE act = 'block' AND began_at > $1`, since).Scan(&n)
		if err != nil || n < maxBlocked {
			return "", store.Wrap(err)
		}
		return fmt.Sprintf("not done: the server blocked %d addresses within an hour by itself and stops there; a person must act", n), nil
	}
	err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM mitigation WHERE fleet = $1 AND began_at > $2 AND act IN ('suspend', 'revoke')`, j.fleet, since).Scan(&n)
	if err != nil || n < fewHeld {
		return "", store.Wrap(err)
	}
	size, err := d.RA.Registry.CountDevices(ctx, tx, j.fleet)
	if err != nil || n < size*heldShare/100 {
		return "", err
	}
	return fmt.Sprintf("not done: %d devices of fleet %s were held within an hour by the server itself, which stops there; a person must act", n, j.fleet), nil
}

// result is how an attempt ended.
type result struct {
	text   string
	failed bool
	again  bool // try again later
	idle   bool // there was nothing to do: it counts against no limit
}

func (d *Responder) carryOut(ctx context.Context, j *job) (result, error) {
	if j.attempts > 1 {
		if done, err := d.wasDone(ctx, j); err != nil || done {
			return result{text: "done; the server was interrupted before it could say so"}, err
		}
	}
	if j.closed {
		return result{text: "not done: the alert was closed first", idle: true}, nil
	}
	switch j.act {
	case countersign.MitigateSuspend:
		return d.suspend(ctx, j)
	case countersign.MitigateRevoke:
		return d.revoke(ctx, j)
	case countersign.MitigateBlock:
		return d.block(ctx, j)
	}
	return result{}, countersign.Errorf(countersign.BadRequest, "there is no mitigation %.40q", j.act)
}

// note is the reason of what is done, for people.
func (j *job) note() string { return "alert " + j.alert + ": " + j.finding.Summary }

// wasDone looks in the log whether an earlier attempt, cut short, had its effect:
// meanwhile an operator may have undone it.
func (d *Responder) wasDone(ctx context.Context, j *job) (bool, error) {
	of, ok := map[countersign.Mitigation]countersign.EventType{
		countersign.MitigateSuspend: countersign.DeviceSuspendedEv, countersign.MitigateRevoke: countersign.DeviceRevoked,
	}[j.act]
	if !ok || j.finding.Device == "" {
		return false, nil // a block that is there already stays as it is
	}
	list, _, err := d.RA.Events.List(ctx, event.Filter{Device: j.finding.Device, Type: of, Since: j.began})
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

func (d *Responder) device(ctx context.Context, j *job) (countersign.Device, error) {
	if j.finding.Device == "" {
		return countersign.Device{}, countersign.Errorf(countersign.BadRequest, "the finding names no device")
	}
	e, err := d.RA.Registry.Device(ctx, d.RA.DB, j.finding.Device)
	return e.Device, err
}

func (d *Responder) suspend(ctx context.Context, j *job) (result, error) {
	dev, err := d.device(ctx, j)
	if err != nil {
		return result{}, err
	}
	if dev.State == countersign.DeviceSuspended || dev.State == countersign.DeviceRetired {
		return result{text: "it was " + string(dev.State) + " already", idle: true}, nil
	}
	r, err := d.RA.Suspend(ctx, ra.Act{Device: dev.ID, Actor: countersign.System, Note: j.note(), Via: via, Alert: j.alert})
	if err != nil {
		return result{}, err
	}
	return result{text: told(r, "on hold") + "; undo: countersign device reactivate " + dev.ID}, nil
}

func (d *Responder) revoke(ctx context.Context, j *job) (result, error) {
	dev, err := d.device(ctx, j)
	if err != nil {
		return result{}, err
	}
	if dev.State != countersign.DeviceActive && dev.State != countersign.DeviceSuspended {
		return result{text: "it is " + string(dev.State) + " and has nothing to lose", idle: true}, nil
	}
	r, err := d.RA.Revoke(ctx, countersign.RevokeRequest{
		Device: dev.ID, Reason: countersign.PrivilegeWithdrawn, Note: j.note(), Actor: countersign.System, Via: via, Alert: j.alert,
	})
	if err != nil {
		return result{}, err
	}
	return result{text: told(r, "revoked")}, nil
}

// told describes what an act took away.
func told(r *countersign.Revocation, what string) string {
	return fmt.Sprintf("%s ended, %s %s", count(r.Sessions, "session"), count(len(r.Certificates), "certificate"), what)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (d *Responder) block(ctx context.Context, j *job) (result, error) {
	network, err := networkOf(j.finding.Remote)
	if err != nil {
		return result{}, err
	}
	reason := j.note()
	b, made, err := d.RA.Ledger.Refuse(ctx, lockout.Block{Prefix: network, Reason: reason, Until: d.RA.Now().Add(blockFor)}, via)
	if err != nil {
		return result{}, err
	}
	if !made {
		return result{text: fmt.Sprintf("%s was blocked already", b.Prefix), idle: true}, nil
	}
	return result{text: fmt.Sprintf("%s blocked until %s; undo: countersign block remove %s", b.Prefix, b.Until.UTC().Format(time.RFC3339), b.Prefix)}, nil
}

// networkOf reads the address of a finding, which may have a port, and returns the
// network that a block of it refuses.
func networkOf(remote string) (netip.Prefix, error) {
	if remote == "" {
		return netip.Prefix{}, countersign.Errorf(countersign.BadRequest, "the finding names no address")
	}
	if ap, err := netip.ParseAddrPort(remote); err == nil {
		remote = ap.Addr().WithZone("").String()
	}
	network, err := countersign.ParseNetwork(remote)
	if err != nil {
		return netip.Prefix{}, err
	}
	return countersign.SourceNetwork(network), nil
}

// settle records how a mitigation ended, or when it is tried again.
func (d *Responder) settle(ctx context.Context, j *job, r result) error {
	// Not ctx: what was done is recorded although the server is being stopped.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTime)
	defer cancel()
	if r.again {
		return d.RA.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE mitigation SET next_at = $2 WHERE id = $1 AND state = 'running'`,
				j.id, store.Micros(d.now().Add(pause(j.attempts))))
			return err
		})
	}
	state, kind := Done, countersign.MitigationDone
	if r.failed {
		state, kind = Failed, countersign.MitigationFailed
	}
	return d.RA.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		t, err := d.begin(ctx, tx)
		if err != nil {
			return err
		}
		n, err := tx.Exec(ctx, `UPDATE mitigation SET state = $2, began_at = CASE WHEN $3 THEN 0 ELSE began_at END WHERE id = $1 AND state = 'running'`,
			j.id, state, r.idle || r.failed)
		if err != nil || n == 0 { // another node took it for dead and was faster
			return err
		}
		tx.AfterCommit(func() { d.observe(Outcome{"mitigation", string(j.act), state}) })
		a, err := get(ctx, tx, j.alert)
		if err != nil {
			return err
		}
		a.ChangedAt = t.now
		text := r.text
		if dev := j.finding.Device; dev != "" && a.Subject != "device:"+dev {
			text = dev + ": " + text // the alert is not about it alone
		}
		a.add(Line{At: t.now, Actor: countersign.System, Act: string(j.act), Outcome: state, Text: text})
		if r.failed && a.State == Acknowledged {
			a.State = Open
		}
		if err := a.save(ctx, tx); err != nil {
			return err
		}
		e := a.event(kind, countersign.System, r.text)
		e.Via = via
		e.Data["act"] = string(j.act)
		if err := d.RA.Events.Append(ctx, tx, e); err != nil || !r.failed {
			return err
		}
		return t.tellAll(ctx, NewsFailed, &a)
	})
}

// writeTime bounds the wait for the database where the caller does not.
const writeTime = 10 * time.Second

// pause is the wait after a number of attempts.
func pause(attempts int) time.Duration { return min(firstPause<<min(attempts-1, 20), maxPause) }
