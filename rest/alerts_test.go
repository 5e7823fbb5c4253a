package rest_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/store"
)

// raise hands the desk a finding about a device and gives its alert.
func (h *house) raise(t *testing.T, c *client, device string) api.Alert {
	t.Helper()
	err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return h.Alerts.Take(ctx, tx, []countersign.Finding{{
			Rule: "shared_certificate", Severity: countersign.SeverityHigh, Subject: "device:" + device, Device: device, Remote: "203.0.113.9:5555",
			Summary: "one certificate in two places", Evidence: map[string]string{"second": "203.0.113.9"}, Events: []int64{7},
		}})
	})
	if err != nil {
		t.Fatal(err)
	}
	var list api.Page[api.Alert]
	c.must("GET", "/alerts?state=live&device="+device, "", &list)
	if len(list.Items) != 1 || list.Items[0].Evidence != nil {
		t.Fatalf("GET /alerts: got %+v, want one without evidence", list.Items)
	}
	return list.Items[0]
}

func TestAlertIsWorkedOn(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	h.enroll(t, "pump-1")
	path := "/alerts/" + h.raise(t, c, "pump-1").ID
	var a api.Alert
	c.must("GET", path, "", &a)
	if len(a.Evidence) != 1 || a.Evidence[0].Events[0] != 7 || a.Evidence[0].Evidence["second"] == "" || len(a.Timeline) != 1 {
		t.Errorf("GET: got %+v", a)
	}
	c.must("POST", path+"/acknowledge", "", &a)
	c.must("POST", path+"/assign", `{"to":"ana"}`, &a)
	c.must("POST", path+"/comment", `{"note":"hm"}`, &a)
	if a.State != "acknowledged" || a.Assignee != "ana" || a.Timeline[len(a.Timeline)-1].Text != "hm" {
		t.Errorf("after ack, assign and comment: got %+v", a)
	}
	c.must("POST", path+"/snooze", `{"seconds":3600}`, &a)
	if a.State != "snoozed" || a.SnoozedUntil.IsZero() {
		t.Errorf("snooze: got %+v", a)
	}
	var acts api.AlertActions
	c.must("GET", path+"/actions", "", &acts)
	possible := map[string]bool{}
	for _, x := range acts.Items {
		possible[x.Name] = x.Possible
		if x.Effect == "" {
			t.Errorf("action %s has no effect", x.Name)
		}
	}
	if !possible["suspend"] || possible["reactivate"] || !possible["revoke"] || !possible["block"] {
		t.Errorf("actions: got %v", possible)
	}
	var done api.AlertActed
	c.must("POST", path+"/suspend", `{"note":"look"}`, &done)
	if done.Cut == nil || len(done.Cut.Certificates) != 1 || done.Cut.Reason != "certificateHold" {
		t.Errorf("suspend: got %+v", done.Cut)
	}
	c.must("POST", path+"/reactivate", "", &done)
	c.must("POST", path+"/block", `{"ttl_seconds":60}`, &done)
	if done.Block == nil || done.Block.Network != "203.0.113.9/32" {
		t.Errorf("block: got %+v", done.Block)
	}
	c.must("POST", path+"/revoke", `{"reason":"keyCompromise"}`, &done)
	var p api.Problem
	if c.do("POST", path+"/reactivate", "", &p); p.Code != "conflict" {
		t.Errorf("reactivate of a device that is not suspended: got %+v, want conflict", p)
	}
	c.must("POST", path+"/close", `{"resolution":"resolved","note":"replaced"}`, &a)
	if a.State != "closed" || a.Resolution != "resolved" {
		t.Errorf("close: got %+v", a)
	}
	if c.do("POST", path+"/acknowledge", "", &p); p.Code != "conflict" {
		t.Errorf("acknowledge of a closed alert: got %+v, want conflict", p)
	}
	if c.do("GET", "/alerts?after=x", "", &p); p.Code != "bad_request" {
		t.Errorf("a wrong cursor: got %+v, want bad_request", p)
	}
}

func TestAlertActsWantTheirOwnRight(t *testing.T) {
	h := newHouse(t)
	id := h.raise(t, h.local(t), "pump-1").ID
	h.Local = false
	c := serve(t, h.Handler())
	for _, tt := range []struct {
		role         operator.Role
		method, path string
		allowed      bool
	}{
		{operator.Viewer, "GET", "/alerts", true},
		{operator.Viewer, "GET", "/alerts/" + id + "/actions", true},
		{operator.Viewer, "POST", "/alerts/" + id + "/acknowledge", false},
		{operator.Factory, "GET", "/alerts", false},
		{operator.Approver, "POST", "/alerts/" + id + "/acknowledge", true},
		{operator.Approver, "POST", "/alerts/" + id + "/revoke", false},
		{operator.Operator, "POST", "/channels/hook/test", false},
	} {
		err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
			_, c.token, err = h.Operators.Create(ctx, tx, "ana", tt.role, time.Hour)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		body := ""
		if tt.method == "POST" {
			body = `{}`
		}
		res := c.do(tt.method, tt.path, body, nil)
		if (res.StatusCode != http.StatusForbidden) != tt.allowed {
			t.Errorf("%s %s as %s: got %s, want allowed %v", tt.method, tt.path, tt.role, res.Status, tt.allowed)
		}
	}
}
