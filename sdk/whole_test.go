package sdk_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/test/kit"
)

// recorder passes requests on and keeps what was asked.
type recorder struct {
	http.RoundTripper
	mu    sync.Mutex
	asked []string // method and path below api.Base
}

func (r *recorder) RoundTrip(q *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.asked = append(r.asked, q.Method+" "+strings.TrimPrefix(q.URL.EscapedPath(), api.Base))
	r.mu.Unlock()
	return r.RoundTripper.RoundTrip(q)
}

// whole is a whole server with an operator's client whose requests are recorded.
type whole struct {
	*countersigntest.Server
	asked *recorder
}

func newWhole(t *testing.T) *whole {
	t.Helper()
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) {
		c.Notify = append(c.Notify, config.Channel{Name: "syslog", Kind: "syslog", Addr: "127.0.0.1:9"})
	}})
	r := &recorder{RoundTripper: s.Admin.HTTP.Transport}
	s.Admin.HTTP.Transport = r
	return &whole{s, r}
}

// all reads a list to its end.
func all[T any](t *testing.T, list iter.Seq2[T, error]) (items []T) {
	t.Helper()
	for item, err := range list {
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, item)
	}
	return items
}

// has reports whether a list has an item.
func has[T any](t *testing.T, list iter.Seq2[T, error], is func(T) bool) bool {
	t.Helper()
	return slices.ContainsFunc(all(t, list), is)
}

// good returns a value that a call returned without an error.
func good[T any](v *T, err error) func(t *testing.T) *T {
	return func(t *testing.T) *T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestAdminHasAMethodForEachRoute calls the methods of Admin against a whole server, and
// then compares what they asked with what the server describes, in both directions.
func TestAdminHasAMethodForEachRoute(t *testing.T) {
	w := newWhole(t)
	for _, part := range []struct {
		name string
		run  func(*testing.T, *whole)
	}{
		{"server", useServer},
		{"setup", useSetup},
		{"devices", useDevices},
		{"certificates", useCertificates},
		{"authorities", useAuthorities},
		{"secrets", useSecrets},
		{"blocks", useBlocks},
		{"access tokens", useAccessTokens},
		{"credentials", useCredentials},
		{"enrollments", useEnrollments},
		{"factory", useFactory},
		{"policies", usePolicies},
		{"audits", useAudits},
		{"alerts", useAlerts},
		{"log", useLog},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, w) })
	}
	if t.Failed() {
		return
	}
	asked := slices.Clone(w.asked.asked)
	described := w.described(t)
	for route := range described {
		if route == "POST /factory/{fleet}/certificate" { // a device's own program asks it; Factory asks for many
			continue
		}
		if !slices.ContainsFunc(asked, func(a string) bool { return matches(route, a) }) {
			t.Errorf("no method of Admin asks %s", route)
		}
	}
	for _, a := range asked {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(described)), func(route string) bool { return matches(route, a) }) {
			t.Errorf("a method asks %s, which is not described", a)
		}
	}
}

// described reads the routes in the OpenAPI document of the operators' API.
func (w *whole) described(t *testing.T) map[string]bool {
	t.Helper()
	res, err := w.Admin.HTTP.Get(w.Admin.BaseURL + api.Base + api.OpenAPIPath)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var doc struct {
		Paths map[string]map[string]any
	}
	if err := json.NewDecoder(res.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	routes := map[string]bool{}
	for path, item := range doc.Paths {
		for method := range item {
			routes[strings.ToUpper(method)+" "+strings.TrimPrefix(path, api.Base)] = true
		}
	}
	return routes
}

// matches reports whether a request is for a route, of which each part in braces is any
// segment.
func matches(route, asked string) bool {
	a, b := strings.Split(route, "/"), strings.Split(asked, "/")
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] && (!strings.HasPrefix(a[i], "{") || b[i] == "") {
			return false
		}
	}
	return true
}

func useServer(t *testing.T, w *whole) {
	ctx := t.Context()
	if h := good(w.Admin.Health(ctx))(t); h.Status == api.HealthFailing {
		t.Errorf("health: got %+v", h)
	}
	if v := good(w.Admin.Version(ctx))(t); v.Go == "" || v.StartedAt.IsZero() {
		t.Errorf("version: got %+v", v)
	}
	if d := good(w.Admin.Doctor(ctx))(t); len(d.Checks) < 6 {
		t.Errorf("doctor: got %+v", d)
	}
	if got := all(t, w.Admin.Holds(ctx)); len(got) != 0 {
		t.Errorf("holds: got %+v, want none", got)
	}
	for name, call := range map[string]func() error{
		"retry": func() error { _, err := w.Admin.RetryHold(ctx, "nope"); return err },
		"drop":  func() error { _, err := w.Admin.DropHold(ctx, "nope"); return err },
	} {
		if err := call(); countersign.CodeOf(err) != countersign.NotFound {
			t.Errorf("%s a hold that there is not: got %v", name, err)
		}
	}
}

func useSetup(t *testing.T, w *whole) {
	ctx := t.Context()
	overlap := int64(60)
	if f := good(w.Admin.PutFleet(ctx, "pumps", api.PutFleet{OverlapSeconds: &overlap}))(t); f.Name != "pumps" || f.OverlapSeconds != 60 {
		t.Errorf("put a fleet: got %+v", f)
	}
	change := json.RawMessage(`{"networks":["10.0.0.0/8"]}`)
	if f := good(w.Admin.PatchRules(ctx, "pumps", change, true))(t); f.Rules == nil || len(f.Rules.Networks) != 1 {
		t.Errorf("patch rules as a trial: got %+v, want the fleet as it would be", f)
	}
	if f := good(w.Admin.Fleet(ctx, "pumps"))(t); f.Rules != nil {
		t.Errorf("rules after a trial: got %+v, want none", f.Rules)
	}
	if f := good(w.Admin.PatchRules(ctx, "pumps", change, false))(t); f.Rules == nil {
		t.Error("patch rules: got none")
	}
	if !has(t, w.Admin.Fleets(ctx), func(f api.Fleet) bool { return f.Name == "pumps" }) {
		t.Error("fleets: pumps is not among them")
	}
	p := good(w.Admin.Profile(ctx, "device"))(t)
	p.Name, p.ValiditySeconds = "week", 7*24*3600
	good(w.Admin.PutProfile(ctx, *p))(t)
	if !has(t, w.Admin.Profiles(ctx), func(p api.Profile) bool { return p.Name == "week" && p.ValiditySeconds == 7*24*3600 }) {
		t.Error("profiles: week is not among them")
	}
	o := good(w.Admin.CreateOperatorToken(ctx, api.NewOperatorToken{Name: "ana", Role: "viewer", TTLSeconds: 3600}))(t)
	remote := sdk.Remote(w.Endpoints().API+"/", o.Secret, &http.Client{Transport: w.trusting()})
	if got := all(t, remote.Fleets(ctx)); len(got) < 2 {
		t.Errorf("fleets for a viewer over the network: got %d", len(got))
	}
	if _, err := remote.PutFleet(ctx, "pumps", api.PutFleet{}); countersign.CodeOf(err) != countersign.NotAllowed {
		t.Errorf("a viewer that changes a fleet: got %v", err)
	}
	if !has(t, w.Admin.OperatorTokens(ctx), func(x api.OperatorToken) bool { return x.ID == o.ID && !x.Revoked }) {
		t.Error("operator tokens: ana's is not among them")
	}
	if x := good(w.Admin.RevokeOperatorToken(ctx, o.ID))(t); !x.Revoked {
		t.Errorf("revoke an operator token: got %+v", x)
	}
	if _, err := remote.Version(ctx); countersign.CodeOf(err) != countersign.CredentialExpire && countersign.CodeOf(err) != countersign.BadCredential {
		t.Errorf("a revoked operator token: got %v", err)
	}
}

func useDevices(t *testing.T, w *whole) {
	ctx := t.Context()
	good(w.Admin.CreateDevice(ctx, api.NewDevice{ID: "pump-1", Owner: "ana", Tags: map[string]string{"site": "north"}}))(t)
	purpose, site := "cooling", "south"
	if d := good(w.Admin.EditDevice(ctx, "pump-1", api.EditDevice{Purpose: &purpose, Tags: map[string]*string{"site": &site}}))(t); d.Purpose != purpose || d.Changed["tag.site_before"] != "north" {
		t.Errorf("edit: got %+v", d)
	}
	if d := good(w.Admin.Device(ctx, "pump-1"))(t); d.Tags["site"] != "south" || d.State != "registered" {
		t.Errorf("get: got %+v", d)
	}
	w.Enroll(t, "pump-1")
	if !has(t, w.Admin.Devices(ctx, api.DeviceFilter{State: "active"}), func(d api.Device) bool { return d.ID == "pump-1" }) {
		t.Error("active devices: pump-1 is not among them")
	}
	if c := good(w.Admin.Suspend(ctx, "pump-1", api.Act{Note: "odd"}))(t); c.Reason != "certificateHold" || len(c.Certificates) != 1 {
		t.Errorf("suspend: got %+v", c)
	}
	if d := good(w.Admin.Reactivate(ctx, "pump-1", api.Act{}))(t); d.State != "active" {
		t.Errorf("reactivate: got %+v", d)
	}
	if got := all(t, w.Admin.Sessions(ctx, api.SessionFilter{Device: "pump-1"})); len(got) != 0 {
		t.Errorf("sessions: got %+v, want none", got)
	}
	good(w.Admin.Disconnect(ctx, "pump-1", api.Act{Note: "restart"}))(t)
	if _, err := w.Admin.DisconnectSession(ctx, "nope", api.Act{}); countersign.CodeOf(err) != countersign.NotFound {
		t.Errorf("end a session that there is not: got %v", err)
	}
	good(w.Admin.Purge(ctx, "pump-1", api.Purge{Retained: true}))(t)
	if got := all(t, w.Admin.Usage(ctx, api.UsageFilter{Device: "pump-1"})); len(got) > 1 {
		t.Errorf("usage of one device: got %+v", got)
	}
	if c := good(w.Admin.Revoke(ctx, "pump-1", api.Revoke{Reason: "keyCompromise", Note: "lost"}))(t); c.Reason != "keyCompromise" {
		t.Errorf("revoke: got %+v", c)
	}
	good(w.Admin.Retire(ctx, "pump-1", api.Act{}))(t)
	if !has(t, w.Admin.DeviceEvents(ctx, "pump-1", api.Order{Order: "desc"}), func(e api.Event) bool { return e.Type == "device.revoked" && e.Reason == "lost" }) {
		t.Error("events: the revocation is not among them")
	}
}

func useCertificates(t *testing.T, w *whole) {
	ctx := t.Context()
	id := w.Enroll(t, "valve-1")
	serial := string(countersign.SerialOf(id.Certificate().SerialNumber))
	c := good(w.Admin.Certificate(ctx, serial))(t)
	if c.Device != "valve-1" || !strings.Contains(c.PEM, "BEGIN CERTIFICATE") {
		t.Errorf("get: got %+v", c)
	}
	if again := good(w.Admin.Certificate(ctx, c.Issuer+"/"+serial))(t); again.Fingerprint != c.Fingerprint {
		t.Errorf("get by issuer and serial: got %+v", again)
	}
	if got := all(t, w.Admin.Certificates(ctx, api.CertificateFilter{Device: "valve-1"})); len(got) != 1 || got[0].PEM != "" {
		t.Errorf("list: got %+v, want one without its PEM", got)
	}
	if cut := good(w.Admin.RevokeCertificate(ctx, serial, api.Revoke{Reason: "superseded"}))(t); len(cut.Certificates) != 1 {
		t.Errorf("revoke: got %+v", cut)
	}
	if err := id.Renew(ctx); err == nil {
		t.Error("renewal with a revoked certificate: got no error")
	}
}

func useAuthorities(t *testing.T, w *whole) {
	ctx := t.Context()
	list := all(t, w.Admin.Authorities(ctx))
	if len(list) < 2 || list[0].Parent != "" {
		t.Fatalf("list: got %+v, want the root first", list)
	}
	if a := good(w.Admin.Authority(ctx, list[1].ID))(t); a.Fingerprint != list[1].Fingerprint {
		t.Errorf("get: got %+v", a)
	}
	if c := good(w.Admin.RegistrationCode(ctx))(t); c.Code == "" || c.ExpiresAt.IsZero() {
		t.Errorf("code: got %+v", c)
	}
	m := newMaker(t)
	a := good(w.Admin.RegisterAuthority(ctx, api.NewAuthority{ID: "acme", Certificate: m.pem, Override: true, Reason: "a test"}))(t)
	if a.ID != "acme" || a.KeyURI != "" {
		t.Errorf("register: got %+v", a)
	}
	if a := good(w.Admin.PutCRLs(ctx, "acme", api.PutCRLs{CRLs: [][]byte{m.list(t)}}))(t); a.ID != "acme" {
		t.Errorf("put lists: got %+v", a)
	}
}

func useSecrets(t *testing.T, w *whole) {
	ctx := t.Context()
	kinds := []string{"certificate", "secret"}
	good(w.Admin.PutFleet(ctx, "default", api.PutFleet{AccessKinds: &kinds}))(t)
	good(w.Admin.CreateDevice(ctx, api.NewDevice{ID: "sensor-1"}))(t)
	first := good(w.Admin.CreateSecret(ctx, "sensor-1", api.NewSecret{}))(t)
	next := good(w.Admin.RotateSecret(ctx, "sensor-1", api.RotateSecret{}))(t)
	if first.Text == "" || next.Text == "" || first.Text == next.Text {
		t.Errorf("create and rotate: got %+v and %+v", first.Secret, next.Secret)
	}
	login := &sdk.Login{Server: w.Endpoints().Enroll, Roots: w.Roots, Device: "sensor-1", Secret: []byte(next.Text)}
	made := good(login.ChangeSecret(ctx, true))(t)
	if len(made.Octets) != 32 || string(login.Secret) != string(made.Octets) {
		t.Errorf("change: got %+v, want 32 octets that are in force", made.Secret)
	}
	if _, err := login.ChangeSecret(ctx, false); countersign.CodeOf(err) != countersign.RateLimited {
		t.Errorf("change again at once: got %v", err)
	}
	if s := good(w.Admin.StopSecret(ctx, "sensor-1", made.ID, api.Act{Note: "leaked"}))(t); s.State != "stopped" || s.Reason != "leaked" {
		t.Errorf("stop: got %+v", s)
	}
	if _, err := login.ChangeSecret(ctx, false); err == nil {
		t.Error("change with a stopped secret: got no error")
	}
	if !has(t, w.Admin.Secrets(ctx, "sensor-1"), func(s api.Secret) bool { return s.ID == made.ID && s.State == "stopped" }) {
		t.Error("list: the stopped secret is not among them")
	}
	id := w.Enroll(t, "sensor-2")
	if s := good(id.ChangeSecret(ctx, false))(t); s.Text == "" {
		t.Errorf("change with a certificate: got %+v", s.Secret)
	}
}

func useBlocks(t *testing.T, w *whole) {
	ctx := t.Context()
	good(w.Admin.Block(ctx, api.NewBlock{Network: "203.0.113.0/24", Reason: "a scan", TTLSeconds: 600}))(t)
	blocked := func(b api.Block) bool { return b.Network == "203.0.113.0/24" && b.Manual }
	if !has(t, w.Admin.Blocks(ctx), blocked) {
		t.Error("list: the network is not among them")
	}
	good(w.Admin.Unblock(ctx, "203.0.113.0/24"))(t)
	if has(t, w.Admin.Blocks(ctx), blocked) {
		t.Error("list after its end: the network is among them")
	}
}

func useAccessTokens(t *testing.T, w *whole) {
	ctx := t.Context()
	one, two := w.Enroll(t, "lamp-1"), w.Enroll(t, "lamp-2")
	k := good(w.Admin.CreateAccessToken(ctx, api.NewAccessToken{Devices: []string{"lamp-1"}, TTLSeconds: 120}))(t)
	if !has(t, w.Admin.AccessTokens(ctx), func(x api.AccessToken) bool { return x.ID == k.ID }) {
		t.Error("list: the token is not among them")
	}
	if x := good(w.Admin.RevokeAccessToken(ctx, k.ID))(t); x.RevokedAt.IsZero() {
		t.Errorf("revoke: got %+v", x)
	}
	in := good(w.Admin.Introduce(ctx, api.NewIntroduction{Device: "lamp-1", Peer: "lamp-2", Purpose: "light"}))(t)
	for _, id := range []*sdk.Identity{one, two} {
		if got := good(id.Introduced(in.Signed, time.Now()))(t); got.Purpose != "light" {
			t.Errorf("the introduction for %s: got %+v", id.Device(), got)
		}
	}
	if _, err := one.Introduce(ctx, "nope", "light", 0); countersign.CodeOf(err) != countersign.NotFound {
		t.Errorf("a peer that there is not: got %v", err)
	}
}

func useCredentials(t *testing.T, w *whole) {
	ctx := t.Context()
	bulk := good(w.Admin.CreateTokens(ctx, api.NewTokens{IDs: []string{"a-1", "a-2"}}))(t)
	if len(bulk.Tokens) != 2 || bulk.Tokens[1].ID != "a-2" {
		t.Errorf("tokens in bulk: got %d", len(bulk.Tokens))
	}
	if c := good(w.Admin.CreateClaim(ctx, api.NewClaim{Temporary: true}))(t); !strings.Contains(c.Key, "PRIVATE KEY") {
		t.Errorf("claim: got %+v", c.Credential)
	}
	key := good(w.Admin.CreateKey(ctx, api.NewKey{Device: "k-1"}))(t)
	good(w.Admin.CreateGroupKey(ctx, api.NewGroupKey{Label: "line 1"}))(t)
	sum := sha256.Sum256([]byte("a certificate"))
	good(w.Admin.CreateThumbprint(ctx, api.NewThumbprint{Device: "t-1", Primary: hex.EncodeToString(sum[:])}))(t)
	good(w.Admin.CreateTPM(ctx, api.NewTPM{Device: "m-1", EKHash: hex.EncodeToString(sum[:])}))(t)
	if !has(t, w.Admin.Tokens(ctx), func(c api.Credential) bool { return c.Device == "a-1" && c.Kind == "token" }) {
		t.Error("tokens: that of a-1 is not among them")
	}
	for _, kind := range []string{"claim", "key", "group", "thumbprint", "tpm"} {
		if got := all(t, w.Admin.Credentials(ctx, api.CredentialFilter{Kind: kind})); len(got) != 1 {
			t.Errorf("credentials of kind %s: got %d, want 1", kind, len(got))
		}
	}
	if s := good(w.Admin.StopCredential(ctx, key.ID, api.Act{Note: "lost"}))(t); s.State != "stopped" {
		t.Errorf("stop: got %+v", s)
	}
	if c := good(w.Admin.Credential(ctx, key.ID))(t); c.Reason != "lost" {
		t.Errorf("get: got %+v", c)
	}
}

func useEnrollments(t *testing.T, w *whole) {
	ctx := t.Context()
	good(w.Admin.PutFleet(ctx, "waiting", api.PutFleet{}))(t)
	good(w.Admin.PatchRules(ctx, "waiting", json.RawMessage(`{"approval":["token"]}`), false))(t)
	for _, device := range []string{"w-1", "w-2"} {
		e := sdk.Enrollment{Server: w.Endpoints().Enroll, Roots: w.Roots, Device: device, Token: w.Token(t, api.NewToken{Fleet: "waiting"}), Fleet: "waiting", Key: kit.Key(t)}
		if _, err := sdk.Enroll(ctx, e); err == nil {
			t.Fatalf("%s enrolls without an approval", device)
		}
		list := all(t, w.Admin.Enrollments(ctx, api.WaitingFilter{State: "waiting"}))
		if len(list) != 1 || list[0].Device != device {
			t.Fatalf("waiting: got %+v, want %s", list, device)
		}
		if device == "w-1" {
			good(w.Admin.Approve(ctx, list[0].ID, api.Act{}))(t)
			id, err := sdk.Enroll(ctx, e)
			if err != nil {
				t.Fatalf("enroll after the approval: %v", err)
			}
			known, err := sdk.Known(sdk.Enrollment{Server: e.Server, Roots: e.Roots, Fleet: e.Fleet, Device: device, Key: id.Key()}, kit.Must(parsePath(id)))
			if err != nil || known.Renew(ctx) != nil {
				t.Errorf("a known identity does not renew: %v", err)
			}
			continue
		}
		if x := good(w.Admin.Reject(ctx, list[0].ID, api.Act{Note: "unknown"}))(t); x.State != "rejected" || x.Note != "unknown" {
			t.Errorf("reject: got %+v", x)
		}
	}
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: kit.CSR(t, kit.Key(t), "w-3")}))
	if x := good(w.Admin.Explain(ctx, api.Explain{CSR: csr, Token: w.Token(t, api.NewToken{})}))(t); x.Decision != "issue" || x.Device != "w-3" {
		t.Errorf("explain: got %+v", x)
	}
}

func useFactory(t *testing.T, w *whole) {
	csr := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: kit.CSR(t, kit.Key(t), "f-1")}))
	line := string(kit.Must(json.Marshal(api.FactoryRequest{Item: "1", CSR: csr}))) + "\n"
	lines := all(t, w.Admin.Factory(t.Context(), "default", "device", io.MultiReader(strings.NewReader(line), strings.NewReader(`{"item":"2","csr":"x"}`+"\n"))))
	if len(lines) != 3 || lines[0].Device != "f-1" || lines[1].Error == nil || lines[2].Report == nil || lines[2].Report.Granted != 1 {
		t.Errorf("a run of two: got %+v", lines)
	}
	for _, err := range w.Admin.Factory(t.Context(), "nope", "", strings.NewReader(line)) {
		if countersign.CodeOf(err) != countersign.NotFound {
			t.Errorf("a fleet that there is not: got %v", err)
		}
	}
}

func usePolicies(t *testing.T, w *whole) {
	ctx := t.Context()
	before := good(w.Admin.Policy(ctx, "default"))(t)
	source := before.Source
	if c := good(w.Admin.CheckPolicy(ctx, source))(t); !c.OK {
		t.Fatalf("check the built-in policy: got %+v", c)
	}
	if c := good(w.Admin.CheckPolicy(ctx, "statements: 7"))(t); c.OK || len(c.Problems) == 0 {
		t.Errorf("check what is no policy: got %+v", c)
	}
	good(w.Admin.ReplayPolicy(ctx, "default", source))(t)
	note := "# changed\n" + source
	if p := good(w.Admin.ApplyPolicy(ctx, "default", api.ApplyPolicy{PolicySource: api.PolicySource{Source: note}, Note: "a test", Expect: &before.Version}))(t); !p.Changed || p.Version <= before.Version {
		t.Errorf("apply: got %+v", p)
	}
	if _, err := w.Admin.ApplyPolicy(ctx, "default", api.ApplyPolicy{PolicySource: api.PolicySource{Source: source}, Expect: &before.Version}); countersign.CodeOf(err) != countersign.Conflict {
		t.Errorf("apply on a version that is not in force any more: got %v", err)
	}
	if got := all(t, w.Admin.PolicyVersions(ctx, "default")); len(got) == 0 || got[0].Note != "a test" || got[0].Source != "" {
		t.Errorf("versions: got %+v", got)
	}
	if p := good(w.Admin.RollbackPolicy(ctx, "default", api.RollbackPolicy{To: 0}))(t); !p.Changed {
		t.Errorf("roll back: got %+v", p)
	}
	if p := good(w.Admin.PolicyVersion(ctx, "default", 0))(t); p.Version != 0 || p.Source == "" {
		t.Errorf("version 0: got %+v", p)
	}
	if a := good(w.Admin.ExplainPolicy(ctx, api.PolicyQuestion{Device: "lamp-1", Action: "publish", Topic: "nobody/else"}))(t); a.Fleet != "default" || a.Decision.Why == "" {
		t.Errorf("explain: got %+v", a)
	}
}

func useAudits(t *testing.T, w *whole) {
	ctx := t.Context()
	checks := all(t, w.Admin.AuditChecks(ctx))
	if len(checks) < 10 {
		t.Fatalf("checks: got %d", len(checks))
	}
	run := good(w.Admin.StartAudit(ctx, api.NewAudit{}))(t)
	kit.Eventually(t, "the audit ends", func() bool {
		r := good(w.Admin.Audit(ctx, run.ID))(t)
		return !r.EndedAt.IsZero()
	})
	if _, err := w.Admin.CancelAudit(ctx, run.ID); countersign.CodeOf(err) != countersign.Conflict {
		t.Errorf("cancel an audit that has ended: got %v", err)
	}
	if !has(t, w.Admin.Audits(ctx), func(r api.AuditRun) bool { return r.ID == run.ID }) {
		t.Error("runs: the audit is not among them")
	}
	for _, f := range all(t, w.Admin.AuditFindings(ctx, sdk.LatestAudit, api.AuditFindingFilter{})) {
		if f.Run != run.ID || f.Check == "" || f.Summary == "" {
			t.Errorf("a finding: got %+v", f)
		}
	}
	if p := good(w.Admin.AuditTrend(ctx, 1))(t); len(p.Items) != len(checks) {
		t.Errorf("trend: got %d checks, want %d", len(p.Items), len(checks))
	}
	s := good(w.Admin.Suppress(ctx, api.NewAuditSuppression{Check: checks[0].Name, Subject: "device:*", Reason: "a test", EndsAt: time.Now().Add(time.Hour)}))(t)
	if !has(t, w.Admin.AuditSuppressions(ctx), func(x api.AuditSuppression) bool { return x.ID == s.ID }) {
		t.Error("suppressions: the new one is not among them")
	}
	good(w.Admin.Unsuppress(ctx, s.ID))(t)
}

// useAlerts has a thief renew with a copy of a device's identity.
func useAlerts(t *testing.T, w *whole) {
	ctx := t.Context()
	id := w.Enroll(t, "stolen-1")
	thief := id.Copy()
	for range 2 { // the certificate that the thief has is replaced, and its successor in use
		if err := id.Renew(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := thief.Renew(ctx); err == nil {
		t.Fatal("the thief renews")
	}
	var alert api.Alert
	kit.Eventually(t, "an alert about the device", func() bool {
		for _, a := range all(t, w.Admin.Alerts(ctx, api.AlertFilter{Device: "stolen-1"})) {
			alert = a
		}
		return alert.ID != ""
	})
	if a := good(w.Admin.Alert(ctx, alert.ID))(t); len(a.Evidence) == 0 || a.Why == "" {
		t.Errorf("get: got %+v, want its evidence", a)
	}
	if got := good(w.Admin.AlertActions(ctx, alert.ID))(t); len(got.Items) == 0 {
		t.Error("actions: got none")
	}
	for want, call := range map[string]func() (*api.Alert, error){
		"open":         func() (*api.Alert, error) { return w.Admin.CommentAlert(ctx, alert.ID, api.AlertNote{Note: "seen"}) },
		"acknowledged": func() (*api.Alert, error) { return w.Admin.AcknowledgeAlert(ctx, alert.ID, api.AlertNote{}) },
		"snoozed":      func() (*api.Alert, error) { return w.Admin.SnoozeAlert(ctx, alert.ID, api.AlertSnooze{Seconds: 600}) },
	} {
		if a := good(call())(t); want != "open" && a.State != want {
			t.Errorf("got state %s, want %s", a.State, want)
		}
	}
	if a := good(w.Admin.AssignAlert(ctx, alert.ID, api.AlertAssign{To: "ana"}))(t); a.Assignee != "ana" {
		t.Errorf("assign: got %+v", a)
	}
	if _, err := w.Admin.ReactivateAlert(ctx, alert.ID, api.AlertNote{}); err != nil {
		t.Errorf("reactivate: %v", err)
	}
	if a := good(w.Admin.SuspendAlert(ctx, alert.ID, api.AlertNote{}))(t); a.Cut == nil {
		t.Errorf("suspend: got %+v", a)
	}
	if a := good(w.Admin.RevokeAlert(ctx, alert.ID, api.Revoke{Reason: "keyCompromise"}))(t); a.Cut == nil || a.Cut.Reason != "keyCompromise" {
		t.Errorf("revoke: got %+v", a)
	}
	if _, err := w.Admin.BlockAlert(ctx, alert.ID, api.AlertBlock{TTLSeconds: 60}); err != nil && countersign.CodeOf(err) != countersign.Conflict {
		t.Errorf("block: %v", err)
	}
	if a := good(w.Admin.CloseAlert(ctx, alert.ID, api.AlertClose{Resolution: "resolved", Note: "revoked"}))(t); a.State != "closed" || a.Resolution != "resolved" {
		t.Errorf("close: got %+v", a)
	}
	if len(all(t, w.Admin.AlertRules(ctx))) < 10 {
		t.Error("rules: got few")
	}
	if !has(t, w.Admin.Channels(ctx), func(c api.Channel) bool { return c.Name == "syslog" }) {
		t.Error("channels: syslog is not among them")
	}
	good(w.Admin.TestChannel(ctx, "syslog"))(t)
}

func useLog(t *testing.T, w *whole) {
	ctx := t.Context()
	if !has(t, w.Admin.Events(ctx, api.EventFilter{Type: "device.created"}, api.Order{}), func(e api.Event) bool { return e.Device == "pump-1" }) {
		t.Error("events: the creation of pump-1 is not among them")
	}
	if v := good(w.Admin.VerifyLog(ctx))(t); !v.Intact {
		t.Errorf("verify: got %+v", v)
	}
}

// TestIdentityIsOfOneKey refuses a certificate without its key, and renews with a key of
// the caller.
func TestIdentityIsOfOneKey(t *testing.T) {
	s := countersigntest.Start(t)
	id := s.Enroll(t, "pump-1")
	path := kit.Must(parsePath(id))
	for name, e := range map[string]sdk.Enrollment{
		"no key":      {Device: "pump-1"},
		"another key": {Device: "pump-1", Key: kit.Key(t)},
	} {
		if _, err := sdk.Known(e, path); err == nil {
			t.Errorf("%s: got an identity", name)
		}
	}
	if err := id.RenewWith(t.Context(), id.Key()); err != nil { // the answer was lost
		t.Errorf("renew with the same key: %v", err)
	}
	if got := len(id.Path()); got != 2 {
		t.Errorf("path: got %d certificates, want the device's and its issuer's", got)
	}
}
