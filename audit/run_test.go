package audit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

// patience bounds the wait for what another goroutine does at once.
const patience = 20 * time.Second

// halting makes the audit stop at the log until the test lets it go, or it is ended.
func (w *world) halting() (reached chan struct{}, release func()) {
	reached, gate := make(chan struct{}), make(chan struct{})
	w.Verify = func(ctx context.Context) (event.Report, error) {
		close(reached)
		select {
		case <-gate:
			return event.Report{}, nil
		case <-ctx.Done():
			return event.Report{}, ctx.Err()
		}
	}
	return reached, func() { close(gate) }
}

func await(t *testing.T, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatal("waited in vain")
	}
}

func (w *world) start(t testing.TB) audit.Run {
	t.Helper()
	run, err := w.Start(t.Context(), audit.Request{By: "operator:ann", Via: "test"})
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	return run
}

func (w *world) lastEvent(t testing.TB, kind countersign.EventType) countersign.Event {
	t.Helper()
	list, _, err := w.log.List(t.Context(), event.Filter{Type: kind, Newest: true, Limit: 1})
	if err != nil || len(list) != 1 {
		t.Fatalf("events %s: %d, %v", kind, len(list), err)
	}
	return list[0]
}

func TestRunTakesPlaceOnceAtATime(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		reached, release := w.halting()
		run := w.start(t)
		await(t, reached)
		other := &audit.Auditor{DB: w.DB, Now: w.Now} // another node
		_, err := other.Start(t.Context(), audit.Request{By: "operator:bob"})
		kit.WantCode(t, err, countersign.Conflict)
		release()
		if run, err = w.Wait(t.Context(), run.ID); err != nil || run.State != audit.Completed || run.EndedAt.IsZero() || run.StartedBy != "operator:ann" {
			t.Errorf("got %+v, %v, want it completed", run, err)
		}
		if e := w.lastEvent(t, countersign.AuditCompleted); e.Data["run"] != run.ID || e.Data["state"] != "COMPLETED" || e.Actor != "operator:ann" {
			t.Errorf("got event %+v", e)
		}
		if _, err = other.Start(t.Context(), audit.Request{By: "operator:bob", Checks: []string{"NO_SUCH_CHECK"}}); countersign.CodeOf(err) != countersign.NotFound {
			t.Errorf("an unknown check: got %v", err)
		}
	})
}

func TestCancelEndsRun(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.device(t, "owned-by-none", func(d *device) { d.owner = "" })
		reached, _ := w.halting()
		run := w.start(t)
		await(t, reached)
		if now, err := w.Get(t.Context(), audit.Latest); err != nil || now.ID != run.ID || now.State != audit.InProgress {
			t.Errorf("while it runs: got %+v, %v", now, err)
		}
		run, err := w.Cancel(t.Context(), run.ID)
		if err != nil || run.State != audit.Canceled {
			t.Fatalf("Cancel: got %+v, %v", run, err)
		}
		for _, c := range run.Checks {
			want := audit.Compliant
			switch c.Name {
			case audit.Orphaned:
				want = audit.NonCompliant
			case audit.LoggingDisabled:
				want = audit.CheckCanceled
			}
			if c.Status != want {
				t.Errorf("%s: got %s, want %s", c.Name, c.Status, want)
			}
		}
		if len(w.handled) > 0 {
			t.Errorf("a canceled run handed on %+v", w.handled)
		}
		_, err = w.Cancel(t.Context(), run.ID)
		kit.WantCode(t, err, countersign.Conflict)
		_, err = w.Cancel(t.Context(), "nothing")
		kit.WantCode(t, err, countersign.NotFound)
	})
}

// TestCancelReachesAnotherNode waits for a beat of the run.
func TestCancelReachesAnotherNode(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		reached, _ := w.halting()
		run := w.start(t)
		await(t, reached)
		other := &audit.Auditor{DB: w.DB, Now: w.Now}
		if _, err := other.Cancel(t.Context(), run.ID); err != nil {
			t.Fatalf("Cancel: %v", err)
		}
		ctx, stop := context.WithTimeout(t.Context(), patience)
		defer stop()
		if run, err := w.Wait(ctx, run.ID); err != nil || run.State != audit.Canceled {
			t.Errorf("got %+v, %v, want it canceled", run, err)
		}
	})
}

func TestStopFailsRun(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		reached, _ := w.halting()
		ctx, stop := context.WithCancel(t.Context())
		w.Every = time.Nanosecond // one is due at once
		w.clock.Advance(time.Second)
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		await(t, reached)
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("Run did not end")
		}
		run, err := w.Get(t.Context(), audit.Latest)
		if err != nil || run.State != audit.Failed || run.Reason != "the server was stopped" || !run.Scheduled {
			t.Errorf("got %+v, %v, want it failed", run, err)
		}
	})
}

// TestDeadRunIsMarkedFailed leaves a run behind as a killed process does.
func TestDeadRunIsMarkedFailed(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.Every = 0
		w.exec(t, `INSERT INTO audit_run (id, state, reason, scheduled, started_by, via, node, canceled, started_at, ended_at, beat_at, log_events, log_head)
			VALUES ('dead', 'IN_PROGRESS', '', TRUE, 'system', 'schedule', 'x', FALSE, $1, 0, $1, 0, '')`, store.Micros(w.Now()))
		w.exec(t, `INSERT INTO audit_check (run, name, status, severity, looked_at, non_compliant, suppressed, kept, error)
			VALUES ('dead', 'CRL_STALE_CHECK', 'IN_PROGRESS', '', 0, 0, 0, 0, '')`)
		tend := func() {
			ctx, stop := context.WithTimeout(t.Context(), patience)
			defer stop()
			done := make(chan struct{})
			go func() { defer close(done); _ = w.Run(ctx) }()
			for ctx.Err() == nil {
				if run, err := w.Get(t.Context(), "dead"); err != nil || run.State != audit.InProgress {
					break
				}
				if w.DB.Postgres() && w.Now().Equal(start) {
					break // another node may run it
				}
				time.Sleep(10 * time.Millisecond)
			}
			stop()
			<-done
		}
		tend()
		run, err := w.Get(t.Context(), "dead")
		if err != nil {
			t.Fatal(err)
		}
		if w.DB.Postgres() {
			if run.State != audit.InProgress {
				t.Errorf("a run that another node may be at: got %s", run.State)
			}
			w.clock.Advance(3 * time.Minute)
			tend()
			if run, err = w.Get(t.Context(), "dead"); err != nil {
				t.Fatal(err)
			}
		}
		if run.State != audit.Failed || run.Reason == "" || run.Checks[0].Status != audit.CheckFailed {
			t.Errorf("got %+v, want it failed", run)
		}
		if e := w.lastEvent(t, countersign.AuditCompleted); e.Data["run"] != "dead" || e.Data["state"] != "FAILED" {
			t.Errorf("got event %+v", e)
		}
	})
}

func TestDueSurvivesRestart(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		due := func(a *audit.Auditor) time.Time {
			t.Helper()
			at, err := a.Due(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		again := &audit.Auditor{DB: w.DB, Now: w.Now, Every: day} // as after a restart
		if got := due(again); !got.Equal(start.Add(day)) {
			t.Errorf("before the first: got %s, want a day after the founding", got)
		}
		w.clock.Advance(30 * time.Hour)
		w.audit(t) // by an operator: the schedule stays
		if got := due(again); !got.Equal(start.Add(day)) {
			t.Errorf("after one on demand: got %s", got)
		}
		for state, wait := range map[string]time.Duration{"COMPLETED": day, "CANCELED": day, "FAILED": time.Hour} {
			at := w.Now()
			w.exec(t, `INSERT INTO audit_run (id, state, reason, scheduled, started_by, via, node, canceled, started_at, ended_at, beat_at, log_events, log_head)
				VALUES ($2, $3, '', TRUE, 'system', 'schedule', 'x', FALSE, $1, $1, $1, 0, '')`, store.Micros(at), "run-"+state, state)
			if got := due(again); !got.Equal(at.Add(wait)) {
				t.Errorf("after one that is %s: got %s, want %s", state, got, at.Add(wait))
			}
			w.clock.Advance(time.Hour)
		}
	})
}

func TestFindingsAreBoundedAndHandedOnByFleet(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.fleet(t, "line-2", countersign.Rules{})
		w.write(t, func(ctx context.Context, tx *store.Tx) error {
			for i := range 1203 {
				fleet := "default"
				if i >= 1200 {
					fleet = "line-2"
				}
				_, err := tx.Exec(ctx, `INSERT INTO device (id, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
					VALUES ($1, $2, 'active', '', '', '{}', 0, $3, $3, $3, '')`, fmt.Sprintf("dev-%05d", i), fleet, store.Micros(w.Now()))
				if err != nil {
					return err
				}
			}
			return nil
		})
		run, found := w.audit(t)
		for _, c := range run.Checks {
			if c.Name == audit.Orphaned && (c.Status != audit.NonCompliant || c.NonCompliant != 1203 || c.Kept != 1000 || c.Looked != 1203 || c.Severity != countersign.SeverityLow) {
				t.Errorf("got %+v, want 1203 found, 1000 kept", c)
			}
		}
		if len(found) != 1000 || run.Severity() != countersign.SeverityLow {
			t.Errorf("got %d findings, the worst %s", len(found), run.Severity())
		}
		if len(w.handled) != 2 {
			t.Fatalf("handed on: got %+v, want one for each fleet", w.handled)
		}
		f := w.handled[0]
		if f.Rule != audit.Orphaned || f.Subject != "fleet:default" || f.Fleet != "default" || f.Device != "" || f.Evidence["count"] != "1200" ||
			!strings.HasPrefix(f.Summary, "1200 findings") || strings.Count(f.Evidence["examples"], "device:") != 5 {
			t.Errorf("got %+v", f)
		}
		if w.handled[1].Subject != "fleet:line-2" || w.handled[1].Evidence["count"] != "3" {
			t.Errorf("got %+v", w.handled[1])
		}
	})
}

func TestHandleThatFailsFailsTheRun(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.device(t, "nobodys", func(d *device) { d.owner = "" })
		w.Handle = func(context.Context, *store.Tx, []countersign.Finding) error { return errors.New("no") }
		if run, found := w.audit(t); run.State != audit.Failed || len(found) != 1 {
			t.Errorf("got %s (%s) and %q, want it failed with its finding", run.State, run.Reason, found)
		}
	})
}

func TestSuppressionLeavesAloneUntilItEnds(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.fleet(t, "lab", countersign.Rules{})
		w.device(t, "spare-1", func(d *device) { d.owner = "" })
		w.device(t, "pump-1", func(d *device) { d.owner = "" })
		w.device(t, "bench-1", func(d *device) { d.owner, d.fleet = "", "lab" })
		suppress := func(check, subject, reason string, d time.Duration) (audit.Suppression, error) {
			return w.Suppress(t.Context(), audit.Suppression{
				Check: check, Subject: subject, Reason: reason, CreatedBy: "operator:ann", EndsAt: w.Now().Add(d),
			}, "test")
		}
		for _, bad := range []struct {
			check, subject, reason string
			d                      time.Duration
			code                   countersign.Code
		}{
			{"NO_CHECK", "*", "why", day, countersign.NotFound},
			{audit.Orphaned, "", "why", day, countersign.BadRequest},
			{audit.Orphaned, "*", " ", day, countersign.BadRequest},
			{audit.Orphaned, "*", "why", -day, countersign.BadRequest},
			{audit.Orphaned, "*", "why", 400 * day, countersign.BadRequest},
		} {
			_, err := suppress(bad.check, bad.subject, bad.reason, bad.d)
			kit.WantCode(t, err, bad.code)
		}
		s, err := suppress(audit.Orphaned, "device:spare-*", "on the shelf", 10*day)
		if err != nil {
			t.Fatal(err)
		}
		lab, err := suppress(audit.Orphaned, "fleet:lab", "the lab has no owners", 100*day)
		if err != nil {
			t.Fatal(err)
		}
		if e := w.lastEvent(t, countersign.AuditSuppressed); e.Data["suppression"] != lab.ID || e.Reason == "" {
			t.Errorf("got event %+v", e)
		}
		run, found := w.audit(t, audit.Orphaned)
		if len(found) != 1 || !strings.HasSuffix(found[0], "device:pump-1") || run.Checks[0].Suppressed != 2 || run.Checks[0].NonCompliant != 1 {
			t.Errorf("suppressed: got %q, %+v", found, run.Checks)
		}
		all, _, err := w.Findings(t.Context(), audit.Filter{Run: run.ID, Suppressed: true})
		if err != nil || len(all) != 3 {
			t.Errorf("with those that are suppressed: got %d, %v", len(all), err)
		}
		for _, f := range all {
			if f.Device == "spare-1" && f.Suppressed != s.ID {
				t.Errorf("got %+v, want it suppressed by %s", f, s.ID)
			}
		}
		if len(w.handled) != 1 || w.handled[0].Evidence["count"] != "1" {
			t.Errorf("handed on: %+v", w.handled)
		}
		w.clock.Advance(11 * day)
		if _, found = w.audit(t, audit.Orphaned); len(found) != 2 {
			t.Errorf("after the end of one: got %q", found)
		}
		if _, err := w.Unsuppress(t.Context(), lab.ID, "operator:ann", "test"); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		if _, found = w.audit(t, audit.Orphaned); len(found) != 3 {
			t.Errorf("after the other was ended: got %q", found)
		}
		_, err = w.Unsuppress(t.Context(), lab.ID, "operator:ann", "test")
		kit.WantCode(t, err, countersign.NotFound)
		list, next, err := w.Suppressions(t.Context(), "", 10)
		if err != nil || len(list) != 1 || list[0].ID != s.ID || next != "" {
			t.Errorf("the one that ended lately: got %+v, %q, %v", list, next, err)
		}
	})
}

func TestOldRunsAreRemoved(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		at := w.Now().Add(-1000 * time.Hour)
		w.write(t, func(ctx context.Context, tx *store.Tx) error {
			for i := range 95 {
				_, err := tx.Exec(ctx, `INSERT INTO audit_run (id, state, reason, scheduled, started_by, via, node, canceled, started_at, ended_at, beat_at, log_events, log_head)
					VALUES ($2, 'COMPLETED', '', $3, 'x', 'x', 'x', FALSE, $1, $1, $1, 0, '')`, store.Micros(at.Add(time.Duration(i)*time.Hour)), fmt.Sprintf("0-%03d", i), i == 2)
				if err != nil {
					return err
				}
				_, err = tx.Exec(ctx, `INSERT INTO audit_check (run, name, status, severity, looked_at, non_compliant, suppressed, kept, error)
					VALUES ($1, 'CRL_STALE_CHECK', 'COMPLETED_COMPLIANT', '', 0, 0, 0, 0, '')`, fmt.Sprintf("0-%03d", i))
				if err != nil {
					return err
				}
			}
			return nil
		})
		run, _ := w.audit(t, audit.CRLStale)
		var ids []string
		for after := ""; ; {
			list, next, err := w.Runs(t.Context(), after, 40)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list {
				ids = append(ids, r.ID)
			}
			if after = next; next == "" {
				break
			}
		}
		if len(ids) != 91 || ids[0] != run.ID || ids[90] != "0-002" {
			t.Errorf("got %d runs, from %s to %s, want the newest 90 and the last scheduled one", len(ids), ids[0], ids[len(ids)-1])
		}
		trend, err := w.Trend(t.Context(), 5)
		if err != nil || len(trend) != 1 || trend[0].Check != audit.CRLStale || len(trend[0].Points) != 5 || trend[0].Points[4].Run != run.ID {
			t.Errorf("trend: got %+v, %v", trend, err)
		}
	})
}

func TestLogThatDoesNotFitItsSealIsFound(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for range 5 {
			w.events(t, countersign.Event{Type: countersign.ServerStarted, At: w.Now()})
		}
		w.seal(t)
		w.audit(t, audit.LoggingDisabled)
		look := func(want string) {
			t.Helper()
			w.clock.Advance(time.Second)
			if _, got := w.audit(t, audit.LoggingDisabled); strings.Join(got, "; ") != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		look("")
		w.exec(t, `UPDATE event SET reason = 'forged' WHERE seq = 3`)
		look("LOGGING_DISABLED_CHECK LOG_CHAIN_BROKEN server")
		// What is handed on has the finding's own severity, by which somebody is notified:
		// the check is one of low severity.
		if n := len(w.handled); n != 1 || w.handled[0].Severity != countersign.SeverityCritical || w.handled[0].Evidence["reason_code"] != "LOG_CHAIN_BROKEN" {
			t.Errorf("handed on: got %+v, want one critical finding of a broken chain", w.handled)
		}
		w.exec(t, `UPDATE event SET reason = '' WHERE seq = 3`)
		look("")
		w.exec(t, `DELETE FROM event WHERE seq > 4`)
		look("LOGGING_DISABLED_CHECK LOG_CHAIN_BROKEN server")
	})
}

// TestRemovedEndIsFoundByTheFirstAudit has nothing to compare with but the record of
// the log's end beside it.
func TestRemovedEndIsFoundByTheFirstAudit(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for range 5 {
			w.events(t, countersign.Event{Type: countersign.ServerStarted, At: w.Now()})
		}
		w.seal(t)
		w.exec(t, `DELETE FROM event WHERE seq > 2`)
		run, got := w.audit(t, audit.LoggingDisabled)
		if strings.Join(got, "; ") != "LOGGING_DISABLED_CHECK LOG_CHAIN_BROKEN server" || run.Severity() != countersign.SeverityCritical {
			t.Errorf("got %q of severity %s", got, run.Severity())
		}
	})
}

func TestSealThatIsBehindIsFound(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.events(t, countersign.Event{Type: countersign.ServerStarted, At: w.Now()})
		w.clock.Advance(10 * time.Minute)
		run, err := w.Start(t.Context(), audit.Request{By: "x", Checks: []string{audit.LoggingDisabled}})
		if err == nil {
			run, err = w.Wait(t.Context(), run.ID)
		}
		if err != nil || run.Severity() != countersign.SeverityHigh {
			t.Errorf("got %+v, %v", run, err)
		}
	})
}

func TestCheckThatFailsLeavesTheOthers(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.Verify = func(context.Context) (event.Report, error) { return event.Report{}, errors.New("disk") }
		run, _ := w.audit(t)
		if run.State != audit.Failed || run.Reason != "1 of 25 checks failed" {
			t.Errorf("got %s: %s", run.State, run.Reason)
		}
		for _, c := range run.Checks {
			if want := map[bool]audit.Status{true: audit.CheckFailed, false: audit.Compliant}[c.Name == audit.LoggingDisabled]; c.Status != want {
				t.Errorf("%s: got %s, want %s", c.Name, c.Status, want)
			}
			if strings.Contains(c.Error, "disk") {
				t.Errorf("%s shows its cause: %s", c.Name, c.Error)
			}
		}
	})
}

// TestDocsTellOfEveryCheck holds docs/audit.md against the catalog.
func TestDocsTellOfEveryCheck(t *testing.T) {
	text, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for s := range strings.SplitSeq(string(text), "\n### ") {
		name, body, _ := strings.Cut(s, "\n")
		sections[strings.Trim(name, "`")] = body
	}
	for _, c := range audit.Checks() {
		body, ok := sections[c.Name]
		if !ok {
			t.Errorf("%s has no section", c.Name)
			continue
		}
		delete(sections, c.Name)
		want := append([]string{"Severity: " + string(c.Severity)}, c.Reasons...)
		if c.Defender {
			want = append(want, "AWS: yes")
		} else {
			want = append(want, "AWS: no")
		}
		if c.Setting != "" {
			want = append(want, "`"+c.Setting+"`")
		}
		for _, w := range append(want, c.Risks...) {
			if !strings.Contains(body, w) {
				t.Errorf("%s: its section does not say %q", c.Name, w)
			}
		}
		if c.Title == "" || c.Why == "" || c.Do == "" || len(c.Reasons) == 0 || c.Severity == "" {
			t.Errorf("%s lacks a part: %+v", c.Name, c)
		}
	}
	for name := range sections {
		if strings.HasSuffix(name, "_CHECK") {
			t.Errorf("docs tell of %s, which there is not", name)
		}
	}
}
