package respond_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/respond"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

func TestTakeGroupsUnderConcurrency(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 0)
		w.enroll(t, "pump-2", 0)
		const workers, rounds = 8, 5
		var wg sync.WaitGroup
		for i := range workers {
			wg.Go(func() {
				for range rounds {
					a, b := clone("pump-1"), clone("pump-2")
					if i%2 == 0 { // in both orders, as two detectors might
						a, b = b, a
					}
					err := w.RA.DB.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
						return w.Take(ctx, tx, []countersign.Finding{a, b})
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		list := w.list(t, respond.Filter{})
		if len(list) != 2 {
			t.Fatalf("alerts: got %d, want 2", len(list))
		}
		for _, a := range list {
			if a.Count != workers*rounds || len(a.Evidence) != 10 {
				t.Errorf("alert of %s: got %d findings with %d kept, want %d with 10", a.Subject, a.Count, len(a.Evidence), workers*rounds)
			}
		}
		if got := len(w.events(t, countersign.FindingRaised)); got != 2*workers*rounds {
			t.Errorf("finding.raised: got %d, want %d", got, 2*workers*rounds)
		}
		if got := len(w.events(t, countersign.AlertOpened)); got != 2 {
			t.Errorf("alert.opened: got %d, want 2", got)
		}
	})
}

func TestTakeKeepsEvidenceAndRaisesSeverity(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 0)
		w.find(t, clone("pump-1"))
		worse := clone("pump-1")
		worse.Severity, worse.Summary, worse.Fleet = countersign.SeverityCritical, "and a third", ""
		w.find(t, worse)
		mild := clone("pump-1")
		mild.Severity = countersign.SeverityLow
		w.find(t, mild)
		a := w.one(t, respond.Filter{Severity: countersign.SeverityCritical})
		if a.Count != 3 || a.State != respond.Open || a.Fleet != countersign.DefaultFleet {
			t.Errorf("alert: got %+v", a)
		}
		if diff := cmp.Diff(map[string]string{"first": "192.0.2.7", "second": "203.0.113.9"}, a.Evidence[0].Evidence); diff != "" {
			t.Errorf("evidence (-want +got):\n%s", diff)
		}
		if a.Evidence[1].Fleet != countersign.DefaultFleet {
			t.Errorf("the fleet of a finding that names its device alone: got %q", a.Evidence[1].Fleet)
		}
		if got := len(w.events(t, countersign.AlertChanged)); got != 1 {
			t.Errorf("alert.changed: got %d, want 1 for the rise", got)
		}
	})
}

func TestTakeFollowsTheFleetThenTheRule(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 0)
		w.find(t, countersign.Finding{Rule: "noise", Subject: "device:pump-1", Device: "pump-1", Summary: "hm"})
		if got := len(w.list(t, respond.Filter{})); got != 0 {
			t.Errorf("alerts of a rule that notes: got %d, want 0", got)
		}
		if got := len(w.events(t, countersign.FindingRaised)); got != 1 {
			t.Errorf("finding.raised: got %d, want 1", got)
		}
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateNote}, "*": {countersign.MitigateAlert}})
		w.find(t, clone("pump-1"))
		w.find(t, countersign.Finding{Rule: "noise", Subject: "device:pump-1", Device: "pump-1", Summary: "hm"})
		if got := w.one(t, respond.Filter{}).Rule; got != "noise" {
			t.Errorf("rule of the alert: got %s, want noise, which * alerts; %s is noted", got, cloned)
		}
	})
}

// TestTakeAlertsByTheFindingsOwnSeverity has a rule that only notes find something that
// is worse than what it usually finds. A fleet's word stays its word.
func TestTakeAlertsByTheFindingsOwnSeverity(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 0)
		for _, tt := range []struct {
			severity countersign.Severity
			fleet    string
			alerts   int
		}{
			{"", "", 0},
			{countersign.SeverityInfo, "", 0},
			{countersign.SeverityLow, "", 0},
			{countersign.SeverityMedium, "", 1},
			{countersign.SeverityCritical, "", 2},
			{countersign.SeverityCritical, countersign.DefaultFleet, 2},
		} {
			if tt.fleet != "" {
				w.respond(t, map[string][]countersign.Mitigation{"noise": {countersign.MitigateNote}})
			}
			w.find(t, countersign.Finding{Rule: "noise", Severity: tt.severity, Fleet: tt.fleet, Subject: "server" + string(tt.severity) + tt.fleet, Summary: "hm"})
			if got := len(w.list(t, respond.Filter{})); got != tt.alerts {
				t.Errorf("severity %q, fleet %q: got %d alerts, want %d", tt.severity, tt.fleet, got, tt.alerts)
			}
		}
	})
}

func TestSnoozedStaysSilentUntilItsEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 0)
		w.find(t, clone("pump-1"))
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateSuspend}})
		a := w.one(t, respond.Filter{})
		_, err := w.Snooze(t.Context(), a.ID, time.Hour, ana)
		if err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(59 * time.Minute)
		worse := clone("pump-1")
		worse.Severity = countersign.SeverityCritical
		w.find(t, worse)
		a = w.one(t, respond.Filter{State: respond.Snoozed})
		if a.Count != 2 || a.Severity != countersign.SeverityCritical {
			t.Errorf("snoozed alert: got %d findings, %s", a.Count, a.Severity)
		}
		if got := len(w.events(t, countersign.AlertChanged)); got != 1 { // the snooze itself
			t.Errorf("alert.changed: got %d, want 1", got)
		}
		w.clock.Advance(2 * time.Minute)
		start(t, w.Run)
		kit.Eventually(t, "the alert wakes", func() bool { return w.one(t, respond.Filter{}).State == respond.Open })
		if got := w.state(t, "pump-1"); got != countersign.DeviceActive {
			t.Errorf("device: got %s, want active: a snoozed alert does nothing", got)
		}
		w.find(t, clone("pump-1"))
		kit.Eventually(t, "it acts again", func() bool { return w.state(t, "pump-1") == countersign.DeviceSuspended })
	})
}

func TestClosedReopensAsNew(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 0)
		w.find(t, clone("pump-1"))
		first := w.one(t, respond.Filter{})
		closed, err := w.Close(t.Context(), first.ID, respond.NotAnIssue, ana)
		if err != nil || closed.State != respond.Closed || closed.Resolution != respond.NotAnIssue {
			t.Fatalf("close: got %+v, %v", closed, err)
		}
		_, err = w.Acknowledge(t.Context(), first.ID, ana)
		kit.WantCode(t, err, countersign.Conflict)
		if _, err := w.Comment(t.Context(), first.ID, ana); err != nil {
			t.Errorf("comment on a closed alert: %v", err)
		}
		w.clock.Advance(time.Second)
		w.find(t, clone("pump-1"))
		second := w.one(t, respond.Filter{State: respond.Live})
		if second.ID == first.ID || second.Count != 1 {
			t.Errorf("after the close: got alert %s with %d findings, want a new one with 1", second.ID, second.Count)
		}
	})
}

func TestActsOfPeopleAreOnTheTimeline(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 0)
		w.find(t, clone("pump-1"))
		id := w.one(t, respond.Filter{}).ID
		if _, err := w.Acknowledge(t.Context(), id, ana); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Assign(t.Context(), id, "bo", ana); err != nil {
			t.Fatal(err)
		}
		_, err := w.Snooze(t.Context(), id, time.Second, ana)
		kit.WantCode(t, err, countersign.BadRequest)
		a, err := w.Alert(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if a.Assignee != "bo" || a.State != respond.Acknowledged {
			t.Errorf("alert: got assignee %q, state %s", a.Assignee, a.State)
		}
		if lines(a, "acknowledge", respond.Done) != 1 || lines(a, "assign", respond.Done) != 1 {
			t.Errorf("timeline: got %+v", a.Timeline)
		}
		worse := clone("pump-1")
		worse.Severity = countersign.SeverityCritical
		w.find(t, worse)
		if got := w.one(t, respond.Filter{}).State; got != respond.Open {
			t.Errorf("acknowledged, then worse: got %s, want open", got)
		}
		if a.Timeline[1].Actor != ana.Actor || a.Timeline[1].Text != ana.Note {
			t.Errorf("line: got %+v", a.Timeline[1])
		}
		_, err = w.Alert(t.Context(), "nobody")
		kit.WantCode(t, err, countersign.NotFound)
	})
}

func TestAlertsArePaged(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for i := range 7 {
			w.find(t, countersign.Finding{Rule: "r", Subject: fmt.Sprintf("address:192.0.2.%d/32", i), Summary: "x"})
			if i%2 == 0 {
				w.clock.Advance(time.Second) // some of one moment
			}
		}
		seen := map[string]bool{}
		f := respond.Filter{Limit: 3}
		for {
			list, next, err := w.Alerts(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range list {
				if seen[a.ID] {
					t.Errorf("alert %s is on two pages", a.ID)
				}
				seen[a.ID] = true
			}
			if next == "" {
				break
			}
			f.After = next
		}
		if len(seen) != 7 {
			t.Errorf("alerts over all pages: got %d, want 7", len(seen))
		}
		_, _, err := w.Alerts(t.Context(), respond.Filter{After: "nonsense"})
		kit.WantCode(t, err, countersign.BadRequest)
	})
}

func TestCheckRulesRefusesSlips(t *testing.T) {
	d := &respond.Responder{Rules: rules()}
	for name, r := range map[string]map[string][]countersign.Mitigation{
		"rule":       {"shared_certifcate": {countersign.MitigateAlert}},
		"mitigation": {cloned: {"supend"}},
	} {
		if err := d.CheckRules(countersign.Rules{Respond: r}); countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("a slip in the %s: got %v", name, err)
		}
	}
	if err := d.CheckRules(countersign.Rules{Respond: map[string][]countersign.Mitigation{"*": {countersign.MitigateMail}, cloned: nil}}); err != nil {
		t.Error(err)
	}
}
