package hook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/hook"
)

// broker is the management API of one, as its documentation shows it.
type broker struct {
	*httptest.Server

	mu       sync.Mutex
	sessions map[string]string // user by client id
	failures int               // to come
	late     map[string]string // sessions that show up once others were ended
	calls    []string
}

func newBroker(t *testing.T, answer func(b *broker, w http.ResponseWriter, r *http.Request)) *broker {
	t.Helper()
	b := &broker{sessions: map[string]string{}}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.calls = append(b.calls, r.Method+" "+r.URL.RequestURI())
		if user, password, _ := r.BasicAuth(); user != "key" || password != "secret-of-the-api" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if b.failures > 0 {
			b.failures--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		answer(b, w, r)
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *broker) api() hook.API {
	return hook.API{URL: b.URL, User: "key", Secret: []byte("secret-of-the-api"), Client: b.Client()}
}

func (b *broker) has(client string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.sessions[client]
	return ok
}

func emqxAPI(b *broker, w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodDelete {
		id := strings.TrimPrefix(r.URL.Path, "/api/v5/clients/")
		if _, ok := b.sessions[id]; !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		delete(b.sessions, id)
		maps.Copy(b.sessions, b.late)
		b.late = nil
		w.WriteHeader(http.StatusNoContent)
		return
	}
	list := []map[string]any{}
	for client, user := range b.sessions {
		q := r.URL.Query()
		if q.Has("clientid") && q.Get("clientid") != client || q.Has("username") && q.Get("username") != user {
			continue
		}
		list = append(list, map[string]any{"clientid": client, "username": user, "connected": true})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"data": list, "meta": map[string]any{"count": len(list)}})
}

// reports collects events.
type reports struct {
	mu     sync.Mutex
	events []countersign.Event
}

func (o *reports) add(e countersign.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, e)
}

func (o *reports) of(kind countersign.EventType) []countersign.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(o.events), func(e countersign.Event) bool { return e.Type != kind })
}

// kicking is a door whose hook has a driver, with a real clock.
func kicking(t *testing.T, kind hook.Kind, d *hook.Driver) (*door, *reports) {
	t.Helper()
	o := open(t, hook.Hook{Name: "emqx", Kind: kind})
	events := &reports{}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	o.Now = time.Now
	o.Kicker = &hook.Kicker{Drivers: []*hook.Driver{d}, Report: events.add, Log: log, Now: time.Now}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.Kicker.Run(ctx, o.Server) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return o, events
}

func (d *door) happenNow(kind countersign.EventType, device string) {
	d.OnEvent(countersign.Event{At: time.Now(), Type: kind, Device: device, Fleet: "pumps"})
}

func TestEMQXIsToldUntilAllIsGone(t *testing.T) {
	t.Parallel()
	b := newBroker(t, emqxAPI)
	b.sessions = map[string]string{"c1": "pump-1", "pump-1": "other", "c9": "pump-9"}
	b.late = map[string]string{"c2": "pump-1"} // was just connecting
	b.failures = 2
	d, events := kicking(t, hook.EMQX, hook.KickEMQX("emqx", b.api()))
	d.comesIn(t)
	d.happenNow(countersign.DeviceRevoked, "pump-1")
	eventually(t, "session.kicked", func() bool { return len(events.of(countersign.SessionKicked)) > 0 })
	if b.has("c1") || b.has("pump-1") || b.has("c2") {
		t.Errorf("the broker still has %v", b.sessions)
	}
	if !b.has("c9") {
		t.Error("another device was disconnected")
	}
	e := events.of(countersign.SessionKicked)[0]
	if e.Device != "pump-1" || e.Fleet != "pumps" || e.Via != "hook:emqx" || e.Data["took"] == "" {
		t.Errorf("event: got %+v, want pump-1 of pumps by hook:emqx with its time", e)
	}
	if n := d.Kicker.Waiting(); n != 0 {
		t.Errorf("waiting: got %d, want 0", n)
	}
}

func TestLateSessionIsFoundBySweep(t *testing.T) {
	t.Parallel()
	b := newBroker(t, emqxAPI)
	d, events := kicking(t, hook.EMQX, hook.KickEMQX("emqx", b.api()))
	d.happenNow(countersign.DeviceSuspendedEv, "pump-1")
	eventually(t, "the first look", func() bool { return d.Kicker.Waiting() == 0 })
	if len(events.of(countersign.SessionKicked)) != 0 {
		t.Error("a kick was reported although there was no session")
	}
	b.mu.Lock()
	b.sessions["pump-1"] = "pump-1"
	b.mu.Unlock()
	eventually(t, "the sweep", func() bool { return !b.has("pump-1") })
	eventually(t, "session.kicked", func() bool { return len(events.of(countersign.SessionKicked)) == 1 })
}

func TestFailingDriverRaisesOneAlert(t *testing.T) {
	t.Parallel()
	b := newBroker(t, emqxAPI)
	a := b.api()
	a.Secret = []byte("wrong")
	d, events := kicking(t, hook.EMQX, hook.KickEMQX("emqx", a))
	d.happenNow(countersign.DeviceRevoked, "pump-1")
	d.happenNow(countersign.DeviceRevoked, "pump-2")
	eventually(t, "mitigation.failed", func() bool { return len(events.of(countersign.MitigationFailed)) > 0 })
	e := events.of(countersign.MitigationFailed)[0]
	if e.Type.Kind().Level != "alert" || !strings.Contains(e.Reason, "401") || e.Data["hook"] != "emqx" {
		t.Errorf("event: got %+v, want an alert that names hook and status", e)
	}
	if strings.Contains(fmt.Sprint(e), "wrong") {
		t.Errorf("the event shows the secret: %+v", e)
	}
	if d.Kicker.Waiting() != 2 {
		t.Errorf("waiting: got %d, want 2", d.Kicker.Waiting())
	}
	if n := len(events.of(countersign.MitigationFailed)); n != 1 {
		t.Errorf("alerts: got %d, want one for the broker", n)
	}
}

func TestReactivationStopsAKick(t *testing.T) {
	t.Parallel()
	b := newBroker(t, emqxAPI)
	b.sessions["c1"] = "pump-1"
	b.failures = 1 << 30
	d, _ := kicking(t, hook.EMQX, hook.KickEMQX("emqx", b.api()))
	d.happenNow(countersign.DeviceSuspendedEv, "pump-1")
	eventually(t, "the first try", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.calls) > 0 })
	eventually(t, "the end of the kick", func() bool { d.happenNow(countersign.DeviceReactivated, "pump-1"); return d.Kicker.Waiting() == 0 })
}

func TestLostCertificateEndsItsOwnSessionsOnly(t *testing.T) {
	t.Parallel()
	b := newBroker(t, emqxAPI)
	b.sessions = map[string]string{"c1": "pump-1", "c2": "pump-1"}
	d, events := kicking(t, hook.EMQX, hook.KickEMQX("emqx", b.api()))
	d.comesIn(t) // c1, on no certificate
	d.OnEvent(countersign.Event{At: time.Now(), Type: countersign.CertRevokedEv, Device: "pump-1", Cert: countersign.CertRef{Issuer: "i", Serial: "01"}})
	d.OnEvent(countersign.Event{At: time.Now(), Type: countersign.SecretStopped, Device: "pump-1"})
	time.Sleep(100 * time.Millisecond) // nothing is to come of either
	if !b.has("c1") || !b.has("c2") || len(events.of(countersign.SessionKicked)) != 0 {
		t.Errorf("sessions that rest on something else were ended: %v left", b.sessions)
	}
}

func TestVerneMQIsTold(t *testing.T) {
	t.Parallel()
	b := newBroker(t, func(b *broker, w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.Path == "/api/v1/session/disconnect" {
			delete(b.sessions, q.Get("client-id"))
			_, _ = w.Write([]byte(`{"text":"Done","type":"text"}`))
			return
		}
		table := []map[string]string{}
		for client, user := range b.sessions {
			if id := q.Get("--client_id"); id == client || id == "" && q.Get("--user") == user {
				table = append(table, map[string]string{"client_id": client})
			}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"table": table, "type": "table"})
	})
	b.sessions = map[string]string{"c1": "pump-1", "c9": "pump-9"}
	d, events := kicking(t, hook.VerneMQ, hook.KickVerneMQ("emqx", b.api()))
	d.happenNow(countersign.DeviceRevoked, "pump-1")
	eventually(t, "session.kicked", func() bool { return len(events.of(countersign.SessionKicked)) > 0 })
	if b.has("c1") || !b.has("c9") {
		t.Errorf("sessions left: %v, want c9 alone", b.sessions)
	}
}

func TestWebhookIsTold(t *testing.T) {
	t.Parallel()
	var got hook.KickRequest
	ended := 2
	b := newBroker(t, func(_ *broker, w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(hook.KickAnswer{Ended: ended})
		ended = 0
	})
	d, events := kicking(t, hook.Generic, hook.KickWebhook("emqx", b.api()))
	d.happenNow(countersign.DeviceRevoked, "pump-1")
	eventually(t, "session.kicked", func() bool { return len(events.of(countersign.SessionKicked)) > 0 })
	b.mu.Lock()
	defer b.mu.Unlock()
	got.At = time.Time{}
	want := hook.KickRequest{
		Hook: "emqx", Device: "pump-1", Fleet: "pumps", Reason: "device.revoked", ClientIDs: []string{"pump-1"}, Usernames: []string{"pump-1"}, Whole: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestExpiredSessionIsEnded(t *testing.T) {
	t.Parallel()
	b := newBroker(t, emqxAPI)
	b.sessions["c1"] = "pump-1"
	d, events := kicking(t, hook.EMQX, hook.KickEMQX("emqx", b.api()))
	d.guard.notAfter = time.Now().Add(time.Second)
	if !d.comesIn(t) {
		t.Fatal("a good device is refused")
	}
	eventually(t, "the end of the session", func() bool { return !b.has("c1") })
	eventually(t, "session.kicked", func() bool { return len(events.of(countersign.SessionKicked)) > 0 })
}
