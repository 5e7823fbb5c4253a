package countersign_test

import (
	"testing"

	"github.com/countersign-iot/countersign"
)

func TestEachEventTypeHasAKind(t *testing.T) {
	rows := countersign.Kinds()
	for _, name := range constants(t, "event.go", "EventType") {
		e := countersign.EventType(name)
		if _, ok := rows[e]; !ok {
			t.Errorf("%s has no row in kinds", e)
		}
		delete(rows, e)
	}
	for e := range rows {
		t.Errorf("kinds has a row for %s, which is no event type of event.go", e)
	}
}

// TestWhatEndsSessionsIsUrgent guards the promise "on every node at once": an event
// that ends or rechecks sessions, or takes an authority's word back, must not wait
// for the seal.
func TestWhatEndsSessionsIsUrgent(t *testing.T) {
	for e, k := range countersign.Kinds() {
		if (k.Ends != countersign.EndsNothing || k.Recheck != countersign.RecheckNone || k.Restores || k.Status || k.Authorities || k.Purges) && !k.Urgent {
			t.Errorf("%s acts on sessions, status or authorities, and is not urgent", e)
		}
		switch k.Level {
		case countersign.LevelInfo, countersign.LevelWarning, countersign.LevelAlert:
		default:
			t.Errorf("%s has level %q", e, k.Level)
		}
	}
}

// TestWhatEndsSessionsSaysWhyToThePeer wants a sentence and not the name of an event.
func TestWhatEndsSessionsSaysWhyToThePeer(t *testing.T) {
	for e, k := range countersign.Kinds() {
		one := countersign.Event{Type: e, Device: "pump-1", Fleet: "default", Cert: countersign.CertRef{Issuer: "issuing", Serial: "01"}}
		one.Data = map[string]string{"secret": "1", "token": "1", "kind": "claim", "credential": "1"}
		if c, ok := one.Cut(); k.Ends != countersign.EndsNothing && (!ok || c.Reason == "" || c.Reason == string(e)) {
			t.Errorf("%s ends sessions with the reason %q, want a sentence in ending", e, c.Reason)
		}
	}
}

func TestCutNamesWhatTheEventEnds(t *testing.T) {
	cert := countersign.CertRef{Issuer: "issuing", Serial: "01"}
	for _, tt := range []struct {
		e    countersign.Event
		want countersign.Cut
	}{
		{countersign.Event{Type: countersign.DeviceRevoked, Device: "a"}, countersign.Cut{Device: "a"}},
		{countersign.Event{Type: countersign.DeviceSuspendedEv, Device: "a"}, countersign.Cut{Device: "a"}},
		{countersign.Event{Type: countersign.SessionEnded, Device: "a"}, countersign.Cut{Device: "a"}},
		{countersign.Event{Type: countersign.SessionEnded, Device: "a", Data: map[string]string{"session": "x"}}, countersign.Cut{Session: "x"}},
		{countersign.Event{Type: countersign.CertRevokedEv, Device: "a", Cert: cert}, countersign.Cut{Cert: cert}},
		{countersign.Event{Type: countersign.SecretStopped, Device: "a", Data: map[string]string{"secret": "s1"}}, countersign.Cut{Credential: "secret:s1"}},
		{countersign.Event{Type: countersign.CredentialStopped, Data: map[string]string{"kind": "group", "credential": "g1"}}, countersign.Cut{Credential: "group:g1"}},
		{countersign.Event{Type: countersign.AccessTokenRevoked, Data: map[string]string{"token": "t1"}}, countersign.Cut{Credential: "token:t1"}},
	} {
		got, ok := tt.e.Cut()
		if got.Reason == "" || got.Code != tt.e.Type {
			t.Errorf("%s: got code %q and reason %q", tt.e.Type, got.Code, got.Reason)
		}
		got.Reason, got.Code = "", ""
		if !ok || got != tt.want {
			t.Errorf("%s: got %+v, %v, want %+v", tt.e.Type, got, ok, tt.want)
		}
	}
	if c, ok := (&countersign.Event{Type: countersign.CertIssued, Device: "a", Cert: cert}).Cut(); ok {
		t.Errorf("certificate.issued: got the cut %+v", c)
	}
	if c, ok := (&countersign.Event{Type: countersign.DeviceRevoked}).Cut(); ok {
		t.Errorf("device.revoked without a device: got the cut %+v", c)
	}
}

func TestCutsNameEachSessionOnce(t *testing.T) {
	ref := func(s countersign.Serial) countersign.CertRef {
		return countersign.CertRef{Issuer: "issuing", Serial: s}
	}
	cuts := countersign.Cuts([]countersign.Event{
		{Type: countersign.CertRevokedEv, Device: "a", Cert: ref("01")},
		{Type: countersign.CertRevokedEv, Device: "a", Cert: ref("02")},
		{Type: countersign.DeviceRevoked, Device: "a", Data: map[string]string{"reason": "keyCompromise"}},
		{Type: countersign.SecretStopped, Device: "a", Data: map[string]string{"secret": "s"}},
		{Type: countersign.CertRevokedEv, Device: "b", Cert: ref("03")},
	})
	if len(cuts) != 2 || cuts[0].Device != "a" || cuts[0].Reason != "device revoked: keyCompromise" || cuts[1].Cert != ref("03") {
		t.Errorf("got %+v, want one cut of device a and one of certificate 03", cuts)
	}
}
