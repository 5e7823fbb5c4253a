package mqtt_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	paho3 "github.com/eclipse/paho.mqtt.golang"
	"github.com/google/go-cmp/cmp"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/mqtt"
	"github.com/countersign-iot/countersign/test/kit"
)

// v5client is a paho MQTT 5 client of a device.
type v5client struct {
	*paho.Client
	messages chan *paho.Publish
	left     chan *paho.Disconnect
	connack  *paho.Connack
}

func (g *gateway) paho5(t testing.TB, cert tls.Certificate, c *paho.Connect) *v5client {
	t.Helper()
	conn, err := tls.Dial("tcp", g.addr, g.client(cert))
	if err != nil {
		t.Fatal(err)
	}
	v := &v5client{messages: make(chan *paho.Publish, 100), left: make(chan *paho.Disconnect, 1)}
	v.Client = paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(conn), // or a PINGREQ may go into another packet
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			v.messages <- p.Packet
			return true, nil
		}},
		OnServerDisconnect: func(d *paho.Disconnect) { v.left <- d },
		OnClientError:      func(err error) { t.Logf("paho: %v", err) },
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if v.connack, err = v.Connect(ctx, c); err != nil {
		t.Fatalf("paho Connect: %v (%+v)", err, v.connack)
	}
	t.Cleanup(func() { _ = conn.NetConn().Close() })
	return v
}

func (v *v5client) message(t testing.TB) *paho.Publish {
	t.Helper()
	select {
	case m := <-v.messages:
		return m
	case <-time.After(5 * time.Second):
		t.Fatal("no message")
		return nil
	}
}

// toldToLeave waits for the server's DISCONNECT.
func (v *v5client) toldToLeave(t testing.TB, code byte) {
	t.Helper()
	select {
	case d := <-v.left:
		if d.ReasonCode != code || d.Properties.ReasonString != "compromised" {
			t.Errorf("DISCONNECT: got %+v, want %#x", d, code)
		}
	case <-time.After(5 * time.Second):
		t.Error("no DISCONNECT came")
	}
}

func TestPaho5(t *testing.T) {
	g := start(t, engine{})
	cert := g.issue("dev", time.Hour)
	expiry := uint32(3600)
	hello := func(clean bool) *paho.Connect {
		return &paho.Connect{
			ClientID: "dev", CleanStart: clean, KeepAlive: 30,
			Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry, ReceiveMaximum: new(uint16(2))},
		}
	}
	d := g.paho5(t, cert, hello(true))
	p := d.connack.Properties
	if !p.SharedSubAvailable || !p.SubIDAvailable || !p.WildcardSubAvailable || !p.RetainAvailable || *p.ReceiveMaximum != 256 ||
		*p.MaximumPacketSize != mqtt.DefaultMaxPacket || *p.TopicAliasMaximum != 16 {
		t.Errorf("CONNACK announces %+v", p)
	}
	if _, err := d.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "devices/dev/down/#", QoS: 2}}}); err != nil {
		t.Fatal(err)
	}
	for i := range 10 { // five times the device's Receive Maximum
		g.send(t, "devices/dev/down/n", fmt.Append(nil, i))
	}
	for i := range 10 {
		if m := d.message(t); string(m.Payload) != fmt.Sprint(i) || m.QoS != 1 {
			t.Errorf("message %d: got %q QoS %d", i, m.Payload, m.QoS)
		}
	}
	for qos := range byte(3) {
		if _, err := d.Publish(t.Context(), &paho.Publish{Topic: "devices/dev/up/q", QoS: qos, Payload: []byte("x")}); err != nil {
			t.Errorf("publish QoS %d: %v", qos, err)
		}
	}
	if r, err := d.Publish(t.Context(), &paho.Publish{Topic: "devices/x/up/q", QoS: 1, Payload: []byte("x")}); err == nil && r.ReasonCode != 0x87 || err != nil && (r == nil || r.ReasonCode != 0x87) {
		t.Errorf("forbidden publish: got %+v %v, want 0x87", r, err)
	}
	if err := d.Disconnect(&paho.Disconnect{ReasonCode: 0}); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "the end of the session", func() bool { return len(g.guard.reasons("dev")) == 1 })
	g.send(t, "devices/dev/down/n", []byte("queued"))
	// The session is kept and its message with it; then it is dropped.
	d = g.paho5(t, cert, hello(false))
	if !d.connack.SessionPresent {
		t.Error("resumed: got no session")
	}
	if m := d.message(t); string(m.Payload) != "queued" {
		t.Errorf("resumed: got %q", m.Payload)
	}
	if err := d.Disconnect(&paho.Disconnect{Properties: &paho.DisconnectProperties{SessionExpiryInterval: new(uint32(0))}}); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "the end of the session", func() bool { return len(g.guard.reasons("dev")) == 2 })
	d = g.paho5(t, cert, hello(false))
	if d.connack.SessionPresent {
		t.Error("the session outlived its expiry of 0")
	}
	g.Index.Cut(countersign.Cut{Device: "dev", Reason: "compromised"})
	d.toldToLeave(t, 0x98)
}

func TestPurgeDropsTheStoredSessions(t *testing.T) {
	g := start(t, engine{})
	expiry := uint32(3600)
	present := func(id string) bool {
		d := g.paho5(t, g.issue(id, time.Hour), &paho.Connect{
			ClientID: id + ":s", KeepAlive: 30,
			Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry},
		})
		if _, err := d.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "devices/" + id + "/down/#", QoS: 1}}}); err != nil {
			t.Fatal(err)
		}
		if err := d.Disconnect(&paho.Disconnect{}); err != nil {
			t.Fatal(err)
		}
		return d.connack.SessionPresent
	}
	for _, id := range []string{"gone", "stays"} {
		if present(id) {
			t.Fatalf("%s starts with a session", id)
		}
	}
	kit.Eventually(t, "no sessions", func() bool { return g.Index.Len() == 0 })
	g.purge(t, "gone")
	if present("gone") {
		t.Error("the purged session is still there")
	}
	if !present("stays") {
		t.Error("another device's session is gone")
	}
}

func TestPaho3(t *testing.T) {
	g := start(t, engine{})
	o := paho3.NewClientOptions().AddBroker("ssl://" + g.addr).SetClientID("dev").SetTLSConfig(g.client(g.issue("dev", time.Hour))).
		SetProtocolVersion(4).SetAutoReconnect(false)
	c := paho3.NewClient(o)
	if tok := c.Connect(); !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	got := make(chan paho3.Message, 1)
	tok := c.Subscribe("devices/dev/down/#", 2, func(_ paho3.Client, m paho3.Message) { got <- m })
	if !tok.WaitTimeout(5*time.Second) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	up := make(chan string, 10)
	listen(t, g, "devices/dev/up/#", up)
	for qos := range byte(3) {
		if tok := c.Publish("devices/dev/up/x", qos, false, fmt.Sprint(qos)); !tok.WaitTimeout(5*time.Second) || tok.Error() != nil {
			t.Fatalf("publish QoS %d: %v", qos, tok.Error())
		}
		if m := <-up; m != fmt.Sprintf("devices/dev/up/x %d", qos) {
			t.Errorf("the platform got %q", m)
		}
	}
	g.send(t, "devices/dev/down/x", []byte("hello"))
	select {
	case m := <-got:
		if string(m.Payload()) != "hello" {
			t.Errorf("got %q", m.Payload())
		}
	case <-time.After(5 * time.Second):
		t.Error("no message")
	}
	c.Disconnect(100)
	kit.Eventually(t, "the report", func() bool { return slices.Equal(g.guard.reasons("dev"), []string{"client_left"}) })
}

// startMosquitto runs a broker of its own with the further lines of configuration.
func startMosquitto(t testing.TB, lines string) string {
	t.Helper()
	port := strconv.Itoa(kit.FreePort(t))
	addr := net.JoinHostPort("127.0.0.1", port)
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	text := "listener " + port + " 127.0.0.1\nset_tcp_nodelay true\n" + lines
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(kit.Program(t, "mosquitto"), "-c", conf)
	out := &buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("mosquitto:\n%s", out)
		}
	})
	kit.Eventually(t, "mosquitto accepts", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return addr
}

func TestMQTT5PassesThroughToMosquitto(t *testing.T) {
	addr := startMosquitto(t, "allow_anonymous true\nmax_topic_alias 5\n")
	g := start(t, relayTo(addr))
	g.guard.perms["dev"] = permissions([]string{"devices/dev/up/#", "shared/#"}, []string{"devices/dev/down/#", "devices/dev/up/#", "shared/#"})
	d := g.paho5(t, g.issue("dev", time.Hour), &paho.Connect{ClientID: "dev", CleanStart: true, KeepAlive: 30})
	if p := d.connack.Properties; *p.MaximumPacketSize != mqtt.DefaultMaxPacket || *p.TopicAliasMaximum != 5 || !p.SharedSubAvailable {
		t.Errorf("CONNACK announces %+v", p)
	}
	s, err := d.Subscribe(t.Context(), &paho.Subscribe{
		Properties: &paho.SubscribeProperties{SubscriptionIdentifier: new(7)},
		Subscriptions: []paho.SubscribeOptions{
			{Topic: "devices/+/up/#", QoS: 1}, {Topic: "devices/dev/up/#", QoS: 1}, {Topic: "$SYS/#", QoS: 0}, {Topic: "$share/g/shared/#", QoS: 1},
		},
	})
	if err == nil || s == nil || !cmp.Equal(s.Reasons, []byte{0x87, 1, 0x87, 1}) {
		t.Fatalf("SUBACK: got %+v %v", s, err)
	}
	sent := &paho.Publish{Topic: "devices/dev/up/x", QoS: 2, Payload: []byte("hello"), Properties: &paho.PublishProperties{
		CorrelationData: []byte{1, 2}, ResponseTopic: "devices/dev/down/r", ContentType: "text/plain",
		TopicAlias: new(uint16(3)), User: paho.UserProperties{{Key: "k", Value: "v"}},
	}}
	if _, err := d.Publish(t.Context(), sent); err != nil {
		t.Fatal(err)
	}
	m := d.message(t)
	want := sent.Properties
	want.User = append(want.User, paho.UserProperty{Key: "x-device-id", Value: "dev"}, paho.UserProperty{Key: "x-fleet", Value: "default"})
	if got := m.Properties; got.ResponseTopic != want.ResponseTopic || got.ContentType != want.ContentType || *got.SubscriptionIdentifier != 7 ||
		!cmp.Equal(got.CorrelationData, want.CorrelationData) || !cmp.Equal(got.User, want.User) {
		t.Errorf("properties: got %+v, want %+v", got, want)
	}
	// The client calls a refused PUBREC no error.
	if r, err := d.Publish(t.Context(), &paho.Publish{Topic: "devices/x/up/q", QoS: 2, Payload: []byte("x")}); r == nil || r.ReasonCode != 0x87 {
		t.Errorf("forbidden publish: got %+v %v, want 0x87", r, err)
	}
	g.send(t, "devices/dev/down/x", []byte("no subscription"))
	began := time.Now()
	g.Index.Cut(countersign.Cut{Device: "dev", Reason: "compromised"})
	d.toldToLeave(t, 0x98)
	t.Logf("cut in %v", time.Since(began))
}

func TestBrokerSeesTheConfiguredIdentity(t *testing.T) {
	kit.Programs(t, "mosquitto_sub", "mosquitto_passwd")
	dir := t.TempDir()
	pw := filepath.Join(dir, "pw")
	if out, err := exec.Command("mosquitto_passwd", "-b", "-c", pw, "gateway-dev", "secret").CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_passwd: %v %s", err, out)
	}
	_ = os.Chmod(dir, 0o755)
	_ = os.Chmod(pw, 0o644)
	addr := startMosquitto(t, "allow_anonymous false\npassword_file "+pw+"\nuser root\n")
	g := start(t, engine{relay: &mqtt.Relay{Addr: addr, Username: "gateway-{device}", ClientID: "edge/{fleet}/{client}", Password: []byte("secret")}})
	g.join(t, "dev", 4)
	// The gateway's credentials for another device are wrong: that is ours to
	// explain, so the device hears unavailable.
	d := g.dial(t, "other")
	d.send(connectPacket(5, "other", 2, 60, nil))
	if kind, body := d.recv(); kind != 0x20 || body[1] != 0x88 {
		t.Errorf("got %#x % x, want CONNACK 0x88", kind, body)
	}
}

func TestEngineAwayIsUnavailable(t *testing.T) {
	g := start(t, relayTo("127.0.0.1:1"))
	for level, want := range map[byte]byte{4: 3, 5: 0x88} {
		d := g.dial(t, "dev")
		d.send(connectPacket(level, "dev", 2, 60, nil))
		if kind, body := d.recv(); kind != 0x20 || body[1] != want {
			t.Errorf("level %d: got %#x % x, want CONNACK %#x", level, kind, body, want)
		}
	}
}
