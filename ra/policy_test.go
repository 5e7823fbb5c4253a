package ra_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

func TestExpressionDecides(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	for i, tt := range []struct {
		text string
		want countersign.Code
	}{
		{`true`, ""},
		{`false`, countersign.NotAllowed},
		{`csr.cn.startsWith("pump-") && csr.key == "P-256" && size(csr.dns) == 0`, ""},
		{`evidence.method == "token" && evidence.fingerprint.startsWith("token:")`, ""},
		{`device.known == false && device.id == csr.cn && !("line" in device.tags)`, ""},
		{`fleet == "default" && remote == "192.0.2.7"`, ""},
		{`now > timestamp("2026-01-01T00:00:00Z") && now.getHours("UTC") == 12`, ""},
		{`device.tags.line == "a"`, countersign.NotAllowed}, // no such tag: an error is a no
		{`csr.nothing == "x"`, countersign.NotAllowed},      // no such field
		{`csr.cn + 1 == 2`, countersign.NotAllowed},         // no such overload at run time
		{`[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, a*b*c*d > 0))))`, countersign.NotAllowed}, // over the cost
	} {
		w.rules(t, "default", countersign.Rules{Expression: tt.text})
		_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), fmt.Sprint("pump-", i), w.token(t, registry.Credential{})))
		if countersign.CodeOf(err) != tt.want {
			t.Errorf("%.60s: got %v, want %q", tt.text, err, tt.want)
		}
	}
}

func TestRulesThatMeanNothingAreNotSaved(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	for _, u := range []countersign.Rules{
		{Expression: `1 + 1`},
		{Expression: `"yes"`},
		{Expression: `csr.cn`},
		{Expression: `fleet == 7`},
		{Expression: `unknown == "x"`},
		{Expression: `true &&`},
		{Expression: strings.Repeat("true || ", 1000) + "true"},
		{Expression: `now == "today"`},
		{Authorities: []string{"nobody"}},
		{Authorities: []string{"issuing"}},
		{Webhook: &countersign.Webhook{URL: "http://example.net/"}},
		{Webhook: &countersign.Webhook{URL: "ftp://127.0.0.1/"}},
		{Webhook: &countersign.Webhook{URL: "https://user:pass@example.net/"}},
		{Webhook: &countersign.Webhook{URL: "https://"}},
		{Webhook: &countersign.Webhook{URL: "http://127.0.0.1.example.net/"}},
		{Webhook: &countersign.Webhook{URL: "%"}},
		{Recovery: &countersign.Recovery{}},
		{ApprovalTTL: -1},
		{PCRs: map[int]string{24: strings.Repeat("0", 64)}},
		{ID: countersign.IDRule{Field: "x"}},
		{Approval: []countersign.Method{"x"}},
		{Registered: []countersign.Method{countersign.MethodCertificate}},
	} {
		_, err := w.provisioner().SaveFleet(t.Context(), "default", func(f *countersign.Fleet) { f.Rules = u }, boss)
		if countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("%+v: got %v, want bad_request", u, err)
		}
	}
	if n := len(w.events(t, event.Filter{Type: countersign.FleetSaved})); n != 0 {
		t.Errorf("got %d events of saving", n)
	}
}

// hook is a webhook that checks who asks it.
type hook struct {
	*httptest.Server
	asked  atomic.Int32
	mu     sync.Mutex
	answer func(http.ResponseWriter, *http.Request)
}

func newHook(t *testing.T) *hook {
	t.Helper()
	h := &hook{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		body, _ := io.ReadAll(r.Body)
		var at, mac string
		if stamp, sig, ok := strings.Cut(r.Header.Get("Countersign-Signature"), ",v1="); ok {
			at, mac = strings.TrimPrefix(stamp, "t="), sig
		}
		m := hmac.New(sha256.New, []byte(hookSecret))
		_, _ = io.WriteString(m, at+"."+string(body))
		var ask map[string]any
		if hex.EncodeToString(m.Sum(nil)) != mac || json.Unmarshal(body, &ask) != nil || ask["clientId"] == "" || ask["certificateSigningRequest"] == "" {
			t.Errorf("the hook was asked %s with signature %s", body, r.Header.Get("Countersign-Signature"))
		}
		h.mu.Lock()
		answer := h.answer
		h.mu.Unlock()
		answer(rw, r)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) set(answer func(http.ResponseWriter, *http.Request)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = answer
}

func (h *hook) rules() countersign.Rules {
	return countersign.Rules{Webhook: &countersign.Webhook{URL: h.URL + "/hook", Secret: "env:X"}}
}

func says(text string) func(http.ResponseWriter, *http.Request) {
	return func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, text) }
}

func TestWebhookMustSayYes(t *testing.T) {
	w, h := newWorld(t, storetest.Open(t)), newHook(t)
	yes := `{"allowProvisioning": true}`
	for i, tt := range []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request)
		want   countersign.Code
	}{
		{"yes", says(yes), ""},
		{"no", says(`{"allowProvisioning": false}`), countersign.NotAllowed},
		{"nothing", says(`{}`), countersign.NotAllowed},
		{"null", says(`null`), countersign.NotAllowed},
		{"another case", says(`{"AllowProvisioning": true}`), countersign.NotAllowed},
		{"text", says(`{"allowProvisioning": "true"}`), countersign.NotAllowed},
		{"garbage", says(`yes`), countersign.Unavailable},
		{"huge", says(yes + strings.Repeat(" ", 64<<10)), countersign.Unavailable},
		{"500", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500); _, _ = io.WriteString(rw, yes) }, countersign.Unavailable},
		{"201", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(201); _, _ = io.WriteString(rw, yes) }, countersign.Unavailable},
		{"yes again", says(yes), ""},
		{"redirect", func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hook" {
				http.Redirect(rw, r, "/elsewhere", http.StatusTemporaryRedirect)
				return
			}
			says(yes)(rw, r)
		}, countersign.Unavailable},
		{"cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, countersign.Unavailable},
	} {
		w.rules(t, "default", h.rules())
		h.set(tt.answer)
		_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), fmt.Sprint("pump-", i), w.token(t, registry.Credential{})))
		if countersign.CodeOf(err) != tt.want {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestWebhookThatHangsIsANo(t *testing.T) {
	w, h := newWorld(t, storetest.Open(t)), newHook(t)
	w.rules(t, "default", h.rules())
	h.set(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	begin := time.Now()
	_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{})))
	kit.WantCode(t, err, countersign.Unavailable)
	if took := time.Since(begin); took < 4*time.Second || took > 8*time.Second {
		t.Errorf("it took %v, want five seconds", took)
	}
}

func TestWebhookBreakerOpensAndCloses(t *testing.T) {
	w, h := newWorld(t, storetest.Open(t)), newHook(t)
	w.rules(t, "default", h.rules())
	h.set(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) })
	req := enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{}))
	for range 5 {
		gone, cancel := context.WithCancel(t.Context())
		h.set(func(http.ResponseWriter, *http.Request) { cancel() })
		_, _ = w.Enroll(gone, req) // a device that hangs up is no failure of the hook
	}
	h.set(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(500) })
	before := h.asked.Load()
	for range 8 {
		_, err := w.Enroll(t.Context(), req)
		kit.WantCode(t, err, countersign.Unavailable)
	}
	if n := h.asked.Load() - before; n != 5 {
		t.Errorf("a hook that fails was asked %d times, want 5", n)
	}
	w.clock.Advance(31 * time.Second)
	for range 3 {
		_, err := w.Enroll(t.Context(), req)
		kit.WantCode(t, err, countersign.Unavailable)
	}
	if n := h.asked.Load() - before; n != 6 {
		t.Errorf("half a minute later it was asked %d times in all, want 6", n)
	}
	w.clock.Advance(31 * time.Second)
	h.set(says(`{"allowProvisioning":true}`))
	if _, err := w.Enroll(t.Context(), req); err != nil {
		t.Errorf("once it works again: %v", err)
	}
}

// TestExplainChangesNothing asks about every method, good and bad, and wants the
// record as it was and the answer that Enroll then gives.
func TestExplainChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		all := ways(t, w)
		tables := []string{"device", "certificate", "credential", "waiting_enrollment", "serial_block", "event"}
		state := func() (s string) {
			w.events(t, event.Filter{})
			for _, table := range tables {
				s += fmt.Sprintf("%s %d\n", table, w.count(t, table))
			}
			return s + fmt.Sprint(w.count(t, "credential WHERE uses > 0 OR state <> 'active'"))
		}
		for _, way := range all {
			id := "ask-" + string(way.method)
			for _, req := range []countersign.EnrollRequest{
				shows(t, kit.Key(t), id, way.make(t, w, id)), shows(t, kit.Key(t), "bad name", way.make(t, w, id+"-2")),
				shows(t, kit.Key(t), id+"-3", countersign.Evidence{}),
			} {
				before := state()
				e, err := w.Explain(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				if after := state(); after != before {
					t.Errorf("%s: Explain changed the record:\n%s\nto\n%s", way.method, before, after)
				}
				_, err = w.Enroll(t.Context(), req)
				if (e.Decision == "issue") != (err == nil) || countersign.Code(e.Code) != countersign.CodeOf(err) {
					t.Errorf("%s: Explain says %s %s, Enroll %v", way.method, e.Decision, e.Code, err)
				}
			}
		}
	})
}

// TestSecretsAreNowhere looks for the secrets of every method in every table and
// in the log, after good and bad use.
func TestSecretsAreNowhere(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		var log bytes.Buffer
		w.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		w.rules(t, "default", countersign.Rules{})
		token := w.token(t, registry.Credential{})
		_, k, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Device: "pump-1"}, provision.SymmetricKeys{}, boss)
		if err != nil {
			t.Fatal(err)
		}
		_, claim := w.claim(t, registry.Credential{})
		signed := sas([]byte(k.Primary), "default", "pump-1", w.Now().Add(time.Hour)).Token
		for _, secret := range []string{token, token, token + "x", signed} {
			_, _ = w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-9", secret))
		}
		w.events(t, event.Filter{})
		text := log.String()
		for _, table := range []string{"device", "certificate", "credential", "waiting_enrollment", "fleet", "authority", "event", "profile", "registration_code"} {
			text += w.dump(t, table)
		}
		lines := strings.Split(claim.Key, "\n")
		_, sig, _ := strings.Cut(signed, "sig=")
		for name, secret := range map[string]string{
			"token": strings.TrimPrefix(token, countersign.TokenPrefix), "key": k.Primary, "second key": k.Secondary, "claim's key": lines[1], "signature": sig[:40],
		} {
			if strings.Contains(text, secret) || strings.Contains(text, hex.EncodeToString([]byte(secret))) {
				t.Errorf("the %s stands in the clear", name)
			}
		}
		if !strings.Contains(text, "pump-9") {
			t.Error("the search sees nothing")
		}
	})
}

func (w *world) dump(t *testing.T, table string) (text string) {
	t.Helper()
	rows, err := w.DB.Query(t.Context(), `SELECT * FROM `+table)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		values := make([]any, len(columns))
		for i := range values {
			values[i] = new(any)
		}
		if err := rows.Scan(values...); err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			text += fmt.Sprintf("%s\n", *v.(*any))
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return text
}
