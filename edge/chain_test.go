package edge_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/edge"
)

// bulky returns a certificate that shows itself with n more certificates of about
// size octets each, as costly to parse as such octets can be.
func bulky(t *testing.T, n, size int) tls.Certificate {
	t.Helper()
	c := certificate(t, "device")
	if n == 0 {
		return c
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	for i := 0; i < (size-300)/22; i++ {
		tmpl.Subject.ExtraNames = append(tmpl.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: ""})
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		c.Certificate = append(c.Certificate, der)
	}
	return c
}

// doors are the two kinds of listener, each with the number of handshakes that
// failed because of the chain.
func doors(t *testing.T) map[string]struct {
	addr  string
	guard *edge.Guard
} {
	t.Helper()
	g, addr := open(t, edge.Limits{Tries: -1}, hold)
	_ = g.Stats()
	guard := &edge.Guard{Now: time.Now}
	cert := certificate(t, "server")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	door := guard.Listen("web", ln, edge.Limits{PreAuth: 8192, PreAuthPerAddress: 8192, Tries: -1})
	served := make(chan error, 1)
	go func() {
		served <- web.Serve(door.TLS(edge.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil })))
	}()
	t.Cleanup(func() { _ = errors.Join(web.Close(), <-served) })
	return map[string]struct {
		addr  string
		guard *edge.Guard
	}{"gate": {addr, g.Guard}, "http": {ln.Addr().String(), guard}}
}

// served reports whether the other side keeps the connection after the handshake. One
// that is to be refused is waited for: with TLS 1.3 the client has ended its handshake before.
func served(c *tls.Conn, want bool) bool {
	_ = c.SetDeadline(time.Now().Add(patience))
	if c.Handshake() != nil {
		return false
	}
	if want {
		return !closedWithin(c, 100*time.Millisecond)
	}
	return !closedWithin(c, patience)
}

func TestClientChainsAreBoundedInOctets(t *testing.T) {
	for name, door := range doors(t) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, tt := range []struct {
				what    string
				n, size int
				want    bool
			}{
				{"a leaf alone", 0, 0, true},
				{"a path of four", 3, 1500, true},
				{"ten", 9, 1000, true},
				{"eleven", 10, 1000, false},
				{"ten of 2 KiB", 9, 2048, false},
				{"one of 20 KiB", 1, 20 << 10, false},
				{"more than the greeting", 10, 10 << 10, false},
				{"all that crypto/tls takes", 11, 22 << 10, false},
			} {
				c := bulky(t, tt.n, tt.size)
				s := tls.Client(dial(t, door.addr), &tls.Config{InsecureSkipVerify: true, MaxVersion: version, Certificates: []tls.Certificate{c}})
				if got := served(s, tt.want); got != tt.want {
					t.Errorf("%s, %s, %s: served %v, want %v", name, tls.VersionName(version), tt.what, got, tt.want)
				}
				_ = s.Close()
			}
		}
		n := uint64(0)
		for k, count := range door.guard.Failures() {
			if k.Failure == edge.FailureChain {
				n += count
			}
		}
		if n != 10 {
			t.Errorf("%s: %d handshakes counted as failed by their chain, want 10", name, n)
		}
	}
}

// TestChainsOfStrangersCostLittleMemory holds 1,200 connections with the largest
// chains at once, those that are refused and those that are let in.
func TestChainsOfStrangersCostLittleMemory(t *testing.T) {
	const (
		workers = 16
		// each: what a connection without a chain costs, both of its ends being in
		// this process.
		each = 150 << 10
	)
	for name, door := range doors(t) {
		for what, tt := range map[string]struct {
			tls.Certificate
			connections int
		}{"241 KiB": {bulky(t, 11, 22<<10), 1200}, "just allowed": {bulky(t, 9, 1700), 500}} {
			before := heap()
			var wg sync.WaitGroup
			var mu sync.Mutex
			var all []net.Conn
			jobs := make(chan int)
			for range workers {
				wg.Go(func() {
					for range jobs {
						raw, err := net.Dial("tcp", door.addr)
						if err != nil {
							continue
						}
						s := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{tt.Certificate}})
						_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
						_ = s.Handshake()
						mu.Lock()
						all = append(all, raw)
						mu.Unlock()
					}
				})
			}
			for i := range tt.connections {
				jobs <- i
			}
			close(jobs)
			wg.Wait()
			time.Sleep(200 * time.Millisecond)
			grown := heap() - before
			t.Logf("%s, %s: %d MiB", name, what, grown>>20)
			// One address has maxChainsPerAddress of 4 MiB, parsed about tenfold.
			if limit := int64(tt.connections*each) + 10*4<<20; grown > limit {
				t.Errorf("%s, %s: %d connections cost %d MiB, want at most %d", name, what, tt.connections, grown>>20, limit>>20)
			}
			for _, c := range all {
				_ = c.Close()
			}
		}
	}
}

// TestAnAdmittedConnectionKeepsOctetsOnly holds that the parsed chain of a session
// does not stay in memory, and is there when it is asked for.
func TestAnAdmittedConnectionKeepsOctetsOnly(t *testing.T) {
	const sessions = 200
	conns := make(chan *edge.Conn, sessions)
	_, addr := open(t, edge.Limits{}, func(ctx context.Context, c *edge.Conn) {
		c.Admitted()
		conns <- c
		hold(ctx, c)
	})
	cost := func(c tls.Certificate) int64 {
		before := heap()
		for range sessions {
			s := tls.Client(dial(t, addr), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{c}})
			if err := s.Handshake(); err != nil {
				t.Fatal(err)
			}
		}
		var last *edge.Conn
		for range sessions {
			last = <-conns
		}
		grown := (heap() - before) / sessions
		for i, parsed := range last.ConnectionState().PeerCertificates {
			if parsed != nil {
				t.Errorf("certificate %d of an admitted connection is kept parsed", i)
			}
		}
		if peer := last.Peer(); len(peer) != len(c.Certificate) || peer[0].Subject.CommonName != "device" {
			t.Errorf("Peer of an admitted connection: got %d certificates, want %d", len(peer), len(c.Certificate))
		}
		return grown
	}
	alone, chain := cost(bulky(t, 0, 0)), cost(bulky(t, 9, 1700))
	t.Logf("%d KiB with a leaf alone, %d KiB with %d KiB of chain", alone>>10, chain>>10, edge.MaxChain>>10)
	// crypto/tls keeps the buffers through which the octets came, twice their size each.
	if more := chain - alone; more > 6*edge.MaxChain {
		t.Errorf("a chain of %d octets costs an admitted connection %d octets", edge.MaxChain, more)
	}
}

func TestAFailedHandshakeLeavesATrace(t *testing.T) {
	var out lines
	cert := certificate(t, "server")
	guard := &edge.Guard{Now: time.Now, Log: slog.New(slog.NewTextHandler(&out, nil))}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := edge.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil })
	config.NextProtos = []string{"h2", "http/1.1"}
	web := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	door := guard.Listen("web", ln, edge.Limits{Handshake: 500 * time.Millisecond, Tries: -1})
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(door.TLS(config)) }()
	t.Cleanup(func() { _ = errors.Join(web.Close(), <-ended) })
	offer := func(c *tls.Config) func(net.Conn) {
		return func(raw net.Conn) { _ = tls.Client(raw, c).Handshake() }
	}
	for want, do := range map[edge.Failure]func(net.Conn){
		edge.FailureNotTLS: func(c net.Conn) {
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
		},
		edge.FailureClosed:  func(c net.Conn) { _, _ = c.Write([]byte{22, 3, 1}); _ = c.Close() },
		edge.FailureTimeout: func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		edge.FailureVersion: offer(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}),
		edge.FailureCipher: offer(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		}}), // the server's key is of another type
		edge.FailureALPN:  offer(&tls.Config{InsecureSkipVerify: true, NextProtos: []string{"mqtt"}}),
		edge.FailureAlert: offer(&tls.Config{ServerName: "server", RootCAs: x509.NewCertPool(), MaxVersion: tls.VersionTLS12}),
		edge.FailureChain: offer(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{bulky(t, 10, 1000)}}),
	} {
		k := edge.FailureCount{Listener: "web", Failure: want}
		logged := func() int { return strings.Count(out.String(), "reason="+string(want)+" ") }
		for i := range 3 {
			do(dial(t, ln.Addr().String()))
			for end := time.Now().Add(patience); (guard.Failures()[k] <= uint64(i) || logged() == 0) && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
		}
		if got := guard.Failures()[k]; got != 3 {
			t.Errorf("%s: counted %d, want 3: %v", want, got, guard.Failures())
		}
		if n := logged(); n != 1 {
			t.Errorf("%s: logged %d times, want once in ten seconds", want, n)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
}

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
