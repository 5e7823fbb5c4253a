package respond

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// State is the state of an alert.
type State string

// The states. Closed is the end: what comes later of the same kind opens another.
const (
	Open         State = "open"
	Acknowledged State = "acknowledged" // a person is at it
	Snoozed      State = "snoozed"      // neither notifies nor acts until its end
	Closed       State = "closed"
)

// Live in a filter means all states but closed.
const Live State = "live"

// Resolution is how an alert was closed.
type Resolution string

// The resolutions.
const (
	Resolved   Resolution = "resolved"
	NotAnIssue Resolution = "not_an_issue" // a false alarm
)

const (
	// maxEvidence is how many findings an alert keeps: the last ones; the log has all.
	maxEvidence = 10
	// maxTimeline bounds the timeline of an alert; the log has all.
	maxTimeline = 100
	// maxLive bounds the alerts that are not closed: more are never read. Beyond it
	// findings join one alert for their rule.
	maxLive = 5000
	// maxPage bounds a page: a thousand alerts are a few MB at the worst.
	maxPage = 1000
	// maxText bounds what a person or a finding says.
	maxText = 512
)

// Alert is findings of one rule about one subject that want a person.
type Alert struct {
	ID       string
	Rule     string
	Subject  string
	Severity countersign.Severity // the highest of its findings
	State    State
	Device   string
	Fleet    string
	Remote   string
	Summary  string                // of the last finding
	Evidence []countersign.Finding // the last ones, oldest first
	Count    int64                 // findings
	Assignee string
	Timeline []Line // oldest first
	// Resolution is empty until it is closed.
	Resolution   Resolution
	SnoozedUntil time.Time
	FirstSeen    time.Time
	LastSeen     time.Time
	ChangedAt    time.Time
}

// Line is one entry of an alert's timeline: a note or an act.
type Line struct {
	At      time.Time
	Actor   countersign.Actor
	Act     string // opened, comment, suspend, mail, …
	Outcome string // done, failed or waiting
	Text    string
}

// The outcomes.
const (
	Done    = "done"
	Failed  = "failed"
	Waiting = "waiting"
)

func (a *Alert) add(l Line) {
	l.Text = clip(l.Text)
	a.Timeline = append(a.Timeline, l)
	if over := len(a.Timeline) - maxTimeline; over > 0 {
		a.Timeline = a.Timeline[over:]
	}
}

// clip bounds a text and keeps it valid UTF-8 without NUL, which PostgreSQL refuses.
func clip(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s[:min(len(s), maxText)], "\x00", ""), "")
}

const columns = `id, rule, subject, severity, state, device, fleet, remote, summary, evidence, count, assignee, timeline, resolution,
	snoozed, first_seen, last_seen, changed_at`

func scan(row store.Row) (a Alert, err error) {
	var evidence, timeline string
	var snoozed, first, last, changed int64
	err = row.Scan(&a.ID, &a.Rule, &a.Subject, &a.Severity, &a.State, &a.Device, &a.Fleet, &a.Remote, &a.Summary, &evidence, &a.Count,
		&a.Assignee, &timeline, &a.Resolution, &snoozed, &first, &last, &changed)
	if err != nil {
		return a, store.Wrap(err)
	}
	a.SnoozedUntil, a.FirstSeen, a.LastSeen, a.ChangedAt = store.Time(snoozed), store.Time(first), store.Time(last), store.Time(changed)
	return a, errors.Join(json.Unmarshal([]byte(evidence), &a.Evidence), json.Unmarshal([]byte(timeline), &a.Timeline))
}

// save writes an alert: a new one, or over the one with its id.
func (a *Alert) save(ctx context.Context, tx *store.Tx) error {
	evidence, err := json.Marshal(a.Evidence)
	if err != nil {
		return fmt.Errorf("encode evidence: %w", err)
	}
	timeline, err := json.Marshal(a.Timeline)
	if err != nil {
		return fmt.Errorf("encode timeline: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO alert (`+columns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
		ON CONFLICT (id) DO UPDATE SET severity = excluded.severity, state = excluded.state, remote = excluded.remote, summary = excluded.summary,
			evidence = excluded.evidence, count = excluded.count, assignee = excluded.assignee, timeline = excluded.timeline,
			resolution = excluded.resolution, snoozed = excluded.snoozed, last_seen = excluded.last_seen, changed_at = excluded.changed_at`,
		a.ID, a.Rule, a.Subject, string(a.Severity), string(a.State), a.Device, a.Fleet, a.Remote, a.Summary, string(evidence), a.Count,
		a.Assignee, string(timeline), string(a.Resolution), store.Micros(a.SnoozedUntil), store.Micros(a.FirstSeen), store.Micros(a.LastSeen),
		store.Micros(a.ChangedAt))
	if err != nil {
		return fmt.Errorf("save alert %s: %w", a.ID, err)
	}
	return nil
}

func get(ctx context.Context, r store.Reader, id string) (Alert, error) {
	a, err := scan(r.QueryRow(ctx, `SELECT `+columns+` FROM alert WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return a, countersign.Errorf(countersign.NotFound, "there is no alert %.40q", id).WithNext("list them with: countersign alert list")
	}
	if err != nil {
		return a, fmt.Errorf("read alert %s: %w", id, err)
	}
	return a, nil
}

// Alert reads one alert: NotFound if there is none. What is still to be done about
// it ends its timeline.
func (d *Responder) Alert(ctx context.Context, id string) (Alert, error) {
	a, err := get(ctx, d.RA.DB, id)
	if err != nil {
		return a, err
	}
	waiting, err := d.queued(ctx, id)
	a.Timeline = append(a.Timeline, waiting...)
	return a, err
}

// Filter chooses alerts for a list.
type Filter struct {
	State    State // Live: all but closed; empty: all
	Severity countersign.Severity
	Rule     string
	Fleet    string
	Device   string
	After    string // keyset: the next of the page before
	Limit    int    // at most maxPage; 0 is that
}

// Alerts lists alerts, those that opened last first; next is the After of the
// following page, empty at the end.
func (d *Responder) Alerts(ctx context.Context, f Filter) (list []Alert, next string, err error) {
	var where []string
	var args []any
	add := func(cond string, v ...any) {
		numbers := make([]any, len(v))
		for i := range v {
			args = append(args, v[i])
			numbers[i] = len(args)
		}
		where = append(where, fmt.Sprintf(cond, numbers...))
	}
	if f.After != "" {
		at, id, err := parseCursor(f.After)
		if err != nil {
			return nil, "", err
		}
		add("(first_seen, id) < ($%d, $%d)", at, id)
	}
	for _, c := range []struct{ cond, value string }{
		{"severity = $%d", string(f.Severity)}, {"rule = $%d", f.Rule}, {"fleet = $%d", f.Fleet}, {"device = $%d AND device <> ''", f.Device},
	} {
		if c.value != "" {
			add(c.cond, c.value)
		}
	}
	switch f.State {
	case "":
	case Live:
		where = append(where, "state <> 'closed'")
	default:
		add("state = $%d", string(f.State))
	}
	cond := ""
	if len(where) > 0 {
		cond = "WHERE " + strings.Join(where, " AND ")
	}
	if f.Limit < 1 || f.Limit > maxPage {
		f.Limit = maxPage
	}
	args = append(args, f.Limit+1)
	rows, err := d.RA.DB.Query(ctx, fmt.Sprintf(`SELECT %s FROM alert %s ORDER BY first_seen DESC, id DESC LIMIT $%d`, columns, cond, len(args)), args...)
	if err != nil {
		return nil, "", fmt.Errorf("list alerts: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		a, err := scan(rows)
		if err != nil {
			return nil, "", fmt.Errorf("list alerts: %w", err)
		}
		list = append(list, a)
	}
	if len(list) > f.Limit {
		list = list[:f.Limit]
		last := list[f.Limit-1]
		next = strconv.FormatInt(store.Micros(last.FirstSeen), 10) + "." + last.ID
	}
	return list, next, store.Wrap(rows.Err())
}

func parseCursor(s string) (at int64, id string, err error) {
	head, id, ok := strings.Cut(s, ".")
	at, err = strconv.ParseInt(head, 10, 64)
	if err != nil || !ok {
		return 0, "", countersign.Errorf(countersign.BadRequest, "after is no cursor of this list").WithNext("use the next of the page before")
	}
	return at, id, nil
}

// gauge is the number of live alerts by severity, as it was counted last.
type gauge struct {
	mu sync.Mutex
	by map[countersign.Severity]int64
}

// OpenAlerts is the number of alerts that are not closed, by severity, as of some
// seconds ago.
func (d *Responder) OpenAlerts(s countersign.Severity) int64 {
	d.open.mu.Lock()
	defer d.open.mu.Unlock()
	return d.open.by[s]
}

func (d *Responder) countOpen(ctx context.Context) (err error) {
	rows, err := d.RA.DB.Query(ctx, `SELECT severity, COUNT(*) FROM alert WHERE state <> 'closed' GROUP BY severity`)
	if err != nil {
		return fmt.Errorf("count alerts: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	by := map[countersign.Severity]int64{}
	for rows.Next() {
		var s countersign.Severity
		var n int64
		if err := rows.Scan(&s, &n); err != nil {
			return fmt.Errorf("count alerts: %w", store.Wrap(err))
		}
		by[s] = n
	}
	d.open.mu.Lock()
	d.open.by = by
	d.open.mu.Unlock()
	return store.Wrap(rows.Err())
}
