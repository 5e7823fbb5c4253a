package respond

import (
	"context"
	"fmt"
	"maps"
	"slices"
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

func (t *taking) take(ctx context.Context, f countersign.Finding) error {
	if err := t.complete(ctx, &f); err != nil {
		return err
	}
	if err := t.Events.Append(ctx, t.tx, raised(f)); err != nil {
		return err
	}
	t.tx.AfterCommit(func() { t.observe("finding", f.Rule, string(f.Severity)) })
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
	return t.announce(ctx, news, a, acts)
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
		if s := t.catalog[f.Rule].Severity; s.Rank() >= 0 {
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
	dev, err := t.Registry.Device(ctx, t.tx, f.Device)
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

// group joins a finding to the live alert of its rule and subject, or makes one. It
// is not saved yet. news is what channels are sent about it; empty: nothing.
func (t *taking) group(ctx context.Context, f countersign.Finding) (a *Alert, news string, err error) {
	found, err := find(ctx, t.tx, f.Rule, f.Subject)
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
	t.total++
	a = &Alert{
		ID: newID(), Rule: f.Rule, Subject: f.Subject, Severity: f.Severity, State: Open, Device: f.Device, Fleet: f.Fleet,
		Remote: f.Remote, Summary: f.Summary, Evidence: []countersign.Finding{f}, Count: 1, FirstSeen: t.now, LastSeen: f.At, ChangedAt: t.now,
	}
	a.add(Line{At: t.now, Actor: countersign.System, Act: "opened", Outcome: Done, Text: f.Summary})
	return a, NewsOpened, t.Events.Append(ctx, t.tx, a.event(countersign.AlertOpened, countersign.System, f.Summary))
}

// overflow returns, once there are more alerts than anyone could read, the one that
// represents all further subjects of a rule, and makes the finding one of its.
func (t *taking) overflow(ctx context.Context, f *countersign.Finding) (*Alert, error) {
	if t.total < 0 {
		n, err := store.Count(ctx, t.tx, `SELECT COUNT(*) FROM alert WHERE state <> 'closed'`)
		if err != nil {
			return nil, fmt.Errorf("count alerts: %w", err)
		}
		t.total = n
	}
	if t.total < maxLive {
		return nil, nil
	}
	f.Subject = "server"
	if f.Fleet != "" {
		f.Subject = "fleet:" + f.Fleet
	}
	return find(ctx, t.tx, f.Rule, f.Subject)
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
	return NewsChanged, t.Events.Append(ctx, t.tx, a.event(countersign.AlertChanged, countersign.System, line.Text))
}
