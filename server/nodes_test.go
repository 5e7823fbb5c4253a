package server_test

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/server"
)

// connect opens an MQTT 3.1.1 session by hand and gives its connection.
func connect(t *testing.T, s *countersigntest.Server, id *sdk.Identity) (net.Conn, byte) {
	t.Helper()
	conn, err := (&tls.Dialer{Config: id.TLSConfig()}).DialContext(t.Context(), "tcp", s.Broker(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	name := id.Device()
	packet := append([]byte{0x10, byte(12 + len(name)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(name))}, name...)
	if _, err := conn.Write(packet); err != nil {
		t.Fatal(err)
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		t.Fatal(err)
	}
	return conn, ack[3]
}

func TestRevocationCutsTheSessionWhereverItIs(t *testing.T) {
	countersigntest.Each(t, revocationCutsTheSession)
}

func revocationCutsTheSession(t *testing.T, one, two *countersigntest.Server) {
	t.Helper()
	id := one.Enroll(t, "pump-1")
	conn, code := connect(t, two, id)
	if code != 0 {
		t.Fatalf("CONNACK: got %d, want 0", code)
	}
	began := time.Now()
	if _, err := one.Admin.Revoke(t.Context(), "pump-1", api.Revoke{Reason: "keyCompromise"}); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Fatal("the session on the other node got a packet, want its end")
	} else if netErr, ok := err.(net.Error); ok && netErr.Timeout() { //nolint:errorlint // a deadline is what it is
		t.Fatal("the session on the other node is still up")
	}
	t.Logf("from the request on one node to the cut on the other: %v", time.Since(began))
	if _, code := connect(t, two, id); code != 5 {
		t.Errorf("CONNACK after revocation: got %d, want 5", code)
	}
	if v, err := two.Admin.VerifyLog(t.Context()); err != nil || !v.Intact {
		t.Errorf("VerifyLog: got %+v, %v", v, err)
	}
}

// TestEventsAreCountedOnceOverAllNodes has events of each kind of notice happen on one
// of two nodes: urgent ones, which the other receives, others, and those that are
// written behind.
func TestEventsAreCountedOnceOverAllNodes(t *testing.T) {
	one := countersigntest.Start(t, countersigntest.Options{Database: countersigntest.Postgres})
	two := countersigntest.Start(t, countersigntest.Options{Beside: one})
	id := one.Enroll(t, "pump-1")
	conn, code := connect(t, two, id)
	if code != 0 {
		t.Fatalf("CONNACK: got %d, want 0", code)
	}
	if _, err := one.Admin.Revoke(t.Context(), "pump-1", api.Revoke{Reason: "keyCompromise"}); err != nil {
		t.Fatal(err)
	}
	endsWithin(t, "the session on the other node", conn, event.CaughtUp)
	finds(t, one, api.EventFilter{Type: "session.closed", Device: "pump-1"})
	time.Sleep(event.CaughtUp) // the nodes have read the log, too
	both := scrape(t, one) + scrape(t, two)
	for _, kind := range []string{"device.created", "certificate.issued", "certificate.activated", "device.revoked", "certificate.revoked", "session.opened", "session.closed"} {
		n := 0
		for line := range strings.Lines(both) {
			if value, ok := strings.CutPrefix(line, `countersign_events_total{severity="info",type="`+kind+`"} `); ok {
				i, err := strconv.Atoi(strings.TrimSpace(value))
				if err != nil {
					t.Fatal(err)
				}
				n += i
			}
		}
		if n != 1 {
			t.Errorf("%s: counted %d times over both nodes, want 1", kind, n)
		}
	}
}

func TestStopEndsSessionsAndWritesTheirEvents(t *testing.T) {
	s := countersigntest.Start(t)
	id := s.Enroll(t, "pump-1")
	conn, code := connect(t, s, id)
	if code != 0 {
		t.Fatalf("CONNACK: got %d, want 0", code)
	}
	s.Stop()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the session outlived the server")
	}
	if _, err := os.Stat(filepath.Join(s.Dir, "endpoints.json")); !os.IsNotExist(err) {
		t.Errorf("endpoints.json after Stop: got %v, want none", err)
	}
	s.Restart(t)
	closed := false
	for e, err := range s.Admin.DeviceEvents(t.Context(), "pump-1", api.Order{}) {
		if err != nil {
			t.Fatal(err)
		}
		closed = closed || e.Type == "session.closed" && e.Code == "server_stopping"
	}
	if !closed {
		t.Error("no session.closed event was written when the server stopped")
	}
}

func TestServerRefusesABrokenConfiguration(t *testing.T) {
	cfg := config.Dev(t.TempDir(), true)
	cfg.Names = []string{"not a name"}
	if _, err := server.New(t.Context(), cfg, server.Options{}); err == nil {
		t.Error("New with a bad name: got no error")
	}
}
