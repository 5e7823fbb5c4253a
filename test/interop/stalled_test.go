package interop

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/test/kit"
)

const (
	// halfOpen is how many connections never send a CONNECT.
	halfOpen = 200
	// The flood is 100 MB, spread over more than the 15 s after which a client that takes
	// nothing is ended.
	floodMessages = 1000
	floodPayload  = 100_000
	floodTime     = 20 * time.Second
	// trips is how many round trips make a median.
	trips = 40
	// tripRatio and tripFloor bound the median of round trips beside the bad clients: so many
	// times that of a quiet server, or a time in which a busy machine runs everything once.
	tripRatio = 20
	tripFloor = 250 * time.Millisecond
	// memoryMore bounds what the server may take more in MiB: the bad clients may have 1 MiB
	// each, and the collector of Go lets twice of what flows through live on.
	memoryMore = 96
)

// slowly reads one octet a second, once it began.
type slowly struct {
	net.Conn
	begin, end <-chan struct{}
}

func (s slowly) Read(p []byte) (int, error) {
	select {
	case <-s.begin:
	default:
		return s.Conn.Read(p)
	}
	select {
	case <-time.After(time.Second):
	case <-s.end:
	}
	return s.Conn.Read(p[:1])
}

// TestBadClientsChangeNothingForOthers floods two clients with 100 MB, of which one never
// reads and one reads one octet a second, beside connections that are half open. Another
// client's round trips stay fast, the server's memory is bounded, and the bad ones are
// ended for the reason that is documented.
func TestBadClientsChangeNothingForOthers(t *testing.T) {
	t.Parallel()
	k := newTalk(t, "limits: {connect_timeout: 5s}", "healthy", "flood", "never", "slow")
	healthy := k.reader(t, "healthy", nil)
	quiet := roundTrips(t, healthy)
	before := k.memory(t, "VmRSS")

	begin, end := make(chan struct{}), make(chan struct{})
	defer close(end)
	k.reader(t, "never", nil)
	slow := k.reader(t, "slow", func(c net.Conn) net.Conn { return slowly{c, begin, end} })
	close(begin)
	go func() {
		for {
			if _, err := packets.ReadPacket(slow); err != nil {
				return
			}
		}
	}()
	open := k.halfOpen(t)
	over := make(chan struct{})
	go func() { defer close(over); k.flood(t) }()
	var busy time.Duration // the worst of many medians
	for flooded := false; !flooded; {
		busy = max(busy, roundTrips(t, healthy))
		select {
		case <-over:
			flooded = true
		case <-time.After(glance):
		}
	}
	later := roundTrips(t, healthy)
	if most := max(tripRatio*quiet, tripFloor); busy > most || later > most {
		t.Errorf("round trips: got a median of %v in the flood and %v after it, %v when it was quiet: want %v at most", busy, later, quiet, most)
	}
	peak := k.memory(t, "VmHWM")
	if more := peak - before; more > memoryMore {
		t.Errorf("memory: got %d MiB more, want %d at most", more, memoryMore)
	}
	t.Logf("round trips %v, in the flood %v, after it %v; memory %d MiB, at most %d", quiet, busy, later, before, peak)
	for _, device := range []string{"never", "slow"} {
		if !eventually(func() bool { return k.endOf(device) != "" }) || k.endOf(device) != "budget_exceeded" {
			t.Errorf("the session of %s: got end %q, want budget_exceeded", device, k.endOf(device))
		}
	}
	for i, c := range open {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); os.IsTimeout(err) || err == nil {
			t.Fatalf("connection %d that is half open: got %v, want its end", i, err)
		}
	}
}

// reader connects a device that subscribes to its own topic; wrapped is between TLS and TCP.
func (k *talk) reader(t *testing.T, device string, wrapped func(net.Conn) net.Conn) *wire {
	t.Helper()
	raw, err := net.Dial("tcp", k.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	if wrapped != nil {
		raw = wrapped(raw)
	}
	config := k.ids[device].TLSConfig()
	config.ServerName = "127.0.0.1"
	w := &wire{Conn: tls.Client(raw, config)}
	err = w.send(&packets.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: device, CleanStart: true, Properties: &packets.Properties{}})
	if err == nil {
		err = w.accepted()
	}
	if err == nil {
		err = w.subscribe(sub("talk/"+device, 1))
	}
	if err != nil {
		t.Fatalf("%s: %v", device, err)
	}
	return w
}

// roundTrips returns the median time from a PUBLISH of QoS 1 to its own delivery.
func roundTrips(t *testing.T, c *wire) time.Duration {
	t.Helper()
	var took []time.Duration
	for n := range trips {
		_ = c.SetDeadline(time.Now().Add(patience))
		text := fmt.Appendf(nil, "%d", n)
		began := time.Now()
		if err := c.send(&packets.Publish{Topic: "talk/healthy", Payload: text, QoS: 1, PacketID: 1, Properties: &packets.Properties{}}); err != nil {
			t.Fatal(err)
		}
		for acked, came := false, false; !acked || !came; {
			p, err := packets.ReadPacket(c)
			if err != nil {
				t.Fatalf("the healthy client: %v", err)
			}
			switch m := p.Content.(type) {
			case *packets.Puback:
				acked = true
			case *packets.Publish:
				if m.Topic == "talk/healthy" && bytes.Equal(m.Payload, text) {
					came = true
					if err := c.send(&packets.Puback{PacketID: m.PacketID, Properties: &packets.Properties{}}); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// flood publishes to the bad clients.
func (k *talk) flood(t *testing.T) {
	c, err := k.dial("flood", &packets.Connect{CleanStart: true, KeepAlive: 60})
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	payload := make([]byte, floodPayload)
	began := time.Now()
	for n := range floodMessages {
		topic := []string{"talk/never", "talk/slow"}[n%2]
		if err := c.send(&packets.Publish{Topic: topic, Payload: payload, Properties: &packets.Properties{}}); err != nil {
			t.Errorf("flood: %v", err)
			return
		}
		time.Sleep(time.Until(began.Add(time.Duration(n+1) * floodTime / floodMessages)))
	}
}

// halfOpen opens connections of which some begin TLS, some finish it, and none connects.
func (k *talk) halfOpen(t *testing.T) (list []net.Conn) {
	t.Helper()
	for n := range halfOpen {
		c, err := net.Dial("tcp", k.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		switch n % 4 {
		case 1:
			_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1}) // the begin of a ClientHello
		case 2:
			config := k.ids["healthy"].TLSConfig()
			config.ServerName = "127.0.0.1"
			c = tls.Client(c, config)
			_ = c.(*tls.Conn).Handshake() // no CONNECT follows
		}
		list = append(list, c)
	}
	return list
}

// memory is a line of the server's status, in MiB.
func (k *talk) memory(t *testing.T, what string) (n int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.cmd.Process.Pid))
	if err != nil {
		kit.Missing(t, "no memory of a process can be read here: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, what+": %d kB", &n); err == nil {
			return n / 1024
		}
	}
	t.Fatalf("the status of the server has no %s", what)
	return 0
}

// endOf is the code of the end of a device's session, if it has ended.
func (k *talk) endOf(device string) string {
	for e, err := range k.admin.DeviceEvents(k.t.Context(), device, api.Order{}) {
		if err == nil && e.Type == "session.closed" {
			return e.Code
		}
	}
	return ""
}
