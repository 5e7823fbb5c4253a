package mqtt_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/mqtt"
	"github.com/countersign-iot/countersign/test/kit"
)

func TestRefusalHasTheExactCode(t *testing.T) {
	g := start(t, engine{})
	cases := []struct {
		code countersign.Code
		v3   byte
		v5   byte
	}{
		{countersign.NotAllowed, 5, 0x87},
		{countersign.CertIsRevoked, 5, 0x87},
		{countersign.DeviceOnHold, 5, 0x8A},
		{countersign.DeviceGone, 5, 0x8A},
		{countersign.BadCredential, 4, 0x86},
		{countersign.RateLimited, 3, 0x9F},
		{countersign.Unavailable, 3, 0x88},
	}
	for _, c := range cases {
		id := "dev-" + string(c.code)
		g.guard.refuse(id, c.code)
		for _, level := range []byte{4, 5} {
			d := g.dial(t, id)
			d.send(connectPacket(level, id, 2, 60, nil))
			kind, body := d.recv()
			want := c.v3
			if level == 5 {
				want = c.v5
				if !strings.Contains(string(body), "the device was refused") {
					t.Errorf("%s: no reason string in % x", c.code, body)
				}
			}
			if kind != 0x20 || body[1] != want {
				t.Errorf("%s level %d: got %#x %#x, want CONNACK %#x", c.code, level, kind, body[1], want)
			}
			d.gone("after the refusal", 0)
		}
	}
}

func TestConnectHoldsToTheProtocol(t *testing.T) {
	g := start(t, engine{})
	id := "dev"
	cases := []struct {
		name   string
		packet []byte
		want   int // CONNACK code; -1: closed without an answer
	}{
		{"3.1 by the name of 3.1.1", pkt(0x10, str("MQTT"), []byte{3, 2, 0, 60}, str(id)), 1},
		{"level 6", pkt(0x10, str("MQTT"), []byte{6, 2, 0, 60, 0}, str(id)), 0x84},
		{"another protocol", pkt(0x10, str("HTTP"), []byte{4, 2, 0, 60}, str(id)), -1},
		{"reserved flag 3.1.1", connectPacket(4, id, 3, 60, nil), -1},
		{"reserved flag 5", connectPacket(5, id, 3, 60, nil), 0x81},
		{"other client id 3.1.1", connectPacket(4, "dev2", 2, 60, nil), 2},
		{"other client id 5", connectPacket(5, "dev2", 2, 60, nil), 0x85},
		{"client id too long", connectPacket(5, id+strings.Repeat("/x", 200), 2, 60, nil), 0x85},
		{"empty id, not clean", connectPacket(4, "", 0, 60, nil), 2},
		{"enhanced authentication", pkt(0x10, str("MQTT"), []byte{5, 2, 0, 60}, []byte{6, 0x15, 0, 3, 'a', 'b', 'c'}, str(id)), 0x8C},
		{"property twice", pkt(0x10, str("MQTT"), []byte{5, 2, 0, 60}, []byte{6, 0x21, 0, 3, 0x21, 0, 3}, str(id)), 0x82},
		{"bytes after the end", connectPacket(5, id, 2, 60, []byte{1}), 0x81},
		{"PINGREQ first", []byte{0xC0, 0}, -1},
		{"too large", []byte{0x10, 0x80, 0x80, 0x10}, -1},
		{"forbidden will 3.1.1", connectPacket(4, id, 6, 60, cat(str("devices/other/up/x"), str("bye"))), 5},
		{"forbidden will 5", connectPacket(5, id, 6, 60, cat([]byte{0}, str("devices/other/up/x"), str("bye"))), 0x87},
		{"will with a wildcard", connectPacket(5, id, 6, 60, cat([]byte{0}, str("devices/dev/up/+"), str("bye"))), 0x90},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := g.dial(t, id)
			d.send(c.packet)
			kind, body, err := d.read()
			switch {
			case c.want < 0 && err == nil:
				t.Errorf("got an answer: %#x % x", kind, body)
			case c.want >= 0 && (err != nil || kind != 0x20 || int(body[1]) != c.want):
				t.Errorf("got %#x % x %v, want CONNACK %#x", kind, body, err, c.want)
			}
			d.gone("after the refusal", 0)
		})
	}
	if got := g.guard.denied(); !slices.Contains(got, "dev will devices/other/up/x") {
		t.Errorf("Denied: got %q, want the will", got)
	}
}

// TestTheServersKeepAlive holds MQTT 5, 3.2.2.3.14: the server names the keep alive of a
// client that asked for none or for one that is too long, and counts by it.
func TestTheServersKeepAlive(t *testing.T) {
	hello := func(g *gateway, keepAlive uint16) (d *device, named uint16) {
		d = g.dial(t, "dev")
		d.v5 = true
		d.send(connectPacket(5, "dev", 2, keepAlive, nil))
		_, body := d.recv()
		if _, rest, ok := bytes.Cut(body[3:], []byte{0x13}); ok {
			named = binary.BigEndian.Uint16(rest)
		}
		return d, named
	}
	g := start(t, engine{})
	for asked, want := range map[uint16]uint16{0: 1200, 60: 0, 1200: 0, 1201: 1200} {
		if _, named := hello(g, asked); named != want {
			t.Errorf("keep alive %d: got Server Keep Alive %d, want %d", asked, named, want)
		}
	}
	g = start(t, engine{}, func(s *mqtt.Server) { s.Limits.MaxKeepAlive = time.Second })
	began := time.Now()
	d, _ := hello(g, 0)
	d.gone("a silent client that asked for no keep alive", 0x8D)
	if took := time.Since(began); took < 1400*time.Millisecond {
		t.Errorf("closed after %v, want one and a half seconds", took)
	}
}

func TestNoCertificateIsAnsweredWithConnack(t *testing.T) {
	g := start(t, engine{})
	d := g.dialWith(t, "nobody", g.issue("nobody", time.Hour))
	_ = d
	c := g.client(g.server)
	c.Certificates = nil
	for level, want := range map[byte]byte{4: 5, 5: 0x87} {
		d := g.dialConfig(t, c)
		d.send(connectPacket(level, "nobody", 2, 60, nil))
		if kind, body := d.recv(); kind != 0x20 || body[1] != want {
			t.Errorf("level %d: got %#x % x, want CONNACK %#x", level, kind, body, want)
		}
	}
}

func TestEmptyClientIDIsAssigned(t *testing.T) {
	g := start(t, engine{})
	d := g.dial(t, "dev")
	d.send(connectPacket(5, "", 2, 60, nil))
	_, body := d.recv()
	at := strings.Index(string(body), "dev:")
	if body[1] != 0 || at < 3 || body[at-3] != 0x12 {
		t.Errorf("CONNACK without an assigned identifier: % x", body)
	}
	g.join(t, "dev", 4) // another identifier: both live
	kit.Eventually(t, "two sessions", func() bool { return g.Index.Len() == 2 })
}

func TestPublishIsHeldAgainstPermissions(t *testing.T) {
	g := start(t, engine{})
	got := make(chan string, 100)
	listen(t, g, "devices/#", got)
	for _, level := range []byte{4, 5} {
		id := fmt.Sprintf("dev%d", level)
		d := g.join(t, id, level)
		d.send(d.publish(0, 0, "devices/other/up/x", "bad0"))
		d.send(d.publish(1, 7, "devices/other/up/x", "bad1"))
		d.send(d.publish(2, 8, "devices/"+id+"/down/x", "bad2"))
		if level == 5 {
			d.expect("refused QoS 1", []byte{0x40, 3, 0, 7, 0x87})
			d.expect("refused QoS 2", []byte{0x50, 3, 0, 8, 0x87})
		} else {
			d.expect("refused QoS 1", []byte{0x40, 2, 0, 7})
			d.expect("refused QoS 2", []byte{0x50, 2, 0, 8})
			d.send([]byte{0x62, 2, 0, 8})
			d.expect("end of refused QoS 2", []byte{0x70, 2, 0, 8})
		}
		d.send(d.publish(1, 9, "devices/"+id+"/up/ok", "good"))
		d.expect("permitted QoS 1", []byte{0x40, 2, 0, 9})
		d.send(d.publish(2, 10, "devices/"+id+"/up", "good2"))
		d.expect("permitted QoS 2", []byte{0x50, 2, 0, 10})
		d.send([]byte{0x62, 2, 0, 10})
		d.expect("end of QoS 2", []byte{0x70, 2, 0, 10})
		for _, want := range []string{"devices/" + id + "/up/ok good", "devices/" + id + "/up good2"} {
			select {
			case m := <-got:
				if m != want {
					t.Errorf("the platform got %q, want %q", m, want)
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("the platform waits for %q", want)
			}
		}
		d.send([]byte{0xE0, 0})
		d.gone("after DISCONNECT", 0)
	}
	if n := g.Stats().Denied; n != 6 {
		t.Errorf("denied acts: got %d, want 6", n)
	}
	if d := g.guard.denied(); len(d) != 2 { // one per second and session
		t.Errorf("Denied was told %d times, want 2: %q", len(d), d)
	}
	kit.Eventually(t, "closed sessions", func() bool {
		return slices.Equal(g.guard.reasons("dev5"), []string{"client_left"}) && slices.Equal(g.guard.reasons("dev4"), []string{"client_left"})
	})
}

func TestSubscribeAnswersEachFilterInOrder(t *testing.T) {
	g := start(t, engine{})
	for _, level := range []byte{4, 5} {
		id := fmt.Sprintf("dev%d", level)
		d := g.join(t, id, level)
		refused := byte(0x80)
		var props []byte
		if level == 5 {
			refused, props = 0x87, []byte{0}
		}
		own := "devices/" + id + "/down/"
		d.send(d.subscribe(3, "#", own+"a", "devices/+/down/a", own+"#", "$SYS/#", "$share/g/"+own+"x", own+"b c"))
		d.expect("SUBACK", pkt(0x90, []byte{0, 3}, props, []byte{refused, 1, refused, 1, refused, 1, 1}))
		d.send(d.subscribe(4, "devices/#"))
		d.expect("SUBACK of nothing permitted", pkt(0x90, []byte{0, 4}, props, []byte{refused}))
		un := pkt(0xA2, []byte{0, 5}, props, str(own+"a"), str("$SYS/#"), str(own+"#"))
		d.send(un)
		if level == 5 {
			d.expect("UNSUBACK", pkt(0xB0, []byte{0, 5, 0, 0, 0x11, 0}))
		} else {
			d.expect("UNSUBACK", pkt(0xB0, []byte{0, 5}))
		}
		d.send([]byte{0xC0, 0})
		d.expect("PINGRESP", []byte{0xD0, 0})
	}
}

func TestBreachEndsTheSession(t *testing.T) {
	g := start(t, engine{}, func(s *mqtt.Server) { s.Limits.MaxPacket = 64 << 10 })
	up := "devices/dev/up/x"
	cases := []struct {
		name   string
		packet func(d *device) []byte
		code   byte
	}{
		{"second CONNECT", func(d *device) []byte { return connectPacket(5, "dev", 2, 60, nil) }, 0x82},
		{"wildcard topic", func(d *device) []byte { return d.publish(0, 0, "devices/dev/up/#", "x") }, 0x90},
		{"empty topic", func(d *device) []byte { return d.publish(0, 0, "", "x") }, 0x82},
		{"NUL in the topic", func(d *device) []byte { return d.publish(0, 0, up+"\x00", "x") }, 0x90},
		{"invalid UTF-8", func(d *device) []byte { return d.publish(0, 0, up+"\xff", "x") }, 0x81},
		{"packet id 0", func(d *device) []byte { return d.publish(1, 0, up, "x") }, 0x81},
		{"QoS 3", func(d *device) []byte { return pkt(0x36, str(up), []byte{0, 1, 0}) }, 0x81},
		{"flags of SUBSCRIBE", func(d *device) []byte { return pkt(0x80, []byte{0, 1, 0}, str("devices/dev/down/a"), []byte{0}) }, 0x81},
		{"no filter", func(d *device) []byte { return pkt(0x82, []byte{0, 1, 0}) }, 0x82},
		{"bad filter", func(d *device) []byte { return d.subscribe(1, "devices/dev/down/#/a") }, 0x8F},
		{"subscription id 0", func(d *device) []byte {
			return pkt(0x82, []byte{0, 1, 2, 0x0B, 0}, str("devices/dev/down/a"), []byte{0})
		}, 0x82},
		{"alias over the maximum", func(d *device) []byte { return pkt(0x30, str(up), []byte{3, 0x23, 0, 17}) }, 0x94},
		{"alias 0", func(d *device) []byte { return pkt(0x30, str(up), []byte{3, 0x23, 0, 0}) }, 0x94},
		{"unknown alias", func(d *device) []byte { return pkt(0x30, str(""), []byte{3, 0x23, 0, 1}) }, 0x82},
		{"too large", func(d *device) []byte { return d.publish(0, 0, up, strings.Repeat("x", 70_000)) }, 0x95},
		{"remaining length of five bytes", func(d *device) []byte { return []byte{0x30, 0xff, 0xff, 0xff, 0xff, 1} }, 0x81},
		{"packet type 0", func(d *device) []byte { return []byte{0, 0} }, 0x81},
		{"AUTH", func(d *device) []byte { return []byte{0xF0, 0} }, 0x82},
		{"CONNACK", func(d *device) []byte { return []byte{0x20, 2, 0, 0} }, 0x82},
		{"PINGREQ with a body", func(d *device) []byte { return []byte{0xC0, 1, 0} }, 0x81},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := g.dial(t, "dev")
			d.hello(5, "dev/"+strings.ReplaceAll(c.name, " ", ""))
			d.send(c.packet(d))
			d.gone(c.name, c.code)
			d = g.dial(t, "dev")
			d.hello(4, "dev/3"+strings.ReplaceAll(c.name, " ", ""))
			d.v5 = false
			if c.name != "alias over the maximum" && c.name != "alias 0" && c.name != "subscription id 0" && c.name != "unknown alias" {
				_, _ = d.Write(c.packet(d)) // the gateway may leave before it has all of it
				d.gone(c.name+" in 3.1.1", 0)
			}
		})
	}
}

func TestTopicAliasIsResolvedForPermissions(t *testing.T) {
	g := start(t, engine{})
	got := make(chan string, 10)
	listen(t, g, "devices/#", got)
	d := g.join(t, "dev", 5)
	alias := func(topic string, n byte, mid byte, payload string) []byte {
		return pkt(0x32, str(topic), []byte{0, mid}, []byte{3, 0x23, 0, n}, []byte(payload))
	}
	d.send(alias("devices/dev/up/t", 1, 1, "a"))
	d.expect("first use", []byte{0x40, 2, 0, 1})
	d.send(alias("", 1, 2, "b"))
	d.expect("second use", []byte{0x40, 2, 0, 2})
	d.send(alias("devices/other/up/t", 1, 3, "c"))
	d.expect("forbidden topic", []byte{0x40, 3, 0, 3, 0x87})
	d.send(alias("", 1, 4, "d"))
	d.expect("forbidden by its alias", []byte{0x40, 3, 0, 4, 0x87})
	for _, want := range []string{"devices/dev/up/t a", "devices/dev/up/t b"} {
		if m := <-got; m != want {
			t.Errorf("the platform got %q, want %q", m, want)
		}
	}
}

// TestTopicAliasesAreBounded fills a session's table with the longest topics, on an
// engine that would take any number of aliases: those that are refused take no room,
// and the others are bounded in octets.
func TestTopicAliasesAreBounded(t *testing.T) {
	g := start(t, relayTo(startMosquitto(t, "allow_anonymous true\nmax_topic_alias 65535\n")))
	d := g.dial(t, "dev")
	d.send(connectPacket(5, "dev", 2, 60, nil))
	d.v5 = true
	if _, body := d.recv(); !bytes.Contains(body, []byte{0x22, 0, 16}) {
		t.Errorf("CONNACK: got % x, want Topic Alias Maximum 16", body)
	}
	long := strings.Repeat("x", 60_000)
	alias := func(topic string, n byte, mid uint16) []byte {
		return pkt(0x32, str(topic), []byte{byte(mid >> 8), byte(mid)}, []byte{3, 0x23, 0, n})
	}
	before := heapNow()
	for i := range 200 {
		d.send(alias(fmt.Sprintf("devices/other/up/%d/%s", i, long), byte(1+i%16), uint16(i+1)))
		d.expect("a topic that is not permitted", []byte{0x40, 3, byte((i + 1) >> 8), byte(i + 1), 0x87})
	}
	if grown := heapNow() - before; grown > 2<<20 {
		t.Errorf("refused topics take %d KiB", grown>>10)
	}
	for i := range 16 {
		d.send(alias("", byte(1+i), 300))
		d.expect("their alias", []byte{0x40, 3, 300 >> 8, 300 & 0xFF, 0x87})
	}
	for i := range 14 { // of 1 KiB each
		d.send(alias(fmt.Sprintf("devices/dev/up/%d/%s", i, long[:1000]), byte(1+i), 301))
		if kind, body := d.recv(); kind != 0x40 || len(body) > 2 && body[2] >= 0x80 {
			t.Fatalf("alias %d: got type %#x % x", i+1, kind, body)
		}
	}
	d.send(alias("devices/dev/up/"+long, 16, 302))
	d.gone("one more of 60 KiB", 0x97)
	d = g.join(t, "dev", 5)
	d.send(alias("devices/dev/up/a", 17, 1))
	d.gone("alias 17", 0x94)
}

func heapNow() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A client that sends half a packet behind others holds up neither those nor what others
// publish to the same receiver.
func TestHalfAPacketHoldsUpNothing(t *testing.T) {
	v4, _ := everything(t, engine{})
	s, late, p := v4.plain(":s"), v4.plain(":late"), v4.plain(":p")
	s.sub(0, "c/#")
	late.send(append(late.message(0, 0, "c/late", "late"), 0x30))
	s.gets("late")
	p.send(p.message(0, 0, "c/p", "p"))
	s.gets("p")
	late.send(append(late.message(0, 0, "c/late", "last")[1:], 0x36)) // the rest, and then a packet of QoS 3
	s.gets("last")
}
