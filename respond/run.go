package respond

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// pollEvery is how late a node sees what another one queued, or whose time came.
	pollEvery = 5 * time.Second
	// maintainEvery is how often snoozed alerts open and old rows are deleted.
	maintainEvery = 15 * time.Second
	// keepDone is how long finished mitigations stay on record: the limits look back
	// an hour, people a little further. The event log keeps all.
	keepDone = 30 * 24 * time.Hour
	// keepClosed is how long a closed alert can be looked at.
	keepClosed = 400 * 24 * time.Hour
)

// Run does what was queued and notifies the channels, until ctx ends. What is not done
// by then is on record, for the next process.
func (d *Responder) Run(ctx context.Context) error {
	d.init()
	if err := d.adopt(ctx); err != nil && ctx.Err() == nil {
		d.Log.ErrorContext(ctx, "mitigations not taken over", "error", err, "retry_in", turn) // their turn ends
	}
	var wg sync.WaitGroup
	wg.Go(func() { d.loop(ctx, d.due, pollEvery, d.mitigate) })
	for _, c := range d.channels {
		wg.Go(func() {
			d.loop(ctx, c.due, pollEvery, func(ctx context.Context) (bool, error) { return d.deliver(ctx, c) })
		})
	}
	wg.Go(func() { d.loop(ctx, nil, maintainEvery, d.maintain) })
	wg.Wait()
	return nil
}

// loop does one piece of work after the other while there is any, then waits.
func (d *Responder) loop(ctx context.Context, due <-chan struct{}, every time.Duration, work func(context.Context) (more bool, err error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		more, err := work(ctx)
		if err != nil && ctx.Err() == nil {
			d.Log.ErrorContext(ctx, "response not carried out", "error", err)
		}
		if more && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-due:
		case <-tick.C:
		}
	}
}

// adopt makes due again what a process that ended had begun. With PostgreSQL another
// node may be at it: there it is due when its turn ends.
func (d *Responder) adopt(ctx context.Context) error {
	if d.DB.Postgres() {
		return nil
	}
	return d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE mitigation SET next_at = $1 WHERE state IN ('waiting', 'running') AND state = 'running'`, store.Micros(d.now()))
		return err
	})
}

// maintain opens alerts whose snooze is over, deletes what is old and counts what is open.
func (d *Responder) maintain(ctx context.Context) (more bool, err error) {
	now := d.now()
	if err := d.wakeSnoozed(ctx, now); err != nil {
		return false, err
	}
	err = d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		for _, q := range []struct {
			text string
			at   time.Time
		}{
			{`DELETE FROM mitigation WHERE state IN ('done', 'failed') AND made_at < $1`, now.Add(-keepDone)},
			{`DELETE FROM alert WHERE state = 'closed' AND changed_at < $1`, now.Add(-keepClosed)},
			{`DELETE FROM notification WHERE made_at < $1`, now.Add(-2 * maxAge)}, // of channels that are no more
		} {
			if _, err := tx.Exec(ctx, q.text, store.Micros(q.at)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	return false, d.countOpen(ctx)
}

// wakeSnoozed opens the alerts whose snooze is over. Those that went on meanwhile
// are notified again.
func (d *Responder) wakeSnoozed(ctx context.Context, now time.Time) error {
	ids, err := store.List(ctx, d.DB, store.Scan[string], `SELECT id FROM alert WHERE state = 'snoozed' AND snoozed <= $1 LIMIT 500`, store.Micros(now))
	if err != nil {
		return err
	}
	for _, id := range ids {
		err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
			t, err := d.begin(ctx, tx)
			if err != nil {
				return err
			}
			a, err := get(ctx, tx, id)
			if err != nil || a.State != Snoozed || now.Before(a.SnoozedUntil) {
				return err
			}
			snoozedAt := a.ChangedAt
			a.State, a.SnoozedUntil = Open, time.Time{}
			line := Line{Actor: countersign.System, Act: "reopened", Outcome: Done, Text: "its snooze is over"}
			if err := t.record(ctx, &a, entry{Line: line, kind: countersign.AlertChanged}); err != nil || !a.LastSeen.After(snoozedAt) {
				return err
			}
			return t.announceLast(ctx, NewsChanged, &a)
		})
		if err != nil {
			return fmt.Errorf("wake alert %s: %w", id, err)
		}
	}
	return nil
}

func (d *Responder) countOpen(ctx context.Context) error {
	by := map[countersign.Severity]int64{}
	scan := func(row store.Row) (countersign.Severity, error) {
		var s countersign.Severity
		var n int64
		err := row.Scan(&s, &n)
		by[s] = n
		return s, err
	}
	if _, err := store.List(ctx, d.DB, scan, `SELECT severity, COUNT(*) FROM alert WHERE state <> 'closed' GROUP BY severity`); err != nil {
		return fmt.Errorf("count alerts: %w", err)
	}
	d.open.mu.Lock()
	d.open.by = by
	d.open.mu.Unlock()
	return nil
}
