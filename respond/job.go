package respond

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
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
)

// job is one mitigation that is to be carried out.
type job struct {
	*Responder
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
	n, err := store.Count(ctx, t.tx, `SELECT COUNT(*) FROM mitigation
		WHERE alert = $1 AND act = $2 AND object = $3 AND (state IN ('waiting', 'running') OR made_at > $4)`,
		a.ID, string(m), object, store.Micros(t.now.Add(-againAfter)))
	if err != nil {
		return fmt.Errorf("look for %s of alert %s: %w", m, a.ID, err)
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
func queued(ctx context.Context, r store.Reader, alert string) ([]Line, error) {
	scan := func(row store.Row) (Line, error) {
		l := Line{Actor: countersign.System, Outcome: Waiting}
		var at int64
		err := row.Scan(&l.Act, &at)
		l.At = store.Time(at)
		return l, err
	}
	list, err := store.List(ctx, r, scan, `SELECT act, made_at FROM mitigation WHERE alert = $1 AND state IN ('waiting', 'running') ORDER BY made_at`, alert)
	if err != nil {
		return nil, fmt.Errorf("read mitigations: %w", err)
	}
	return list, nil
}

// claim returns the mitigation that is due first; nil: none is. From here on it was
// begun: the process that claims it after a crash looks whether it was done.
func (d *Responder) claim(ctx context.Context) (j *job, err error) {
	for {
		fleet, due, err := d.dueFleet(ctx)
		if err != nil || !due {
			return nil, err
		}
		size := 0
		if fleet != "" {
			if size, err = d.sizeOf(ctx, fleet); err != nil {
				return nil, err
			}
		}
		j, err := d.claimOf(ctx, fleet, size)
		if !errors.Is(err, errOvertaken) {
			return j, err
		}
	}
}

// errOvertaken reports that another node claimed the mitigation that was due first.
var errOvertaken = errors.New("another mitigation is due first now")

// claimOf claims the mitigation that is due first; errOvertaken if it is of another fleet,
// which has another size.
func (d *Responder) claimOf(ctx context.Context, fleet string, size int) (j *job, err error) {
	err = d.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		j = nil // the transaction may be tried again
		if err := tx.Lock(ctx, lock); err != nil {
			return err
		}
		now := d.now()
		c := job{Responder: d}
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
			if c.act != countersign.MitigateBlock && c.fleet != fleet {
				return errOvertaken
			}
			if c.refused, err = c.overLimit(ctx, tx, now, size); err != nil {
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

// overLimit returns why the server must not do this by itself now; empty: it may. size is
// how many devices the fleet has at least.
func (j *job) overLimit(ctx context.Context, tx *store.Tx, now time.Time, size int) (string, error) {
	if j.act == countersign.MitigateBlock {
		n, err := store.Count(ctx, tx, `SELECT COUNT(*) FROM mitigation WHERE act = 'block' AND began_at > $1`, store.Micros(now.Add(-limitWindow)))
		if err != nil || n < maxBlocked {
			return "", err
		}
		return fmt.Sprintf("not done: the server blocked %d addresses within an hour by itself and stops there; a person must act", n), nil
	}
	n, err := held(ctx, tx, j.fleet, now)
	if err != nil || n < fewHeld || n < size*heldShare/100 {
		return "", err
	}
	return fmt.Sprintf("not done: %d devices of fleet %s were held within an hour by the server itself, which stops there; a person must act", n, j.fleet), nil
}

// note is the reason of what is done, for people.
func (j *job) note() string { return "alert " + j.alert + ": " + j.finding.Summary }

// pause is the wait after a number of attempts.
func pause(attempts int) time.Duration { return min(firstPause<<min(attempts-1, 20), maxPause) }
