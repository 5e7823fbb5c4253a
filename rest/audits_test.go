package rest_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/store"
)

func (h *house) auditor() *audit.Auditor {
	return &audit.Auditor{
		DB: h.db, Now: h.Now, Log: h.Log, CA: h.CA, Registry: h.Registry, Operators: h.Operators, Events: h.Events,
		Policies: &policies.Store{DB: h.db, Now: h.Now, Events: h.Events}, Verify: h.Events.Verify,
	}
}

func TestAuditsAreRunAndRead(t *testing.T) {
	h := newHouse(t)
	h.Auditor = h.auditor()
	c := h.local(t)
	c.must("POST", "/devices", `{"id":"pump-7","fleet":"default"}`, nil)
	c.must("POST", "/claims", `{"fleet":"default","label":"line","uses":5000,"ttl_seconds":20000000}`, nil)
	var run api.AuditRun
	c.must("POST", "/audit/runs", `{}`, &run)
	if run.State != "IN_PROGRESS" || len(run.Checks) != len(audit.Checks()) || run.StartedBy != "operator:local" {
		t.Errorf("POST: got %+v", run)
	}
	if _, err := h.Auditor.Wait(t.Context(), run.ID); err != nil {
		t.Fatal(err)
	}
	c.must("GET", "/audit/runs/latest", "", &run)
	if run.State != "COMPLETED" || run.Done != len(run.Checks) || run.Findings != 1 || run.Severity != "high" || run.EndedAt.IsZero() {
		t.Errorf("GET: got %+v", run)
	}
	var found api.Page[api.AuditFinding]
	for path, want := range map[string]int{
		"":                                   1,
		"?min_severity=high":                 1,
		"?min_severity=critical":             0,
		"?check=DEVICE_ORPHANED_CHECK":       0,
		"?fleet=default&suppressed=yes":      1,
		"?device=pump-7&limit=1&fleet=other": 0,
	} {
		if c.must("GET", "/audit/runs/"+run.ID+"/findings"+path, "", &found); len(found.Items) != want {
			t.Errorf("findings%s: got %+v, want %d", path, found.Items, want)
		}
	}
	var p api.Problem
	for _, bad := range []struct{ method, path, body, code string }{
		{"GET", "/audit/runs/nope", "", "not_found"},
		{"GET", "/audit/runs/nope/findings", "", "not_found"},
		{"GET", "/audit/runs/latest/findings?min_severity=awful", "", "bad_request"},
		{"POST", "/audit/runs", `{"checks":["NOPE"]}`, "not_found"},
		{"POST", "/audit/runs/latest/cancel", "", "conflict"},
		{"POST", "/audit/suppressions", `{"check":"CRL_STALE_CHECK","subject":"*","reason":"","ends_at":"2030-01-01T00:00:00Z"}`, "bad_request"},
		{"DELETE", "/audit/suppressions/nope", "", "not_found"},
	} {
		if c.do(bad.method, bad.path, bad.body, &p); p.Code != bad.code {
			t.Errorf("%s %s: got %+v, want %s", bad.method, bad.path, p, bad.code)
		}
	}
	var s api.AuditSuppression
	end := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	c.must("POST", "/audit/suppressions", `{"check":"CLAIM_CREDENTIAL_UNBOUNDED_CHECK","subject":"credential:*","reason":"known","ends_at":"`+end+`"}`, &s)
	var list api.Page[api.AuditSuppression]
	if c.must("GET", "/audit/suppressions", "", &list); len(list.Items) != 1 || list.Items[0] != s || s.CreatedBy != "operator:local" {
		t.Errorf("suppressions: got %+v", list.Items)
	}
	c.must("DELETE", "/audit/suppressions/"+s.ID, "", nil)
	var trend api.Page[api.AuditTrend]
	if c.must("GET", "/audit/trend?runs=5", "", &trend); len(trend.Items) != len(audit.Checks()) || len(trend.Items[0].Points) != 1 {
		t.Errorf("trend: got %+v", trend.Items)
	}
	var checks api.Page[api.AuditCheck]
	if c.must("GET", "/audit/checks?limit=3", "", &checks); len(checks.Items) != 3 || checks.Next == "" || checks.Items[0].Fix == "" {
		t.Errorf("checks: got %+v", checks)
	}
	var runs api.Page[api.AuditRun]
	if c.must("GET", "/audit/runs", "", &runs); len(runs.Items) != 1 || runs.Items[0].ID != run.ID {
		t.Errorf("runs: got %+v", runs.Items)
	}
}

func TestAuditsWantTheRight(t *testing.T) {
	h := newHouse(t)
	h.Auditor = h.auditor()
	c := serve(t, h.Handler())
	body := `{"check":"CRL_STALE_CHECK","subject":"*","reason":"known","ends_at":"` + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `"}`
	for role, want := range map[operator.Role][3]int{
		operator.Viewer:   {http.StatusForbidden, http.StatusForbidden, http.StatusForbidden},
		operator.Auditor:  {http.StatusOK, http.StatusCreated, http.StatusForbidden},
		operator.Approver: {http.StatusOK, http.StatusCreated, http.StatusCreated},
	} {
		err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
			_, c.token, err = h.Operators.Create(ctx, tx, string(role), role, time.Hour)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		got := [3]int{
			c.do("GET", "/audit/runs", "", nil).StatusCode, c.do("POST", "/audit/runs", `{"checks":["CRL_STALE_CHECK"]}`, nil).StatusCode,
			c.do("POST", "/audit/suppressions", body, nil).StatusCode,
		}
		if got != want {
			t.Errorf("%s: got %v, want %v", role, got, want)
		}
		if want[1] == http.StatusCreated {
			if _, err := h.Auditor.Wait(t.Context(), latestOf(t, h)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func latestOf(t *testing.T, h *house) string {
	t.Helper()
	run, err := h.Auditor.Get(t.Context(), audit.Latest)
	if err != nil {
		t.Fatal(err)
	}
	return run.ID
}
