package rest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/respond"
	"github.com/countersign-iot/countersign/rest"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// house is everything behind the door, real, without the listeners.
type house struct {
	*rest.Server
	db       *store.DB
	sessions []countersign.Session
}

func newHouse(t *testing.T) *house {
	t.Helper()
	db := storetest.Open(t)
	now := time.Now
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	keys := &keystore.Store{Dir: t.TempDir()}
	sealer, err := keys.MakeSealer("file:keys/seal.key")
	if err != nil {
		t.Fatalf("open the sealer: %v", err)
	}
	authority, err := ca.Open(t.Context(), ca.Options{
		DB: db, Keys: keys, Now: now, Log: log, StatusURL: "http://127.0.0.1:8090",
	})
	if err != nil {
		t.Fatalf("open the CA: %v", err)
	}
	f, err := authority.Found(t.Context(), ca.Plan{Name: "Test"})
	if err != nil {
		t.Fatalf("found the CA: %v", err)
	}
	h := &house{db: db}
	reg := &registry.Registry{DB: db, Now: now}
	events := &event.Log{DB: db, Now: now, Log: log, Node: "test", Cut: func(countersign.Cut) int { return 2 }}
	operators := &operator.Accounts{DB: db, Now: now, Log: log}
	err = db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		if err := authority.RecordFounding(ctx, tx, f); err != nil {
			return err
		}
		return reg.SaveFleet(ctx, tx, countersign.Fleet{
			Name: countersign.DefaultFleet, Issuer: ca.IssuingID, Profile: ca.ProfileDevice,
			Methods: []countersign.Method{
				countersign.MethodToken, countersign.MethodClaim, countersign.MethodKey, countersign.MethodGroup, countersign.MethodThumbprint,
				countersign.MethodTPM,
			},
			Overlap: time.Hour,
		})
	})
	if err != nil {
		t.Fatalf("record the CA: %v", err)
	}
	if err := authority.Reload(t.Context()); err != nil {
		t.Fatalf("reload the CA: %v", err)
	}
	h.Server = &rest.Server{
		CA: authority, Registry: reg, Events: events, Operators: operators, Now: now, Log: log,
		RA: &ra.Authority{
			DB: db, CA: authority, Registry: reg, Access: kit.Must(access.New(events, authority, reg, sealer)), Ledger: &lockout.Ledger{DB: db, Now: now, Log: log, Events: events},
			Events: events, Now: now, Log: log, Sealer: sealer,
		},
		Provisioner: &provision.Provisioner{
			DB: db, CA: authority, Registry: reg, Operators: operators, Events: events, Sealer: sealer,
			Tokens: &access.Tokens{DB: db, Now: now, Key: make([]byte, 32)},
		},
		Sessions: func() []countersign.Session { return h.sessions }, Checks: func(context.Context) []api.Check { return nil },
	}
	h.Gate = &operator.Gate{Accounts: operators, Ledger: h.RA.Ledger, Later: events.Later, Now: now}
	h.Alerts = &respond.Responder{
		DB: db, Registry: reg, Ledger: h.RA.Ledger, Events: events, Devices: h.RA, Now: now, Log: log, Sessions: h.Sessions,
	}
	return h
}

// local serves h as the Unix socket does.
func (h *house) local(t *testing.T) *client {
	t.Helper()
	h.Local = true
	return serve(t, h.Handler())
}

type client struct {
	t     *testing.T
	url   string
	token string
}

func serve(t *testing.T, h http.Handler) *client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return &client{t: t, url: s.URL + api.Base}
}

// do sends a request and decodes the answer into out, whatever its status.
func (c *client) do(method, path, body string, out any) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			c.t.Fatalf("%s %s: %v in %q", method, path, err, b)
		}
	}
	return res
}

// must is do for an answer that has to be good.
func (c *client) must(method, path, body string, out any) {
	c.t.Helper()
	var raw json.RawMessage
	if res := c.do(method, path, body, &raw); res.StatusCode/100 != 2 {
		c.t.Fatalf("%s %s: got %s %s", method, path, res.Status, raw)
	}
	if out != nil {
		if err := json.Unmarshal(raw, out); err != nil {
			c.t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
}

func newCSR(t *testing.T, id string) []byte {
	t.Helper()
	return kit.CSR(t, kit.Key(t), id)
}

func (h *house) enroll(t *testing.T, id string) *countersign.Grant {
	t.Helper()
	_, secret, err := h.Provisioner.CreateToken(t.Context(), registry.Credential{Fleet: "default", UsesMax: 1}, time.Hour, ra.By{Actor: countersign.System})
	if err != nil {
		t.Fatal(err)
	}
	g, err := h.RA.Enroll(t.Context(), countersign.EnrollRequest{
		CSR: newCSR(t, id), Evidence: countersign.Evidence{Token: secret}, Door: "test", Remote: netip.MustParseAddrPort("127.0.0.1:1"),
	})
	if err != nil {
		t.Fatalf("enroll %s: %v", id, err)
	}
	return g
}

func TestListsPageToTheEnd(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	for i := range 5 {
		id := fmt.Sprintf("pump-%d", i)
		h.enroll(t, id)
		h.sessions = append(h.sessions, countersign.Session{ID: fmt.Sprint("s", i), Device: id})
		c.must("POST", "/operator-tokens", `{"name":"ana","role":"viewer","ttl_seconds":3600}`, nil)
		c.must("PUT", fmt.Sprintf("/fleets/f%d", i), `{}`, nil)
	}
	for path, least := range map[string]int{
		"/devices": 5, "/events": 10, "/devices/pump-1/events": 2, "/certificates": 5, "/sessions": 5, "/tokens": 5,
		"/authorities": 2, "/fleets": 6, "/profiles": 2, "/operator-tokens": 5,
		"/events?order=desc": 10, "/devices?fleet=default": 5,
	} {
		sep := "?"
		if strings.Contains(path, "?") {
			sep = "&"
		}
		var whole, page api.Page[json.RawMessage]
		c.must("GET", path, "", &whole)
		if len(whole.Items) < least {
			t.Errorf("GET %s: got %d items, want at least %d", path, len(whole.Items), least)
		}
		var got []string
		for after := ""; ; after = page.Next {
			page = api.Page[json.RawMessage]{}
			c.must("GET", path+sep+"limit=2&after="+after, "", &page)
			for _, item := range page.Items {
				got = append(got, string(item))
			}
			if page.Next == "" {
				break
			}
			if len(page.Items) != 2 {
				t.Fatalf("GET %s: a page of %d that is not the last, want 2", path, len(page.Items))
			}
		}
		if want := joined(whole.Items); strings.Join(got, "\n") != want {
			t.Errorf("GET %s in pages of 2: got\n%s\nwant\n%s", path, strings.Join(got, "\n"), want)
		}
	}
}

func joined(items []json.RawMessage) string {
	var s []string
	for _, i := range items {
		s = append(s, string(i))
	}
	return strings.Join(s, "\n")
}

func TestRevokeTellsWhatItDid(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	g := h.enroll(t, "pump-7")
	var cut api.Cut
	c.must("POST", "/devices/pump-7/revoke", `{"reason":"keyCompromise","note":"found in a bin"}`, &cut)
	if cut.Device != "pump-7" || cut.Reason != "keyCompromise" || cut.Sessions != 2 ||
		len(cut.Certificates) != 1 || cut.Certificates[0].Serial != string(g.Serial) {
		t.Errorf("revoke: got %+v, want pump-7, its certificate %s and 2 sessions", cut, g.Serial)
	}
	var cert api.Certificate
	c.must("GET", "/certificates/"+string(g.Serial), "", &cert)
	if cert.State != "revoked" || cert.Reason != "keyCompromise" || !strings.HasPrefix(cert.PEM, "-----BEGIN CERTIFICATE") {
		t.Errorf("certificate after revoke: got %s %s, want revoked keyCompromise with its PEM", cert.State, cert.Reason)
	}
	var events api.Page[api.Event]
	c.must("GET", "/devices/pump-7/events?order=desc", "", &events)
	said := false
	for _, e := range events.Items {
		said = said || e.Type == "device.revoked" && e.Actor == "operator:local" && e.Reason == "found in a bin"
	}
	if !said {
		t.Errorf("events after revoke: got %+v, want device.revoked by operator:local with its note", events.Items)
	}
}

func TestDeviceGoesThroughItsLife(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	var d api.Device
	c.must("POST", "/devices", `{"id":"pump-1","owner":"ana","tags":{"site":"north"}}`, &d)
	if d.State != "registered" || d.Fleet != "default" || d.Tags["site"] != "north" {
		t.Errorf("create: got %+v, want a registered device of fleet default with its tag", d)
	}
	h.enroll(t, "pump-2")
	var cut api.Cut
	c.must("POST", "/devices", `{"id":"pump-3","fleet":null,"owner":null,"tags":null}`, nil)
	c.must("POST", "/devices/pump-2/suspend", `{"note":"odd"}`, &cut)
	if cut.Reason != "certificateHold" || len(cut.Certificates) != 1 {
		t.Errorf("suspend: got %+v, want one certificate on hold", cut)
	}
	c.must("POST", "/devices/pump-2/reactivate", "", &d)
	if d.State != "active" {
		t.Errorf("reactivate: got %s, want active", d.State)
	}
	c.must("POST", "/devices/pump-2/retire", "", &cut)
	c.must("GET", "/devices/pump-2", "", &d)
	if d.State != "retired" {
		t.Errorf("retire: got %s, want retired", d.State)
	}
	var p api.Problem
	if res := c.do("POST", "/devices/pump-2/reactivate", "", &p); res.StatusCode != http.StatusConflict || p.Code != "conflict" {
		t.Errorf("reactivate after retire: got %s %s, want 409 conflict", res.Status, p.Code)
	}
}

func TestProblemsSayWhatAndWhatNext(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	h.enroll(t, "pump-1")
	for name, w := range map[string]struct {
		method, path, body string
		status             int
		code               string
	}{
		"unknown device":      {"GET", "/devices/nope", "", 404, "not_found"},
		"events of nobody":    {"GET", "/devices/nope/events", "", 404, "not_found"},
		"unknown certificate": {"GET", "/certificates/0abc", "", 404, "not_found"},
		"no serial":           {"GET", "/certificates/xyz", "", 400, "bad_request"},
		"unknown authority":   {"GET", "/authorities/nope", "", 404, "not_found"},
		"taken id":            {"POST", "/devices", `{"id":"pump-1"}`, 409, "conflict"},
		"bad id":              {"POST", "/devices", `{"id":"a b"}`, 422, "bad_request"},
		"unknown field":       {"POST", "/devices", `{"id":"x","sekret":"hunter2"}`, 422, "bad_request"},
		"null for an id":      {"POST", "/devices", `{"id":null}`, 422, "bad_request"},
		"wrong type":          {"POST", "/tokens", `{"uses":"hunter2"}`, 422, "bad_request"},
		"no JSON":             {"POST", "/tokens", `{hunter2`, 400, "bad_request"},
		"no body":             {"POST", "/tokens", ``, 400, "bad_request"},
		"another's fleet":     {"POST", "/tokens", `{"device":"pump-1","fleet":"other"}`, 409, "conflict"},
		"unknown fleet":       {"POST", "/tokens", `{"fleet":"nope"}`, 404, "not_found"},
		"unknown reason":      {"POST", "/devices/pump-1/revoke", `{"reason":"hunter2x"}`, 400, "bad_request"},
		"bad state":           {"GET", "/devices?state=hunter2", "", 422, "bad_request"},
		"bad limit":           {"GET", "/devices?limit=99999", "", 422, "bad_request"},
		"unknown parameter":   {"GET", "/devices?hunter2=1", "", 422, "bad_request"},
		"bad cursor":          {"GET", "/events?after=x", "", 400, "bad_request"},
		"no route":            {"GET", "/nope", "", 404, "not_found"},
		"wrong method":        {"POST", "/health", "{}", 405, "not_found"},
		"too large":           {"POST", "/devices", `{"id":"` + strings.Repeat("x", 70<<10) + `"}`, 413, "too_large"},
		"bad profile name":    {"PUT", "/profiles/a", `{"name":"b"}`, 400, "bad_request"},
		"bad issuer":          {"PUT", "/fleets/a", `{"issuer":"nope"}`, 400, "bad_request"},
		"bad role":            {"POST", "/operator-tokens", `{"name":"a","role":"king","ttl_seconds":60}`, 422, "bad_request"},
	} {
		var p api.Problem
		res := c.do(w.method, w.path, w.body, &p)
		if res.StatusCode != w.status || p.Status != w.status || p.Code != w.code {
			t.Errorf("%s: got %d %+v, want %d %s", name, res.StatusCode, p, w.status, w.code)
		}
		if ct := res.Header.Get("Content-Type"); ct != api.ProblemType {
			t.Errorf("%s: got content type %s, want %s", name, ct, api.ProblemType)
		}
		if p.Detail == "" || p.RequestID == "" || p.RequestID != res.Header.Get(api.RequestIDHeader) {
			t.Errorf("%s: got %+v, want a detail and the id of the request", name, p)
		}
		whole, _ := json.Marshal(p)
		if strings.Contains(string(whole), "hunter2") && !strings.Contains(name, "parameter") && !strings.Contains(name, "reason") {
			t.Errorf("%s: the problem repeats the value: %s", name, whole)
		}
	}
}

func TestNetworkNeedsTokenWithRole(t *testing.T) {
	h := newHouse(t)
	tokens := map[operator.Role]string{}
	for _, r := range operator.Roles() {
		_, secret, err := h.Provisioner.CreateOperatorToken(t.Context(), operator.Token{Name: string(r), Role: r}, time.Hour, ra.By{})
		if err != nil {
			t.Fatal(err)
		}
		tokens[r] = secret
	}
	c := serve(t, h.Handler())
	for _, w := range []struct {
		role         operator.Role
		method, path string
		status       int
	}{
		{"", "GET", "/health", 200},
		{"", "GET", "/devices", 401},
		{"", "GET", "/version", 401},
		{operator.Viewer, "GET", "/devices", 200},
		{operator.Viewer, "GET", "/events", 403},
		{operator.Viewer, "POST", "/devices/x/revoke", 403},
		{operator.Auditor, "GET", "/events", 200},
		{operator.Auditor, "POST", "/devices/x/suspend", 403},
		{operator.Factory, "GET", "/devices", 403},
		{operator.Factory, "POST", "/tokens", 400}, // let in, then told that the body is missing
		{operator.Operator, "POST", "/devices/x/retire", 404},
		{operator.Operator, "PUT", "/fleets/x", 403},
		{operator.Operator, "GET", "/operator-tokens", 403},
		{operator.Approver, "POST", "/devices/x/revoke", 403},
		{operator.Admin, "GET", "/operator-tokens", 200},
	} {
		c.token = tokens[w.role]
		res := c.do(w.method, w.path, "", nil)
		if res.StatusCode != w.status {
			t.Errorf("%s: %s %s: got %d, want %d", w.role, w.method, w.path, res.StatusCode, w.status)
		}
		if challenge := res.Header.Get("WWW-Authenticate"); (challenge != "") != (w.status == 401) {
			t.Errorf("%s: %s %s: got challenge %q", w.role, w.method, w.path, challenge)
		}
	}
	c.token = "csop_wrong"
	if res := c.do("GET", "/devices", "", nil); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("wrong token: got %d, want 401", res.StatusCode)
	}
}

func TestOtherSitesCannotAct(t *testing.T) {
	h := newHouse(t)
	_, secret, err := h.Provisioner.CreateOperatorToken(t.Context(), operator.Token{Name: "ana", Role: operator.Admin}, time.Hour, ra.By{})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, api.Base+"/tokens", strings.NewReader(`{}`))
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+secret)
	h.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Errorf("POST from another site: got %d, want 403", w.Code)
	}
}

func TestTokenSecretIsShownOnce(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	var made api.IssuedToken
	c.must("POST", "/tokens", `{"uses":3,"ttl_seconds":60}`, &made)
	if !strings.HasPrefix(made.Secret, countersign.TokenPrefix) || made.Fleet != "default" || made.Uses != 3 {
		t.Errorf("create: got %+v, want a secret for 3 uses in fleet default", made)
	}
	for _, path := range []string{"/tokens", "/events"} {
		var raw json.RawMessage
		c.must("GET", path, "", &raw)
		if strings.Contains(string(raw), made.Secret) {
			t.Errorf("GET %s shows the secret", path)
		}
	}
	h.enroll(t, "pump-1")
	c.must("POST", "/tokens", `{"device":"pump-1"}`, &made)
	if made.Device != "pump-1" || made.Fleet != "default" {
		t.Errorf("create for a device: got %+v, want pump-1 of its fleet", made)
	}
}

func TestPutFleetChangesWhatItNames(t *testing.T) {
	c := newHouse(t).local(t)
	var f api.Fleet
	c.must("PUT", "/fleets/pumps", `{"overlap_seconds":7200}`, &f)
	c.must("PUT", "/fleets/pumps", `{"trust_domain":"example.org"}`, &f)
	if f.OverlapSeconds != 7200 || f.TrustDomain != "example.org" || f.Issuer != ca.IssuingID || f.Profile != ca.ProfileDevice {
		t.Errorf("fleet: got %+v, want both changes over the defaults", f)
	}
}

func TestProfileRoundTrips(t *testing.T) {
	c := newHouse(t).local(t)
	var p, again api.Profile
	c.must("GET", "/profiles/device", "", &p)
	p.Name, p.ValiditySeconds = "week", 7*24*3600
	body, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	c.must("PUT", "/profiles/week", string(body), &again)
	if again.Name != "week" || again.ValiditySeconds != 7*24*3600 || strings.Join(again.ExtKeyUsage, ",") != strings.Join(p.ExtKeyUsage, ",") {
		t.Errorf("profile: got %+v, want %+v", again, p)
	}
}

func TestHealthAndDoctorAgree(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	for _, a := range h.CA.Authorities() {
		if _, err := h.CA.Publish(t.Context(), a.ID, 0); err != nil {
			t.Fatal(err)
		}
	}
	var health api.Health
	var doctor api.Doctor
	c.must("GET", "/doctor", "", &doctor)
	c.must("GET", "/health", "", &health)
	for _, check := range doctor.Checks {
		if check.Level != api.LevelOK {
			t.Errorf("doctor: got %+v, want all ok", check)
		}
	}
	if health.Status != api.HealthOK || len(doctor.Checks) < 6 {
		t.Errorf("health: got %s with %d checks, want ok with 6 or more", health.Status, len(doctor.Checks))
	}
}

func TestVerifyTellsOfATamperedEvent(t *testing.T) {
	h := newHouse(t)
	c := h.local(t)
	c.must("POST", "/tokens", `{}`, nil)
	c.must("POST", "/tokens", `{}`, nil)
	if _, err := h.Events.Seal(t.Context()); err != nil {
		t.Fatal(err)
	}
	var v api.Verification
	c.must("POST", "/audit/verify", "", &v)
	if !v.Intact || v.Events != 2 || len(v.Head) != 64 {
		t.Errorf("verify: got %+v, want 2 events, intact", v)
	}
	err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE event SET reason = 'not so' WHERE seq = 2`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c.must("POST", "/audit/verify", "", &v)
	if v.Intact || v.BadSeq != 2 {
		t.Errorf("verify after tampering: got %+v, want event 2 bad", v)
	}
}
