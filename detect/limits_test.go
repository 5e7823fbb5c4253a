package detect

import (
	"fmt"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
)

func TestEachBudgetIsToldOfOnce(t *testing.T) {
	s := tell(t)
	for range 30 {
		for _, budget := range []string{"publishes", "sessions"} {
			s.event(countersign.Event{
				Type: countersign.BudgetExceeded, Device: "pump-1", Remote: "192.0.2.1:1", Via: "mqtt",
				Data: map[string]string{"budget": budget, "limit": "500", "more_before": "900"},
			})
		}
		s.pass(time.Minute)
	}
	if len(s.found) != 2 {
		t.Fatalf("got %s, want one finding for each budget", ruleNames(s.found))
	}
	for i, budget := range []string{"publishes", "sessions"} {
		f := s.found[i]
		if f.Rule != BudgetExceeded || f.Device != "pump-1" || f.Subject != "device:pump-1" || f.Severity != countersign.SeverityMedium {
			t.Errorf("got %+v", f)
		}
		s.has(f, map[string]string{"budget": budget, "limit": "500", "address": "192.0.2.1:1"})
	}
	s.pass(24 * time.Hour)
	s.event(countersign.Event{Type: countersign.BudgetExceeded, Device: "pump-1", Data: map[string]string{"budget": "publishes"}})
	if len(s.found) != 3 {
		t.Errorf("a day later: got %d findings, want it reported again", len(s.found))
	}
}

func TestBudgetOfWhoIsNoDevice(t *testing.T) {
	for subject, e := range map[string]countersign.Event{
		"address:192.0.2.1/32":  {Device: "guest/7", Actor: "guest:7", Remote: "192.0.2.1:1"},
		"address:2001:db8::/64": {Actor: "unknown", Remote: "[2001:db8::7]:1"},
		"fleet:pumps":           {Fleet: "pumps"},
	} {
		s := tell(t)
		e.Type, e.Data = countersign.BudgetExceeded, map[string]string{"budget": "renewals"}
		s.event(e)
		if f := s.once(BudgetExceeded); f.Subject != subject || f.Device != "" {
			t.Errorf("got %+v, want subject %s and no device", f, subject)
		}
	}
}

// TestEventsThatWereThinnedAreNotMissed lets a device exceed its budget of events: its
// sessions must be dropped, because their ends may not be in the log.
func TestEventsThatWereThinnedAreNotMissed(t *testing.T) {
	s := tell(t)
	s.open(device)
	s.event(countersign.Event{Type: countersign.BudgetExceeded, Device: "pump-1", Data: map[string]string{"budget": "events"}})
	if f := s.once(BudgetExceeded); f.Severity != countersign.SeverityHigh {
		t.Errorf("severity %s, want high: it hides what happens", f.Severity)
	}
	s.open(thief)
	s.pass(time.Hour)
	s.event(countersign.Event{Type: countersign.CRLPublished})
	s.once(BudgetExceeded)
}

func TestRefusedOperatorsAreFound(t *testing.T) {
	refused := func(remote string, code countersign.Code, actor countersign.Actor, data map[string]string) countersign.Event {
		return countersign.Event{Type: countersign.OperatorRefused, Actor: actor, Remote: remote, Via: "rest", Code: code, Data: data}
	}
	for name, tt := range map[string]struct {
		e       countersign.Event
		n       int
		subject string // empty: nothing is found
	}{
		"wrong tokens":       {refused("192.0.2.7:1", countersign.BadCredential, "unknown", map[string]string{"route": "GET /devices"}), 5, "address:192.0.2.7/32"},
		"four wrong tokens":  {refused("192.0.2.7:1", countersign.BadCredential, "unknown", nil), 4, ""},
		"thinned out":        {refused("192.0.2.7:1", countersign.BadCredential, "unknown", map[string]string{"more_before": "60"}), 1, "address:192.0.2.7/32"},
		"expired tokens":     {refused("192.0.2.7:1", countersign.CredentialExpire, "unknown", nil), 50, ""},
		"acts of a viewer":   {refused("192.0.2.7:1", countersign.NotAllowed, "operator:ann", map[string]string{"role": "viewer", "route": "POST /keys"}), 5, "operator:ann"},
		"one act, a mistake": {refused("192.0.2.7:1", countersign.NotAllowed, "operator:ann", map[string]string{"role": "viewer"}), 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			for i := range tt.n {
				e := tt.e
				e.Remote = fmt.Sprintf("192.0.2.7:%d", i+1)
				s.event(e)
				s.pass(time.Minute)
			}
			if tt.subject == "" {
				s.silent()
				return
			}
			if f := s.once(OperatorRefused); f.Subject != tt.subject || f.Device != "" {
				t.Errorf("got %+v, want subject %s", f, tt.subject)
			}
		})
	}
}
