package rest_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/rest"
	"github.com/countersign-iot/countersign/store"
)

// operatorDoor is a place where an operator token is shown.
type operatorDoor struct {
	name    string
	handler func(h *house) http.Handler
	request func(token string) *http.Request
	route   string
}

func operatorDoors() []operatorDoor {
	bearer := func(method, path string) func(string) *http.Request {
		return func(token string) *http.Request {
			r := httptest.NewRequest(method, path, nil)
			r.Header.Set("Authorization", "Bearer "+token)
			return r
		}
	}
	return []operatorDoor{
		{"API", func(h *house) http.Handler { return h.Handler() }, bearer(http.MethodGet, "/api/v1/devices"), "GET /devices"},
		{"metrics", func(h *house) http.Handler {
			return h.Protect(operator.Read, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		}, bearer(http.MethodGet, "/metrics"), "GET /metrics"},
		{"exchange", func(h *house) http.Handler {
			return &rest.Exchange{Provisioner: h.Provisioner, Gate: h.Gate, Now: h.Now, Log: slog.New(slog.DiscardHandler)}
		}, func(token string) *http.Request {
			r := httptest.NewRequest(http.MethodPost, "/token", strings.NewReader(exchangeForm(token).Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			return r
		}, "POST /token"},
	}
}

// TestEachDoorForOperatorsCountsGuesses tries wrong tokens at each door: the address is
// blocked after the tenth, a right token passes, and what was refused is an event.
func TestEachDoorForOperatorsCountsGuesses(t *testing.T) {
	for _, door := range operatorDoors() {
		t.Run(door.name, func(t *testing.T) {
			h := newHouse(t)
			var events []countersign.Event
			h.Gate.Later = func(e countersign.Event) { events = append(events, e) }
			tokens := map[operator.Role]string{}
			err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				for _, role := range []operator.Role{operator.Operator, operator.Factory} {
					_, secret, err := h.Operators.Create(ctx, tx, string(role), role, time.Hour)
					if err != nil {
						return err
					}
					tokens[role] = secret
				}
				return h.Registry.Create(ctx, tx, countersign.Device{ID: "pump-1", Fleet: countersign.DefaultFleet, State: countersign.DeviceRegistered})
			})
			if err != nil {
				t.Fatal(err)
			}
			handler := door.handler(h)
			ask := func(ctx context.Context, token, from string) *httptest.ResponseRecorder {
				r := door.request(token).WithContext(ctx)
				r.RemoteAddr = from
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, r)
				return w
			}
			gone, cancel := context.WithCancel(t.Context())
			cancel()       // no answer is waited for
			for range 10 { // a token of the wrong form needs no database
				ask(gone, "csop_wrong", "192.0.2.7:5000")
			}
			if w := ask(t.Context(), "csop_wrong", "192.0.2.7:5001"); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
				t.Errorf("a wrong token after ten: got %d %s", w.Code, w.Body)
			}
			if w := ask(t.Context(), tokens[operator.Operator], "192.0.2.7:5001"); w.Code != http.StatusOK {
				t.Errorf("a right token from a blocked address: got %d %s", w.Code, w.Body)
			}
			events = nil
			if w := ask(gone, "csop_wrong", "198.51.100.7:1"); w.Code/100 != 4 {
				t.Errorf("a wrong token from elsewhere: got %d", w.Code)
			}
			if w := ask(t.Context(), tokens[operator.Factory], "198.51.100.7:1"); w.Code != http.StatusForbidden {
				t.Errorf("a role that may not: got %d %s", w.Code, w.Body)
			}
			if len(events) != 2 {
				t.Fatalf("got events %+v, want one for each refusal", events)
			}
			for i, want := range []countersign.Event{
				{Actor: "unknown", Code: countersign.BadCredential, Data: map[string]string{"route": door.route}},
				{Actor: "operator:factory", Code: countersign.NotAllowed, Data: map[string]string{"route": door.route, "role": "factory"}},
			} {
				e := events[i]
				if e.Type != countersign.OperatorRefused || e.Actor != want.Actor || e.Code != want.Code || e.Remote != "198.51.100.7:1" ||
					e.Data["route"] != want.Data["route"] || e.Data["role"] != want.Data["role"] {
					t.Errorf("got %+v, want %+v", e, want)
				}
			}
		})
	}
}
