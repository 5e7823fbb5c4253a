package device

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/test/kit"
)

// acceptor accepts every client with CONNACK and answers nothing else.
func acceptor(t *testing.T) Broker {
	t.Helper()
	web := httptest.NewTLSServer(nil) // for its certificate
	web.Close()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	kit.Serve(t, ln, func(c net.Conn) {
		_, _ = c.Write([]byte("\x20\x03\x00\x00\x00"))
		_, _ = io.Copy(io.Discard, c)
	})
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	return Broker{Addr: ln.Addr().String(), Name: "example.com", Roots: roots}
}

// TestASessionEndsHoweverItEnds holds that End returns also where the library reports
// nothing: after the device has left, and after a write that failed.
func TestASessionEndsHoweverItEnds(t *testing.T) {
	b := acceptor(t)
	for name, end := range map[string]func(s *Session){
		"the device leaves":           func(s *Session) { s.Leave() },
		"it leaves twice":             func(s *Session) { s.Leave(); s.Leave() },
		"the connection is lost":      func(s *Session) { s.Lose() },
		"SUBSCRIBE cannot be written": func(s *Session) { s.Lose(); _ = s.Subscribe(t.Context(), "a/#") },
	} {
		s, err := b.Open(t.Context(), Login{ClientID: "pump-1"})
		if err != nil {
			t.Fatal(err)
		}
		end(s)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if e, err := s.End(ctx); err != nil || e.Code != 0 {
			t.Errorf("%s: got reason code %#x, %v; want the end of the session", name, e.Code, err)
		}
		cancel()
	}
}
