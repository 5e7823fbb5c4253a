package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/server"
)

func TestTurnedAwayNamesTheAddressOrHowMany(t *testing.T) {
	for remote, tt := range map[string]edge.TurnedAway{
		"192.0.2.1":       {Address: netip.MustParsePrefix("192.0.2.1/32"), Addresses: 1},
		"2001:db8:1::/64": {Address: netip.MustParsePrefix("2001:db8:1::/64"), Addresses: 1},
		"":                {Addresses: 40},
	} {
		tt.Listener, tt.Count, tt.For = "mqtt", 7, time.Minute
		tt.Reasons = map[edge.Reason]int{edge.ReasonEvicted: 2, edge.ReasonAddressTries: 5}
		want := map[string]string{"count": "7", "seconds": "60", "reasons": "address_tries=5 evicted=2"}
		if remote == "" {
			want["addresses"] = "40"
		}
		e := server.TurnedAway(tt)
		if diff := cmp.Diff(want, e.Data); diff != "" || e.Remote != remote || e.Via != "mqtt" || e.Type != countersign.ConnectionsRefused {
			t.Errorf("TurnedAway: got %+v (-want +got):\n%s", e, diff)
		}
	}
}

func TestAFloodShowsInTheMetricsAndLeavesTheOthersAlone(t *testing.T) {
	s := countersigntest.Start(t)
	gateway := s.Broker(t)
	for range 2 * edge.DefaultTries {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 5, 0, 1)}, Timeout: 10 * time.Second}
		if c, err := d.Dial("tcp", gateway); err == nil {
			_, _ = io.WriteString(c, "no TLS at all")
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}
	local := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.Endpoints().Socket)
	}}}
	text := fetch(t, local, "http://local/metrics")
	want := fmt.Sprintf("countersign_connections_turned_away_total{listener=%q,reason=%q} ", "mqtt", edge.ReasonAddressTries)
	if !strings.Contains(text, want) || !strings.Contains(text, "countersign_handshakes_waiting 0") {
		t.Errorf("metrics: no %s", want)
	}
	fetch(t, &http.Client{Timeout: 10 * time.Second}, s.Endpoints().Status+"/roots.pem")
	other := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 20 * time.Second}, Config: &tls.Config{RootCAs: s.Roots}}
	c, err := other.DialContext(t.Context(), "tcp", gateway)
	if err != nil {
		t.Fatalf("another address: %v", err)
	}
	_ = c.Close()
}

func fetch(t *testing.T, c *http.Client, from string) string {
	t.Helper()
	res, err := c.Get(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
