package server_test

import (
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/server"
)

// TestDetectorsSeeWhatTheGatewaySays has real sessions make the stories: a fight for
// one client id, and a revoked device that comes back.
func TestDetectorsSeeWhatTheGatewaySays(t *testing.T) {
	countersigntest.Each(t, detectorsSeeWhatTheGatewaySays)
}

func detectorsSeeWhatTheGatewaySays(t *testing.T, asked, other *countersigntest.Server) {
	t.Helper()
	id := asked.Enroll(t, "pump-1")
	for range 3 {
		for _, from := range []string{"127.0.0.1", "127.0.0.2"} {
			if _, code := dialAs(t, other, id, from, "pump-1"); code != 0 {
				t.Fatalf("CONNACK: got %d, want 0", code)
			}
		}
	}
	fought := time.Now()
	within(t, "the fight", func() bool {
		return len(alerts(t, asked, api.AlertFilter{State: "live", Device: "pump-1", Rule: "client_id_conflict"})) == 1
	})
	t.Logf("from the last takeover to the alert: %v", time.Since(fought))
	if _, err := asked.Admin.Revoke(t.Context(), "pump-1", api.Revoke{Reason: "keyCompromise"}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, code := dialAs(t, other, id, "127.0.0.2", "pump-1"); code == 0 {
			t.Fatal("a revoked device was let in")
		}
	}
	var list []api.Alert
	within(t, "the revoked device", func() bool {
		list = alerts(t, asked, api.AlertFilter{State: "live", Device: "pump-1", Rule: "connect_after_revocation"})
		return len(list) == 1
	})
	a, err := asked.Admin.Alert(t.Context(), list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	if a.Count != 1 || len(a.Evidence) != 1 || a.Evidence[0].Evidence["since"] == "" {
		t.Errorf("got %d findings with %+v, want one that says since when", a.Count, a.Evidence)
	}
	if got := alerts(t, asked, api.AlertFilter{State: "live", Rule: "shared_certificate"}); len(got) != 0 {
		t.Errorf("takeovers were taken for two holders: %+v", got)
	}
}

// TestStrangersNameNoDeviceToSuspend: whoever has a leaked claim or group key can say
// any device's name with it, as whoever guesses can.
func TestStrangersNameNoDeviceToSuspend(t *testing.T) {
	unproven := map[string]bool{}
	for _, r := range server.FindingRules() {
		unproven[r.Name] = r.Unproven
	}
	for name, want := range map[string]bool{
		"claim_misuse": true, "group_key_leaked": true, "wrong_secret": true,
		"renewal_fork": false, "shared_certificate": false, "denied_topics": false,
	} {
		if got, known := unproven[name]; !known || got != want {
			t.Errorf("%s: unproven is %t, known %t; want %t", name, got, known, want)
		}
	}
}
