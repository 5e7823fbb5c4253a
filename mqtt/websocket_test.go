package mqtt_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/mqtt"
	"github.com/countersign-iot/countersign/test/kit"
)

// page opens a WebSocket the way a browser does: without a client certificate.
func (g *gateway) page(t testing.TB, origin, path string, protocols ...string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		RootCAs: g.roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			t.Error("the WebSocket listener asks for a client certificate")
			return &tls.Certificate{}, nil
		},
	}}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	header := http.Header{"User-Agent": {"page/1.0"}}
	if origin != "" {
		header.Set("Origin", origin)
	}
	c, r, err := websocket.Dial(ctx, "wss://"+g.web+path, &websocket.DialOptions{HTTPClient: client, HTTPHeader: header, Subprotocols: protocols})
	if c != nil {
		t.Cleanup(func() { _ = c.CloseNow() })
	}
	return c, r, err
}

// login is a CONNECT with user name and password.
func login(level byte, id string) []byte {
	return connectPacket(level, id, 0xC2, 60, cat(str(id), str("password of "+id)))
}

// webDevice is a device over WebSocket: what it writes is one message.
func (g *gateway) webDevice(t testing.TB, level byte) (*device, *websocket.Conn) {
	t.Helper()
	c, _, err := g.page(t, "", mqtt.WebSocketPath, "mqtt")
	if err != nil {
		t.Fatal(err)
	}
	const id = "web"
	d := &device{t: t, id: id, Conn: websocket.NetConn(t.Context(), c, websocket.MessageBinary), v5: level == 5}
	d.send(login(level, id))
	if kind, body := d.recv(); kind != 0x20 || body[1] != 0 {
		t.Fatalf("CONNACK: got type %#x % x", kind, body)
	}
	return d, c
}

func TestPahoOverWebSocket(t *testing.T) {
	g := start(t, engine{})
	c, _, err := g.page(t, "https://"+g.web, mqtt.WebSocketPath, "mqtt")
	if err != nil {
		t.Fatal(err)
	}
	messages, left := make(chan *paho.Publish, 1), make(chan *paho.Disconnect, 1)
	d := paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(websocket.NetConn(t.Context(), c, websocket.MessageBinary)),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			messages <- p.Packet
			return true, nil
		}},
		OnServerDisconnect: func(d *paho.Disconnect) { left <- d },
	})
	if _, err := d.Connect(t.Context(), &paho.Connect{
		ClientID: "web", CleanStart: true, KeepAlive: 30,
		Username: "web", UsernameFlag: true, Password: []byte("password of web"), PasswordFlag: true,
	}); err != nil {
		t.Fatal(err)
	}
	if s := g.Index.Sessions(); len(s) != 1 || s[0].Protocol != "MQTT 5 over WebSocket" || s[0].Gateway != "mqtt" {
		t.Errorf("Sessions: got %+v", s)
	}
	if _, err := d.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "devices/web/down/#", QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 200<<10)
	g.send(t, "devices/web/down/a", []byte(big))
	if m := <-messages; string(m.Payload) != big {
		t.Errorf("a large message came with %d bytes", len(m.Payload))
	}
	if _, err := d.Publish(t.Context(), &paho.Publish{Topic: "devices/web/up/a", QoS: 1, Payload: []byte(big)}); err != nil {
		t.Error(err)
	}
	g.Index.Cut(countersign.Cut{Device: "web", Reason: "compromised"})
	if m := <-left; m.ReasonCode != byte(mqtt.AdministrativeAction) {
		t.Errorf("DISCONNECT: got %+v", m)
	}
}

func TestWebSocketSaysWhyItCloses(t *testing.T) {
	g := start(t, engine{})
	for _, level := range []byte{4, 5} {
		_, c := g.webDevice(t, level)
		began := time.Now()
		if n := g.Index.Cut(countersign.Cut{Device: "web", Reason: "key compromised"}); n != 1 {
			t.Errorf("Cut: got %d sessions, want 1", n)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("Cut took %v", took)
		}
		var packet []byte
		for {
			_, b, err := c.Read(t.Context())
			if err != nil {
				var ce websocket.CloseError
				if !errors.As(err, &ce) || ce.Code != websocket.StatusPolicyViolation || ce.Reason != "key compromised" {
					t.Errorf("level %d, close frame: got %v", level, err)
				}
				break
			}
			packet = append(packet, b...)
		}
		if level == 5 && (len(packet) < 3 || packet[0] != 0xE0 || packet[2] != 0x98) {
			t.Errorf("last packet: got % x, want DISCONNECT 0x98", packet)
		}
	}
	d, c := g.webDevice(t, 4)
	d.send([]byte{0xE0, 0})
	if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("after DISCONNECT: got %v, want an orderly close", err)
	}
}

func TestACutDoesNotWaitForAStalledWebSocket(t *testing.T) {
	g := start(t, engine{})
	c, _, err := g.page(t, "", mqtt.WebSocketPath, "mqtt")
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := c.Write(ctx, websocket.MessageBinary, b); err != nil {
			t.Fatal(err)
		}
	}
	write(login(5, "web"))
	write((&device{v5: true}).subscribe(1, "devices/web/down/#"))
	kit.Eventually(t, "the session opens", func() bool { return g.Index.Len() == 1 })
	delivered := uint64(0)
	for range 200 { // more than the sockets' buffers hold; nobody reads
		g.send(t, "devices/web/down/a", make([]byte, 128<<10))
		now := g.Stats().Delivered
		if delivered > 20 && now == delivered {
			break
		}
		delivered = now
	}
	began := time.Now()
	g.Index.Cut(countersign.Cut{Device: "web", Reason: "key compromised"})
	if took := time.Since(began); took > 500*time.Millisecond { // the bound is 5 ms, the machine may be busy
		t.Errorf("Cut took %v", took)
	}
}

// TestMessagesAreNotPackets covers [MQTT-6.0.0-2].
func TestMessagesAreNotPackets(t *testing.T) {
	g := start(t, engine{})
	got := make(chan string, 10)
	listen(t, g, "devices/web/up/#", got)
	c, _, err := g.page(t, "", mqtt.WebSocketPath, "mqtt")
	if err != nil {
		t.Fatal(err)
	}
	d := &device{t: t, id: "web", Conn: websocket.NetConn(t.Context(), c, websocket.MessageBinary)}
	for _, b := range login(4, "web") { // one byte a message
		d.send([]byte{b})
	}
	if kind, body := d.recv(); kind != 0x20 || body[1] != 0 {
		t.Fatalf("CONNACK: got type %#x % x", kind, body)
	}
	one, two := d.publish(1, 1, "devices/web/up/1", "one"), d.publish(1, 2, "devices/web/up/2", "two")
	d.send(cat(one, two[:7]))
	d.send(nil)
	w, err := c.Writer(t.Context(), websocket.MessageBinary) // a message of several frames
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range [][]byte{two[7:10], two[10:14], two[14:]} {
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d.expect("PUBACK 1", []byte{0x40, 2, 0, 1})
	d.expect("PUBACK 2", []byte{0x40, 2, 0, 2})
	for _, want := range []string{"devices/web/up/1 one", "devices/web/up/2 two"} {
		if m := <-got; m != want {
			t.Errorf("message: got %q, want %q", m, want)
		}
	}
	pong := make(chan error, 1)
	go func() { pong <- c.Ping(t.Context()) }()
	go func() { time.Sleep(100 * time.Millisecond); d.send([]byte{0xC0, 0}) }()
	d.expect("PINGRESP after a ping of the WebSocket", []byte{0xD0, 0})
	if err := <-pong; err != nil {
		t.Errorf("Ping: %v", err)
	}
}

// TestWebSocketEndsOnABreach covers [MQTT-6.0.0-1] and the bound of a message.
func TestWebSocketEndsOnABreach(t *testing.T) {
	g := start(t, engine{}, func(s *mqtt.Server) { s.Limits.MaxPacket = 1 << 10 })
	_, c := g.webDevice(t, 5)
	if err := c.Write(t.Context(), websocket.MessageText, []byte{0xC0, 0}); err != nil {
		t.Fatal(err)
	}
	_, b, err := c.Read(t.Context())
	if err != nil || len(b) < 3 || b[0] != 0xE0 || b[2] != byte(mqtt.MalformedPacket) {
		t.Errorf("after a text message: got % x %v, want DISCONNECT 0x81", b, err)
	}
	kit.Eventually(t, "the session is over", func() bool { return g.Index.Len() == 0 })
	d, _ := g.webDevice(t, 5)
	pings := make([]byte, 0, 2<<20)
	for len(pings) < cap(pings) {
		pings = append(pings, 0xC0, 0)
	}
	_, _ = d.Write(pings) // one message without end
	kit.Eventually(t, "the endless message ends the session", func() bool { return g.Index.Len() == 0 })
}

func TestWebSocketIsOpenedByTheRules(t *testing.T) {
	g := start(t, engine{}, func(s *mqtt.Server) { s.Origins = []string{"https://app.example.com", "*.trusted.example"} })
	for _, c := range []struct {
		what, origin, path, protocol string
		status                       int
	}{
		{"a program, no origin", "", "/mqtt", "mqtt", 101},
		{"the host's own page", "https://" + g.web, "/mqtt", "mqtt", 101},
		{"an allowed origin", "https://app.example.com", "/mqtt", "mqtt", 101},
		{"a pattern", "http://x.trusted.example", "/mqtt", "mqtt", 101},
		{"an allowed host over http", "http://app.example.com", "/mqtt", "mqtt", 403},
		{"a foreign origin", "https://evil.example", "/mqtt", "mqtt", 403},
		{"another port of the host", "https://127.0.0.1:1", "/mqtt", "mqtt", 403},
		{"another path", "", "/", "mqtt", 404},
	} {
		_, r, err := g.page(t, c.origin, c.path, c.protocol)
		if r == nil || r.StatusCode != c.status || (err == nil) != (c.status == 101) {
			t.Errorf("%s: got %v %v, want %d", c.what, r, err, c.status)
		}
	}
	conn, _, err := g.page(t, "", "/mqtt", "mqttv3.1") // [MQTT-6.0.0-3]
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusProtocolError {
		t.Errorf("without the subprotocol: got %v", err)
	}
	r, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: g.roots}}}).Get("https://" + g.web + "/mqtt")
	if err != nil || r.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("without an upgrade: got %v %v, want 426", r, err)
	}
	kit.Eventually(t, "all are gone but the four", func() bool { return g.Stats().Open <= 4 })
	kit.Eventually(t, "five are counted, and not the page", func() bool { return g.Stats().NoUpgrade == 5 })
}

func TestAnEndlessUpgradeIsEnded(t *testing.T) {
	g := start(t, engine{}, func(s *mqtt.Server) { s.Limits.Connect = 500 * time.Millisecond })
	dial := func() net.Conn {
		c, err := tls.Dial("tcp", g.web, &tls.Config{RootCAs: g.roots})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.NetConn().Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	c := dial()
	_, _ = io.WriteString(c, "GET /mqtt HTTP/1.1\r\nX: ")
	for range 64 {
		_, _ = c.Write(make([]byte, 1<<10)) // ends with an error once the server is gone
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an endless header: got %v", err)
	}
	slow := dial()
	_, _ = io.WriteString(slow, "GET /mqtt HTTP/1.1\r\n")
	if _, err := slow.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a slow header: got %v, want the end", err)
	}
	quiet := dial() // a WebSocket that says nothing
	_, _ = io.WriteString(quiet, "GET /mqtt HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(io.LimitReader(quiet, 1<<10)), nil)
	if err != nil || r.StatusCode != http.StatusSwitchingProtocols || r.Header.Get("Sec-WebSocket-Protocol") != "mqtt" { // [MQTT-6.0.0-4]
		t.Fatalf("the upgrade: got %v %v", r, err)
	}
	kit.Eventually(t, "the silent one is ended", func() bool { return g.Stats().Open == 0 })
}
