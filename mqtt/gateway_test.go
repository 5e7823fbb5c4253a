package mqtt_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/mqtt"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestMain fails if a test leaves goroutines of ours behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := leaked(); code == 0 && left != "" {
		_, _ = os.Stderr.WriteString("goroutines left behind:\n" + left + "\n")
		code = 1
	}
	os.Exit(code)
}

func leaked() string {
	for range 50 {
		buf := make([]byte, 1<<20)
		all := string(buf[:runtime.Stack(buf, true)])
		found := ""
		for g := range strings.SplitSeq(all, "\n\n") {
			if strings.Contains(g, "countersign/mqtt.") && !strings.Contains(g, "TestMain") ||
				strings.Contains(g, "countersign/edge.") {
				found += g + "\n\n"
			}
		}
		if found == "" {
			return ""
		}
		time.Sleep(100 * time.Millisecond)
		if g := found; strings.Count(g, "goroutine ") > 0 {
			lastLeak = g
		}
	}
	return lastLeak
}

var lastLeak string

// authority is a CA of the test with one server certificate.
type authority struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	server tls.Certificate
	roots  *x509.CertPool
	dir    string // root.pem and what clients need

	mu     sync.Mutex
	serial int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir(), roots: x509.NewCertPool(), serial: 1}
	a.key = kit.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der := kit.Must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key))
	a.cert = kit.Must(x509.ParseCertificate(der))
	a.roots.AddCert(a.cert)
	a.server = a.issue("127.0.0.1", time.Hour)
	writePEM(t, filepath.Join(a.dir, "root.pem"), "CERTIFICATE", der)
	return a
}

func (a *authority) issue(name string, life time.Duration) tls.Certificate {
	a.mu.Lock()
	a.serial++
	serial := a.serial
	a.mu.Unlock()
	key := kit.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der := kit.Must(x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: kit.Must(x509.ParseCertificate(der))}
}

// files writes a certificate as PEM files and returns mosquitto's options for it.
func (a *authority) files(t testing.TB, c tls.Certificate) []string {
	t.Helper()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePEM(t, cert, "CERTIFICATE", c.Certificate[0])
	writePEM(t, key, "PRIVATE KEY", kit.Must(x509.MarshalPKCS8PrivateKey(c.PrivateKey)))
	return []string{"--cafile", filepath.Join(a.dir, "root.pem"), "--cert", cert, "--key", key}
}

func (a *authority) client(c tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: a.roots, Certificates: []tls.Certificate{c}, ServerName: "127.0.0.1"}
}

// guard is the Gatekeeper of the tests: a certificate of the authority names its
// device, which is good unless it is in refused.
type guard struct {
	roots *x509.CertPool

	mu      sync.Mutex
	refused map[string]countersign.Code
	perms   map[string]countersign.Permissions
	common  *countersign.Permissions // of those who are not in perms
	opened  []countersign.Session
	closed  map[string][]string // reasons by session id
	denials []string
	allowed []string
	asked   []countersign.Connection // that came with something to decide on
	slow    func(device string)      // called in Admit after the decision

	budget   countersign.Budget
	exceeded map[string]int64 // limits by device and budget
}

func (g *guard) Admit(_ context.Context, c countersign.Connection) countersign.Verdict {
	if r, ok := c.Exchange.(*riddle); ok {
		if !r.correct {
			g.note(c)
			return countersign.Verdict{Code: countersign.BadCredential, Reason: "wrong answer", Device: r.device}
		}
		return g.verdict(c, r.device, countersign.Verdict{Device: r.device, Fleet: "default", Credential: "secret:" + r.device})
	}
	if name, ok := strings.CutPrefix(c.Username, "as "); ok { // guest/x, operator/x
		return countersign.Verdict{Allow: true, Device: name, Fleet: "default", Ephemeral: true, Permissions: g.permissionsOf(name)}
	}
	if len(c.Peer) == 0 && c.Username != "" && string(c.Password) == "password of "+c.Username {
		return g.verdict(c, c.Username, countersign.Verdict{Device: c.Username, Fleet: "default", Credential: "secret:" + c.Username})
	}
	if len(c.Peer) == 0 {
		g.note(c)
		return countersign.Verdict{Code: countersign.Unauthenticated, Reason: "no certificate was shown"}
	}
	leaf := c.Peer[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: g.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return countersign.Verdict{Code: countersign.CertUnknown, Reason: "the certificate is not one of ours"}
	}
	id := leaf.Subject.CommonName
	v := countersign.Verdict{
		Device: id, Fleet: "default", NotAfter: leaf.NotAfter,
		Cert: countersign.CertRef{Issuer: "test", Serial: countersign.SerialOf(leaf.SerialNumber)},
	}
	return g.verdict(c, id, v)
}

// verdict on a client that is who it says.
func (g *guard) verdict(c countersign.Connection, id string, v countersign.Verdict) countersign.Verdict {
	rest, ok := strings.CutPrefix(c.ClientID, id)
	if c.ClientID != "" && (!ok || rest != "" && rest[0] != ':' && rest[0] != '/') {
		v.Code, v.Reason = countersign.SubjectMismatch, "the client id is not the device's"
		return v
	}
	g.note(c)
	g.mu.Lock()
	code, slow := g.refused[id], g.slow
	g.mu.Unlock()
	if code != "" {
		v.Code, v.Reason = code, "the device was refused: "+string(code)
		return v
	}
	v.Allow, v.Permissions, v.Budget = true, g.permissionsOf(id), g.budget
	if slow != nil {
		slow(id)
	}
	return v
}

func (g *guard) permissionsOf(id string) countersign.Permissions {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p, own := g.perms[id]; own {
		return p
	}
	if g.common != nil {
		return *g.common
	}
	return permissions([]string{"devices/" + id + "/up/#"}, []string{"devices/" + id + "/down/#"})
}

func (g *guard) note(c countersign.Connection) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, c)
}

func (g *guard) questions() []countersign.Connection {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.asked)
}

// permissions to publish, retained too, and to subscribe and receive.
func permissions(publish, subscribe []string) countersign.Permissions {
	up, down := countersign.Filters{Allow: publish}, countersign.Filters{Allow: subscribe}
	return countersign.Permissions{Publish: up, Retain: up, Subscribe: down, Receive: down}
}

func (g *guard) Opened(s countersign.Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = append(g.opened, s)
}

func (g *guard) Closed(s countersign.Session, end countersign.Ending) {
	why := string(end.Code)
	if end.Code == countersign.EndCut {
		why += ": " + end.Reason
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed[s.ID] = append(g.closed[s.ID], why)
}

func (g *guard) Exchange(_ context.Context, _ countersign.Connection, method string) (countersign.Exchange, error) {
	if method != "RIDDLE" {
		return nil, countersign.Errorf(countersign.BadRequest, "there is no method %.20q", method)
	}
	return &riddle{}, nil
}

// riddle is an exchange of the tests: the client says who it is, gets a question
// and answers it with the question's bytes turned around.
type riddle struct {
	device  string
	correct bool
}

func (r *riddle) Next(_ context.Context, data []byte) ([]byte, bool, error) {
	switch {
	case r.device == "" && len(data) == 0:
		return []byte("who are you?"), false, nil
	case r.device == "":
		r.device = string(data)
		return []byte("abc"), false, nil
	case string(data) == "cba":
		r.correct = true
		return []byte("well done"), true, nil
	case string(data) == "again":
		return []byte("abc"), false, nil
	}
	return nil, false, errors.New("that is not it")
}

func (g *guard) Exceeded(s countersign.Session, budget string, limit int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.exceeded == nil {
		g.exceeded = map[string]int64{}
	}
	g.exceeded[s.Device+" "+budget] = limit
}

func (g *guard) limitOf(device, budget string) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.exceeded[device+" "+budget]
}

func (g *guard) Judged(s countersign.Session, act countersign.Act) {
	action, topic := act.Action, act.Topic
	g.mu.Lock()
	defer g.mu.Unlock()
	if act.Allowed {
		g.allowed = append(g.allowed, s.Device+" "+action+" "+topic)
		return
	}
	g.denials = append(g.denials, s.Device+" "+action+" "+topic)
}

func (g *guard) refuse(device string, code countersign.Code) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused[device] = code
}

// reasons are why the sessions of a device closed so far, in order of opening.
func (g *guard) reasons(device string) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []string
	for _, s := range g.opened {
		if s.Device == device {
			all = append(all, g.closed[s.ID]...)
		}
	}
	return all
}

func (g *guard) denied() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.denials...)
}

// gateway is a running server under test.
type gateway struct {
	*mqtt.Server
	*authority
	guard *guard
	addr  string
	web   string // address of the WebSocket listener
	db    *store.DB
}

func (g *gateway) port() string { _, p, _ := net.SplitHostPort(g.addr); return p }

// engine is what carries the messages of a gateway of the tests: a core, or a relay. The
// zero value is a core on a database of its own.
type engine struct {
	core  *broker.Broker
	db    *store.DB
	guard *atomic.Pointer[guard] // whom the core tells what exceeds a budget
	relay *mqtt.Relay
}

func relayTo(addr string) engine { return engine{relay: &mqtt.Relay{Addr: addr}} }

// coreIn opens a core on the database in dir.
func coreIn(t testing.TB, dir string, limits ...broker.Limits) engine {
	t.Helper()
	db, err := store.Open(t.Context(), store.Options{URL: "sqlite:" + filepath.Join(dir, "core.db"), Now: time.Now, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return coreOn(t, db, limits...)
}

// coreOn opens a core on a database.
func coreOn(t testing.TB, db *store.DB, limits ...broker.Limits) engine {
	t.Helper()
	told := &atomic.Pointer[guard]{}
	o := broker.Options{DB: db, Log: quiet(), Now: time.Now, Exceeded: func(device, budget string, limit int64) {
		if g := told.Load(); g != nil {
			g.Exceeded(countersign.Session{Device: device}, budget, limit)
		}
	}}
	if len(limits) > 0 {
		o.Limits = limits[0]
	}
	core, err := broker.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := core.Close(context.Background()); err != nil {
			t.Errorf("close the core: %v", err)
		}
	})
	return engine{core: core, db: db, guard: told}
}

// start runs a gateway before an engine. set may change the server before it starts.
func start(t testing.TB, e engine, set ...func(*mqtt.Server)) *gateway {
	t.Helper()
	a := newAuthority(t)
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	if e == (engine{}) {
		e = coreIn(t, t.TempDir())
	}
	g := &guard{budget: countersign.Budget{Sessions: 1000, Publishes: 100_000}, roots: a.roots, refused: map[string]countersign.Code{}, closed: map[string][]string{}, perms: map[string]countersign.Permissions{}}
	if e.guard != nil {
		e.guard.Store(g)
	}
	s := &mqtt.Server{
		Gatekeeper: g, Index: edge.NewIndex(time.Now), Broker: e.core, Relay: e.relay, Log: log, Now: time.Now,
		TLS: edge.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &a.server, nil }),
	}
	for _, f := range set {
		f(s)
	}
	ln, web := kit.Must(net.Listen("tcp", "127.0.0.1:0")), kit.Must(net.Listen("tcp", "127.0.0.1:0"))
	served := make(chan error, 2)
	go func() { served <- s.Serve(context.Background(), ln) }()
	go func() { served <- s.ServeWebSocket(context.Background(), web) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := errors.Join(<-served, <-served); err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := s.Index.Len(); n != 0 {
			t.Errorf("sessions in the index after Close: got %d, want 0", n)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, o := range g.opened {
			if n := len(g.closed[o.ID]); n != 1 {
				t.Errorf("session of %s: closed %d times (%q), want once", o.Device, n, g.closed[o.ID])
			}
		}
		if st := s.Stats(); st.Open != 0 || st.PreAuth != 0 || st.Opened != st.Closed {
			t.Errorf("Stats after Close: %+v", st)
		}
	})
	return &gateway{Server: s, authority: a, guard: g, addr: ln.Addr().String(), web: web.Addr().String(), db: e.db}
}

// send publishes to devices at QoS 1, as the operator of the engine does.
func (g *gateway) send(t testing.TB, topic string, payload []byte) {
	t.Helper()
	if g.Broker != nil {
		if err := g.Broker.Publish(t.Context(), &broker.Message{Topic: topic, Payload: payload, QoS: 1}); err != nil {
			t.Fatal(err)
		}
		return
	}
	d := g.behind(t)
	d.put(1, false, topic, string(payload))
	_ = d.Close()
}

// purge drops what the core keeps of a device, as a revocation does.
func (g *gateway) purge(t testing.TB, device string) {
	t.Helper()
	if err := g.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return broker.Erase(ctx, tx, device) }); err != nil {
		t.Fatal(err)
	}
	g.Broker.Forget(device)
}

// behind is a client of the broker behind a relay.
func (g *gateway) behind(t testing.TB) *device {
	t.Helper()
	d := &device{t: t, id: "operator", Conn: kit.Must(net.Dial("tcp", g.Relay.Addr))}
	t.Cleanup(func() { _ = d.Close() })
	d.hello(4, rand.Text()[:20])
	return d
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run starts a program and returns its growing output and a wait for its end.
func run(t testing.TB, name string, args ...string) (out *buffer, wait func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	cmd := exec.CommandContext(ctx, name, args...)
	out = &buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait(); cancel() }()
	t.Cleanup(func() { cancel() })
	return out, func() error { return <-done }
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
