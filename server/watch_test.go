package server_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
)

// dialAs opens an MQTT 3.1.1 session from a loopback address of one's choice and
// gives its connection and the CONNACK's code.
func dialAs(t *testing.T, s *countersigntest.Server, id *sdk.Identity, from, client string) (net.Conn, byte) {
	t.Helper()
	dialer := &tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}, Config: id.TLSConfig()}
	conn, err := dialer.DialContext(t.Context(), "tcp", s.Broker(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	packet := append([]byte{0x10, byte(12 + len(client)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, byte(len(client))}, client...)
	if _, err := conn.Write(packet); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil {
		t.Fatal(err)
	}
	return conn, ack[3]
}

// within waits for what comes by itself.
func within(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func alerts(t *testing.T, s *countersigntest.Server, f api.AlertFilter) (list []api.Alert) {
	t.Helper()
	for a, err := range s.Admin.Alerts(t.Context(), f) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	return list
}

// TestStolenCertificateIsSuspendedAndComesBack goes the whole way: two holders of one
// certificate, the finding, the alert, the suspension that the fleet wants, both
// sessions cut, and the device back with what it had by one act.
func TestStolenCertificateIsSuspendedAndComesBack(t *testing.T) {
	var ahead atomic.Int64
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		defer ahead.Store(0) // the next server starts by this clock
		stolenCertificateComesBack(t, asked, other, &ahead)
	}, countersigntest.Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
}

// stolenCertificateComesBack has the device at one node and the thief at the other.
func stolenCertificateComesBack(t *testing.T, asked, other *countersigntest.Server, ahead *atomic.Int64) {
	t.Helper()
	_, err := asked.Admin.PutFleet(t.Context(), "default", api.PutFleet{Respond: map[string][]string{"shared_certificate": {"alert", "suspend"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := asked.Admin.PutFleet(t.Context(), "default", api.PutFleet{Respond: map[string][]string{"shared_certifcate": {"alert"}}}); err == nil {
		t.Error("a slip in the name of a rule was saved")
	}
	id := asked.Enroll(t, "pump-1")
	device, code := dialAs(t, other, id, "127.0.0.1", "pump-1")
	if code != 0 {
		t.Fatalf("CONNACK of the device: got %d, want 0", code)
	}
	thief, code := dialAs(t, asked, id, "127.0.0.2", "pump-1:b")
	if code != 0 {
		t.Fatalf("CONNACK of the thief: got %d, want 0", code)
	}
	within(t, "both sessions are on record", func() bool {
		n := 0
		for e, err := range asked.Admin.DeviceEvents(t.Context(), "pump-1", api.Order{}) {
			if err == nil && e.Type == "session.opened" && e.Seq > 0 {
				n++
			}
		}
		return n == 2
	})
	ahead.Store(int64(6 * time.Minute)) // they stay side by side
	within(t, "the device is suspended", func() bool {
		d, err := asked.Admin.Device(t.Context(), "pump-1")
		return err == nil && d.State == "suspended"
	})
	for name, conn := range map[string]net.Conn{"device": device, "thief": thief} {
		if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("session of the %s: got %v, want it closed", name, err)
		}
	}
	var alert *api.Alert
	within(t, "the alert tells of it", func() bool {
		list := alerts(t, asked, api.AlertFilter{State: "live", Device: "pump-1", Rule: "shared_certificate"})
		if len(list) != 1 {
			return false
		}
		if alert, err = asked.Admin.Alert(t.Context(), list[0].ID); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(alert.Timeline, func(l api.AlertLine) bool { return l.Act == "suspend" && l.Outcome == "done" })
	})
	if alert.Why == "" || alert.Do == "" || len(alert.Evidence) == 0 {
		t.Errorf("alert: got why %q, do %q, %d findings", alert.Why, alert.Do, len(alert.Evidence))
	}
	if _, code := dialAs(t, other, id, "127.0.0.1", "pump-1"); code == 0 {
		t.Error("a suspended device was let in")
	}
	acts, err := asked.Admin.AlertActions(t.Context(), alert.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range acts.Items {
		if x.Name == "reactivate" && (!x.Possible || x.Certificates != 1) {
			t.Errorf("reactivate: got %+v, want possible with 1 certificate", x)
		}
	}
	if _, err := asked.Admin.ReactivateAlert(t.Context(), alert.ID, api.AlertNote{Note: "the thief is caught"}); err != nil {
		t.Fatal(err)
	}
	if _, code := dialAs(t, other, id, "127.0.0.1", "pump-1"); code != 0 {
		t.Errorf("CONNACK after reactivation: got %d, want 0 with the certificate it had", code)
	}
	if _, err := asked.Admin.CloseAlert(t.Context(), alert.ID, api.AlertClose{Resolution: "resolved", Note: "caught"}); err != nil {
		t.Fatal(err)
	}
	if got := alerts(t, asked, api.AlertFilter{State: "live", Device: "pump-1", Rule: "shared_certificate"}); len(got) != 0 {
		t.Errorf("live alerts after the close: got %d, want none", len(got))
	}
}

func TestChannelsOfTheConfigurationAreTold(t *testing.T) {
	var got atomic.Int64
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Countersign-Signature") != "" {
			got.Add(1)
		}
	}))
	defer hook.Close()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("sixteen octets, and more"), 0o600); err != nil {
		t.Fatal(err)
	}
	channel := config.Channel{Name: "oncall", Kind: config.ChannelWebhook, URL: hook.URL, Secret: config.Secret("file:" + key), Severity: "medium"}
	s := countersigntest.Start(t, countersigntest.Options{Configure: func(c *config.Config) { c.Notify = []config.Channel{channel} }})
	out, err := s.Admin.TestChannel(t.Context(), "oncall")
	if err != nil || !out.Delivered || got.Load() != 1 {
		t.Fatalf("test of the channel: got %+v, %v, %d posts", out, err, got.Load())
	}
	rules := &api.Rules{Usual: &api.Usual{Networks: []string{"192.0.2.0/24"}}}
	if _, err := s.Admin.PutFleet(t.Context(), "default", api.PutFleet{Rules: rules}); err != nil {
		t.Fatal(err)
	}
	s.Enroll(t, "pump-1") // from loopback, which is unusual
	within(t, "the channel is told of an alert", func() bool { return got.Load() == 2 })
	d, err := s.Admin.Doctor(t.Context())
	if err != nil || !slices.ContainsFunc(d.Checks, func(c api.Check) bool { return c.Name == "channel oncall" && c.Level == api.LevelOK }) {
		t.Errorf("doctor: got %+v, %v", d, err)
	}
}
