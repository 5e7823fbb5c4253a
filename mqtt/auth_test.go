package mqtt_test

import (
	"crypto/tls"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/mqtt"
)

// prop is a text or binary property.
func prop(id byte, v string) []byte { return append([]byte{id}, str(v)...) }

// props is a property block.
func props(list ...[]byte) []byte {
	b := cat(list...)
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

// connect5 is a CONNECT of the device dev over MQTT 5 with properties.
func connect5(flags byte, props []byte) []byte {
	return pkt(0x10, str("MQTT"), []byte{5, flags, 0, 60}, props, str("dev"))
}

func authPacket(code byte, list ...[]byte) []byte { return pkt(0xF0, []byte{code}, props(list...)) }

const riddleMethod = "RIDDLE"

// anonymous is a connection without a certificate.
func (g *gateway) anonymous(t testing.TB) *device {
	t.Helper()
	return g.dialConfig(t, &tls.Config{RootCAs: g.roots, ServerName: "127.0.0.1"})
}

// solve answers the riddle up to CONNACK, which it returns.
func (d *device) solve(answer string) []byte {
	d.t.Helper()
	d.v5 = true
	d.send(connect5(2, props(prop(0x15, riddleMethod), prop(0x16, "dev"))))
	d.expect("the question", authPacket(0x18, prop(0x15, riddleMethod), prop(0x16, "abc")))
	d.send(authPacket(0x18, prop(0x15, riddleMethod), prop(0x16, answer)))
	kind, body := d.recv()
	if kind != 0x20 {
		d.t.Fatalf("got packet type %#x % x, want CONNACK", kind, body)
	}
	return body
}

func TestEnhancedAuthenticationOpensASession(t *testing.T) {
	g := start(t, engine{})
	d := g.anonymous(t)
	body := d.solve("cba")
	if body[1] != 0 || !strings.Contains(string(body), string(prop(0x15, riddleMethod))) || !strings.Contains(string(body), string(prop(0x16, "well done"))) {
		t.Errorf("CONNACK: got % x", body)
	}
	// Once more within the session, [MQTT-4.12.1-1], while messages go on.
	d.send(authPacket(0x19, prop(0x15, riddleMethod), prop(0x16, "dev")))
	d.expect("the question", authPacket(0x18, prop(0x15, riddleMethod), prop(0x16, "abc")))
	d.send(d.publish(1, 7, "devices/dev/up/x", "x"))
	d.expect("PUBACK", []byte{0x40, 2, 0, 7})
	d.send(authPacket(0x18, prop(0x15, riddleMethod), prop(0x16, "cba")))
	d.expect("success", authPacket(0x00, prop(0x15, riddleMethod), prop(0x16, "well done")))
	if n := len(g.guard.questions()); n != 2 {
		t.Errorf("Admit was asked %d times, want twice", n)
	}
	d.send(authPacket(0x19, prop(0x15, riddleMethod), prop(0x16, "dev")))
	d.gone("a third time at once", byte(mqtt.QuotaExceeded))
}

func TestAServerFirstExchangeWorks(t *testing.T) {
	g := start(t, engine{})
	d := g.anonymous(t)
	d.send(connect5(2, props(prop(0x15, riddleMethod))))
	d.expect("who", authPacket(0x18, prop(0x15, riddleMethod), prop(0x16, "who are you?")))
	d.send(authPacket(0x18, prop(0x15, riddleMethod), prop(0x16, "dev")))
	d.expect("the question", authPacket(0x18, prop(0x15, riddleMethod), prop(0x16, "abc")))
	d.send(authPacket(0x18, prop(0x15, riddleMethod), prop(0x16, "cba")))
	if kind, body := d.recv(); kind != 0x20 || body[1] != 0 {
		t.Errorf("got %#x % x, want CONNACK 0", kind, body)
	}
}

func TestAFailedExchangeIsRefused(t *testing.T) {
	g := start(t, engine{})
	method := prop(0x15, riddleMethod)
	d := g.anonymous(t)
	if body := d.solve("wrong"); body[1] != 0x86 || !strings.Contains(string(body), "wrong answer") {
		t.Errorf("wrong answer: got % x, want the Gatekeeper's 0x86", body)
	}
	if n := len(g.guard.questions()); n != 1 {
		t.Errorf("Admit was asked %d times, want once", n)
	}
	d.gone("after the refusal", 0)
	for _, c := range []struct {
		what  string
		first []byte   // CONNECT
		then  [][]byte // after the first AUTH from the server
		want  byte
	}{
		{"an unknown method", connect5(2, props(prop(0x15, "NONE"))), nil, 0x8C},
		{"data without a method", connect5(2, props(prop(0x16, "x"))), nil, 0x82},
		{"two methods", connect5(2, props(method, method)), nil, 0x82},
		{"too much data", connect5(2, props(method, prop(0x16, strings.Repeat("x", 5000)))), nil, 0x95},
		{"another method", connect5(2, props(method)), [][]byte{authPacket(0x18, prop(0x15, "OTHER"))}, 0x82},
		{"no method", connect5(2, props(method)), [][]byte{authPacket(0x18)}, 0x82},
		{"an empty AUTH", connect5(2, props(method)), [][]byte{{0xF0, 0}}, 0x82},
		{"reserved flags", connect5(2, props(method)), [][]byte{{0xF1, 0}}, 0x81},
		{"re-authentication", connect5(2, props(method)), [][]byte{authPacket(0x19, method)}, 0x82},
		{"a PUBLISH", connect5(2, props(method)), [][]byte{pkt(0x30, str("devices/dev/up/x"), []byte{0})}, 0x82},
		{"a packet that is too small for AUTH", connect5(2, props(method, []byte{0x27, 0, 0, 0, 5})), nil, 0x95},
	} {
		d := g.anonymous(t)
		d.send(c.first)
		if c.then != nil {
			if kind, _ := d.recv(); kind != 0xF0 {
				t.Errorf("%s: got packet type %#x, want AUTH", c.what, kind)
			}
		}
		for _, p := range c.then {
			d.send(p)
		}
		if kind, body := d.recv(); kind != 0x20 || body[1] != c.want {
			t.Errorf("%s: got %#x % x, want CONNACK %#x", c.what, kind, body, c.want)
		}
		d.gone(c.what, 0)
	}
	if n := g.Index.Len(); n != 0 {
		t.Errorf("sessions: got %d, want none", n)
	}
}

func TestAnExchangeHasAnEnd(t *testing.T) {
	g := start(t, engine{}, func(s *mqtt.Server) { s.Limits.Connect = 500 * time.Millisecond })
	d := g.anonymous(t)
	d.send(connect5(2, props(prop(0x15, riddleMethod), prop(0x16, "dev"))))
	for i := range 20 {
		if kind, body := d.recv(); kind != 0xF0 {
			if kind != 0x20 || body[1] != 0x82 || i > 8 {
				t.Errorf("step %d: got %#x % x, want CONNACK 0x82 after eight", i, kind, body)
			}
			break
		}
		d.send(authPacket(0x18, prop(0x15, riddleMethod), prop(0x16, "again")))
	}
	slow := g.anonymous(t)
	slow.send(connect5(2, props(prop(0x15, riddleMethod), prop(0x16, "dev"))))
	slow.recv()
	slow.gone("a silent client", 0)
}

func TestReauthenticationHoldsToTheProtocol(t *testing.T) {
	g := start(t, engine{})
	method := prop(0x15, riddleMethod)
	for _, c := range []struct {
		what string
		auth []byte
		want byte
	}{
		{"another method", authPacket(0x19, prop(0x15, "OTHER")), 0x82},
		{"to go on with nothing", authPacket(0x18, method), 0x82},
		{"success from the client", authPacket(0x00, method), 0x82},
	} {
		d := g.anonymous(t)
		d.solve("cba")
		d.send(c.auth)
		d.gone(c.what, c.want)
	}
	for _, who := range []struct{ device, answer string }{{"dev", "wrong"}, {"other", "cba"}} {
		d := g.anonymous(t)
		d.solve("cba")
		d.send(authPacket(0x19, method, prop(0x16, who.device)))
		d.recv()
		d.send(authPacket(0x18, method, prop(0x16, who.answer)))
		d.gone("re-authentication as "+who.device+" with "+who.answer, 0x87) // [MQTT-4.12.1-2]
	}
	d := g.join(t, "plain", 5)
	d.send(authPacket(0x19, method))
	d.gone("AUTH where CONNECT named no method", 0x82) // [MQTT-4.12.0-7]
	d = g.join(t, "plain3", 4)
	d.send([]byte{0xF0, 0})
	d.gone("AUTH with MQTT 3.1.1", 0)
}

func TestConnectHoldsALargePasswordAndAWill(t *testing.T) {
	g := start(t, engine{})
	password := make([]byte, 65535)
	for i := range password {
		password[i] = byte(i)
	}
	d := g.anonymous(t)
	d.send(connectPacket(4, "dev", 0x02|0x04|0xC0, 60, cat(str("devices/dev/up/will"), str(strings.Repeat("w", 65535)), str("nobody"), str(string(password)))))
	if kind, body := d.recv(); kind != 0x20 || body[1] != 5 { // read whole, and refused by the Gatekeeper
		t.Errorf("got %#x % x, want CONNACK 5", kind, body)
	}
	if q := g.guard.questions(); len(q) != 1 || string(q[0].Password) != string(password) {
		t.Errorf("the Gatekeeper was asked with %d questions or another password", len(q))
	}
}
