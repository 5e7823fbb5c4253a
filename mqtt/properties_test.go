package mqtt_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

// everything is a gateway whose device "c" may do all, as clients of both versions.
func everything(t *testing.T, e engine) (v4, v5 *trial) {
	t.Helper()
	g := start(t, e)
	g.guard.common = &countersign.Permissions{
		Publish: countersign.Filters{Allow: []string{"#"}}, Retain: countersign.Filters{Allow: []string{"#"}},
		Subscribe: countersign.Filters{Allow: []string{"#"}}, Receive: countersign.Filters{Allow: []string{"#"}},
	}
	cert := g.issue("c", time.Hour)
	return &trial{TB: t, g: g, level: 4, id: "c", cert: cert}, &trial{TB: t, g: g, level: 5, id: "c", cert: cert}
}

func TestAnEmptyRetainedMessageWithPropertiesDeletes(t *testing.T) {
	_, v5 := everything(t, engine{})
	d := v5.plain(":p")
	user := cat([]byte{0x26}, str("k"), str("v"))
	d.put(1, true, "c/x", "kept", user)
	d.put(1, true, "c/y", "last", user)
	d.put(1, true, "c/x", "", user)
	hears := v5.plain(":h")
	hears.sub(1, "c/+")
	if m := hears.next(); m.payload != "last" || !m.retain || !bytes.HasPrefix(m.props, user) {
		t.Errorf("got %+v, want the other one", m)
	}
}

func TestALargeMessageWithPropertiesCounts(t *testing.T) {
	_, v5 := everything(t, engine{})
	hears, _, _ := v5.open(opening{suffix: ":h", props: [][]byte{{0x27, 0, 0, 0, 64}}})
	hears.sub(1, "c/x")
	d := v5.plain(":p")
	d.put(1, false, "c/x", "large", cat([]byte{0x26}, str("k"), str(strings.Repeat("v", 64))))
	d.put(1, false, "c/x", "small")
	hears.gets("small")
}

// TestOldClientsAreServed takes MQTT 3.1 through what differs from MQTT 3.1.1.
func TestOldClientsAreServed(t *testing.T) {
	for name, e := range map[string]engine{"builtin": {}, "mosquitto": relayTo(startMosquitto(t, "allow_anonymous true\n"))} {
		t.Run(name, func(t *testing.T) {
			g := start(t, e)
			long := "dev:" + strings.Repeat("x", 40) // 3.1 has 23 octets; brokers take more
			hello := func(flags byte, id string) []byte {
				return pkt(0x10, str("MQIsdp"), []byte{3, flags, 0, 60}, str(id))
			}
			d := g.dial(t, "dev")
			d.send(hello(2, long))
			d.expect("CONNACK", []byte{0x20, 2, 0, 0})
			if s := g.Index.Sessions(); len(s) != 1 || s[0].Protocol != "MQTT 3.1" {
				t.Errorf("Sessions: got %+v", s)
			}
			again := d.subscribe(7, "devices/dev/down/#", "devices/other/#")
			again[0] |= 0x08 // DUP
			d.send(again)
			d.expect("SUBACK", []byte{0x90, 4, 0, 7, 1, 0x80})
			d.put(2, false, "devices/dev/up/x", "up")
			g.send(t, "devices/dev/down/x", []byte("down"))
			d.gets("down")
			for range 2 { // Session Present is no flag yet
				d = g.dial(t, "dev")
				d.send(hello(0, "dev"))
				d.expect("CONNACK of a kept session", []byte{0x20, 2, 0, 0})
				d.send([]byte{0xE0, 0})
				d.gone("goodbye", 0)
			}
			d = g.dial(t, "dev")
			d.send(hello(2, ""))
			d.expect("CONNACK without a client identifier", []byte{0x20, 2, 0, 2})
		})
	}
}

// TestAnyTopicPasses has topics that some brokers do not take.
func TestAnyTopicPasses(t *testing.T) {
	v4, v5 := everything(t, engine{})
	for _, c := range []*trial{v4, v5} {
		d := c.plain("")
		for _, topic := range []string{"a b/c\td", "c/*/>", "c/" + strings.Repeat("long", 16000), "/", "ä/\u00a0"} {
			d.sub(1, topic)
			d.put(1, false, topic, "x")
			if m := d.next(); m.topic != topic {
				t.Errorf("got a message on %.40q, want %.40q", m.topic, topic)
			}
		}
		d.broken("U+0000", 0x90, d.message(1, 1, "c/\x00", "x"))
	}
}

// TestAWillLivesFromItsPublication checks the Message Expiry Interval of a will.
func TestAWillLivesFromItsPublication(t *testing.T) {
	_, v5 := everything(t, engine{})
	hears := v5.plain(":h")
	hears.sub(1, "c/will")
	d, _, _ := v5.open(opening{suffix: ":w", flags: 4, after: v5.will("c/will", "bye", []byte{0x02, 0, 0, 0, 100})})
	_ = d.raw.SetLinger(0)
	_ = d.raw.Close()
	if m := hears.next(); !bytes.Contains(m.props, []byte{0x02, 0, 0, 0, 100}) {
		t.Errorf("the will came with % x, want its life of 100 s", m.props)
	}
}

// TestTheServerAssignsAliases has many publish at once to a client that takes two
// aliases: each message's topic is known from what came before it.
func TestTheServerAssignsAliases(t *testing.T) {
	_, v5 := everything(t, engine{})
	hears, _, _ := v5.open(opening{suffix: ":h", props: [][]byte{{0x22, 0, 2}}})
	hears.sub(2, "c/#")
	const publishers, each = 4, 60
	var all sync.WaitGroup
	for n := range publishers {
		d := v5.plain(fmt.Sprint(":p", n))
		all.Go(func() {
			for i := range each {
				topic := fmt.Sprint("c/", (n+i)%3)
				d.put(byte(i%3), false, topic, topic)
			}
		})
	}
	known := map[byte]string{}
	short := 0
	for range publishers * each {
		m := hears.next()
		_, rest, has := bytes.Cut(m.props, []byte{0x23, 0})
		switch {
		case m.topic == "" && has:
			m.topic = known[rest[0]]
			short++
		case has:
			known[rest[0]] = m.topic
		}
		if m.topic != m.payload {
			t.Fatalf("got a message of %q with the topic %q", m.payload, m.topic)
		}
	}
	all.Wait()
	if len(known) != 2 || short < publishers*each/2 {
		t.Errorf("got %d aliases and %d messages without a topic name, want 2 and most", len(known), short)
	}
}
