package rest_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/attest/tpmtest"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/rest"
)

// enrollServer serves the device door over TLS that asks for certificates.
func enrollServer(t *testing.T, h *house) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(&rest.Enroll{Enroller: h.RA, RA: h.RA, Now: h.Now, Log: h.Log})
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func TestDeviceEnrollsAndRenewsInPEM(t *testing.T) {
	h := newHouse(t)
	s := enrollServer(t, h)
	_, secret, err := h.Provisioner.CreateToken(t.Context(), registry.Credential{Fleet: "default", UsesMax: 1}, time.Hour, ra.By{Actor: countersign.System})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "pump-7"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+api.Base+"/enroll", strings.NewReader(csr))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("anyone", secret)
	res, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("enroll: got %s %s, %v", res.Status, chain, err)
	}
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if got := res.Header.Get("Countersign-Device"); got != "pump-7" {
		t.Errorf("device header: got %q, want pump-7", got)
	}
	if n := strings.Count(string(chain), "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("chain: got %d certificates, want 2: the device's and its issuer's", n)
	}

	leaf, _ := pem.Decode(chain)
	client := s.Client()
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{leaf.Bytes}, PrivateKey: key}}
	client.CloseIdleConnections()
	body, err := json.Marshal(api.EnrollRequest{CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	req, err = http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+api.Base+"/renew", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	res, err = client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var g api.Grant
	if err := json.NewDecoder(res.Body).Decode(&g); err != nil || res.StatusCode != http.StatusOK || g.Device != "pump-7" {
		t.Errorf("renew: got %s %+v, %v, want a grant for pump-7", res.Status, g, err)
	}
}

func TestEnrollRefusesInProblems(t *testing.T) {
	h := newHouse(t)
	s := enrollServer(t, h)
	good := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: newCSR(t, "pump-1")}))
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
		"PCR names":    {"POST", "/enroll/tpm/answer", "", `{"pcrs":{"24":"00"}}`, 400, countersign.BadRequest},
		"old session":  {"POST", "/enroll/tpm/answer", "", mustJSON(api.TPMAnswer{Session: "AAAA", CSR: good}), 401, countersign.CredentialExpire},
		"another path": {"POST", "/nope", "", good, 404, countersign.NotFound},
	} {
		req, err := http.NewRequestWithContext(t.Context(), w.method, s.URL+api.Base+w.path, strings.NewReader(w.body))
		if err != nil {
			t.Fatal(err)
		}
		if w.kind != "" {
			req.Header.Set("Content-Type", w.kind)
		}
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var p api.Problem
		err = json.NewDecoder(res.Body).Decode(&p)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != w.status || p.Code != string(w.code) || p.RequestID == "" {
			t.Errorf("%s: got %d %+v, %v, want %d %s", name, res.StatusCode, p, err, w.status, w.code)
		}
	}
}

func FuzzEnroll(f *testing.F) {
	f.Add("application/json", []byte(`{"csr":"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----","token":"x"}`))
	f.Add("application/x-pem-file", []byte("-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----"))
	f.Add("", []byte{0x30, 0x00})
	door := &rest.Enroll{Enroller: refuser{}, Now: time.Now}
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

// refuser is an Enroller that lets nobody in: the fuzzed part is before it.
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

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// post sends a JSON body to the device door and reads the answer into out.
func post(t *testing.T, s *httptest.Server, path string, body, out any) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+api.Base+path, strings.NewReader(mustJSON(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	res, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		t.Fatalf("%s: got %s, %v", path, res.Status, err)
	}
	return res
}

func TestSharedAccessSignatureIsEvidence(t *testing.T) {
	h := newHouse(t)
	s := enrollServer(t, h)
	op := h.local(t)
	var group api.IssuedKey
	op.must("POST", "/group-keys", `{"label":"line 1"}`, &group)
	key, err := attest.ParseSymmetricKey(group.Primary)
	if err != nil {
		t.Fatal(err)
	}
	sas := func(id string) string {
		resource := "default/registrations/" + id
		expiry := fmt.Sprint(h.Now().Add(time.Hour).Unix())
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
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+api.Base+"/enroll", bytes.NewReader(newCSR(t, "pump-1")))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", c.token)
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != c.status {
			t.Errorf("%s: got %s %s, want %d", c.name, res.Status, body, c.status)
		}
	}
}

func TestWaitingEnrollmentIsAsked202UntilApproved(t *testing.T) {
	h := newHouse(t)
	s := enrollServer(t, h)
	op := h.local(t)
	op.must("PUT", "/fleets/default", `{"rules":{"approval":["token"]}}`, nil)
	var token api.IssuedToken
	op.must("POST", "/tokens", `{}`, &token)
	ask := api.EnrollRequest{CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: newCSR(t, "pump-1")})), Token: token.Secret}
	var p api.Problem
	res := post(t, s, "/enroll", ask, &p)
	if res.StatusCode != http.StatusAccepted || res.Header.Get("Retry-After") != "60" || p.Code != string(countersign.Pending) {
		t.Fatalf("enroll: got %s, Retry-After %q, %+v, want 202", res.Status, res.Header.Get("Retry-After"), p)
	}
	var queue api.Page[api.Waiting]
	op.must("GET", "/enrollments?state=waiting", "", &queue)
	if len(queue.Items) != 1 || queue.Items[0].Device != "pump-1" || queue.Items[0].Method != "token" {
		t.Fatalf("queue: got %+v, want pump-1 by token", queue.Items)
	}
	op.must("POST", "/enrollments/"+queue.Items[0].ID+"/approve", `{"note":"seen"}`, nil)
	var g api.Grant
	if res := post(t, s, "/enroll", ask, &g); res.StatusCode != http.StatusOK || g.Device != "pump-1" {
		t.Errorf("enroll after approval: got %s %+v, want a grant", res.Status, g)
	}
	if res := op.do("POST", "/enrollments/"+queue.Items[0].ID+"/reject", `{}`, nil); res.StatusCode != http.StatusConflict {
		t.Errorf("reject after approval: got %s, want 409", res.Status)
	}
}

func TestDeviceEnrollsByItsTPM(t *testing.T) {
	chip := tpmtest.Start(t).Device(t, tpmtest.P256)
	h := newHouse(t)
	s := enrollServer(t, h)
	id := chip.Identity()
	h.local(t).must("POST", "/tpms", mustJSON(api.NewTPM{Device: "pump-1", EKPublic: id.EKPublic}), nil)

	who := api.TPMIdentity{EKPublic: id.EKPublic, AKPublic: id.AKPublic}
	var c api.TPMChallenge
	if res := post(t, s, "/enroll/tpm", who, &c); res.StatusCode != http.StatusOK {
		t.Fatalf("challenge: got %s", res.Status)
	}
	challenge := attest.TPMChallenge{Credential: c.Credential, EncryptedSecret: c.EncryptedSecret, Nonce: c.Nonce}
	if !bytes.Equal(challenge.File(), c.File) {
		t.Error("challenge: the file is not the two structures")
	}
	ev := chip.Answer(t, challenge)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "pump-1"}}, chip.Key.Signer(t))
	if err != nil {
		t.Fatal(err)
	}
	answer := api.TPMAnswer{
		TPMIdentity: who, Session: c.Session, Secret: ev.Secret, KeyPublic: ev.KeyPublic, CertifyInfo: ev.CertifyInfo,
		CertifySignature: ev.CertifySignature, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
	}
	wrong := answer
	wrong.Secret = bytes.Repeat([]byte{1}, 32)
	var p api.Problem
	if res := post(t, s, "/enroll/tpm/answer", wrong, &p); res.StatusCode != http.StatusUnauthorized || p.Code != string(countersign.BadCredential) {
		t.Errorf("a guessed answer: got %s %+v, want 401", res.Status, p)
	}
	var g api.Grant
	if res := post(t, s, "/enroll/tpm/answer", answer, &g); res.StatusCode != http.StatusOK || g.Device != "pump-1" {
		t.Errorf("answer: got %s %+v, want a grant for pump-1", res.Status, g)
	}
}

func TestNoTPMWhereThereIsNoDesk(t *testing.T) {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://h"+api.Base+"/enroll/tpm", strings.NewReader("{}"))
	w := httptest.NewRecorder()
	(&rest.Enroll{Enroller: refuser{}, Now: time.Now}).ServeHTTP(w, r)
	if w.Code != http.StatusNotFound {
		t.Errorf("got %d %s, want 404", w.Code, w.Body)
	}
}

func pemBlock(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// TestNobodyIsAGuestOverREST asks for what devices get with nothing in hand, from a
// fleet that takes guests: none of its places is spent on that.
func TestNobodyIsAGuestOverREST(t *testing.T) {
	h := newHouse(t)
	_, err := h.Provisioner.SaveFleet(t.Context(), "default", func(f *countersign.Fleet) { f.Rules.Access.Guests = true }, ra.By{Actor: "operator:boss"})
	if err != nil {
		t.Fatal(err)
	}
	door := &rest.Enroll{Enroller: h.RA, RA: h.RA, Now: h.Now, Log: h.Log}
	for path, body := range map[string]string{"/access-tokens": "", "/introductions": `{"peer": "pump-2", "purpose": "x"}`, "/secret": ""} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://h"+api.Base+path, strings.NewReader(body))
		w := httptest.NewRecorder()
		door.ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), "no client certificate was shown") {
			t.Errorf("%s: got %d %s, want 401", path, w.Code, w.Body)
		}
	}
}
