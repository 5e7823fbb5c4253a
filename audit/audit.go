// Package audit looks through the records, on a schedule and on demand, for what
// is wrong without anything having happened: certificates about to expire,
// revoked ones still in use, weak keys, credentials without bounds, a log that
// is not sealed. Each check is a function over rows that are read page by page;
// what it finds is kept with the run, counted, and handed on.
//
// It changes nothing but its own records. Names and reason codes are those of AWS
// IoT Device Defender where it has the same check, so that software for its
// findings reads ours. docs/audit.md describes each check.
package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
)

const (
	// pollEvery is how late a scheduled audit may begin.
	pollEvery = time.Minute
	// retryAfter is when a scheduled audit that failed is tried again.
	retryAfter = time.Hour
	// beatEvery is how often a run records its progress, and how late it learns that it
	// was canceled on another node.
	beatEvery = 2 * time.Second
	// deadAfter without a beat a run is taken for dead: a node that could not write
	// for so long has other worries.
	deadAfter = 2 * time.Minute
	// endTime bounds the last writes of a run whose server is being stopped.
	endTime = 10 * time.Second
)

// Run starts audits when they are due, until ctx ends; then it waits for the one
// that runs to note its end. Runs that a dead process left behind are marked
// failed first.
func (a *Auditor) Run(ctx context.Context) error {
	a.mu.Lock()
	a.base = ctx
	a.mu.Unlock()
	a.maintain(ctx, !a.DB.Postgres())
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			a.mu.Lock()
			a.stopped = true
			for _, r := range a.runs {
				r.stop(errStopping)
			}
			a.mu.Unlock()
			a.wg.Wait()
			return nil
		case <-tick.C:
			a.maintain(ctx, false)
		}
	}
}

// maintain fails the runs of dead processes and starts what is due. alone: no other
// process can have a run in progress, so any that is not ours is dead.
func (a *Auditor) maintain(ctx context.Context, alone bool) {
	if err := a.failStale(ctx, alone); err != nil && ctx.Err() == nil {
		a.Log.ErrorContext(ctx, "dead audits not marked", "error", err)
	}
	if a.Every <= 0 {
		return
	}
	due, err := a.Due(ctx)
	if err == nil && !a.Now().Before(due) {
		_, err = a.start(ctx, Request{By: countersign.System, Via: "schedule"}, true)
		if countersign.CodeOf(err) == countersign.Conflict {
			err = nil // one runs; this one's time has not passed
		}
	}
	if err != nil && ctx.Err() == nil {
		a.Log.ErrorContext(ctx, "scheduled audit not started", "error", err)
	}
}

// Request asks for a run.
type Request struct {
	By     countersign.Actor
	Via    string   // door or tool
	Checks []string // names; empty: all
}

// Start begins a run and returns it as it is at its start. Conflict if one is in
// progress, on whichever node; NotFound for a check that there is not.
func (a *Auditor) Start(ctx context.Context, q Request) (Run, error) { return a.start(ctx, q, false) }

func (a *Auditor) start(ctx context.Context, q Request, scheduled bool) (Run, error) {
	checks, err := named(q.Checks)
	if err != nil {
		return Run{}, err
	}
	now := a.Now().UTC().Truncate(time.Microsecond)
	run := Run{
		ID: newID(now), State: InProgress, Scheduled: scheduled, StartedBy: q.By, Via: q.Via, Node: a.Node, StartedAt: now,
	}
	for _, c := range checks {
		run.Checks = append(run.Checks, Result{Name: c.Name, Status: Waiting})
	}
	ctx = context.WithoutCancel(ctx) // once it is on record it has to be run
	err = a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return a.record(ctx, tx, &run) })
	if err != nil {
		return Run{}, err
	}
	a.launch(ctx, run)
	return run, nil
}

// launch runs a run in a goroutine that ends with the server and not with the
// request.
func (a *Auditor) launch(ctx context.Context, run Run) {
	a.mu.Lock()
	defer a.mu.Unlock()
	base := a.base
	if base == nil {
		base = ctx
	}
	work, stop := context.WithCancelCause(base)
	if a.stopped {
		stop(errStopping)
	}
	l := &live{stop: stop, done: make(chan struct{})}
	if a.runs == nil {
		a.runs = map[string]*live{}
	}
	a.runs[run.ID] = l
	a.wg.Go(func() {
		defer close(l.done)
		defer stop(nil)
		a.carryOut(work, stop, run)
		a.mu.Lock()
		delete(a.runs, run.ID)
		a.mu.Unlock()
	})
}

// Wait waits for the end of a run of this process, and returns it. A run of another
// node is returned as it is.
func (a *Auditor) Wait(ctx context.Context, id string) (Run, error) {
	a.mu.Lock()
	l := a.runs[id]
	a.mu.Unlock()
	if l != nil {
		select {
		case <-l.done:
		case <-ctx.Done():
			return Run{}, ctx.Err()
		}
	}
	return a.Get(ctx, id)
}

// Cancel ends a run early: at once in this process, within seconds on another
// node. What its finished checks found stays. Conflict if it has ended.
func (a *Auditor) Cancel(ctx context.Context, id string) (Run, error) {
	run, err := a.Get(ctx, id)
	if err != nil {
		return Run{}, err
	}
	var n int64
	err = a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		n, err = tx.Exec(ctx, `UPDATE audit_run SET canceled = TRUE WHERE id = $1 AND state = 'IN_PROGRESS'`, run.ID)
		return err
	})
	if err != nil {
		return Run{}, fmt.Errorf("cancel audit %s: %w", run.ID, err)
	}
	if n == 0 {
		return Run{}, countersign.Errorf(countersign.Conflict, "the audit %s has ended already", run.ID)
	}
	a.mu.Lock()
	l := a.runs[run.ID]
	a.mu.Unlock()
	if l == nil {
		return a.Get(ctx, run.ID)
	}
	l.stop(errCanceled)
	return a.Wait(ctx, run.ID)
}

// record puts a new run on record, if none is in progress.
func (a *Auditor) record(ctx context.Context, tx *store.Tx, run *Run) error {
	if err := tx.Lock(ctx, "audit.run"); err != nil {
		return err
	}
	var other string
	err := tx.QueryRow(ctx, `SELECT id FROM audit_run WHERE state = 'IN_PROGRESS'`).Scan(&other)
	if err == nil {
		return countersign.Errorf(countersign.Conflict, "the audit %s is in progress", other).
			WithNext("wait for it, or cancel it")
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("look for an audit in progress: %w", err)
	}
	if run.Scheduled { // another node may have been first
		due, err := a.due(ctx, tx)
		if err != nil {
			return err
		}
		if run.StartedAt.Before(due) {
			return countersign.Errorf(countersign.Conflict, "the next audit is due at %s", due.Format(time.RFC3339))
		}
	}
	_, err = tx.Exec(ctx, `INSERT INTO audit_run (id, state, reason, scheduled, started_by, via, node, canceled, started_at, ended_at, beat_at, log_events, log_head)
		VALUES ($1, $2, '', $3, $4, $5, $6, FALSE, $7, 0, $7, 0, '')`,
		run.ID, string(run.State), run.Scheduled, string(run.StartedBy), run.Via, run.Node, store.Micros(run.StartedAt))
	if err != nil {
		return fmt.Errorf("record an audit: %w", err)
	}
	for _, c := range run.Checks {
		_, err := tx.Exec(ctx, `INSERT INTO audit_check (run, name, status, severity, looked_at, non_compliant, suppressed, kept, error)
			VALUES ($1, $2, $3, '', 0, 0, 0, 0, '')`, run.ID, c.Name, string(c.Status))
		if err != nil {
			return fmt.Errorf("record a check of an audit: %w", err)
		}
	}
	return nil
}

// failStale marks runs failed whose process is gone. With alone every run that is not
// of this process is.
func (a *Auditor) failStale(ctx context.Context, alone bool) error {
	stale := a.Now().Add(-deadAfter)
	if alone {
		stale = a.Now().Add(time.Second)
	}
	var id string
	err := a.DB.QueryRow(ctx, `SELECT id FROM audit_run WHERE state = 'IN_PROGRESS' AND beat_at <= $1`, store.Micros(stale)).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for dead audits: %w", err)
	}
	a.mu.Lock()
	_, ours := a.runs[id]
	a.mu.Unlock()
	if ours {
		return nil
	}
	return a.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		// Its row as it is now: the process may have come back, or ended it.
		var by countersign.Actor
		var via string
		err := tx.QueryRow(ctx, `UPDATE audit_run SET state = 'FAILED', reason = $3, ended_at = $4 WHERE id = $1 AND state = 'IN_PROGRESS' AND beat_at <= $2
			RETURNING started_by, via`, id, store.Micros(stale), "the process that ran it ended", store.Micros(a.Now())).Scan(&by, &via)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("mark audit %s failed: %w", id, err)
		}
		_, err = tx.Exec(ctx, `UPDATE audit_check SET status = 'FAILED', error = $2 WHERE run = $1 AND status IN ('IN_PROGRESS', 'WAITING_FOR_DATA_COLLECTION')`,
			id, "the process that ran it ended")
		if err != nil {
			return fmt.Errorf("mark the checks of audit %s failed: %w", id, err)
		}
		return a.Events.Append(ctx, tx, countersign.Event{
			Type: countersign.AuditCompleted, Actor: by, Via: via, Reason: "the process that ran it ended",
			Data: map[string]string{"run": id, "state": string(Failed)},
		})
	})
}

// Due is when the next scheduled audit begins: Every after the last one, or after
// the first authority was founded. It is worked out from the record, so a
// restart changes nothing.
func (a *Auditor) Due(ctx context.Context) (time.Time, error) {
	return a.due(ctx, a.DB)
}

func (a *Auditor) due(ctx context.Context, r store.Reader) (time.Time, error) {
	var started int64
	var state State
	err := r.QueryRow(ctx, `SELECT started_at, state FROM audit_run WHERE scheduled ORDER BY started_at DESC, id DESC LIMIT 1`).Scan(&started, &state)
	if errors.Is(err, sql.ErrNoRows) {
		founded, err := ca.Founded(ctx, r)
		if err != nil {
			return time.Time{}, err
		}
		if founded.IsZero() { // there is nothing to look at
			founded = a.Now()
		}
		return founded.Add(a.Every), nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("read the last scheduled audit: %w", err)
	}
	wait := a.Every
	if state == Failed {
		wait = min(wait, retryAfter)
	}
	return store.Time(started).Add(wait), nil
}
