package audit_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// edge is a check that turns at a moment: from then on it finds.
type edge struct {
	check string
	make  func(t *testing.T, w *world, id string) // makes what is found at the moment
	after time.Duration                           // from the start to the moment
	want  string                                  // reason and subject; %s is the id
}

func edges() []edge {
	certificate := func(from, to time.Duration) func(*testing.T, *world, string) {
		return func(t *testing.T, w *world, id string) {
			w.device(t, id)
			w.certificate(t, id, func(c *certificate) { c.from, c.issued, c.to = start.Add(from), start.Add(from), start.Add(to) })
		}
	}
	return []edge{
		{audit.DeviceExpiring, certificate(-day, 364*day), 334 * day, "CERTIFICATE_APPROACHING_EXPIRATION device:%s"},
		{audit.DeviceExpiring, certificate(0, 10*day), 8 * day, "CERTIFICATE_APPROACHING_EXPIRATION device:%s"}, // a fifth of a short life
		{audit.DeviceAge, certificate(-100*day, 3000*day), 265 * day, "CERTIFICATE_PAST_AGE_THRESHOLD device:%s"},
		{audit.NeverConnected, func(t *testing.T, w *world, id string) {
			w.device(t, id, func(d *device) { d.created, d.seen = start, time.Time{} })
		}, 30 * day, "DEVICE_NEVER_CONNECTED device:%s"},
		{audit.Inactive, func(t *testing.T, w *world, id string) {
			w.device(t, id, func(d *device) { d.seen = start })
		}, 180 * day, "DEVICE_PAST_INACTIVITY_THRESHOLD device:%s"},
		{audit.SecretAge, func(t *testing.T, w *world, id string) {
			w.device(t, id)
			w.secret(t, "secret-of-"+id, id, store.Micros(start))
		}, 365 * day, "SECRET_PAST_AGE_THRESHOLD device:%s"},
		{audit.SecretAge, func(t *testing.T, w *world, id string) {
			w.credential(t, id, "group", `created_at = $2`, store.Micros(start))
		}, 365 * day, "ENROLLMENT_KEY_PAST_AGE_THRESHOLD credential:%s"},
	}
}

// TestChecksTurnAtTheirThreshold runs each check that has a threshold a second before it
// and at it.
func TestChecksTurnAtTheirThreshold(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for i, e := range edges() {
			id := fmt.Sprintf("edge-%d", i)
			w.clock.Set(start)
			e.make(t, w, id)
			want := e.check + " " + fmt.Sprintf(e.want, id)
			w.clock.Set(start.Add(e.after - time.Second))
			if _, got := w.audit(t, e.check); slices.Contains(got, want) {
				t.Errorf("%s, a second before: got %q", e.check, got)
			}
			w.clock.Set(start.Add(e.after))
			if _, got := w.audit(t, e.check); !slices.Contains(got, want) {
				t.Errorf("%s, at the moment: got %q, want %s", e.check, got, want)
			}
		}
	})
}

// TestWhatIsRepairedIsFoundNoMore repairs what each check found.
func TestWhatIsRepairedIsFoundNoMore(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old := store.Micros(start.Add(-400 * day))
		for _, tt := range []struct {
			check  string
			spoil  func() // makes what is found
			repair string
			args   []any
		}{
			{audit.Orphaned, func() { w.device(t, "lone", func(d *device) { d.owner = "" }) }, `UPDATE device SET owner = 'ann' WHERE id = 'lone'`, nil},
			{audit.Inactive, func() {
				w.device(t, "away", func(d *device) { d.seen = start.Add(-200 * day) })
			}, `UPDATE device SET last_seen = $1 WHERE id = 'away'`, []any{store.Micros(start)}},
			{audit.NeverConnected, func() {
				w.device(t, "idle", func(d *device) { d.created, d.seen = start.Add(-40*day), time.Time{} })
				w.certificate(t, "idle")
			}, `UPDATE certificate SET used_at = 1 WHERE device = 'idle'`, nil},
			{audit.DeviceExpiring, func() {
				w.device(t, "late")
				w.certificate(t, "late", func(c *certificate) { c.from, c.to = start.Add(-40*day), start.Add(-day) })
			}, `UPDATE certificate SET state = 'superseded' WHERE device = 'late'`, nil},
			{audit.SecretAge, func() {
				w.device(t, "stale")
				w.secret(t, "stale-secret", "stale", old)
			}, `UPDATE device_secret SET state = 'stopped' WHERE id = 'stale-secret'`, nil},
			{audit.Offboarding, func() {
				w.device(t, "left", func(d *device) { d.state = "retired" })
				w.certificate(t, "left")
			}, `UPDATE certificate SET state = 'revoked' WHERE device = 'left'`, nil},
			{audit.ClaimUnbounded, func() { w.credential(t, "wide", "claim", `uses_max = 0`) }, `UPDATE credential SET uses_max = 1 WHERE id = 'wide'`, nil},
			{audit.OperatorToken, func() {
				w.token(t, operatorToken{"lost", "admin", old, store.Micros(start.Add(day)), 0})
			}, `UPDATE operator_token SET revoked = TRUE WHERE id = 'lost'`, nil},
		} {
			_, before := w.audit(t, tt.check)
			tt.spoil()
			w.clock.Advance(time.Second)
			run, broken := w.audit(t, tt.check)
			if len(broken) != len(before)+1 || run.Checks[0].Status != audit.NonCompliant {
				t.Errorf("%s: got %q with status %s, want one more than %q", tt.check, broken, run.Checks[0].Status, before)
			}
			w.exec(t, tt.repair, tt.args...)
			w.clock.Advance(time.Second)
			if _, repaired := w.audit(t, tt.check); !slices.Equal(repaired, before) {
				t.Errorf("%s, repaired: got %q, want %q", tt.check, repaired, before)
			}
		}
	})
}

// TestFindingsAreFilteredAndPaged asks for the findings of a run by each field, in pages
// of one.
func TestFindingsAreFilteredAndPaged(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.fleet(t, "pumps", countersign.Rules{})
		w.device(t, "a", func(d *device) { d.owner = "" })
		w.device(t, "b", func(d *device) { d.owner, d.fleet = "", "pumps" })
		w.device(t, "c", func(d *device) { d.seen = start.Add(-200 * day) })
		run, _ := w.audit(t, audit.Orphaned, audit.Inactive)
		severity := func(check string) countersign.Severity {
			checks := audit.Checks()
			return checks[slices.IndexFunc(checks, func(c audit.Check) bool { return c.Name == check })].Severity
		}
		for _, tt := range []struct {
			filter audit.Filter
			want   string
		}{
			{audit.Filter{}, "c a b"}, // by check
			{audit.Filter{Check: audit.Orphaned}, "a b"},
			{audit.Filter{Fleet: "pumps"}, "b"},
			{audit.Filter{Device: "c"}, "c"},
			{audit.Filter{Device: "d"}, ""},
			{audit.Filter{Severities: []countersign.Severity{severity(audit.Orphaned)}, Check: audit.Orphaned}, "a b"},
			{audit.Filter{Severities: []countersign.Severity{countersign.SeverityCritical}}, ""},
			{audit.Filter{Check: audit.Orphaned, Fleet: "default"}, "a"},
		} {
			for _, id := range []string{run.ID, audit.Latest} {
				var got []string
				f := tt.filter
				f.Run, f.Limit = id, 1
				for more := true; more; more = f.After != "" {
					list, next, err := w.Findings(t.Context(), f)
					if err != nil || len(list) > 1 {
						t.Fatalf("%+v: got %d, %v", f, len(list), err)
					}
					for _, x := range list {
						got = append(got, x.Device)
					}
					f.After = next
				}
				if strings.Join(got, " ") != tt.want {
					t.Errorf("%+v: got %q, want %q", tt.filter, got, tt.want)
				}
			}
		}
		_, _, err := w.Findings(t.Context(), audit.Filter{Run: "none"})
		kit.WantCode(t, err, countersign.NotFound)
	})
}

// TestRunsBelongToAllNodes has two auditors on one database: what one began the other
// does not begin again, sees, and counts as the last one after a restart.
func TestRunsBelongToAllNodes(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		other := &audit.Auditor{
			DB: db, Now: w.clock.Now, Log: w.Log, Every: day, Node: "other", CA: w.ca, Registry: w.registry, Events: w.log, Verify: w.log.Verify,
			Policies: w.Policies, Operators: w.Operators,
		}
		_, ok, err := other.LastCompleted(t.Context())
		if err != nil || ok {
			t.Errorf("before the first run: got one, %v", err)
		}
		_, err = other.Get(t.Context(), audit.Latest)
		kit.WantCode(t, err, countersign.NotFound)
		reached, release := w.halting()
		run := w.start(t)
		await(t, reached)
		_, err = other.Start(t.Context(), audit.Request{By: "operator:bo", Via: "test"})
		kit.WantCode(t, err, countersign.Conflict)
		if seen, err := other.Get(t.Context(), run.ID); err != nil || seen.State != audit.InProgress || seen.Node != "test" {
			t.Errorf("seen by the other node: got %+v, %v", seen, err)
		}
		release()
		if run, err = w.Wait(t.Context(), run.ID); err != nil || run.State != audit.Completed {
			t.Fatalf("got %+v, %v", run, err)
		}
		last, ok, err := other.LastCompleted(t.Context())
		if err != nil || !ok || last.ID != run.ID || len(last.Checks) != len(audit.Checks()) {
			t.Errorf("the last one for the other node: got %s with %d checks, %v", last.ID, len(last.Checks), err)
		}
		_, err = other.Cancel(t.Context(), run.ID)
		kit.WantCode(t, err, countersign.Conflict)
		w.clock.Advance(time.Second)
		_, err = other.Start(context.WithoutCancel(t.Context()), audit.Request{By: "operator:bo", Checks: []string{"NO_SUCH_CHECK"}})
		kit.WantCode(t, err, countersign.NotFound)
	})
}

// TestSuppressionsThatCannotBe are refused and leave no row.
func TestSuppressionsThatCannotBe(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		good := audit.Suppression{Check: audit.Orphaned, Subject: "device:a", Reason: "in the lab", EndsAt: w.Now().Add(day), CreatedBy: "operator:ann"}
		for name, tt := range map[string]struct {
			change func(*audit.Suppression)
			code   countersign.Code
		}{
			"no such check":      {func(s *audit.Suppression) { s.Check = "NO_SUCH_CHECK" }, countersign.NotFound},
			"no subject":         {func(s *audit.Suppression) { s.Subject = "" }, countersign.BadRequest},
			"a long subject":     {func(s *audit.Suppression) { s.Subject = strings.Repeat("x", 201) }, countersign.BadRequest},
			"no reason":          {func(s *audit.Suppression) { s.Reason = " " }, countersign.BadRequest},
			"a long reason":      {func(s *audit.Suppression) { s.Reason = strings.Repeat("x", 501) }, countersign.BadRequest},
			"no end":             {func(s *audit.Suppression) { s.EndsAt = time.Time{} }, countersign.BadRequest},
			"an end in a moment": {func(s *audit.Suppression) { s.EndsAt = w.Now().Add(time.Minute - time.Second) }, countersign.BadRequest},
			"an end in a year":   {func(s *audit.Suppression) { s.EndsAt = w.Now().Add(366*day + time.Second) }, countersign.BadRequest},
		} {
			s := good
			tt.change(&s)
			_, err := w.Suppress(t.Context(), s, "test")
			if got := countersign.CodeOf(err); got != tt.code {
				t.Errorf("%s: got %v, want %s", name, err, tt.code)
			}
		}
		if list, _, err := w.Suppressions(t.Context(), "", 10); err != nil || len(list) > 0 {
			t.Errorf("on record: got %+v, %v", list, err)
		}
		for i := range 3 {
			s := good
			s.Subject = fmt.Sprintf("device:%d*", i)
			if _, err := w.Suppress(t.Context(), s, "test"); err != nil {
				t.Fatal(err)
			}
		}
		seen := map[string]bool{}
		for after, more := "", true; more; more = after != "" {
			list, next, err := w.Suppressions(t.Context(), after, 1)
			if err != nil || len(list) > 1 {
				t.Fatalf("a page of one: got %d, %v", len(list), err)
			}
			for _, s := range list {
				seen[s.Subject] = true
			}
			after = next
		}
		if len(seen) != 3 {
			t.Errorf("over all pages: got %v, want 3", seen)
		}
	})
}

// TestAFailedScheduleIsTriedWithinTheHour holds when the next audit is due: Every after
// one that completed, and no later than an hour after one that failed.
func TestAFailedScheduleIsTriedWithinTheHour(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, tt := range []struct {
			state       audit.State
			every, wait time.Duration
		}{
			{audit.Completed, day, day},
			{audit.Canceled, day, day},
			{audit.Failed, day, time.Hour},
			{audit.Failed, 10 * time.Minute, 10 * time.Minute},
		} {
			w.clock.Advance(time.Hour)
			w.Every = tt.every
			w.exec(t, `INSERT INTO audit_run (id, state, reason, scheduled, started_by, via, node, canceled, started_at, ended_at, beat_at, log_events, log_head)
				VALUES ($1, $2, '', TRUE, 'system', 'schedule', 'test', FALSE, $3, $3, $3, 0, '')`,
				w.Now().Format(time.RFC3339), string(tt.state), store.Micros(w.Now()))
			due, err := w.Due(t.Context())
			if err != nil || !due.Equal(w.Now().Add(tt.wait)) {
				t.Errorf("%s, every %v: got due in %v, %v, want in %v", tt.state, tt.every, due.Sub(w.Now()), err, tt.wait)
			}
			w.exec(t, `UPDATE audit_run SET scheduled = FALSE WHERE scheduled`) // one started by hand moves nothing
			if again, err := w.Due(t.Context()); err != nil || again.Equal(due) {
				t.Errorf("%s, every %v: an audit by hand counts as scheduled: %v, %v", tt.state, tt.every, again, err)
			}
		}
	})
}

// TestAuthoritiesAreJudgedByTheirFleets holds the warning of an authority to the longest
// that a fleet which it issues for wants, and to each other fault of its list.
func TestAuthoritiesAreJudgedByTheirFleets(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		look := func(what string, check string, want ...string) {
			t.Helper()
			w.clock.Advance(time.Second)
			_, got := w.audit(t, check)
			for i, l := range got {
				got[i] = strings.Join(strings.Fields(l)[1:], " ")
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", what, got, want)
			}
		}
		look("a new authority", audit.CAExpiring)
		w.fleet(t, "careful", countersign.Rules{Audit: countersign.AuditRules{Expiring: countersign.Span(3652 * day)}})
		look("a fleet wants to know early", audit.CAExpiring, "CERTIFICATE_APPROACHING_EXPIRATION authority:issuing")
		w.fleet(t, "careful", countersign.Rules{})
		look("it does no more", audit.CAExpiring)
		look("a list that was just published", audit.CRLStale)
		w.exec(t, `UPDATE crl SET next_update = $1 WHERE issuer = 'issuing'`, store.Micros(w.Now().Add(-time.Hour)))
		look("a list that has ended", audit.CRLStale, "CRL_PAST_NEXT_UPDATE authority:issuing")
		w.publish(t)
		look("published again", audit.CRLStale)
	})
}

// TestARootWithoutAListIsAudited audits a root whose list is not on record, as after a
// failover to a database that was set back to before its first one.
func TestARootWithoutAListIsAudited(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.exec(t, `UPDATE crl SET published = 0 WHERE issuer = 'root'`)
		if run, got := w.audit(t, audit.CARevoked, audit.IntermediateRevoked); run.State != audit.Completed || len(got) > 0 {
			t.Errorf("got %s (%s) with %q, want %s", run.State, run.Reason, got, audit.Completed)
		}
	})
}
