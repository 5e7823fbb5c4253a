package enroll_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/attest/tpmtest"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/enroll"
	"github.com/countersign-iot/countersign/test/kit"
)

// world is a whole server with a client for its enrollment listener.
type world struct {
	*countersigntest.Server
	client *http.Client
	url    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s := countersigntest.Start(t)
	return &world{s, clientWith(s), s.Endpoints().Enroll + api.Base}
}

// clientWith returns a client that shows these certificates.
func clientWith(s *countersigntest.Server, shown ...tls.Certificate) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.Roots, Certificates: shown, MinVersion: tls.VersionTLS12}}}
}

// do sends a request with these header fields and returns the answer with its body.
func (w *world) do(t *testing.T, method, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req := kit.Must(http.NewRequestWithContext(t.Context(), method, w.url+path, strings.NewReader(body)))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	return res, string(kit.Must(io.ReadAll(res.Body)))
}

// post sends a JSON body and reads the answer into out.
func (w *world) post(t *testing.T, path string, body, out any) *http.Response {
	t.Helper()
	res, text := w.do(t, http.MethodPost, path, mustJSON(body), "Content-Type", "application/json", "Accept", "application/json")
	if err := json.Unmarshal([]byte(text), out); err != nil {
		t.Fatalf("%s: got %s %s, %v", path, res.Status, text, err)
	}
	return res
}

func csrText(t *testing.T, id string) string {
	t.Helper()
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: kit.CSR(t, kit.Key(t), id)}))
}

func TestDeviceEnrollsAndRenewsInPEM(t *testing.T) {
	w := newWorld(t)
	key := kit.Key(t)
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: kit.CSR(t, key, "pump-7")}))
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("anyone:"+w.Token(t, api.NewToken{})))
	res, chain := w.do(t, http.MethodPost, "/enroll", csr, "Authorization", basic)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("enroll: got %s %s", res.Status, chain)
	}
	if got := res.Header.Get("Countersign-Device"); got != "pump-7" {
		t.Errorf("device header: got %q, want pump-7", got)
	}
	if n := strings.Count(chain, "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("chain: got %d certificates, want 2: the device's and its issuer's", n)
	}
	leaf, _ := pem.Decode([]byte(chain))
	shown := &world{w.Server, clientWith(w.Server, tls.Certificate{Certificate: [][]byte{leaf.Bytes}, PrivateKey: key}), w.url}
	res, text := shown.do(t, http.MethodPost, "/renew", mustJSON(api.EnrollRequest{CSR: csr}), "Content-Type", "application/json", "Accept", "application/json")
	var g api.Grant
	if err := json.Unmarshal([]byte(text), &g); err != nil || res.StatusCode != http.StatusOK || g.Device != "pump-7" {
		t.Errorf("renew: got %s %+v, %v, want a grant for pump-7", res.Status, g, err)
	}
}

func TestEnrollRefusesInProblems(t *testing.T) {
	h := newWorld(t)
	good := csrText(t, "pump-1")
	for name, w := range map[string]struct {
		method, path, kind, body string
		status                   int
		code                     countersign.Code
	}{
		"no token":     {"POST", "/enroll", "", good, 401, countersign.Unauthenticated},
		"wrong token":  {"POST", "/enroll", "application/json", `{"csr":"x","token":"cset_wrong"}`, 400, countersign.BadRequest},
		"no CSR":       {"POST", "/enroll", "", "", 400, countersign.BadRequest},
		"no DER":       {"POST", "/enroll", "", "hello", 400, countersign.BadRequest},
		"another PEM":  {"POST", "/enroll", "", strings.ReplaceAll(good, "CERTIFICATE REQUEST", "CERTIFICATE"), 400, countersign.BadRequest},
		"bad JSON":     {"POST", "/enroll", "application/json", `{"csr":1}`, 400, countersign.BadRequest},
		"large":        {"POST", "/enroll", "", strings.Repeat("x", 129<<10), 413, countersign.TooLarge},
		"large CSR":    {"POST", "/enroll", "", strings.Repeat("M", 90<<10), 413, countersign.TooLarge},
		"no peer":      {"POST", "/renew", "", good, 401, countersign.Unauthenticated},
		"GET":          {"GET", "/enroll", "", "", 405, countersign.BadRequest},
		"large TPM":    {"POST", "/enroll/tpm", "", strings.Repeat("x", 129<<10), 413, countersign.TooLarge},
		"no TPM":       {"POST", "/enroll/tpm", "", "{}", 401, countersign.Unauthenticated},
		"odd TPM":      {"POST", "/enroll/tpm", "", `{"ek_public":"%"}`, 400, countersign.BadRequest},
		"PCR names":    {"POST", "/enroll/tpm/answer", "", mustJSON(api.TPMAnswer{CSR: good, PCRs: map[string]string{"24": "00"}}), 400, countersign.BadRequest},
		"old session":  {"POST", "/enroll/tpm/answer", "", mustJSON(api.TPMAnswer{Session: "AAAA", CSR: good}), 401, countersign.CredentialExpire},
		"another path": {"POST", "/nope", "", good, 404, countersign.NotFound},
	} {
		res, text := h.do(t, w.method, w.path, w.body, "Content-Type", w.kind)
		var p api.Problem
		if err := json.Unmarshal([]byte(text), &p); err != nil || res.StatusCode != w.status || p.Code != string(w.code) || p.RequestID == "" {
			t.Errorf("%s: got %d %+v, %v, want %d %s", name, res.StatusCode, p, err, w.status, w.code)
		}
	}
}

func FuzzEnroll(f *testing.F) {
	f.Add("application/json", []byte(`{"csr":"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----","token":"x"}`))
	f.Add("application/x-pem-file", []byte("-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----"))
	f.Add("", []byte{0x30, 0x00})
	door := &enroll.Server{Enroller: refuser{}, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://h"+api.Base+"/enroll", strings.NewReader(string(body)))
		r.TLS = &tls.ConnectionState{}
		r.Header.Set("Content-Type", kind)
		w := httptest.NewRecorder()
		door.ServeHTTP(w, r)
		var p api.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != w.Code || w.Code >= 500 {
			t.Fatalf("got %d %s", w.Code, w.Body)
		}
	})
}

// refuser is an Enroller that refuses all: the fuzzed part is before it.
type refuser struct{}

func (refuser) Enroll(_ context.Context, r countersign.EnrollRequest) (*countersign.Grant, error) {
	if len(r.CSR) == 0 || len(r.CSR) > countersign.MaxCSR {
		return nil, fmt.Errorf("a CSR of %d bytes came through", len(r.CSR))
	}
	return nil, countersign.Errorf(countersign.BadCredential, "no")
}

func (r refuser) Reenroll(ctx context.Context, req countersign.EnrollRequest) (*countersign.Grant, error) {
	return r.Enroll(ctx, req)
}

func (refuser) Revoke(context.Context, countersign.RevokeRequest) (*countersign.Revocation, error) {
	return nil, countersign.Errorf(countersign.NotAllowed, "no")
}

func TestSharedAccessSignatureIsEvidence(t *testing.T) {
	w := newWorld(t)
	w.allow(t, countersign.MethodGroup)
	group, err := w.Admin.CreateGroupKey(t.Context(), api.NewGroupKey{Label: "line 1"})
	if err != nil {
		t.Fatal(err)
	}
	key := kit.Must(attest.ParseSymmetricKey(group.Primary))
	sas := func(id string) string {
		resource := "default/registrations/" + id
		expiry := fmt.Sprint(time.Now().Add(time.Hour).Unix())
		m := hmac.New(sha256.New, attest.DeriveKey(key, id))
		_, _ = io.WriteString(m, url.QueryEscape(resource)+"\n"+expiry)
		return "SharedAccessSignature sr=" + url.QueryEscape(resource) + "&sig=" + url.QueryEscape(base64.StdEncoding.EncodeToString(m.Sum(nil))) +
			"&se=" + expiry + "&skn=registration"
	}
	for _, c := range []struct {
		name, token string
		status      int
	}{
		{"own key", sas("pump-1"), 200},
		{"key of another", sas("pump-2"), 403},
	} {
		if res, body := w.do(t, http.MethodPost, "/enroll", csrText(t, "pump-1"), "Authorization", c.token); res.StatusCode != c.status {
			t.Errorf("%s: got %s %s, want %d", c.name, res.Status, body, c.status)
		}
	}
}

// allow lets devices of the default fleet enroll by these methods.
func (w *world) allow(t *testing.T, methods ...countersign.Method) {
	t.Helper()
	names := []string{}
	for _, m := range methods {
		names = append(names, string(m))
	}
	if _, err := w.Admin.PutFleet(t.Context(), countersign.DefaultFleet, api.PutFleet{Methods: &names}); err != nil {
		t.Fatal(err)
	}
}

func TestWaitingEnrollmentIsAsked202UntilApproved(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Admin.PatchRules(t.Context(), "default", json.RawMessage(`{"approval":["token"]}`), false); err != nil {
		t.Fatal(err)
	}
	ask := api.EnrollRequest{CSR: csrText(t, "pump-1"), Token: w.Token(t, api.NewToken{})}
	var p api.Problem
	res := w.post(t, "/enroll", ask, &p)
	if res.StatusCode != http.StatusAccepted || res.Header.Get("Retry-After") != "60" || p.Code != string(countersign.Pending) {
		t.Fatalf("enroll: got %s, Retry-After %q, %+v, want 202", res.Status, res.Header.Get("Retry-After"), p)
	}
	var queue []api.Waiting
	for one, err := range w.Admin.Enrollments(t.Context(), api.WaitingFilter{State: "waiting"}) {
		if err != nil {
			t.Fatal(err)
		}
		queue = append(queue, one)
	}
	if len(queue) != 1 || queue[0].Device != "pump-1" || queue[0].Method != "token" {
		t.Fatalf("queue: got %+v, want pump-1 by token", queue)
	}
	if _, err := w.Admin.Approve(t.Context(), queue[0].ID, api.Act{Note: "seen"}); err != nil {
		t.Fatal(err)
	}
	var g api.Grant
	if res := w.post(t, "/enroll", ask, &g); res.StatusCode != http.StatusOK || g.Device != "pump-1" {
		t.Errorf("enroll after approval: got %s %+v, want a grant", res.Status, g)
	}
	if _, err := w.Admin.Reject(t.Context(), queue[0].ID, api.Act{}); countersign.CodeOf(err) != countersign.Conflict {
		t.Errorf("reject after approval: got %v, want conflict", err)
	}
}

func TestDeviceEnrollsByItsTPM(t *testing.T) {
	chip := tpmtest.Start(t).Device(t, tpmtest.P256)
	w := newWorld(t)
	w.allow(t, countersign.MethodTPM)
	id := chip.Identity()
	if _, err := w.Admin.CreateTPM(t.Context(), api.NewTPM{Device: "pump-1", EKPublic: id.EKPublic}); err != nil {
		t.Fatal(err)
	}
	who := api.TPMIdentity{EKPublic: id.EKPublic, AKPublic: id.AKPublic}
	var c api.TPMChallenge
	if res := w.post(t, "/enroll/tpm", who, &c); res.StatusCode != http.StatusOK {
		t.Fatalf("challenge: got %s", res.Status)
	}
	challenge := attest.TPMChallenge{Credential: c.Credential, EncryptedSecret: c.EncryptedSecret, Nonce: c.Nonce}
	if !bytes.Equal(challenge.File(), c.File) {
		t.Error("challenge: the file is not the two structures")
	}
	ev := chip.Answer(t, challenge)
	csr := kit.CSR(t, chip.Key.Signer(t), "pump-1")
	answer := api.TPMAnswer{
		TPMIdentity: who, Session: c.Session, Secret: ev.Secret, KeyPublic: ev.KeyPublic, CertifyInfo: ev.CertifyInfo,
		CertifySignature: ev.CertifySignature, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
	}
	wrong := answer
	wrong.Secret = bytes.Repeat([]byte{1}, 32)
	var p api.Problem
	if res := w.post(t, "/enroll/tpm/answer", wrong, &p); res.StatusCode != http.StatusUnauthorized || p.Code != string(countersign.BadCredential) {
		t.Errorf("a guessed answer: got %s %+v, want 401", res.Status, p)
	}
	var g api.Grant
	if res := w.post(t, "/enroll/tpm/answer", answer, &g); res.StatusCode != http.StatusOK || g.Device != "pump-1" {
		t.Errorf("answer: got %s %+v, want a grant for pump-1", res.Status, g)
	}
}

// TestNoGuestsOverREST asks for what devices get without any evidence, from a fleet that
// lets guests in: none of its places is spent on that.
func TestNoGuestsOverREST(t *testing.T) {
	w := newWorld(t)
	guests := true
	if _, err := w.Admin.PutFleet(t.Context(), countersign.DefaultFleet, api.PutFleet{Guests: &guests}); err != nil {
		t.Fatal(err)
	}
	for path, body := range map[string]string{"/access-tokens": "", "/introductions": `{"peer": "pump-2", "purpose": "x"}`, "/secret": ""} {
		if res, text := w.do(t, http.MethodPost, path, body); res.StatusCode != http.StatusUnauthorized || !strings.Contains(text, "no client certificate was shown") {
			t.Errorf("%s: got %s %s, want 401", path, res.Status, text)
		}
	}
}

// TestOpenAPIIsWhatIsServed compares the document of each listener for devices with what
// it serves, in both directions.
func TestOpenAPIIsWhatIsServed(t *testing.T) {
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) { c.Listeners.Recovery = "127.0.0.1:0" }})
	all := []string{"/enroll", "/renew", "/enroll/tpm", "/enroll/tpm/answer", "/introductions", "/access-tokens", "/secret"}
	for name, listener := range map[string]struct {
		url    string
		served []string
	}{"enroll": {s.Endpoints().Enroll, all}, "recovery": {s.Endpoints().Recovery, all[:2]}} {
		w := &world{s, clientWith(s), listener.url + api.Base}
		res, text := w.do(t, http.MethodGet, api.OpenAPIPath, "")
		var doc struct {
			OpenAPI    string
			Paths      map[string]map[string]struct{ RequestBody, Responses any }
			Components struct{ Schemas map[string]any }
		}
		if err := json.Unmarshal([]byte(text), &doc); err != nil || res.StatusCode != http.StatusOK || doc.OpenAPI != "3.1.0" {
			t.Fatalf("%s: got %s %s, %v", name, res.Status, text, err)
		}
		for path, item := range doc.Paths {
			op, post := item["post"]
			if !post || len(item) != 1 || op.RequestBody == nil || op.Responses == nil {
				t.Errorf("%s: %s is described as %v, want one POST with a body and answers", name, path, item)
			}
			if res, text := w.do(t, http.MethodPost, strings.TrimPrefix(path, api.Base), "{}"); res.StatusCode == http.StatusNotFound {
				t.Errorf("%s: %s is described and not served: %s", name, path, text)
			}
		}
		for _, path := range all {
			res, text := w.do(t, http.MethodPost, path, "{}")
			_, described := doc.Paths[api.Base+path]
			if served := res.StatusCode != http.StatusNotFound; served != slices.Contains(listener.served, path) || served != described {
				t.Errorf("%s: %s: got %s %s, described %v", name, path, res.Status, text, described)
			}
		}
		for _, ref := range regexp.MustCompile(`#/components/schemas/([^"]+)`).FindAllStringSubmatch(text, -1) {
			if doc.Components.Schemas[ref[1]] == nil {
				t.Errorf("%s: the document refers to %s, which it does not have", name, ref[0])
			}
		}
	}
}

func mustJSON(v any) string { return string(kit.Must(json.Marshal(v))) }
