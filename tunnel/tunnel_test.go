package tunnel_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/test/kit"
	"github.com/countersign-iot/countersign/tunnel"
)

// patience is what a step may take on a busy machine.
const patience = 20 * time.Second

// listen opens a service that hands each connection to serve.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kit.Serve(t, ln, serve)
	return ln.Addr().String()
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// start runs an authority with one tunnel.
func start(t *testing.T, one config.Tunnel) *countersigntest.Server {
	t.Helper()
	return countersigntest.Start(t, with(one))
}

// with are the options of a server with one tunnel.
func with(one config.Tunnel) countersigntest.Options {
	one.Name, one.Listen = "plc", "127.0.0.1:0"
	return countersigntest.Options{Configure: func(c *config.Config) { c.Tunnels = []config.Tunnel{one} }}
}

// dial connects through the tunnel, with a certificate if there is an identity.
func dial(t *testing.T, s *countersigntest.Server, id *sdk.Identity) *tls.Conn {
	t.Helper()
	cfg := &tls.Config{RootCAs: s.Roots, ServerName: "localhost"}
	if id != nil {
		cfg = id.TLSConfig()
		cfg.ServerName = "localhost"
	}
	c, err := tls.Dial("tcp", strings.TrimPrefix(s.Endpoints().Tunnels["plc"], "tls://"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// says sends a line and expects it back.
func says(t *testing.T, c net.Conn, line string) {
	t.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		t.Fatal(err)
	}
	got, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || got != line+"\n" {
		t.Fatalf("got %q, %v; want %q back", got, err, line)
	}
}

func TestBytesPassBothWaysToTheEnd(t *testing.T) {
	s := start(t, config.Tunnel{To: listen(t, echo), Plain: true})
	c := dial(t, s, s.Enroll(t, "pump-1"))
	sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB: many records, more than the buffers hold
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite() // the end of one direction does not end the other
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("got %d octets back, %v; want the %d that were sent", len(got), err, len(sent))
	}
}

func TestServiceHearsWhoComes(t *testing.T) {
	heard := make(chan *proxyproto.Header, 1)
	s := start(t, config.Tunnel{To: listen(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		if h, err := proxyproto.Read(r); err == nil {
			heard <- h
			_, _ = io.Copy(c, r)
		}
	})})
	id := s.Enroll(t, "pump-1")
	c := dial(t, s, id)
	says(t, c, "hello")
	h := <-heard
	if got := h.SourceAddr.String(); got != c.LocalAddr().String() {
		t.Errorf("source: got %s, want the device's %s", got, c.LocalAddr())
	}
	list, err := h.TLVs()
	if err != nil {
		t.Fatal(err)
	}
	got := map[proxyproto.PP2Type]string{}
	for _, v := range list {
		got[v.Type] = string(v.Value)
	}
	want := map[proxyproto.PP2Type]string{
		tunnel.TypeDevice: "pump-1", tunnel.TypeFleet: "default", tunnel.TypeSerial: fmt.Sprintf("%x", id.Certificate().SerialNumber),
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("type %x: got %q, want %q", byte(k), got[k], v)
		}
	}
	ssl, ok := tlvparse.FindSSL(list)
	cn, _ := ssl.ClientCN()
	version, _ := ssl.SSLVersion()
	if !ok || !ssl.Verified() || !ssl.ClientCertConn() || cn != "pump-1" || version != "TLSv1.3" {
		t.Errorf("SSL: got CN %q, version %q, verified %v", cn, version, ssl.Verified())
	}
	sessions := s.Sessions()
	if len(sessions) != 1 || sessions[0].Gateway != "plc" || sessions[0].Device != "pump-1" {
		t.Errorf("sessions: got %+v, want the one of the tunnel", sessions)
	}
}

// TestServiceHearsHostNamesOnly has a device send a server name that would be a line
// of its own in a log.
func TestServiceHearsHostNamesOnly(t *testing.T) {
	heard := make(chan []proxyproto.TLV, 2)
	s := start(t, config.Tunnel{To: listen(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		if h, err := proxyproto.Read(r); err == nil {
			list, _ := h.TLVs()
			heard <- list
			_, _ = io.Copy(c, r)
		}
	})})
	id := s.Enroll(t, "pump-1")
	for name, want := range map[string]bool{"localhost": true, "a\nb root logged in": false} {
		cfg := id.TLSConfig()
		cfg.ServerName, cfg.InsecureSkipVerify = name, true
		c, err := tls.Dial("tcp", strings.TrimPrefix(s.Endpoints().Tunnels["plc"], "tls://"), cfg)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		says(t, c, "hello")
		got := slices.ContainsFunc(<-heard, func(v proxyproto.TLV) bool { return v.Type == proxyproto.PP2_TYPE_AUTHORITY })
		if got != want {
			t.Errorf("%q: got %v, want %v", name, got, want)
		}
		_ = c.Close()
	}
}

// TestRevocationCutsTheTunnel revokes at one node, and has the tunnel at another.
func TestRevocationCutsTheTunnel(t *testing.T) {
	gone := make(chan struct{}, 1)
	service := listen(t, func(c net.Conn) { echo(c); gone <- struct{}{} })
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		id := asked.Enroll(t, "pump-1")
		c := dial(t, other, id)
		says(t, c, "hello")
		done, err := asked.Admin.Revoke(t.Context(), "pump-1", api.Revoke{Reason: "keyCompromise"})
		if err != nil {
			t.Fatal(err)
		}
		if asked == other && done.Sessions != 1 {
			t.Errorf("the revocation cut %d sessions, want 1", done.Sessions)
		}
		if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after the cut: read %d octets, %v; want the connection closed", n, err)
		}
		select {
		case <-gone:
		case <-time.After(patience):
			t.Error("the service's connection is still open")
		}
		refused(t, dial(t, other, id), "revoked")
	}, with(config.Tunnel{To: service, Plain: true}))
}

// refused wants a connection to be closed without a byte.
func refused(t *testing.T, c net.Conn, who string) {
	t.Helper()
	_, _ = io.WriteString(c, "hello\n")
	if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: read %d octets, %v; want to be turned away", who, n, err)
	}
}

func TestStrangersAndOtherFleetsStayOutside(t *testing.T) {
	s := start(t, config.Tunnel{To: listen(t, echo), Plain: true, Fleets: []string{"plcs"}})
	refused(t, dial(t, s, nil), "without a certificate")
	refused(t, dial(t, s, s.Enroll(t, "pump-1")), "of another fleet")
	other := countersigntest.Start(t)
	stranger := other.Enroll(t, "pump-1")
	cfg := stranger.TLSConfig()
	cfg.RootCAs = s.Roots
	c, err := tls.Dial("tcp", strings.TrimPrefix(s.Endpoints().Tunnels["plc"], "tls://"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	refused(t, c, "of another authority")
}

func TestServiceThatIsAwayEndsTheSession(t *testing.T) {
	// The near end of an open connection is an address on which no one can come to listen.
	c, err := net.Dial("tcp", listen(t, echo))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	s := start(t, config.Tunnel{To: c.LocalAddr().String()})
	refused(t, dial(t, s, s.Enroll(t, "pump-1")), "without a service")
}

// TestHAProxyReadsTheHeader has a foreign program read what we say of the device.
func TestHAProxyReadsTheHeader(t *testing.T) {
	bin := kit.Program(t, "haproxy")
	port := kit.FreePort(t)
	conf := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := fmt.Sprintf(`defaults
  mode http
  timeout client 10s
  timeout server 10s
  timeout connect 5s
frontend in
  bind 127.0.0.1:%d accept-proxy
  http-request return status 200 content-type text/plain lf-string "%%[src] %%[fc_pp_unique_id] %%[fc_pp_authority]"
`, port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "-db", "-f", conf)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	to := fmt.Sprintf("127.0.0.1:%d", port)
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", to)
		if err == nil {
			_ = c.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("haproxy does not listen: %v", err)
		}
	}
	s := start(t, config.Tunnel{To: to})
	c := dial(t, s, s.Enroll(t, "pump-1"))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: plc\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(body))
	if len(fields) != 3 || fields[0] != "127.0.0.1" || len(fields[1]) != 26 || fields[2] != "localhost" {
		t.Errorf("haproxy: got %q, want the address, the session and the server name", body)
	}
}

// TestTheSessionsOfADeviceAreBounded lets a device have as many as its fleet allows, and
// says so in the log.
func TestTheSessionsOfADeviceAreBounded(t *testing.T) {
	s := start(t, config.Tunnel{To: listen(t, echo), Plain: true})
	if _, err := s.Admin.PutFleet(t.Context(), "default", api.PutFleet{Rules: &api.Rules{Budget: &api.Budget{Sessions: 2}}}); err != nil {
		t.Fatal(err)
	}
	id := s.Enroll(t, "pump-1")
	for range 2 {
		says(t, dial(t, s, id), "hello")
	}
	c := dial(t, s, id)
	if _, err := io.WriteString(c, "hello\n"); err == nil {
		if b, err := io.ReadAll(c); len(b) > 0 {
			t.Errorf("the third session: got %q, %v", b, err)
		}
	}
	says(t, dial(t, s, s.Enroll(t, "pump-2")), "another device")
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		n := 0
		for e, err := range s.Admin.Events(t.Context(), api.EventFilter{Type: "budget.exceeded"}, api.Order{}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Device == "pump-1" && e.Data["budget"] == "sessions" && e.Data["limit"] == "2" {
				n++
			}
		}
		if n > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("no event budget.exceeded")
		}
	}
}
