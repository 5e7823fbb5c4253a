package respond

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// maxFacts and maxFact bound the evidence of one finding.
	maxFacts = 32
	maxFact  = 256
	// maxEventRefs bounds the events that a finding points to.
	maxEventRefs = 32
)

// taking is one call of Take.
type taking struct {
	*Responder
	tx     *store.Tx
	now    time.Time
	fleets map[string]map[string][]countersign.Mitigation // what fleets say, by name
	sent   map[*channel]int                               // notifications of this call
	live   int                                            // alerts; negative: not counted yet
}

// Take records findings in the caller's transaction: for each an event, and where
// the fleet or the rule wants more, an alert with what is to be done about it. That
// is done after the commit, by Run.
func (d *Responder) Take(ctx context.Context, tx *store.Tx, findings []countersign.Finding) error {
	if len(findings) == 0 {
		return nil
	}
	t, err := d.begin(ctx, tx)
	if err != nil {
		return err
	}
	for _, f := range findings {
		if err := t.take(ctx, f); err != nil {
			return fmt.Errorf("take finding %s: %w", f.Rule, err)
		}
	}
	return nil
}

// begin takes the lock and has the workers woken after the commit.
func (d *Responder) begin(ctx context.Context, tx *store.Tx) (*taking, error) {
	d.init()
	if err := tx.Lock(ctx, lock); err != nil {
		return nil, err
	}
	t := &taking{
		Responder: d, tx: tx, now: d.now(), live: -1,
		fleets: map[string]map[string][]countersign.Mitigation{}, sent: map[*channel]int{},
	}
	tx.AfterCommit(func() {
		for c, n := range t.sent {
			c.paced(t.now, n)
		}
		d.wake()
	})
	return t, nil
}

func (t *taking) take(ctx context.Context, f countersign.Finding) error {
	if err := t.complete(ctx, &f); err != nil {
		return err
	}
	if err := t.RA.Events.Append(ctx, t.tx, raised(f)); err != nil {
		return err
	}
	t.tx.AfterCommit(func() { t.observe(Outcome{"finding", f.Rule, string(f.Severity)}) })
	acts, err := t.acts(ctx, f)
	if err != nil || silent(acts) {
		return err
	}
	a, news, err := t.group(ctx, f)
	if err != nil {
		return err
	}
	if a.State == Snoozed {
		return a.save(ctx, t.tx)
	}
	for _, m := range acts {
		if m == countersign.MitigateSuspend || m == countersign.MitigateRevoke || m == countersign.MitigateBlock {
			if err := t.queue(ctx, a, m, f); err != nil {
				return err
			}
		}
	}
	if err := a.save(ctx, t.tx); err != nil || news == "" {
		return err
	}
	return t.tell(ctx, news, a, acts)
}

// complete bounds a finding and fills in what can be known.
func (t *taking) complete(ctx context.Context, f *countersign.Finding) error {
	for _, s := range []*string{&f.Rule, &f.Subject, &f.Device, &f.Fleet, &f.Remote, &f.Summary} {
		*s = clip(*s)
	}
	if f.Subject == "" {
		f.Subject = "server"
	}
	if f.Severity.Rank() < 0 {
		f.Severity = countersign.SeverityMedium
		if s := t.Rule(f.Rule).Severity; s.Rank() >= 0 {
			f.Severity = s
		}
	}
	if f.At.IsZero() {
		f.At = t.now
	}
	f.At = store.Time(store.Micros(f.At))
	facts := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(f.Evidence)) {
		if len(facts) < maxFacts {
			v := clip(f.Evidence[k])
			facts[clip(k)] = v[:min(len(v), maxFact)]
		}
	}
	f.Evidence = facts
	if over := len(f.Events) - maxEventRefs; over > 0 {
		f.Events = f.Events[over:]
	}
	if f.Fleet != "" || f.Device == "" {
		return nil
	}
	dev, err := t.RA.Registry.Device(ctx, t.tx, f.Device)
	if err != nil && countersign.CodeOf(err) != countersign.NotFound {
		return err
	}
	f.Fleet = dev.Fleet
	return nil
}

// raised is the event of a finding.
func raised(f countersign.Finding) countersign.Event {
	data := map[string]string{"rule": f.Rule, "severity": string(f.Severity), "subject": f.Subject}
	for k, v := range f.Evidence {
		if _, ours := data[k]; !ours {
			data[k] = v
		}
	}
	return countersign.Event{
		Type: countersign.FindingRaised, Actor: countersign.System, Device: f.Device, Fleet: f.Fleet, Cert: f.Cert, Remote: f.Remote,
		Reason: f.Summary, Data: data,
	}
}

// acts are what is to follow on a finding.
func (t *taking) acts(ctx context.Context, f countersign.Finding) ([]countersign.Mitigation, error) {
	respond, known := t.fleets[f.Fleet]
	if !known && f.Fleet != "" {
		fleet, err := t.RA.Registry.Fleet(ctx, t.tx, f.Fleet)
		if err != nil && countersign.CodeOf(err) != countersign.NotFound {
			return nil, err
		}
		respond = fleet.Rules.Respond
		t.fleets[f.Fleet] = respond
	}
	return t.plan(f, respond), nil
}

// group joins a finding to the live alert of its rule and subject, or makes one. It
// is not saved yet. news is what channels are sent about it; empty: nothing.
func (t *taking) group(ctx context.Context, f countersign.Finding) (a *Alert, news string, err error) {
	found, err := t.find(ctx, f.Rule, f.Subject)
	if err != nil {
		return nil, "", err
	}
	if found == nil {
		if found, err = t.overflow(ctx, &f); err != nil {
			return nil, "", err
		}
	}
	if found != nil {
		news, err = t.join(ctx, found, f)
		return found, news, err
	}
	t.live++
	a = &Alert{
		ID: newID(), Rule: f.Rule, Subject: f.Subject, Severity: f.Severity, State: Open, Device: f.Device, Fleet: f.Fleet,
		Remote: f.Remote, Summary: f.Summary, Evidence: []countersign.Finding{f}, Count: 1, FirstSeen: t.now, LastSeen: f.At, ChangedAt: t.now,
	}
	a.add(Line{At: t.now, Actor: countersign.System, Act: "opened", Outcome: Done, Text: f.Summary})
	return a, NewsOpened, t.RA.Events.Append(ctx, t.tx, a.event(countersign.AlertOpened, countersign.System, f.Summary))
}

func (t *taking) find(ctx context.Context, rule, subject string) (*Alert, error) {
	a, err := scan(t.tx.QueryRow(ctx, `SELECT `+columns+` FROM alert WHERE rule = $1 AND subject = $2 AND state <> 'closed'`, rule, subject))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read alert of %s: %w", rule, err)
	}
	return &a, nil
}

// overflow gives, once there are as many alerts as anyone could read, the one that
// represents all further subjects of a rule, and makes the finding one of its.
func (t *taking) overflow(ctx context.Context, f *countersign.Finding) (*Alert, error) {
	if t.live < 0 {
		err := t.tx.QueryRow(ctx, `SELECT COUNT(*) FROM alert WHERE state <> 'closed'`).Scan(&t.live)
		if err != nil {
			return nil, fmt.Errorf("count alerts: %w", store.Wrap(err))
		}
	}
	if t.live < maxLive {
		return nil, nil
	}
	f.Subject = "server"
	if f.Fleet != "" {
		f.Subject = "fleet:" + f.Fleet
	}
	return t.find(ctx, f.Rule, f.Subject)
}

// join adds a finding to a live alert.
func (t *taking) join(ctx context.Context, a *Alert, f countersign.Finding) (news string, err error) {
	a.Count++
	a.Summary = f.Summary
	if f.Remote != "" {
		a.Remote = f.Remote
	}
	if f.At.After(a.LastSeen) {
		a.LastSeen = f.At
	}
	if a.Evidence = append(a.Evidence, f); len(a.Evidence) > maxEvidence {
		a.Evidence = a.Evidence[len(a.Evidence)-maxEvidence:]
	}
	woke := a.State == Snoozed && !t.now.Before(a.SnoozedUntil)
	rose := f.Severity.Rank() > a.Severity.Rank()
	if rose {
		a.Severity = f.Severity
	}
	if a.State == Snoozed && !woke || !woke && !rose {
		return "", nil
	}
	line := Line{At: t.now, Actor: countersign.System, Act: "reopened", Outcome: Done, Text: "its snooze is over and it goes on"}
	if rose {
		line.Text = "its severity rose to " + string(a.Severity)
	}
	a.State, a.SnoozedUntil, a.ChangedAt = Open, time.Time{}, t.now
	a.add(line)
	return NewsChanged, t.RA.Events.Append(ctx, t.tx, a.event(countersign.AlertChanged, countersign.System, line.Text))
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

// wakeSnoozed opens the alerts whose snooze is over. Those that went on meanwhile
// are notified again.
func (d *Responder) wakeSnoozed(ctx context.Context, now time.Time) error {
	ids, err := d.ids(ctx, `SELECT id FROM alert WHERE state = 'snoozed' AND snoozed <= $1 LIMIT 500`, store.Micros(now))
	if err != nil {
		return err
	}
	for _, id := range ids {
		err := d.RA.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
			t, err := d.begin(ctx, tx)
			if err != nil {
				return err
			}
			a, err := get(ctx, tx, id)
			if err != nil || a.State != Snoozed || now.Before(a.SnoozedUntil) {
				return err
			}
			snoozedAt := a.ChangedAt
			a.State, a.SnoozedUntil, a.ChangedAt = Open, time.Time{}, t.now
			a.add(Line{At: t.now, Actor: countersign.System, Act: "reopened", Outcome: Done, Text: "its snooze is over"})
			if err := a.save(ctx, tx); err != nil {
				return err
			}
			if err := d.RA.Events.Append(ctx, tx, a.event(countersign.AlertChanged, countersign.System, "its snooze is over")); err != nil {
				return err
			}
			if !a.LastSeen.After(snoozedAt) {
				return nil
			}
			return t.tellAll(ctx, NewsChanged, &a)
		})
		if err != nil {
			return fmt.Errorf("wake alert %s: %w", id, err)
		}
	}
	return nil
}

func (d *Responder) ids(ctx context.Context, query string, args ...any) (ids []string, err error) {
	rows, err := d.RA.DB.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, store.Wrap(err)
		}
		ids = append(ids, id)
	}
	return ids, store.Wrap(rows.Err())
}
