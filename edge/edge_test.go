package edge_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

func certificate(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serves is a handler that admits every connection.
func serves(handle func(context.Context, *edge.Conn)) func(context.Context, *edge.Conn) func() {
	return func(ctx context.Context, c *edge.Conn) func() {
		return func() { handle(ctx, c) }
	}
}

// open runs a gate with the limits and the handler.
func open(t *testing.T, limits edge.Limits, handle func(context.Context, *edge.Conn)) (*edge.Gate, string) {
	t.Helper()
	cert := certificate(t, "server")
	g := &edge.Gate{
		TLS:    edge.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }),
		Limits: limits, Handle: serves(handle), Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(context.Background(), ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = g.Close(ctx)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if s := g.Stats(); s.Open != 0 || s.PreAuth != 0 {
			t.Errorf("Stats after Close: %+v", s)
		}
	})
	return g, ln.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// patience bounds the wait for what is to come, on a busy machine too.
const patience = 30 * time.Second

// closedWithin reports whether the other side closes c before the time is over.
func closedWithin(c net.Conn, d time.Duration) bool {
	_ = c.SetReadDeadline(time.Now().Add(d))
	_, err := io.Copy(io.Discard, c)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

func hold(ctx context.Context, c *edge.Conn) { _, _ = io.Copy(io.Discard, c) }

func TestSilentPeerIsClosedAtTheHandshakeDeadline(t *testing.T) {
	g, addr := open(t, edge.Limits{Handshake: 300 * time.Millisecond}, hold)
	began := time.Now()
	slow := dial(t, addr)
	go func() { // one byte at a time buys nothing
		hello := append([]byte{0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc}, make([]byte, 20)...)
		for _, b := range hello {
			if _, err := slow.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	if !closedWithin(slow, 5*time.Second) {
		t.Fatal("a peer that never ends its handshake is still connected")
	}
	if took := time.Since(began); took < 250*time.Millisecond || took > 2*time.Second {
		t.Errorf("closed after %v, want 300ms", took)
	}
	if s := g.Stats(); s.HandshakeFailed != 1 {
		t.Errorf("Stats: %+v", s)
	}
}

func TestCapsTurnStrangersAway(t *testing.T) {
	cases := map[string]edge.Limits{
		"connections":              {Connections: 3},
		"pre-auth":                 {PreAuth: 3},
		"per address":              {PerAddress: 3},
		"pre-auth and per address": {PreAuthPerAddress: 3},
	}
	for name, limits := range cases {
		t.Run(name, func(t *testing.T) {
			g, addr := open(t, limits, hold)
			var kept []net.Conn
			for range 3 {
				kept = append(kept, dial(t, addr))
			}
			if c, err := net.Dial("tcp", addr); err == nil { // else reset before we knew
				t.Cleanup(func() { _ = c.Close() })
				if !closedWithin(c, patience) {
					t.Error("the fourth connection was taken")
				}
			}
			if closedWithin(kept[0], 50*time.Millisecond) {
				t.Error("the first connection was closed")
			}
			_ = kept[1].Close()
			for end := time.Now().Add(2 * time.Second); g.Stats().Open == 3 && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			if closedWithin(dial(t, addr), 50*time.Millisecond) {
				t.Error("a connection was turned away although there was room again")
			}
			if s := g.Stats(); s.TurnedAway != 1 || s.Accepted != 5 {
				t.Errorf("Stats: %+v", s)
			}
		})
	}
}

func TestAcceptRateIsPerAddress(t *testing.T) {
	g, addr := open(t, edge.Limits{AcceptRate: 5}, hold)
	for range 30 {
		if c, err := net.Dial("tcp", addr); err == nil { // else reset before we knew
			t.Cleanup(func() { _ = c.Close() })
		}
	}
	for end := time.Now().Add(2 * time.Second); g.Stats().Accepted < 30 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if s := g.Stats(); s.TurnedAway < 15 || s.TurnedAway > 20 { // a burst of two seconds' worth
		t.Errorf("turned away: got %d of 30, want about 20", s.TurnedAway)
	}
}

// failing is a listener whose first accepts fail as when descriptors run out.
type failing struct {
	net.Listener
	mu   sync.Mutex
	left int
}

func (f *failing) Accept() (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left > 0 {
		f.left--
		return nil, &net.OpError{Op: "accept", Err: errors.New("too many open files")}
	}
	return f.Listener.Accept()
}

func TestTemporaryAcceptErrorsAreOutlived(t *testing.T) {
	cert := certificate(t, "server")
	g := &edge.Gate{
		TLS:    edge.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }),
		Handle: serves(func(_ context.Context, c *edge.Conn) { _, _ = c.Write([]byte("hi")) }),
		Log:    slog.New(slog.DiscardHandler), Now: time.Now,
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, &failing{Listener: ln, left: 3}) }()
	c := tls.Client(dial(t, ln.Addr().String()), &tls.Config{InsecureSkipVerify: true})
	b := make([]byte, 2)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hi" {
		t.Errorf("got %q %v", b, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := g.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTLSRequestsButDoesNotRequireACertificate(t *testing.T) {
	peers := make(chan int, 1)
	_, addr := open(t, edge.Limits{}, func(_ context.Context, c *edge.Conn) {
		peers <- len(c.Peer())
		hold(t.Context(), c)
	})
	for want, config := range []*tls.Config{
		{InsecureSkipVerify: true},
		{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate(t, "unknown")}},
	} {
		c := tls.Client(dial(t, addr), config)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		if got := <-peers; got != want {
			t.Errorf("peer certificates: got %d, want %d", got, want)
		}
		s := c.ConnectionState()
		if s.Version != tls.VersionTLS13 || s.CurveID != tls.X25519MLKEM768 {
			t.Errorf("negotiated %s with %s", tls.VersionName(s.Version), s.CurveID)
		}
		_ = c.Close()
	}
	for _, config := range []*tls.Config{
		{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10},
		{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
	} {
		if err := tls.Client(dial(t, addr), config).Handshake(); err == nil {
			t.Errorf("a handshake with %s %x went through", tls.VersionName(config.MaxVersion), config.CipherSuites)
		}
	}
}

func TestSessionsAreNotResumed(t *testing.T) {
	_, addr := open(t, edge.Limits{}, func(_ context.Context, c *edge.Conn) { _, _ = c.Write([]byte("hi")) })
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := &tls.Config{InsecureSkipVerify: true, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(1), ServerName: "x"}
		for range 2 {
			c := tls.Client(dial(t, addr), config)
			if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
				t.Fatal(err)
			}
			if c.ConnectionState().DidResume {
				t.Errorf("%s: a session was resumed", tls.VersionName(version))
			}
		}
	}
}

// indexed runs a gate whose connections are registered and handed to the test.
func indexed(t *testing.T) (*edge.Index, func() (*edge.Live, *tls.Conn)) {
	t.Helper()
	x := edge.NewIndex(time.Now)
	lives := make(chan *edge.Live)
	_, addr := open(t, edge.Limits{}, func(_ context.Context, c *edge.Conn) {
		l := x.Register(c, func(e countersign.Ending) bool {
			_, err := c.Write([]byte("bye: " + e.Reason))
			return err == nil
		})
		defer l.Remove()
		lives <- l
		hold(t.Context(), c)
	})
	return x, func() (*edge.Live, *tls.Conn) {
		c := tls.Client(dial(t, addr), &tls.Config{InsecureSkipVerify: true})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return <-lives, c
	}
}

func ref(n int) countersign.CertRef {
	return countersign.CertRef{Issuer: "ca", Serial: countersign.Serial(fmt.Sprintf("%02x", n))}
}

func TestCutFindsByDeviceAndByCertificate(t *testing.T) {
	x, next := indexed(t)
	admit := func(device string, cert int) *tls.Conn {
		l, c := next()
		if e := l.Admit(countersign.Session{ID: fmt.Sprint(device, cert), Device: device, Cert: ref(cert)}, 16); e != nil {
			t.Fatalf("Admit: %s", e)
		}
		return c
	}
	a1, a2, b := admit("a", 1), admit("a", 2), admit("b", 3)
	if n := x.Cut(countersign.Cut{}); n != 0 {
		t.Errorf("a cut that names nothing: got %d", n)
	}
	if n := x.Cut(countersign.Cut{Cert: ref(2), Reason: "held"}); n != 1 {
		t.Errorf("cut by certificate: got %d, want 1", n)
	}
	if got, _ := io.ReadAll(a2); !bytes.Equal(got, []byte("bye: held")) {
		t.Errorf("last words: got %q", got)
	}
	if n := x.Cut(countersign.Cut{Device: "a", Cert: ref(1)}); n != 1 {
		t.Errorf("cut by device and certificate: got %d, want 1", n)
	}
	if !closedWithin(a1.NetConn(), patience) || closedWithin(b.NetConn(), 50*time.Millisecond) {
		t.Error("the cut closed another session than it should")
	}
	for end := time.Now().Add(2 * time.Second); x.Len() > 1 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if s := x.Sessions(); len(s) != 1 || s[0].Device != "b" {
		t.Errorf("Sessions: got %+v, want b's", s)
	}
}

func TestAdmitSeesTheCutsSinceRegistration(t *testing.T) {
	x, next := indexed(t)
	s := countersign.Session{Device: "a", Cert: ref(1)}
	early, _ := next()
	x.Cut(countersign.Cut{Device: "other"})
	x.Cut(countersign.Cut{Cert: ref(1), Reason: "revoked"})
	late, _ := next() // it was registered after the cut: the Gatekeeper has seen it
	if e := early.Admit(s, 16); e == nil || e.Message != "revoked" {
		t.Errorf("registered before the cut: got %v, want refused", e)
	}
	early.Remove()
	if e := late.Admit(s, 16); e != nil {
		t.Error("registered after the cut: refused")
	}
	another, _ := next()
	for range 40_000 { // more than are kept
		x.Cut(countersign.Cut{Device: "other"})
	}
	if e := another.Admit(countersign.Session{Device: "b"}, 16); e == nil {
		t.Error("admitted although cuts were forgotten meanwhile")
	}
}

// TestCutFindsByCredentialAndByScope tries sessions without a certificate, decided
// and undecided ones.
func TestCutFindsByCredentialAndByScope(t *testing.T) {
	browser := countersign.Session{Device: "operator/alice", Credential: "token:1", Scope: []string{"a", "b"}}
	for name, c := range map[string]struct {
		cut countersign.Cut
		hit bool
	}{
		"its credential":        {countersign.Cut{Credential: "token:1", Reason: "cut"}, true},
		"a device of its scope": {countersign.Cut{Device: "b", Reason: "cut"}, true},
		"its own name":          {countersign.Cut{Device: "operator/alice", Reason: "cut"}, true},
		"another credential":    {countersign.Cut{Credential: "token:2", Reason: "cut"}, false},
		"another device":        {countersign.Cut{Device: "c", Reason: "cut"}, false},
		"nothing":               {countersign.Cut{Reason: "cut"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			x, next := indexed(t)
			undecided, _ := next()
			decided, _ := next()
			if e := decided.Admit(browser, 16); e != nil {
				t.Fatalf("Admit: %s", e)
			}
			if n := x.Cut(c.cut); (n == 1) != c.hit {
				t.Errorf("cut %d sessions, want it hit: %v", n, c.hit)
			}
			if e := undecided.Admit(browser, 16); (e == nil) == c.hit {
				t.Errorf("admitted after the cut: %v, want it refused: %v", e, c.hit)
			}
		})
	}
}

func TestCutIsNotHeldUpByAStalledPeer(t *testing.T) {
	x := edge.NewIndex(time.Now)
	ready := make(chan struct{})
	_, addr := open(t, edge.Limits{}, func(_ context.Context, c *edge.Conn) {
		var mu sync.Mutex
		l := x.Register(c, func(countersign.Ending) bool {
			mu.Lock()
			defer mu.Unlock()
			_, err := c.Write([]byte("bye"))
			return err == nil
		})
		defer l.Remove()
		_ = l.Admit(countersign.Session{Device: "a"}, 16)
		close(ready)
		mu.Lock()
		defer mu.Unlock()
		for { // the peer reads nothing: this blocks
			if _, err := c.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	if err := tls.Client(dial(t, addr), &tls.Config{InsecureSkipVerify: true}).Handshake(); err != nil {
		t.Fatal(err)
	}
	<-ready
	time.Sleep(200 * time.Millisecond)
	began := time.Now()
	if n := x.Cut(countersign.Cut{Device: "a"}); n != 1 {
		t.Errorf("Cut: got %d", n)
	}
	if took := time.Since(began); took > 50*time.Millisecond {
		t.Errorf("Cut of a stalled peer took %v", took)
	}
}

func TestCloseAbortsWhatDoesNotEnd(t *testing.T) {
	cert := certificate(t, "server")
	in := make(chan struct{})
	g := &edge.Gate{
		TLS:    edge.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }),
		Handle: serves(func(ctx context.Context, c *edge.Conn) { c.Admitted(); close(in); hold(ctx, c) }),
		Log:    slog.New(slog.DiscardHandler), Now: time.Now,
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(context.Background(), ln) }()
	if err := tls.Client(dial(t, ln.Addr().String()), &tls.Config{InsecureSkipVerify: true}).Handshake(); err != nil {
		t.Fatal(err)
	}
	<-in
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := g.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: got %v, want the deadline", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}
