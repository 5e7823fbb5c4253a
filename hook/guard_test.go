package hook_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/hook"
)

// guard decides from tables and records its calls.
type guard struct {
	mu       sync.Mutex
	secrets  map[string]string // device by secret
	tokens   map[string]string // device by token, which counts whatever the user name
	refused  map[string]bool   // by device
	asked    []countersign.Connection
	opened   []countersign.Session
	closed   []string
	judged   []countersign.Act
	notAfter time.Time
	// credential is what all but vouched sessions rest on.
	credential string
	perms      func(device string) countersign.Permissions
	deciding   func() // called while a decision is under way
	// again decides on a session that is asked for again; nil: it goes on.
	again func(rests countersign.Session) bool
}

func (g *guard) Admit(_ context.Context, c countersign.Connection) countersign.Verdict {
	g.mu.Lock()
	g.asked = append(g.asked, c)
	device := ""
	switch {
	case len(c.Peer) > 0:
		device = c.Peer[0].Subject.CommonName
	case c.Vouched != "":
		device = c.Username
	case c.Password != nil && g.secrets[string(c.Password)] == c.Username:
		device = c.Username
	case g.tokens[string(c.Password)] != "":
		device = g.tokens[string(c.Password)]
	}
	v := countersign.Verdict{Code: countersign.NotAllowed, Reason: "no"}
	if c.Rests != nil && g.again != nil && !g.again(*c.Rests) {
		device = ""
	}
	if device != "" && !g.refused[device] && c.ClientID != "pump-1:device" { // there is a device of that name
		v = countersign.Verdict{Allow: true, Device: device, Fleet: "pumps", NotAfter: g.notAfter, Permissions: permissions(device)}
		if c.Vouched == "" {
			v.Credential = g.credential
		}
		if g.perms != nil {
			v.Permissions = g.perms(device)
		}
	}
	deciding := g.deciding
	g.deciding = nil
	g.mu.Unlock()
	if deciding != nil {
		deciding()
	}
	return v
}

func permissions(device string) countersign.Permissions {
	up := countersign.Filters{Allow: []string{"devices/" + device + "/up/#"}}
	down := countersign.Filters{Allow: []string{"devices/" + device + "/down/#"}}
	return countersign.Permissions{Publish: up, Subscribe: down, Receive: down}
}

func (g *guard) Exchange(context.Context, countersign.Connection, string) (countersign.Exchange, error) {
	return nil, countersign.Errorf(countersign.BadRequest, "none")
}

func (g *guard) Opened(s countersign.Session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = append(g.opened, s)
}

func (g *guard) Closed(s countersign.Session, end countersign.Ending) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = append(g.closed, s.ClientID+" "+end.Reason)
}

func (g *guard) Exceeded(countersign.Session, string, int64) {}

func (g *guard) Judged(_ countersign.Session, a countersign.Act) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.judged = append(g.judged, a)
}

func (g *guard) refuse(device string, no bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refused[device] = no
}

func (g *guard) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.asked)
}

func (g *guard) last() countersign.Connection {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked[len(g.asked)-1]
}

const hookSecret = "a-secret-of-20-characters"

// door is a hook server with its guard.
type door struct {
	*hook.Server
	guard *guard
	now   time.Time
}

func open(t *testing.T, hooks ...hook.Hook) *door {
	t.Helper()
	d := &door{guard: &guard{secrets: map[string]string{"right": "pump-1"}, refused: map[string]bool{}}, now: time.Unix(1_800_000_000, 0)}
	for i := range hooks {
		if hooks[i].Device == "" && hooks[i].Networks == nil {
			hooks[i].Secret = []byte(hookSecret)
		}
	}
	d.Server = &hook.Server{
		Gatekeeper: d.guard, Hooks: hooks, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: func() time.Time { return d.now },
	}
	return d
}

// ask sends a question as a caller with the secret.
func (d *door) ask(method, path, body string, header ...string) (int, http.Header, string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+hookSecret)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return d.send(r)
}

func (d *door) send(r *http.Request) (int, http.Header, string) {
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	text, err := io.ReadAll(w.Result().Body)
	if err != nil {
		panic(err)
	}
	return w.Code, w.Header(), string(text)
}

// happen sends the door an event now.
func (d *door) happen(kind countersign.EventType, device string) {
	d.OnEvent(countersign.Event{At: d.now, Type: kind, Device: device})
}

// certificate makes one with the name in its subject.
func certificate(t testing.TB, cn string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: cn}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
