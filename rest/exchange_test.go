package rest_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/rest"
	"github.com/countersign-iot/countersign/store"
)

// exchangeAnswer is what POST /token answers, good or bad.
type exchangeAnswer struct {
	Token       string `json:"access_token"`
	Issued      string `json:"issued_token_type"`
	Type        string `json:"token_type"`
	ExpiresIn   int    `json:"expires_in"`
	Scope       string `json:"scope"`
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

// exchange asks x as a page of origin does; from is the caller's address.
func exchange(t *testing.T, x *rest.Exchange, origin string, form url.Values) (int, http.Header, exchangeAnswer) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://localhost:8084/token", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.RemoteAddr = "192.0.2.7:5000"
	if origin != "" {
		r.Header.Set("Origin", origin)
	}
	w := httptest.NewRecorder()
	x.ServeHTTP(w, r)
	var out exchangeAnswer
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil && w.Code != http.StatusNoContent {
		t.Fatalf("status %d, body %.200q: %v", w.Code, w.Body, err)
	}
	return w.Code, w.Header(), out
}

func exchangeForm(token string, more ...string) url.Values {
	f := url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {token},
		"subject_token_type": {"urn:ietf:params:oauth:token-type:access_token"}, "scope": {"device:pump-1"},
	}
	for i := 0; i < len(more); i += 2 {
		f.Set(more[i], more[i+1])
	}
	return f
}

func TestExchangeGivesAnAccessTokenForAnOperatorToken(t *testing.T) {
	h := newHouse(t)
	x := &rest.Exchange{
		Provisioner: h.Provisioner, Gate: h.Gate, Origins: []string{"https://*.example.com"}, Now: h.Now, Log: slog.New(slog.DiscardHandler),
	}
	tokens := map[operator.Role]string{}
	err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		for _, role := range []operator.Role{operator.Operator, operator.Viewer, operator.Factory} {
			_, secret, err := h.Operators.Create(ctx, tx, string(role), role, 30*time.Minute)
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
	status, head, got := exchange(t, x, "https://app.example.com", exchangeForm(tokens[operator.Operator], "expires_in", "120"))
	if status != http.StatusOK || got.ExpiresIn != 120 || got.Scope != "device:pump-1" || got.Type != "N_A" || !strings.HasSuffix(got.Issued, ":jwt") {
		t.Fatalf("status %d, %+v", status, got)
	}
	if head.Get("Access-Control-Allow-Origin") != "https://app.example.com" || head.Get("Cache-Control") != "no-store" {
		t.Errorf("header %v", head)
	}
	k, err := h.Provisioner.Tokens.Verify(t.Context(), got.Token)
	if err != nil || k.Subject != "operator/operator" || k.ReadOnly {
		t.Errorf("the token says %+v, %v", k, err)
	}
	if _, _, got := exchange(t, x, "", exchangeForm(tokens[operator.Viewer])); got.Scope != "device:pump-1 read" {
		t.Errorf("a viewer's scope: got %q (%s), want it to listen only", got.Scope, got.Description)
	}
	if _, _, got := exchange(t, x, "", exchangeForm(tokens[operator.Operator], "expires_in", "3600")); got.ExpiresIn > 30*60 {
		t.Errorf("good for %d s, longer than the operator token is", got.ExpiresIn)
	}
	for _, tt := range []struct {
		name, origin string
		form         url.Values
		status       int
		err          string
	}{
		{"a page of elsewhere", "https://evil.example", exchangeForm(tokens[operator.Operator]), http.StatusForbidden, "access_denied"},
		{"a role that sees nothing", "", exchangeForm(tokens[operator.Factory]), http.StatusForbidden, "access_denied"},
		{"another grant", "", exchangeForm(tokens[operator.Operator], "grant_type", "password"), http.StatusBadRequest, "invalid_request"},
		{"a device that there is not", "", exchangeForm(tokens[operator.Operator], "scope", "device:pump-9"), http.StatusBadRequest, "invalid_scope"},
		{"no device", "", exchangeForm(tokens[operator.Operator], "scope", "read"), http.StatusBadRequest, "invalid_request"},
		{"a scope of elsewhere", "", exchangeForm(tokens[operator.Operator], "scope", "openid"), http.StatusBadRequest, "invalid_request"},
		{"too long a life", "", exchangeForm(tokens[operator.Operator], "expires_in", "86400"), http.StatusBadRequest, "invalid_request"},
		{"no provider", "", exchangeForm("x", "subject_token_type", "urn:ietf:params:oauth:token-type:id_token"), http.StatusBadRequest, "invalid_request"},
		{"a wrong token", "", exchangeForm("csop_wrong"), http.StatusBadRequest, "invalid_grant"},
		{"an endless form", "", exchangeForm(strings.Repeat("x", 1<<20)), http.StatusBadRequest, "invalid_request"},
	} {
		if status, _, got := exchange(t, x, tt.origin, tt.form); status != tt.status || got.Error != tt.err || got.Token != "" {
			t.Errorf("%s: got %d %s (%s), want %d %s", tt.name, status, got.Error, got.Description, tt.status, tt.err)
		}
	}
}

func TestExchangeBlocksWhoGuesses(t *testing.T) {
	h := newHouse(t)
	x := &rest.Exchange{Provisioner: h.Provisioner, Gate: h.Gate, Now: h.Now, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // nobody waits for slow answers here
	for i := range 12 {
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, "https://localhost/token", strings.NewReader(exchangeForm("csop_wrong").Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.RemoteAddr = "192.0.2.7:5000"
		x.ServeHTTP(httptest.NewRecorder(), r)
		if i < 9 {
			continue
		}
		if err := h.RA.Ledger.Check(netip.MustParseAddr("192.0.2.7")); countersign.CodeOf(err) != countersign.RateLimited {
			t.Fatalf("after %d wrong tokens: got %v, want the address blocked", i+1, err)
		}
	}
	if status, head, got := exchange(t, x, "", exchangeForm("csop_wrong")); status != http.StatusTooManyRequests || head.Get("Retry-After") == "" {
		t.Errorf("blocked: got %d %+v", status, got)
	}
}
