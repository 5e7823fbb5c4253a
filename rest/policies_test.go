package rest_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
)

func policyHouse(t *testing.T) (*house, *client) {
	t.Helper()
	h := newHouse(t)
	return h, h.local(t)
}

// sourceOf is a request with a draft by which a device may publish to a topic.
func sourceOf(t *testing.T, topic string, more map[string]any) string {
	t.Helper()
	if more == nil {
		more = map[string]any{}
	}
	more["source"] = "statements:\n  - {id: in, effect: allow, actions: [connect]}\n  - {id: own, effect: allow, actions: [publish], topics: ['" + topic + "']}\n"
	b, err := json.Marshal(more)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPoliciesAreAppliedListedAndRolledBack(t *testing.T) {
	h, c := policyHouse(t)
	h.sessions = []countersign.Session{
		{Device: "pump-1", Fleet: "default", ClientID: "pump-1", Permissions: countersign.Permissions{Publish: countersign.Filters{Allow: []string{"devices/pump-1/up/#"}}}},
		{Device: "pump-2", Fleet: "other", ClientID: "pump-2", Permissions: countersign.Permissions{Publish: countersign.Filters{Allow: []string{"#"}}}},
	}
	var p api.Policy
	if c.must("GET", "/policies/default", "", &p); p.Version != 0 || !strings.Contains(p.Source, "statements:") || len(p.Warnings) != 0 {
		t.Errorf("GET before any: got version %d with %d warnings, want the built-in one with none", p.Version, len(p.Warnings))
	}
	var done api.AppliedPolicy
	c.must("POST", "/policies/default/apply", sourceOf(t, "devices/#", map[string]any{"note": "wide", "expect": 0}), &done)
	if done.Version != 1 || !done.Changed || done.Sessions != 0 || done.By != "operator:local" || len(done.Warnings) != 2 || done.Warnings[0].Code != "publish_unbound" {
		t.Errorf("apply: got %+v, want version 1, nobody to lose, a warning", done)
	}
	c.must("POST", "/policies/default/apply", sourceOf(t, "a", nil), &done)
	if done.Version != 2 || done.Sessions != 1 {
		t.Errorf("apply of less: got version %d with %d sessions, want 2 with one", done.Version, done.Sessions)
	}
	var problem api.Problem
	res := c.do("POST", "/policies/default/apply", sourceOf(t, "b", map[string]any{"expect": 1}), &problem)
	if res.StatusCode != 409 || problem.Code != "conflict" || problem.Next == "" {
		t.Errorf("apply that expects version 1: got %d %+v, want 409", res.StatusCode, problem)
	}
	res = c.do("POST", "/policies/default/apply", `{"source":"statements: 1"}`, &problem)
	if res.StatusCode != 400 || !strings.Contains(problem.Detail, "line 1, column 13") {
		t.Errorf("apply of a broken one: got %d %+v, want 400 with the place", res.StatusCode, problem)
	}
	c.must("POST", "/policies/default/rollback", `{"to":1}`, &done)
	if done.Version != 3 || done.Note != "back to version 1" {
		t.Errorf("rollback: got %+v, want version 3", done)
	}
	var list api.Page[api.Policy]
	c.must("GET", "/policies/default/versions?limit=2", "", &list)
	if len(list.Items) != 2 || list.Items[0].Version != 3 || list.Items[0].Source != "" || list.Next != "2" {
		t.Errorf("versions: got %+v, want 3 and 2 without sources", list)
	}
	if c.must("GET", "/policies/default/versions/1", "", &p); !strings.Contains(p.Source, "devices/#") || p.Note != "wide" {
		t.Errorf("version 1: got %+v", p)
	}
	for _, path := range []string{"/policies/nowhere", "/policies/nowhere/versions", "/policies/nowhere/versions/0", "/policies/default/versions/9"} {
		if res := c.do("GET", path, "", &problem); res.StatusCode != 404 {
			t.Errorf("GET %s: got %d, want 404", path, res.StatusCode)
		}
	}
}

func TestPolicyDraftsAreCheckedExplainedAndReplayed(t *testing.T) {
	_, c := policyHouse(t)
	var check api.PolicyCheck
	if c.must("POST", "/policies/check", sourceOf(t, "devices/#", nil), &check); !check.OK || len(check.Warnings) != 2 {
		t.Errorf("check: got %+v, want ok with two warnings", check)
	}
	if c.must("POST", "/policies/check", `{"source":"statements: []\nmore: 1\n"}`, &check); check.OK || len(check.Problems) != 1 || check.Problems[0].Line != 2 {
		t.Errorf("check of a broken one: got %+v, want a problem in line 2", check)
	}
	var answer api.PolicyAnswer
	c.must("POST", "/policies/explain", sourceOf(t, "a", map[string]any{"guest": "g", "fleet": "default", "action": "publish", "topic": "a"}), &answer)
	if answer.Decision.Allowed || answer.Version != -1 {
		t.Errorf("explain of a draft for a guest: got %+v, want denied by the draft", answer)
	}
	var problem api.Problem
	if res := c.do("POST", "/policies/explain", `{"device":"nobody","action":"connect"}`, &problem); res.StatusCode != 404 {
		t.Errorf("explain of nobody: got %d, want 404", res.StatusCode)
	}
	var replay api.PolicyReplay
	if c.must("POST", "/policies/default/replay", sourceOf(t, "a", nil), &replay); replay.Acts != 0 || len(replay.Statements) == 0 || replay.Changes == nil {
		t.Errorf("replay: got %+v, want no acts, and what differs", replay)
	}
	big := strings.Repeat("#\n", 31<<10)
	b, err := json.Marshal(api.PolicySource{Source: big})
	if err != nil {
		t.Fatal(err)
	}
	if c.must("POST", "/policies/check", string(b), &check); check.OK {
		t.Error("check of 62 KiB of comments: got ok, want it to be empty")
	}
}
