package mqtt_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/google/go-cmp/cmp"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/mqtt"
	"github.com/countersign-iot/countersign/test/kit"
)

func TestTheSenderIsStampedAndCannotBeForged(t *testing.T) {
	for name, e := range map[string]engine{"builtin": {}, "mosquitto": relayTo(startMosquitto(t, "allow_anonymous true\n"))} {
		t.Run(name, func(t *testing.T) { stamped(t, start(t, e)) })
	}
}

func stamped(t *testing.T, g *gateway) {
	g.guard.perms["hears"] = permissions(nil, []string{"devices/#"})
	hears := g.paho5(t, g.issue("hears", time.Hour), &paho.Connect{ClientID: "hears", CleanStart: true, KeepAlive: 30})
	if _, err := hears.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "devices/#", QoS: 2}}}); err != nil {
		t.Fatal(err)
	}
	forged := paho.UserProperties{{Key: "X-Device-ID", Value: "other"}, {Key: "k", Value: "v"}, {Key: "x-fleet", Value: "f"}, {Key: "x-device-id", Value: "other"}}
	want := paho.UserProperties{{Key: "k", Value: "v"}, {Key: "x-device-id", Value: "dev"}, {Key: "x-fleet", Value: "default"}}
	d := g.paho5(t, g.issue("dev", time.Hour), &paho.Connect{
		ClientID: "dev", CleanStart: true, KeepAlive: 30,
		WillMessage:    &paho.WillMessage{Topic: "devices/dev/up/will", QoS: 1, Payload: []byte("gone")},
		WillProperties: &paho.WillProperties{User: forged},
	})
	alias := uint16(1)
	for qos := range byte(3) {
		p := &paho.Publish{Topic: "devices/dev/up/x", QoS: qos, Payload: fmt.Append(nil, qos), Properties: &paho.PublishProperties{User: forged, TopicAlias: &alias}}
		if qos > 0 {
			p.Topic = "" // the alias stands for it
		}
		if _, err := d.Publish(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		m := hears.message(t)
		if string(m.Payload) != fmt.Sprint(qos) || m.Topic != "devices/dev/up/x" || !cmp.Equal(m.Properties.User, want) {
			t.Errorf("QoS %d: got %s %q with %v, want %v", qos, m.Topic, m.Payload, m.Properties.User, want)
		}
	}
	if err := d.Disconnect(&paho.Disconnect{ReasonCode: 4}); err != nil {
		t.Fatal(err)
	}
	if m := hears.message(t); string(m.Payload) != "gone" || !cmp.Equal(m.Properties.User, want) {
		t.Errorf("will: got %q with %+v", m.Payload, m.Properties)
	}
	old := g.join(t, "old", 4) // MQTT 3.1.1: through a relay the topic alone says who it is
	old.send(old.publish(1, 1, "devices/old/up/x", "old"))
	want = nil
	if g.Broker != nil {
		want = paho.UserProperties{{Key: "x-device-id", Value: "old"}, {Key: "x-fleet", Value: "default"}}
	}
	if m := hears.message(t); m.Topic != "devices/old/up/x" || !slices.Equal(m.Properties.User, want) {
		t.Errorf("3.1.1: got %s with %v", m.Topic, m.Properties.User)
	}
}

func TestTheSenderFitsTheEnginesPackets(t *testing.T) {
	g := start(t, relayTo(startMosquitto(t, "allow_anonymous true\nmax_packet_size 1000\n")))
	d := g.dial(t, "dev")
	d.v5 = true
	d.send(connectPacket(5, "dev", 2, 60, nil))
	kind, body := d.recv()
	if kind != 0x20 || body[1] != 0 {
		t.Fatalf("got %#x % x", kind, body)
	}
	i := slices.Index(body, 0x27)
	if i < 0 || i+5 > len(body) {
		t.Fatalf("no Maximum Packet Size in % x", body)
	}
	limit := int(body[i+3])<<8 | int(body[i+4])
	if limit >= 1000 || limit < 900 {
		t.Errorf("Maximum Packet Size: got %d, want a little less than 1000", limit)
	}
	p := d.publish(1, 1, "devices/dev/up/x", "")
	d.send(d.publish(1, 1, "devices/dev/up/x", strings.Repeat("x", limit-len(p)-1))) // the length takes one more byte
	kind, body = d.recv()
	if kind != 0x40 || len(body) > 2 && body[2] >= 0x80 {
		t.Errorf("the largest packet: got %#x % x, want PUBACK", kind, body)
	}
	d.send(d.publish(1, 1, "devices/dev/up/x", strings.Repeat("x", limit)))
	d.gone("a larger one", byte(mqtt.PacketTooLarge)) // [MQTT-3.2.2-15]
}

// acked expects a PUBACK that accepts; with 0x10 where nobody subscribes.
func (d *device) acked(id byte) {
	d.t.Helper()
	if kind, body := d.recv(); kind != 0x40 || body[1] != id || len(body) > 2 && body[2] >= 0x80 {
		d.t.Errorf("got %#x % x, want PUBACK %d", kind, body, id)
	}
}

func TestRetainNeedsItsPermission(t *testing.T) {
	for name, engine := range map[string]engine{"builtin": {}, "mosquitto": relayTo(startMosquitto(t, "allow_anonymous true\n"))} {
		t.Run(name, func(t *testing.T) {
			g := start(t, engine)
			g.guard.perms["dev"] = countersign.Permissions{
				Publish: countersign.Filters{Allow: []string{"up/#", "_inbox/#"}},
				Retain:  countersign.Filters{Allow: []string{"up/keep/#", "_inbox/#"}, Deny: []string{"up/keep/no"}},
			}
			d := g.join(t, "dev", 5)
			retained := func(qos byte, id uint16, topic string) []byte {
				p := d.publish(qos, id, topic, "x")
				p[0] |= 1
				return p
			}
			d.send(d.publish(1, 1, "up/x", "x")) // found good, without retain
			d.acked(1)
			d.send(retained(1, 2, "up/x"))
			d.expect("PUBACK of a retained one", []byte{0x40, 3, 0, 2, 0x87})
			d.send(d.publish(1, 3, "up/x", "x"))
			d.acked(3)
			d.send(retained(1, 4, "up/keep/x"))
			d.acked(4)
			d.send(retained(1, 5, "up/keep/no"))
			d.expect("PUBACK of a denied one", []byte{0x40, 3, 0, 5, 0x87})
			d.send(retained(1, 6, "_inbox/x/y"))
			d.expect("PUBACK of one in an inbox", []byte{0x40, 3, 0, 6, 0x87})
			d.send(retained(0, 0, "up/y"))
			d.send(d.publish(1, 7, "up/keep/z", "x"))
			d.acked(7)
			old := g.join(t, "dev", 4)
			p := old.publish(1, 8, "up/x", "x")
			p[0] |= 1
			old.send(p)
			old.acked(8)
			for _, topic := range []string{"up/x", "up/keep/no", "_inbox/a/b"} {
				w := g.dial(t, "dev")
				w.send(connectPacket(5, "dev", 0x26, 60, cat([]byte{0}, str(topic), str("gone"))))
				if kind, body := w.recv(); kind != 0x20 || body[1] != 0x87 {
					t.Errorf("retained will to %s: got %#x % x, want CONNACK 0x87", topic, kind, body)
				}
			}
			if got := g.guard.denied(); !slices.Contains(got, "dev retain up/x") || !slices.Contains(got, "dev will up/x") {
				t.Errorf("told denials: got %q", got)
			}
		})
	}
}

func TestAllowedActsAreToldOnceAndWithinBounds(t *testing.T) {
	g := start(t, engine{})
	d := g.join(t, "dev", 4)
	d.send(d.subscribe(1, "devices/dev/down/a", "devices/dev/down/a"))
	d.recv()
	for range 3 {
		for i := range 50 {
			d.send(d.publish(0, 0, fmt.Sprintf("devices/dev/up/%d", i), "x"))
		}
	}
	d.send(d.publish(1, 9, "devices/dev/up/end", "x"))
	d.acked(9)
	g.guard.mu.Lock()
	defer g.guard.mu.Unlock()
	if got := g.guard.allowed; len(got) != 32 || got[0] != "dev subscribe devices/dev/down/a" || got[1] != "dev publish devices/dev/up/0" || got[31] != "dev publish devices/dev/up/30" {
		t.Errorf("told: got %d, %q", len(got), got)
	}
}

// as is a CONNECT of somebody who is no device: a guest or an operator.
func as(level byte, name, id string, clean byte) []byte {
	return connectPacket(level, id, 0x80|clean, 60, str("as "+name))
}

func TestWhoIsNoDeviceLeavesNothingBehind(t *testing.T) {
	for name, engine := range map[string]engine{"builtin": {}, "mosquitto": relayTo(startMosquitto(t, "allow_anonymous true\n"))} {
		t.Run(name, func(t *testing.T) {
			g := start(t, engine)
			g.guard.perms["guest/x"] = permissions([]string{"g/up/#"}, []string{"g/down/#"})
			for _, level := range []byte{4, 5} {
				d := g.anonymous(t)
				d.v5 = level == 5
				d.send(as(level, "guest/x", "tab", 0)) // wants to be kept
				kind, body := d.recv()
				if kind != 0x20 || body[1] != 0 {
					t.Fatalf("CONNACK: got %#x % x", kind, body)
				}
				if level == 5 && !strings.Contains(string(body), "\x11\x00\x00\x00\x00") {
					t.Errorf("CONNACK does not say that the session ends: % x", body)
				}
				d.send(d.subscribe(1, "g/down/#"))
				d.recv()
				if level == 5 { // an expiry on leaving is not an error here
					d.send(pkt(0xE0, []byte{0}, props([]byte{0x11, 0, 0, 1, 0})))
				}
				_ = d.Close()
				kit.Eventually(t, "the session ends", func() bool { return g.Index.Len() == 0 })
				g.send(t, "g/down/x", []byte("missed"))
				again := g.anonymous(t)
				again.v5 = level == 5
				again.send(as(level, "guest/x", "tab", 0))
				if kind, body := again.recv(); kind != 0x20 || body[0] != 0 {
					t.Errorf("level %d: got %#x % x, want no session present", level, kind, body)
				}
				again.send([]byte{0xC0, 0})
				again.expect("nothing but PINGRESP", []byte{0xD0, 0})
				_ = again.Close()
				kit.Eventually(t, "the session ends", func() bool { return g.Index.Len() == 0 })
			}
		})
	}
}

func TestNobodyTakesOverAnother(t *testing.T) {
	g := start(t, relayTo(startMosquitto(t, "allow_anonymous true\n")))
	g.guard.perms["guest/guest"] = permissions([]string{"up"}, nil)
	dev := g.dial(t, "guest") // a device of this name may call itself guest/tab
	dev.send(connectPacket(4, "guest/tab", 2, 60, nil))
	dev.recv()
	tab := g.anonymous(t)
	tab.send(as(4, "guest/guest", "tab", 2))
	tab.recv()
	none := g.anonymous(t)
	none.v5 = true
	none.send(as(5, "operator/ann", "", 2))
	if kind, body := none.recv(); kind != 0x20 || body[1] != 0 || !strings.Contains(string(body), "\x12\x00\x19operator/ann:") {
		t.Errorf("assigned identifier: got %#x % x", kind, body)
	}
	for _, d := range []*device{dev, tab, none} {
		d.send([]byte{0xC0, 0})
		d.expect("PINGRESP", []byte{0xD0, 0})
	}
	again := g.anonymous(t)
	again.send(as(4, "guest/guest", "tab", 2))
	again.recv()
	tab.gone("the older tab", 0)
}

func TestSoftwareIsWhatTheClientSaysOfItself(t *testing.T) {
	g := start(t, engine{})
	d := g.dial(t, "dev")
	d.send(connectPacket(4, "dev", 0x82, 60, str("?SDK=IoT\u0001\u200bDeviceSDK/JS&Version="+strings.Repeat("ä", 200))))
	d.recv()
	web, _ := g.webDevice(t, 4)
	defer func() { _ = web.Close() }()
	got := map[string]string{}
	for _, s := range g.Index.Sessions() {
		got[s.Device] = s.Software
	}
	if want := map[string]string{"dev": ("?SDK=IoTDeviceSDK/JS&Version=" + strings.Repeat("ä", 200))[:126+97], "web": "page/1.0"}; len([]rune(got["dev"])) > 128 ||
		!strings.HasPrefix(want["dev"], got["dev"]) || len([]rune(got["dev"])) < 120 || got["web"] != want["web"] {
		t.Errorf("Software: got %q", got)
	}
	for _, q := range g.guard.questions() {
		if q.Software != got[q.ClientID] {
			t.Errorf("asked with Software %q, the session has %q", q.Software, got[q.ClientID])
		}
	}
}

// TestAWSClientsGetThroughTLS: their SDKs offer ALPN names on any port, and some send
// no server name.
func TestAWSClientsGetThroughTLS(t *testing.T) {
	g := start(t, engine{})
	for _, protocols := range [][]string{{"x-amzn-mqtt-ca"}, {"mqtt"}, nil} {
		c := g.client(g.issue("dev", time.Hour))
		c.NextProtos, c.InsecureSkipVerify, c.ServerName = protocols, true, ""
		d := g.dialConfig(t, c)
		d.hello(4, "dev")
	}
}

// A client that takes small packets only shall not lose messages to the names of
// their senders.
func TestTheSendersNameYieldsToThePacketSize(t *testing.T) {
	for name, e := range map[string]engine{"builtin": {}, "mosquitto": relayTo(startMosquitto(t, "allow_anonymous true\n"))} {
		t.Run(name, func(t *testing.T) { yields(t, e) })
	}
}

func yields(t *testing.T, e engine) {
	_, v5 := everything(t, e)
	hears, _, _ := v5.open(opening{suffix: ":h", props: [][]byte{{0x27, 0, 0, 0, 64}, {0x22, 0, 10}}})
	hears.sub(2, "c/x")
	d := v5.plain(":p")
	user := cat([]byte{0x26}, str("k"), str("v"))
	for qos := range byte(3) {
		d.put(qos, false, "c/x", strings.Repeat("x", 40), user)
		if m := hears.next(); len(m.payload) != 40 || !bytes.HasPrefix(m.props, user) || bytes.Contains(m.props, []byte("x-device-id")) {
			t.Errorf("QoS %d: got %q with % x", qos, m.payload, m.props)
		}
		d.put(qos, false, "c/x", strings.Repeat("x", 64))
		d.put(qos, false, "c/x", "")
		if m := hears.next(); m.payload != "" || !bytes.Contains(m.props, []byte("x-device-id")) {
			t.Errorf("QoS %d: got %q with % x", qos, m.payload, m.props)
		}
	}
}
