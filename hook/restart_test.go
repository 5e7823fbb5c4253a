package hook_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/hook"
)

// TestRestartEndsWhatWasLeft: a server that stops before the broker could be reached
// goes on when it is back.
func TestRestartEndsWhatWasLeft(t *testing.T) {
	t.Parallel()
	var up atomic.Bool
	var ended atomic.Int64
	broker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in hook.KickRequest
		if !up.Load() || json.NewDecoder(r.Body).Decode(&in) != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var out hook.KickAnswer
		if in.Device == "fan-1" && ended.Add(1) == 1 {
			out.Ended = 1
		}
		if in.Device == "fan-2" {
			t.Error("a device that is active again is to be disconnected")
		}
		_ = json.NewEncoder(w).Encode(out)
	}))
	t.Cleanup(broker.Close)
	h := config.Hook{
		Name: "b", Kind: "generic", Secret: secretFile(t, []byte("a-secret-of-20-characters")), Kick: config.HookKick{URL: broker.URL + "/kick"},
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
	for _, id := range []string{"fan-1", "fan-2"} {
		s.Enroll(t, id)
		suspend(t, s, id)
	}
	reactivate(t, s, "fan-2")
	s.Stop()
	up.Store(true)
	s = start()
	if e := kicked(t, s, "fan-1"); e.Data["sessions"] != "1" {
		t.Errorf("session.kicked: got %v, want 1 session", e.Data)
	}
}
