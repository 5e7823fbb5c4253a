package hook_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/hook"
)

const (
	register = `{"clientid":"c1","username":"pump-1","password":"right"}`
	act      = `{"clientid":"c1","username":"pump-1","device":"pump-1","action":"publish","topic":"devices/pump-1/up/t"}`
)

func (d *door) comesIn(t *testing.T) bool {
	t.Helper()
	_, _, body := d.ask(http.MethodPost, "/hooks/emqx/authn", register)
	return strings.Contains(body, `"allow"`)
}

func (d *door) publishes(t *testing.T) bool {
	t.Helper()
	_, _, body := d.ask(http.MethodPost, "/hooks/emqx/authz", act)
	return strings.Contains(body, `"allow"`)
}

func TestCutEndsWhatASessionMay(t *testing.T) {
	t.Parallel()
	for _, kind := range []countersign.EventType{countersign.DeviceRevoked, countersign.DeviceSuspendedEv, countersign.DeviceRetiredEv} {
		d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
		if !d.comesIn(t) || !d.publishes(t) {
			t.Fatal("a good device is refused")
		}
		// The guard would still say yes: what was cut needs a new connection.
		d.happen(kind, "pump-1")
		if d.publishes(t) {
			t.Errorf("after %s the session publishes", kind)
		}
		if !d.comesIn(t) || !d.publishes(t) {
			t.Errorf("after %s a new session is refused", kind)
		}
	}
}

func TestReactivatedSessionIsDecidedAnew(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
	d.comesIn(t)
	d.happen(countersign.DeviceSuspendedEv, "pump-1")
	d.happen(countersign.DeviceReactivated, "pump-1")
	if !d.publishes(t) {
		t.Error("the session of a reactivated device may do nothing")
	}
	if c := d.guard.last(); c.Vouched != "emqx" || c.Username != "pump-1" {
		t.Errorf("it was decided by %+v, want the broker's word for pump-1", c)
	}
}

func TestChangedPolicyCountsAtOnce(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
	d.comesIn(t)
	d.guard.perms = func(string) countersign.Permissions { return countersign.Permissions{} }
	if !d.publishes(t) {
		t.Error("the verdict was not kept")
	}
	d.happen(countersign.PolicyApplied, "")
	if d.publishes(t) {
		t.Error("the policy from before is applied")
	}
}

func TestACredentialThatIsTakenAwayCutsItsSessions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		credential string
		event      countersign.Event
		cut        bool
	}{
		{"token:t1", countersign.Event{Type: countersign.AccessTokenRevoked, Data: map[string]string{"token": "t1", "subject": "pump-1"}}, true},
		{"token:t1", countersign.Event{Type: countersign.AccessTokenRevoked, Data: map[string]string{"token": "t2", "subject": "pump-1"}}, false},
		{"group_key:g1", countersign.Event{Type: countersign.CredentialStopped, Data: map[string]string{"kind": "group_key", "credential": "g1"}}, true},
		{"", countersign.Event{Type: countersign.CredentialStopped, Data: map[string]string{"kind": "group_key", "credential": "g1"}}, false},
	} {
		d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
		d.guard.credential, c.event.At = c.credential, d.now
		if !d.comesIn(t) || !d.publishes(t) {
			t.Fatal("a good device is refused")
		}
		d.OnEvent(c.event)
		if d.publishes(t) == c.cut {
			t.Errorf("a session on %q after %s %v: want cut %t", c.credential, c.event.Type, c.event.Data, c.cut)
		}
		d.guard.deciding = func() { d.OnEvent(c.event) } // while the next one is decided
		if got := d.comesIn(t); !got {
			t.Errorf("after %s a connection that the guard takes on is refused for ever", c.event.Type)
		}
	}
}

func TestAFleetThatAcceptsLessCountsAtOnce(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
	d.guard.credential = "secret:s1"
	less := false
	d.guard.again = func(rests countersign.Session) bool {
		if rests.Device != "pump-1" || rests.Fleet != "pumps" || rests.Credential != "secret:s1" {
			t.Errorf("asked again for %+v, want the session as it came in", rests)
		}
		return !less
	}
	d.comesIn(t)
	d.happen(countersign.FleetSaved, "")
	if !d.publishes(t) {
		t.Error("a session that the fleet accepts is refused")
	}
	less = true
	d.happen(countersign.FleetSaved, "")
	if d.publishes(t) {
		t.Error("a session goes on that came in by what the fleet takes no more")
	}
}

func TestVerdictsAreKeptForMinutesOnly(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
	d.guard.notAfter = d.now.Add(time.Hour)
	d.comesIn(t)
	asked := d.guard.count()
	d.publishes(t)
	if d.guard.count() != asked {
		t.Error("a fresh verdict was asked for again")
	}
	d.now = d.now.Add(6 * time.Minute)
	if !d.publishes(t) || d.guard.count() != asked+1 {
		t.Error("an old verdict was not asked for again")
	}
	d.Live = func() bool { return false }
	if !d.publishes(t) || d.guard.count() != asked+2 {
		t.Error("a verdict was used although no events of other nodes arrive")
	}
}

func TestCutWhileADecisionIsUnderWayIsSeen(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
	d.guard.deciding = func() { // the guard has admitted it and the answer is on its way
		d.guard.refuse("pump-1", true)
		d.happen(countersign.DeviceRevoked, "pump-1")
	}
	if d.comesIn(t) {
		t.Error("a device came in whose revocation overtook the answer")
	}
}

func TestAgedSessionKeepsWhatItRestsOn(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "emqx", Kind: hook.EMQX})
	d.guard.notAfter = d.now.Add(10 * time.Minute)
	d.comesIn(t)
	d.guard.notAfter = d.now.Add(time.Hour) // what the broker's word is good for
	d.now = d.now.Add(6 * time.Minute)
	if !d.publishes(t) {
		t.Error("a session within its time is refused")
	}
	d.now = d.now.Add(5 * time.Minute)
	if d.publishes(t) {
		t.Error("a session outlives the credential that it came in with")
	}
}

func TestLostCertificateCutsVouchedSessions(t *testing.T) {
	t.Parallel()
	d := open(t, hook.Hook{Name: "r", Kind: hook.RabbitMQ, Vouch: true})
	const topic = "/hooks/r/topic?username=pump-1&vhost=/&name=amq.topic&permission=write&routing_key=devices.pump-1.up.t"
	may := func() bool { _, _, body := d.ask(http.MethodGet, topic, ""); return body == "allow" }
	d.ask(http.MethodGet, "/hooks/r/user?username=pump-1", "")
	if !may() {
		t.Fatal("a good device is refused")
	}
	d.OnEvent(countersign.Event{At: d.now, Type: countersign.CertRevokedEv, Device: "pump-1", Cert: countersign.CertRef{Issuer: "i", Serial: "01"}})
	if may() {
		t.Error("a session goes on that may rest on the revoked certificate")
	}
	d.ask(http.MethodGet, "/hooks/r/user?username=pump-1", "")
	if !may() {
		t.Error("the device cannot come back")
	}
}
