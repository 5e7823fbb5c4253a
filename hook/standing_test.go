package hook_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
)

// askBroker asks a node's hook as a broker does that speaks JSON, and reports whether
// the answer was yes.
func askBroker(t *testing.T, s *countersigntest.Server, what string, q map[string]any) bool {
	t.Helper()
	body, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.Endpoints().Hook+"/hooks/b/"+what, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer a-secret-of-20-characters")
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var a struct {
		Allow bool `json:"allow"`
	}
	if err := json.NewDecoder(res.Body).Decode(&a); err != nil {
		t.Fatalf("%s: %s: %v", what, res.Status, err)
	}
	return a.Allow
}

// soon wants a condition to hold within the time that a notice to another node may take.
func soon(t *testing.T, otherwise string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error(otherwise)
			return
		}
	}
}

// TestBrokerSessionsEndWithWhatTheyRestOn has a broker ask about two sessions of one
// device, each on a secret of its own, at the node that admitted them, at another
// one, after a restart, after a suspension, and after many newer sessions: the one
// whose secret was stopped must be refused at each, and the other one served.
func TestBrokerSessionsEndWithWhatTheyRestOn(t *testing.T) {
	t.Parallel()
	h := config.Hook{Name: "b", Kind: "generic", Secret: secretFile(t, []byte("a-secret-of-20-characters"))}
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		if _, err := asked.Admin.PutFleet(t.Context(), "default", api.PutFleet{Rules: &api.Rules{Access: &api.Access{Kinds: []string{"secret"}}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := asked.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "pump-1"}); err != nil {
			t.Fatal(err)
		}
		secret := map[string]*api.IssuedSecret{}
		for client, slot := range map[string]string{"pump-1/a": "primary", "pump-1/b": "secondary"} {
			issued, err := asked.Admin.CreateSecret(t.Context(), "pump-1", api.NewSecret{Slot: slot})
			if err != nil {
				t.Fatal(err)
			}
			secret[client] = issued
			if !askBroker(t, asked, "connect", map[string]any{"client_id": client, "username": "pump-1", "password": issued.Text}) {
				t.Fatalf("%s with a good secret is refused", client)
			}
		}
		publishes := func(s *countersigntest.Server, client string) bool {
			return askBroker(t, s, "publish", map[string]any{"client_id": client, "username": "pump-1", "device": "pump-1", "topic": "devices/pump-1/up/x"})
		}
		check := func(when string, a bool) {
			t.Helper()
			for name, s := range map[string]*countersigntest.Server{"the asked node": asked, "the other node": other} {
				soon(t, when+", "+name+": the session on the first secret publishes: "+fmt.Sprint(!a), func() bool { return publishes(s, "pump-1/a") == a })
				soon(t, when+", "+name+": the session on the second secret is refused", func() bool { return publishes(s, "pump-1/b") })
			}
		}
		check("at first", true)
		if _, err := asked.Admin.StopSecret(t.Context(), "pump-1", secret["pump-1/a"].ID, api.Act{}); err != nil {
			t.Fatal(err)
		}
		check("after the secret was stopped", false)
		if _, err := asked.Admin.Suspend(t.Context(), "pump-1", api.Act{}); err != nil {
			t.Fatal(err)
		}
		soon(t, "a session of a suspended device publishes", func() bool { return !publishes(asked, "pump-1/b") && !publishes(other, "pump-1/b") })
		if _, err := asked.Admin.Reactivate(t.Context(), "pump-1", api.Act{}); err != nil {
			t.Fatal(err)
		}
		check("after reactivation", false)
		other.Restart(t)
		check("after a restart", false)
		for n := range 70 { // more than are kept for one device
			client := fmt.Sprintf("pump-1/n%d", n)
			if !askBroker(t, asked, "connect", map[string]any{"client_id": client, "username": "pump-1", "password": secret["pump-1/b"].Text}) {
				t.Fatalf("%s with a good secret is refused", client)
			}
		}
		if publishes(asked, "pump-1/a") || publishes(other, "pump-1/a") {
			t.Error("after many newer sessions: the session on the stopped secret publishes")
		}
		if publishes(asked, "pump-1/never") {
			t.Error("a session that never connected publishes by its device's name")
		}
	}, countersigntest.Options{Configure: func(c *config.Config) {
		c.Listeners.Hook = "127.0.0.1:0"
		c.Hooks = []config.Hook{h}
	}})
}
