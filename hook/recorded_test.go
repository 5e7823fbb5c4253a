package hook_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/hook"
)

// brokerLog is a broker that records which clients it was called to disconnect.
type brokerLog struct {
	mu      sync.Mutex
	clients []string
}

func (b *brokerLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in hook.KickRequest
	if json.NewDecoder(r.Body).Decode(&in) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	b.mu.Lock()
	b.clients = append(b.clients, in.ClientIDs...)
	b.mu.Unlock()
	_ = json.NewEncoder(w).Encode(hook.KickAnswer{})
}

func (b *brokerLog) ended(client string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Contains(b.clients, client)
}

// TestAStoppedSecretEndsSessionsOnRecord: a session came in before the node was restarted,
// so that it is in no node's memory. The broker must end it all the same, and
// none of another secret, not even one whose name differs in letter case only.
func TestAStoppedSecretEndsSessionsOnRecord(t *testing.T) {
	t.Parallel()
	broker := &brokerLog{}
	door := httptest.NewServer(broker)
	t.Cleanup(door.Close)
	h := config.Hook{
		Name: "b", Kind: "generic", Secret: secretFile(t, []byte("a-secret-of-20-characters")), Kick: config.HookKick{URL: door.URL + "/kick"},
	}
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		broker.mu.Lock()
		broker.clients = nil
		broker.mu.Unlock()
		if _, err := asked.Admin.PutFleet(t.Context(), "default", api.PutFleet{Rules: &api.Rules{Access: &api.Access{Kinds: []string{"secret"}}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := asked.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "pump-1"}); err != nil {
			t.Fatal(err)
		}
		secret := map[string]*api.IssuedSecret{}
		for client, slot := range map[string]string{"pump-1/a": "primary", "pump-1/A": "secondary"} {
			issued, err := asked.Admin.CreateSecret(t.Context(), "pump-1", api.NewSecret{Slot: slot})
			if err != nil {
				t.Fatal(err)
			}
			secret[client] = issued
			if !askBroker(t, other, "connect", map[string]any{"client_id": client, "username": "pump-1", "password": issued.Text}) {
				t.Fatalf("%s with a good secret is refused", client)
			}
		}
		other.Restart(t)
		if _, err := asked.Admin.StopSecret(t.Context(), "pump-1", secret["pump-1/a"].ID, api.Act{}); err != nil {
			t.Fatal(err)
		}
		soon(t, "the broker was not made to end the session", func() bool { return broker.ended("pump-1/a") })
		if broker.ended("pump-1/A") || broker.ended("pump-1") {
			t.Errorf("the broker was made to end %v, want pump-1/a alone", broker.clients)
		}
	}, countersigntest.Options{Configure: func(c *config.Config) {
		c.Listeners.Hook = "127.0.0.1:0"
		c.Hooks = []config.Hook{h}
	}})
}

// TestARestartEndsSessionsOfAStoppedSecret: the node stops before it could reach the broker,
// and goes on when it is back.
func TestARestartEndsSessionsOfAStoppedSecret(t *testing.T) {
	t.Parallel()
	broker := &brokerLog{}
	var up atomic.Bool
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		broker.ServeHTTP(w, r)
	}))
	t.Cleanup(door.Close)
	h := config.Hook{
		Name: "b", Kind: "generic", Secret: secretFile(t, []byte("a-secret-of-20-characters")), Kick: config.HookKick{URL: door.URL + "/kick"},
	}
	dir := shortDir(t)
	start := func() *countersigntest.Server {
		return countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) {
			c.Dir = dir
			c.Listeners.Hook = "127.0.0.1:0"
			c.Hooks = []config.Hook{h}
		}})
	}
	s := start()
	if _, err := s.Admin.PutFleet(t.Context(), "default", api.PutFleet{Rules: &api.Rules{Access: &api.Access{Kinds: []string{"secret"}}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "pump-1"}); err != nil {
		t.Fatal(err)
	}
	secret, err := s.Admin.CreateSecret(t.Context(), "pump-1", api.NewSecret{Slot: "primary"})
	if err != nil {
		t.Fatal(err)
	}
	if !askBroker(t, s, "connect", map[string]any{"client_id": "pump-1/a", "username": "pump-1", "password": secret.Text}) {
		t.Fatal("a good secret is refused")
	}
	if _, err := s.Admin.StopSecret(t.Context(), "pump-1", secret.ID, api.Act{}); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	up.Store(true)
	start()
	soon(t, "the broker was not made to end the session", func() bool { return broker.ended("pump-1/a") })
}
