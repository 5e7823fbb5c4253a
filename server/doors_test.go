package server_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/test/kit"
)

// everyDoor starts a server with each kind of listener that ends TLS, and returns
// their addresses by name.
func everyDoor(t *testing.T) (*countersigntest.Server, map[string]string) {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(strings.Repeat("s", 40)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) {
		c.Names = []string{"127.0.0.1", "localhost"}
		c.Listeners.Recovery, c.Listeners.WebSocket = "127.0.0.1:0", "127.0.0.1:0"
		c.Listeners.Hook, c.Listeners.API = ":0", ":0" // TLS on any but a loopback address
		c.Hooks = []config.Hook{{Name: "a", Kind: "emqx", Secret: config.Secret("file:" + secret)}}
		c.Tunnels = []config.Tunnel{{Name: "plc", Listen: "127.0.0.1:0", To: "127.0.0.1:1"}}
	}})
	e := s.Endpoints()
	doors := map[string]string{}
	for name, endpoint := range map[string]string{
		"enroll": e.Enroll, "recovery": e.Recovery, "mqtt": e.MQTT, "websocket": e.WebSocket, "hook": e.Hook, "api": e.API, "tunnel": e.Tunnels["plc"],
	} {
		u, err := url.Parse(endpoint)
		if err != nil || u.Port() == "" {
			t.Fatalf("the %s listener is at %q: %v", name, endpoint, err)
		}
		doors[name] = "127.0.0.1:" + u.Port()
	}
	return s, doors
}

// asksForCertificates reports whether a door requests one. A client of the others
// cannot show any.
func asksForCertificates(door string) bool { return door != "websocket" && door != "api" }

// stranger returns a certificate with n more behind it, each of about size octets.
func stranger(t *testing.T, n, size int) tls.Certificate {
	t.Helper()
	key := kit.Key(t)
	var c tls.Certificate
	c.PrivateKey = key
	for i := range n + 1 {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stranger"}, NotAfter: time.Now().Add(time.Hour)}
		if i > 0 {
			tmpl.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Value: make([]byte, size)}}
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		c.Certificate = append(c.Certificate, der)
	}
	return c
}

func TestEachDoorBoundsTheClientsChain(t *testing.T) {
	s, doors := everyDoor(t)
	small, large := stranger(t, 1, 1000), stranger(t, 11, 20<<10)
	for name, addr := range doors {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			shake := func(c tls.Certificate) error {
				raw, err := net.DialTimeout("tcp", addr, patience)
				if err != nil {
					return err
				}
				defer func() { _ = raw.Close() }()
				_ = raw.SetDeadline(time.Now().Add(patience))
				asked := false
				conn := tls.Client(raw, &tls.Config{RootCAs: s.Roots, ServerName: "127.0.0.1", MaxVersion: version, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					asked = true
					return &c, nil
				}})
				if err := conn.Handshake(); err != nil {
					return err
				}
				if asked != asksForCertificates(name) {
					t.Errorf("%s: asks for a certificate: %v", name, asked)
				}
				// TLS 1.3: the client learns of a refusal with its first read.
				_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				_, err = conn.Read(make([]byte, 1))
				if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) && name == "tunnel" {
					return nil // the tunnel closes in order, having refused a stranger
				}
				return err
			}
			if err := shake(small); err != nil {
				t.Errorf("%s, %s: a chain of two was refused: %v", name, tls.VersionName(version), err)
			}
			if err := shake(large); (err == nil) == asksForCertificates(name) {
				t.Errorf("%s, %s: a chain of 220 KiB: got %v, want a refusal: %v", name, tls.VersionName(version), err, asksForCertificates(name))
			}
		}
	}
}

func TestALPNAtEachDoor(t *testing.T) {
	s, doors := everyDoor(t)
	https := []struct {
		offer []string
		want  string // refused: none is agreed on, RFC 7301, 3.2
	}{
		{nil, ""},
		{[]string{"http/1.1"}, "http/1.1"},
		{[]string{"h2"}, "h2"},
		{[]string{"http/1.1", "h2"}, "h2"},
		{[]string{"http/1.0"}, "http/1.0"}, // curl --http1.0
		{[]string{"foreign", "http/1.1"}, "http/1.1"},
		{[]string{"mqtt"}, "refused"},
	}
	mqtt := []struct {
		offer []string
		want  string
	}{
		{nil, ""},
		{[]string{"mqtt"}, "mqtt"},
		{[]string{"x-amzn-mqtt-ca"}, "x-amzn-mqtt-ca"},
		{[]string{"x-amzn-mqtt-ca", "mqtt"}, "mqtt"},
		{[]string{"http/1.1", "foreign"}, ""},
	}
	web := []struct {
		offer []string
		want  string
	}{{nil, ""}, {[]string{"http/1.1"}, "http/1.1"}, {[]string{"h2", "http/1.1"}, "http/1.1"}, {[]string{"h2"}, ""}}
	for name, addr := range doors {
		table := https
		switch name {
		case "mqtt":
			table = mqtt
		case "websocket":
			table = web
		case "tunnel": // what is behind it has names of its own
			table = table[:1]
		}
		for _, tt := range table {
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, &tls.Config{RootCAs: s.Roots, ServerName: "127.0.0.1", NextProtos: tt.offer})
			got := "refused"
			if err == nil {
				got = c.ConnectionState().NegotiatedProtocol
				_ = c.Close()
			}
			if got != tt.want {
				t.Errorf("%s, %q: got %q (%v), want %q", name, tt.offer, got, err, tt.want)
			}
		}
	}
	for _, protocol := range []string{"http/1.1", "http/1.0"} { // and it is served
		c, err := tls.Dial("tcp", doors["enroll"], &tls.Config{RootCAs: s.Roots, ServerName: "127.0.0.1", NextProtos: []string{protocol}})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "GET /.well-known/est/cacerts HTTP/1.0\r\n\r\n")
		answer, _ := io.ReadAll(c)
		if !strings.HasPrefix(string(answer), "HTTP/1.0 200 ") {
			t.Errorf("%s: got %.40q", protocol, answer)
		}
		_ = c.Close()
	}
}

// TestBodiesOfStrangersAreBounded sends bodies over as many streams as HTTP/2 lets one
// have, to each door, from several addresses, before it is known whose they are.
func TestBodiesOfStrangersAreBounded(t *testing.T) {
	s, doors := everyDoor(t)
	const (
		addresses, connections, streams = 12, 10, 100
		body                            = 90 << 10 // what the smallest of the doors takes
	)
	octets := bytes.Repeat([]byte("A"), body)
	before := heapNow()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var busy atomic.Int64
	paths := map[string]string{"enroll": "/.well-known/est/simpleenroll", "recovery": "/api/v1/renew", "hook": "/hooks/a/authn", "api": "/api/v1/devices"}
	n := 0
	for name, path := range paths {
		for a := range addresses / len(paths) {
			n++
			local := fmt.Sprintf("127.3.%d.%d", n, a+1)
			for range connections {
				client := overHTTP2(s, local)
				for range streams {
					wg.Go(func() {
						req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+doors[name]+path, io.MultiReader(bytes.NewReader(octets), silent{ctx}))
						req.Header.Set("Content-Type", "application/pkcs10")
						res, err := client.Do(req)
						if err != nil {
							return
						}
						if res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") != "" {
							busy.Add(1)
						}
						_ = res.Body.Close()
					})
				}
			}
		}
	}
	time.Sleep(3 * time.Second)
	// An honest device enrolls meanwhile.
	began := time.Now()
	s.Enroll(t, "honest")
	t.Logf("the honest enrollment took %v", time.Since(began))
	// Both ends are in this process: what the clients hold is in the figure too.
	grown := heapNow() - before
	t.Logf("%d MiB, %d times 503", grown>>20, busy.Load())
	// All bodies at once would be 1 GiB. A machine with other work collects late.
	if grown > 450<<20 {
		t.Errorf("the bodies of strangers cost %d MiB", grown>>20)
	}
	if busy.Load() == 0 {
		t.Error("nothing was refused with 503 and Retry-After")
	}
	stop()
	wg.Wait()
}

// silent is a body that does not end.
type silent struct{ ctx context.Context }

func (s silent) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

func overHTTP2(s *countersigntest.Server, local string) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		ForceAttemptHTTP2: true, MaxConnsPerHost: 1, HTTP2: &http.HTTP2Config{StrictMaxConcurrentRequests: true},
		TLSClientConfig: &tls.Config{RootCAs: s.Roots, ServerName: "127.0.0.1"},
		DialContext:     (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}).DialContext,
	}}
}

func heapNow() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestRoundTripsOfFiveSeconds does over a slow link what a device does in its life.
func TestRoundTripsOfFiveSeconds(t *testing.T) {
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) { c.Names = []string{"127.0.0.1", "localhost"} }})
	const roundTrip = 5 * time.Second
	far := func(endpoint string) string {
		u, err := url.Parse(endpoint)
		if err != nil {
			t.Fatal(err)
		}
		return u.Scheme + "://" + countersigntest.Distant(t, u.Host, roundTrip) + u.Path
	}
	enroll, status, broker := far(s.Endpoints().Enroll), far(s.Endpoints().Status), far(s.Endpoints().MQTT)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		name := strings.ReplaceAll(tls.VersionName(version), " ", "-")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			device := s.Enroll(t, name)
			config := func(certificates ...tls.Certificate) *tls.Config {
				return &tls.Config{RootCAs: s.Roots, ServerName: "127.0.0.1", MaxVersion: version, Certificates: certificates}
			}
			pair := tls.Certificate{Certificate: device.Path(), PrivateKey: device.Key()}
			t.Run("EST", func(t *testing.T) {
				t.Parallel()
				csr := request(t, name)
				postSlow(t, enroll+"/.well-known/est/simplereenroll", "application/pkcs10", csr, config(pair))
			})
			t.Run("REST", func(t *testing.T) {
				t.Parallel()
				second := s.Enroll(t, name+"-rest")
				csr := request(t, name+"-rest")
				postSlow(t, enroll+"/api/v1/renew", "application/pkcs10", csr, config(tls.Certificate{Certificate: second.Path(), PrivateKey: second.Key()}))
			})
			t.Run("MQTT", func(t *testing.T) {
				t.Parallel()
				third := s.Enroll(t, name+"-mqtt")
				connectSlow(t, strings.TrimPrefix(broker, "mqtts://"), name+"-mqtt", config(tls.Certificate{Certificate: third.Path(), PrivateKey: third.Key()}))
			})
		})
	}
	t.Run("status", func(t *testing.T) {
		t.Parallel()
		fetch(t, &http.Client{Timeout: 2 * patience}, status+"/roots.pem")
	})
}

// request is a CSR for a new key of a device.
func request(t *testing.T, device string) []byte {
	t.Helper()
	return kit.CSR(t, kit.Key(t), device)
}

// postSlow sends the body in two pieces, as it comes where a segment is lost.
func postSlow(t *testing.T, to, mediaType string, body []byte, c *tls.Config) {
	t.Helper()
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(body[:len(body)/2])
		time.Sleep(6 * time.Second)
		_, _ = w.Write(body[len(body)/2:])
		_ = w.Close()
	}()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, to, r)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = int64(len(body))
	req.Header.Set("Content-Type", mediaType)
	transport := &http.Transport{TLSClientConfig: c, TLSHandshakeTimeout: 2 * patience}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: 4 * patience}).Do(req)
	if err != nil {
		t.Fatalf("POST %s: %v", to, err)
	}
	defer func() { _ = res.Body.Close() }()
	text, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		t.Errorf("POST %s: got %s: %s", to, res.Status, text)
	}
}

func connectSlow(t *testing.T, addr, device string, c *tls.Config) {
	t.Helper()
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	_ = raw.SetDeadline(time.Now().Add(2 * patience))
	conn := tls.Client(raw, c)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second) // CONNECT is on its way
	hello := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(device))}, device...)
	if _, err := conn.Write(append([]byte{0x10, byte(len(hello))}, hello...)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4)
	if _, err := io.ReadFull(conn, answer); err != nil || answer[3] != 0 {
		t.Errorf("CONNACK: got % x, %v", answer, err)
	}
}
