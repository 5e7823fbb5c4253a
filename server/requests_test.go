package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/pkcs10/pkcs10test"
	"github.com/countersign-iot/countersign/sdk"
)

// outcome is what a door made of a request.
type outcome struct {
	granted bool
	said    string
}

// message is a request for a certificate as it is sent.
type message struct {
	url, kind, token string
	body             []byte
}

// post sends a request for a certificate over TLS.
func post(ctx context.Context, client *http.Client, m message) (outcome, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url, bytes.NewReader(m.body))
	if err != nil {
		return outcome{}, err
	}
	if m.kind != "" {
		req.Header.Set("Content-Type", m.kind)
	}
	if m.token != "" {
		req.SetBasicAuth("estuser", m.token)
	}
	res, err := client.Do(req)
	if err != nil {
		return outcome{}, err
	}
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	if p := (api.Problem{}); res.Header.Get("Content-Type") == api.ProblemType && json.Unmarshal(said, &p) == nil {
		said = []byte(p.Detail)
	}
	return outcome{res.StatusCode == http.StatusOK, string(said)}, err
}

// overHTTPS is a client of the device doors; id may be nil.
func overHTTPS(s *countersigntest.Server, id *sdk.Identity) *http.Client {
	config := &tls.Config{RootCAs: s.Roots, MinVersion: tls.VersionTLS12}
	if id != nil {
		config = id.TLSConfig()
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
}

// check compares what a door made of a case with what it must.
func check(t *testing.T, door string, c *pkcs10test.Case, got outcome, err error) {
	t.Helper()
	switch {
	case err != nil:
		t.Errorf("%s: %s: %v", door, c.Name, err)
	case got.granted != c.Granted():
		t.Errorf("%s: %s: got granted %v (%.200s), want %v", door, c.Name, got.granted, got.said, c.Granted())
	case !got.granted && !strings.Contains(got.said, c.Reason):
		t.Errorf("%s: %s: got %q, want the reason %q", door, c.Name, got.said, c.Reason)
	}
}

// TestEveryDoorReadsRequestsAlike tries requests as devices in the field send
// them, with a token, at each door that reads one.
func TestEveryDoorReadsRequestsAlike(t *testing.T) {
	s := countersigntest.Start(t)
	token := s.Token(t, api.NewToken{Uses: 10000})
	client := overHTTPS(s, nil)
	rest, est := s.Endpoints().Enroll+api.Base+"/enroll", s.Endpoints().Enroll+"/.well-known/est/simpleenroll"
	for _, c := range pkcs10test.Cases(t) {
		got, err := post(t.Context(), client, message{rest, "", token, c.Body})
		check(t, "REST", &c, got, err)
		got, err = post(t.Context(), client, message{est, "application/pkcs10", token, c.Body})
		check(t, "EST", &c, got, err)
		if der, err := pkcs10.Decode(c.Body); err == nil { // as RFC 8951 has it
			got, err := post(t.Context(), client, message{est, "application/pkcs10", token, []byte(base64.StdEncoding.EncodeToString(der))})
			check(t, "EST in base64", &c, got, err)
		}
		if !utf8.Valid(c.Body) || len(c.Body) == 0 {
			continue
		}
		in, err := json.Marshal(api.EnrollRequest{CSR: string(c.Body), Token: token})
		if err != nil {
			t.Fatal(err)
		}
		got, err = post(t.Context(), client, message{rest, "application/json", "", in})
		check(t, "REST in JSON", &c, got, err)

		e, err := s.Admin.Explain(t.Context(), api.Explain{CSR: string(c.Body), Token: token})
		got = explained(e, &err)
		check(t, "explain", &c, got, err)
		if !c.Later {
			_, err = s.Admin.CreateClaim(t.Context(), api.NewClaim{CSR: string(c.Body), Bounds: api.Bounds{TTLSeconds: 3600, Networks: []string{"127.0.0.0/8"}}, Devices: []string{"none"}})
			got = refusal(&err)
			if c.Granted() { // its key serves a device by now
				got.granted = true
			}
			check(t, "claim", &c, got, err)
		}
	}
}

func explained(e *api.Explanation, err *error) outcome {
	if *err != nil {
		return refusal(err)
	}
	return outcome{e.Decision == "issue" || e.Decision == "again", e.Reason}
}

// refusal takes the API's answer out of err.
func refusal(err *error) outcome {
	if e, ok := errors.AsType[*sdk.Error](*err); ok {
		*err = nil
		return outcome{false, e.Error()}
	}
	return outcome{granted: *err == nil}
}

// TestRenewalReadsRequestsAlike does the same with devices that renew.
func TestRenewalReadsRequestsAlike(t *testing.T) {
	s := countersigntest.Start(t)
	spare := s.Enroll(t, "spare")
	for _, c := range pkcs10test.Cases(t) {
		if c.Later && c.Code != countersign.WeakKey {
			continue // names are judged in another way here
		}
		id := spare
		if c.Granted() {
			id = s.Enroll(t, c.Device)
		}
		client := overHTTPS(s, id)
		got, err := post(t.Context(), client, message{s.Endpoints().Enroll + api.Base + "/renew", "", "", c.Body})
		check(t, "REST", &c, got, err)
		got, err = post(t.Context(), client, message{s.Endpoints().Enroll + "/.well-known/est/simplereenroll", "application/pkcs10", "", c.Body})
		check(t, "EST", &c, got, err)
		client.CloseIdleConnections()
	}
}

// TestDevicesMayWriteASlashTooMany wants the request served, since a client that
// is sent elsewhere loses its body.
func TestDevicesMayWriteASlashTooMany(t *testing.T) {
	s := countersigntest.Start(t)
	token := s.Token(t, api.NewToken{Uses: 100})
	client := overHTTPS(s, nil)
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	var body []byte
	for _, c := range pkcs10test.Cases(t) {
		if c.Name == "base64-crlf" {
			body = c.Body
		}
	}
	for _, path := range []string{
		"/.well-known/est/simpleenroll", "//.well-known/est//simpleenroll", "/.well-known/est/simpleenroll/", "//.well-known//est/default//simpleenroll//",
		"/default//.well-known/est/simpleenroll", "/api/v1/enroll/", "//api//v1/enroll", "/api/v1//enroll?fleet=default",
	} {
		if got, err := post(t.Context(), client, message{s.Endpoints().Enroll + path, "application/pkcs10", token, body}); err != nil || !got.granted {
			t.Errorf("POST %s: got %+v, %v, want a certificate", path, got, err)
		}
	}
	for _, path := range []string{"//.well-known/est//cacerts", "/.well-known/est/cacerts/", "//default/.well-known/est/cacerts"} {
		res, err := client.Get(s.Endpoints().Enroll + path) //nolint:noctx // short, on loopback
		if err != nil {
			t.Fatal(err)
		}
		if res.Body.Close(); res.StatusCode != http.StatusOK {
			t.Errorf("GET %s: got %d, want 200", path, res.StatusCode)
		}
	}
	for _, path := range []string{"/.well-known/est", "/.well-known/est/", "//", "/x//.well-known/est/y/cacerts"} {
		res, err := client.Get(s.Endpoints().Enroll + path) //nolint:noctx // short, on loopback
		if err != nil {
			t.Fatal(err)
		}
		if res.Body.Close(); res.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: got %d, want 404", path, res.StatusCode)
		}
	}
}
