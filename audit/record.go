package audit

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// maxRuns is how many runs are kept: a quarter of a year of daily ones.
	maxRuns = 90
)

// State is where a run stands. The words are those of AWS IoT Device Defender.
type State string

// The states of a run.
const (
	InProgress State = "IN_PROGRESS"
	Completed  State = "COMPLETED"
	Failed     State = "FAILED"
	Canceled   State = "CANCELED"
)

// Status is where one check of a run stands, in the same words.
type Status string

// The statuses of a check.
const (
	Waiting       Status = "WAITING_FOR_DATA_COLLECTION" // its turn has not come
	CheckRunning  Status = "IN_PROGRESS"
	Compliant     Status = "COMPLETED_COMPLIANT"
	NonCompliant  Status = "COMPLETED_NON_COMPLIANT"
	CheckFailed   Status = "FAILED"
	CheckCanceled Status = "CANCELED"
)

// Latest in place of an id is the newest run.
const Latest = "latest"

// Run is one audit.
type Run struct {
	ID        string
	State     State
	Reason    string // why it failed or was canceled
	Scheduled bool
	StartedBy countersign.Actor
	Via       string
	Node      string
	StartedAt time.Time
	EndedAt   time.Time // zero while it runs
	Checks    []Result  // by name; empty in a list
}

// Result is what one check of a run came to.
type Result struct {
	Name         string
	Status       Status
	Severity     countersign.Severity // of the worst finding; empty without one
	Looked       int64                // rows that it looked at
	NonCompliant int64                // findings, suppressed ones apart
	Suppressed   int64
	Kept         int64  // of both, on record; at most maxFindings
	Error        string // why it failed
}

// Finding is one thing that a check found.
type Finding struct {
	ID         string
	Run        string
	Check      string
	Reason     string // reason code
	Severity   countersign.Severity
	Subject    string // device:<id>, authority:<id>, credential:<id>, operator_token:<id>, fleet:<name>, server
	Device     string
	Fleet      string
	Cert       countersign.CertRef
	Summary    string            // one sentence
	Evidence   map[string]string // what it rests on
	Suppressed string            // id of the suppression; empty if none
	At         time.Time
}

// newID sorts by time.
func newID(now time.Time) string {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return strings.Replace(now.UTC().Format("20060102-150405.000-"), ".", "", 1) + hex.EncodeToString(b[:])
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

// bury marks runs failed whose process is gone. With alone every run that is not
// of this process is.
func (a *Auditor) bury(ctx context.Context, alone bool) error {
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

// Get returns a run with its checks; "latest" means the newest one.
func (a *Auditor) Get(ctx context.Context, id string) (Run, error) {
	id, err := a.resolve(ctx, id)
	if err != nil {
		return Run{}, err
	}
	list, err := a.runRows(ctx, `WHERE id = $1`, id)
	if err != nil {
		return Run{}, err
	}
	if len(list) == 0 {
		return Run{}, noRun(id)
	}
	list[0].Checks, err = a.results(ctx, id)
	return list[0], err
}

func noRun(id string) error {
	return countersign.Errorf(countersign.NotFound, "there is no audit %.80q", id).WithNext("look for it in the list of audits")
}

// resolve returns the id that a word for a run means.
func (a *Auditor) resolve(ctx context.Context, id string) (string, error) {
	if id != Latest {
		return id, nil
	}
	err := a.DB.QueryRow(ctx, `SELECT id FROM audit_run ORDER BY id DESC LIMIT 1`).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", countersign.Errorf(countersign.NotFound, "there was no audit yet").WithNext("start one")
	}
	if err != nil {
		return "", fmt.Errorf("look for the newest audit: %w", err)
	}
	return id, nil
}

func (a *Auditor) runRows(ctx context.Context, where string, args ...any) (list []Run, err error) {
	list, err = store.List(ctx, a.DB, func(row store.Row) (r Run, err error) {
		var started, ended int64
		err = row.Scan(&r.ID, &r.State, &r.Reason, &r.Scheduled, &r.StartedBy, &r.Via, &r.Node, &started, &ended)
		r.StartedAt, r.EndedAt = store.Time(started), store.Time(ended)
		return r, err
	}, `SELECT id, state, reason, scheduled, started_by, via, node, started_at, ended_at FROM audit_run `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read audits: %w", err)
	}
	return list, nil
}

func (a *Auditor) results(ctx context.Context, run string) (list []Result, err error) {
	list, err = store.List(ctx, a.DB, func(row store.Row) (c Result, err error) {
		err = row.Scan(&c.Name, &c.Status, &c.Severity, &c.Looked, &c.NonCompliant, &c.Suppressed, &c.Kept, &c.Error)
		return c, err
	}, `SELECT name, status, severity, looked_at, non_compliant, suppressed, kept, error FROM audit_check WHERE run = $1 ORDER BY name`, run)
	if err != nil {
		return nil, fmt.Errorf("read the checks of audit %s: %w", run, err)
	}
	return list, nil
}

// Runs lists runs, newest first, with their checks. after is the next of the page
// before; empty at the start.
func (a *Auditor) Runs(ctx context.Context, after string, limit int) (list []Run, next string, err error) {
	limit = store.PageSize(limit)
	var q store.Query
	q.If(after != "", "id < ?", after)
	if list, err = a.runRows(ctx, q.Where()+` ORDER BY id DESC LIMIT `+q.Arg(limit+1), q.Args...); err != nil { // ids sort by time
		return nil, "", err
	}
	list, next = store.Page(list, limit, func(r *Run) string { return r.ID })
	for i := range list {
		if list[i].Checks, err = a.results(ctx, list[i].ID); err != nil {
			return nil, "", err
		}
	}
	return list, next, nil
}

// Filter chooses findings of a run.
type Filter struct {
	Run        string // id, or latest
	Check      string
	Severities []countersign.Severity // empty: all
	Fleet      string
	Device     string
	Suppressed bool   // those that are suppressed too
	After      string // the next of the page before
	Limit      int
}

// Findings lists what a run found, by check.
func (a *Auditor) Findings(ctx context.Context, f Filter) (list []Finding, next string, err error) {
	run, err := a.Get(ctx, f.Run)
	if err != nil {
		return nil, "", err
	}
	var q store.Query
	q.And("run = ?", run.ID)
	q.If(f.Check != "", "name = ?", f.Check)
	q.If(f.Fleet != "", "fleet = ?", f.Fleet)
	q.If(f.Device != "", "device = ?", f.Device)
	q.If(f.After != "", "id > ?", f.After)
	q.If(!f.Suppressed, "suppressed = ''")
	if len(f.Severities) > 0 {
		q.And("severity IN " + store.In(&q, f.Severities))
	}
	limit := store.PageSize(f.Limit)
	list, err = store.List(ctx, a.DB, scanFinding, `SELECT `+findingColumns+` FROM audit_finding`+q.Where()+` ORDER BY id LIMIT `+q.Arg(limit+1), q.Args...)
	if err != nil {
		return nil, "", fmt.Errorf("read findings: %w", err)
	}
	list, next = store.Page(list, limit, func(f *Finding) string { return f.ID })
	return list, next, nil
}

const findingColumns = `id, run, name, reason, severity, subject, device, fleet, issuer, serial, summary, evidence, suppressed, at`

func scanFinding(row store.Row) (f Finding, err error) {
	var evidence string
	var at int64
	err = row.Scan(&f.ID, &f.Run, &f.Check, &f.Reason, &f.Severity, &f.Subject, &f.Device, &f.Fleet, &f.Cert.Issuer, &f.Cert.Serial,
		&f.Summary, &evidence, &f.Suppressed, &at)
	if err != nil {
		return f, err
	}
	f.At = store.Time(at)
	return f, json.Unmarshal([]byte(evidence), &f.Evidence)
}

// LastCompleted returns the newest run that completed, false if there is none.
func (a *Auditor) LastCompleted(ctx context.Context) (run Run, ok bool, err error) {
	list, err := a.runRows(ctx, `WHERE state = 'COMPLETED' ORDER BY id DESC LIMIT 1`)
	if err != nil || len(list) == 0 {
		return Run{}, false, err
	}
	list[0].Checks, err = a.results(ctx, list[0].ID)
	return list[0], err == nil, err
}

// Severity is that of the worst finding; empty without one.
func (r *Run) Severity() (worst countersign.Severity) {
	for _, c := range r.Checks {
		if c.Severity.Rank() > worst.Rank() {
			worst = c.Severity
		}
	}
	return worst
}
