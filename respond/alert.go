package respond

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
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
	err = errors.Join(json.Unmarshal([]byte(evidence), &a.Evidence), json.Unmarshal([]byte(timeline), &a.Timeline))
	return a, err
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
		return a, countersign.Errorf(countersign.NotFound, "there is no alert %.40q", id).WithNext("list the alerts")
	}
	if err != nil {
		return a, fmt.Errorf("read alert %s: %w", id, err)
	}
	return a, nil
}

// find returns the live alert of a rule about a subject; nil if there is none.
func find(ctx context.Context, r store.Reader, rule, subject string) (*Alert, error) {
	a, err := scan(r.QueryRow(ctx, `SELECT `+columns+` FROM alert WHERE rule = $1 AND subject = $2 AND state <> 'closed'`, rule, subject))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read alert of %s: %w", rule, err)
	}
	return &a, nil
}

// event is an event about the alert.
func (a *Alert) event(kind countersign.EventType, by countersign.Actor, why string) countersign.Event {
	return countersign.Event{
		Type: kind, Actor: by, Device: a.Device, Fleet: a.Fleet, Remote: a.Remote, Reason: why,
		Data: map[string]string{
			"alert": a.ID, "rule": a.Rule, "severity": string(a.Severity), "state": string(a.State), "count": strconv.FormatInt(a.Count, 10),
		},
	}
}

// network returns the address that the alert is about: its subject, else where the last
// finding came from.
func (a *Alert) network() (netip.Prefix, error) {
	if p, ok := strings.CutPrefix(a.Subject, "address:"); ok {
		return networkOf(p)
	}
	return networkOf(a.Remote)
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

// Filter chooses alerts for a list.
type Filter struct {
	State    State // Live: all but closed; empty: all
	Severity countersign.Severity
	Rule     string
	Fleet    string
	Device   string
	After    string // keyset: the next of the page before
	Limit    int    // at most store.MaxPage; 0 is that
}

// list returns a page of alerts, those that opened last first; next is the After of the
// following page, empty at the end.
func (f Filter) list(ctx context.Context, r store.Reader) (list []Alert, next string, err error) {
	var q store.Query
	if f.After != "" {
		at, id, err := parseCursor(f.After)
		if err != nil {
			return nil, "", err
		}
		q.And("(first_seen, id) < (?, ?)", at, id)
	}
	// In an expression, a column beside the one whose index has the fewest alerts, because
	// SQLite would take its index otherwise.
	beside := map[bool]string{true: " || ''"}
	live := f.State != "" && f.State != Closed
	q.If(f.Severity != "", "severity"+beside[f.Device != ""]+" = ?", string(f.Severity))
	q.If(f.Rule != "", "rule"+beside[f.Device != "" || live]+" = ?", f.Rule)
	q.If(f.Fleet != "", "fleet"+beside[f.Device != "" || live]+" = ?", f.Fleet)
	q.If(f.Device != "", "device = ? AND device <> ''", f.Device)
	q.If(live, "state <> 'closed'") // lets the index of those that are not serve
	q.If(f.State != Live && f.State != "", "state = ?", string(f.State))
	limit := store.PageSize(f.Limit)
	text := f.query(&q, limit+1)
	if list, err = store.List(ctx, r, scan, text, q.Args...); err != nil {
		return nil, "", fmt.Errorf("list alerts: %w", err)
	}
	list, next = store.Page(list, limit, func(a *Alert) string { return strconv.FormatInt(store.Micros(a.FirstSeen), 10) + "." + a.ID })
	return list, next, nil
}

// query returns the query of a list. Those that are not closed are read by severity, so that
// the closed ones, which stay for long, are not read.
func (f *Filter) query(q *store.Query, limit int) string {
	const order = `first_seen DESC, id DESC`
	if f.State != "" && f.State != Closed && f.Severity == "" && f.Device == "" {
		parts := store.Parts[countersign.Severity]{
			Columns: columns, Table: "alert", Column: "severity", Values: countersign.Severities(), Order: order, Limit: limit,
		}
		return parts.Text(q)
	}
	return `SELECT ` + columns + ` FROM alert` + q.Where() + ` ORDER BY ` + order + ` LIMIT ` + q.Arg(limit)
}

func parseCursor(s string) (at int64, id string, err error) {
	head, id, ok := strings.Cut(s, ".")
	at, err = strconv.ParseInt(head, 10, 64)
	if err != nil || !ok {
		return 0, "", countersign.Errorf(countersign.BadRequest, "after is no cursor of this list").WithNext("use the next of the page before")
	}
	return at, id, nil
}

// count is n of what, in words.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// taken describes what an act took away.
func taken(r *countersign.Revocation, what string) string {
	return fmt.Sprintf("%s ended, %s %s", count(r.Sessions, "session"), count(len(r.Certificates), "certificate"), what)
}
