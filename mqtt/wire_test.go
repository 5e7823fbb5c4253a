package mqtt_test

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/broker"
)

// device is a raw MQTT client: what it sends is written out byte by byte.
type device struct {
	t  testing.TB
	id string
	net.Conn
	raw *net.TCPConn
	v5  bool
	// aside are packets that came while another was waited for, see pull
	aside []packet
}

// dial connects a device with a certificate of its own, TLS only.
func (g *gateway) dial(t testing.TB, id string) *device {
	t.Helper()
	return g.dialWith(t, id, g.issue(id, time.Hour))
}

func (g *gateway) dialWith(t testing.TB, id string, c tls.Certificate) *device {
	t.Helper()
	raw, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, g.client(c))
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	return &device{t: t, id: id, Conn: conn, raw: raw.(*net.TCPConn)}
}

// join connects and expects to be accepted.
func (g *gateway) join(t testing.TB, id string, level byte) *device {
	t.Helper()
	d := g.dial(t, id)
	d.hello(level, id)
	return d
}

func (d *device) hello(level byte, id string) {
	d.t.Helper()
	d.v5 = level == 5
	d.send(connectPacket(level, id, 0x02, 60, nil))
	if kind, body := d.recv(); kind != 0x20 || body[1] != 0 {
		d.t.Fatalf("CONNACK of %s: got type %#x % x", d.id, kind, body)
	}
}

func str(s string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...)
}

func cat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func pkt(head byte, parts ...[]byte) []byte {
	body := cat(parts...)
	b := []byte{head}
	n := len(body)
	for n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(append(b, byte(n)), body...)
}

// connectPacket has no properties; payload follows the client identifier.
func connectPacket(level byte, id string, flags byte, keepAlive uint16, payload []byte) []byte {
	var props []byte
	if level == 5 {
		props = []byte{0}
	}
	return pkt(0x10, str("MQTT"), []byte{level, flags, byte(keepAlive >> 8), byte(keepAlive)}, props, str(id), payload)
}

func (d *device) publish(qos byte, mid uint16, topic, payload string) []byte {
	parts := [][]byte{str(topic)}
	if qos > 0 {
		parts = append(parts, []byte{byte(mid >> 8), byte(mid)})
	}
	if d.v5 {
		parts = append(parts, []byte{0})
	}
	return pkt(0x30|qos<<1, append(parts, []byte(payload))...)
}

func (d *device) subscribe(mid uint16, filters ...string) []byte {
	parts := [][]byte{{byte(mid >> 8), byte(mid)}}
	if d.v5 {
		parts = append(parts, []byte{0})
	}
	for _, f := range filters {
		parts = append(parts, str(f), []byte{1})
	}
	return pkt(0x82, parts...)
}

func (d *device) send(b []byte) {
	d.t.Helper()
	if _, err := d.Write(b); err != nil {
		d.t.Fatalf("write: %v", err)
	}
}

// read reads one packet.
func (d *device) read() (kind byte, body []byte, err error) {
	var h [1]byte
	if _, err := io.ReadFull(d, h[:]); err != nil {
		return 0, nil, err
	}
	n, shift := 0, 0
	for {
		var c [1]byte
		if _, err := io.ReadFull(d, c[:]); err != nil {
			return 0, nil, err
		}
		n |= int(c[0]&0x7f) << shift
		if shift += 7; c[0] < 0x80 {
			break
		}
	}
	body = make([]byte, n)
	_, err = io.ReadFull(d, body)
	return h[0], body, err
}

func (d *device) recv() (byte, []byte) {
	d.t.Helper()
	_ = d.SetReadDeadline(time.Now().Add(10 * time.Second))
	kind, body, err := d.read()
	if err != nil {
		d.t.Fatalf("%s read: %v", d.id, err)
	}
	return kind, body
}

// expect reads one packet and holds it against want, as on the wire.
func (d *device) expect(what string, want []byte) {
	d.t.Helper()
	kind, body := d.recv()
	if got := pkt(kind, body); string(got) != string(want) {
		d.t.Errorf("%s: got % x, want % x", what, got, want)
	}
}

// gone expects the connection to end, with a DISCONNECT of the code before if
// code is not 0.
func (d *device) gone(what string, code byte) {
	d.t.Helper()
	_ = d.SetReadDeadline(time.Now().Add(10 * time.Second))
	told := byte(0)
	for {
		kind, body, err := d.read()
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				d.t.Errorf("%s: the connection is still open", what)
			}
			break
		}
		if kind == 0xE0 && len(body) > 0 {
			told = body[0]
		}
	}
	if told != code {
		d.t.Errorf("%s: got DISCONNECT %#x, want %#x", what, told, code)
	}
}

func (g *gateway) dialConfig(t testing.TB, c *tls.Config) *device {
	t.Helper()
	raw, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	conn := tls.Client(raw, c)
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	return &device{t: t, id: "stranger", Conn: conn, raw: raw.(*net.TCPConn)}
}

// listen sends what the platform receives to got, as topic and payload.
func listen(t testing.TB, g *gateway, filter string, got chan<- string) {
	t.Helper()
	if g.Broker != nil {
		if err := g.Broker.Listen(t.Context(), filter, func(m *broker.Message) { got <- m.Topic + " " + string(m.Payload) }); err != nil {
			t.Fatal(err)
		}
		return
	}
	d := g.behind(t)
	d.sub(1, filter)
	_ = d.SetDeadline(time.Time{})
	go func() {
		for {
			kind, body, err := d.read()
			if err != nil {
				return
			}
			if kind&0xF0 != 0x30 {
				continue
			}
			n := 2 + int(binary.BigEndian.Uint16(body))
			topic, rest := string(body[2:n]), body[n:]
			if kind&0x06 != 0 {
				_, _ = d.Write([]byte{0x40, 2, rest[0], rest[1]})
				rest = rest[2:]
			}
			got <- topic + " " + string(rest)
		}
	}()
}
