package audit

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/weakkey"
)

// Auditor runs audits. Set the fields, then Run; all methods may be called from
// any goroutine.
type Auditor struct {
	DB  *store.DB
	Now func() time.Time
	Log *slog.Logger
	// Every is the time from one scheduled audit to the next; 0: none is scheduled.
	Every time.Duration
	// Node names this process to people.
	Node string
	// The keepers whose rows it looks at.
	CA        *ca.CA
	Registry  *registry.Registry
	Policies  *policies.Store
	Operators *operator.Accounts
	Events    *event.Log
	// WeakKeys lists keys that are known to be weak, beside those that are built in. Nil
	// lists none.
	WeakKeys *weakkey.Blocklist
	// Verify walks the hash chain of the log: event.Log.Verify. A function, because it takes
	// minutes where the log is large, and tests of what a run does meanwhile hold it there.
	Verify func(ctx context.Context) (event.Report, error)
	// Sessions lists the live sessions of this node. A function, because the index of
	// sessions belongs to the gateways, which no keeper may know. Nil: none.
	Sessions func() []countersign.Session
	// SharedKeys compares the RSA keys of devices and returns the pairs of certificates
	// whose keys share a prime. A function, because package ra holds the keys, to compare
	// each new one. Nil: they are not compared.
	SharedKeys func(ctx context.Context) ([][2]countersign.Certificate, error)
	// Handle takes what a run found, a finding for each check and fleet, in the
	// transaction that ends the run. A function, because responses are decided by a package
	// that imports this one. Nil: findings are only recorded.
	Handle func(ctx context.Context, tx *store.Tx, findings []countersign.Finding) error

	mu      sync.Mutex
	base    context.Context //nolint:containedctx // of Run: a run outlives the request that started it, not the server
	stopped bool
	runs    map[string]*live
	wg      sync.WaitGroup
}

// live is a run of this process.
type live struct {
	stop context.CancelCauseFunc
	done chan struct{}
}

// Why a run ended early.
var (
	errCanceled = errors.New("canceled by an operator")
	errStopping = errors.New("the server was stopped")
	errLost     = errors.New("another process took it for dead")
)

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
	err = json.Unmarshal([]byte(evidence), &f.Evidence)
	return f, err
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
