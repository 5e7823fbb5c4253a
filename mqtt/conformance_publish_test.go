package mqtt_test

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// holds expects property blocks to contain parts.
func holds(c *trial, block []byte, parts ...[]byte) {
	c.Helper()
	for _, p := range parts {
		if !bytes.Contains(block, p) {
			c.Errorf("properties % x do not contain % x", block, p)
		}
	}
}

// publishCases are about messages on their way up and down.
var publishCases = []conformanceCase{
	{
		name: "EachQualityOfServiceIsAnswered", v3: "2.3.1-5 2.3.1-6 3.3.4-1 4.3.1-1 4.3.2-2 4.3.3-2",
		v5: "2.2.1-2 2.2.1-4 2.2.1-5 3.3.4-1 3.6.2-1 3.6.2-2 3.6.2-3 3.7.2-1 3.7.2-2 3.7.2-3 4.3.1-1 4.3.2-1 4.3.2-2 4.3.2-4 4.3.3-1 4.3.3-2 4.3.3-4 4.3.3-8 4.3.3-11",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(2, c.topic("x"))
			d := c.plain("")
			for qos := range byte(3) {
				d.put(qos, false, c.topic("x"), fmt.Sprint(qos))
				if m := hears.next(); m.qos != qos || m.payload != fmt.Sprint(qos) || m.dup || m.retain || qos > 0 && m.id == 0 || m.topic != c.topic("x") {
					c.Errorf("QoS %d: got %+v", qos, m)
				}
			}
			d.put(1, false, c.topic("x"), "") // an empty payload is a message
			hears.gets("")
		},
	},
	{
		name: "QoS2IsExactlyOnce", v3: "4.3.3-2", v5: "4.3.3-10 4.3.3-12 4.3.3-13",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(2, c.topic("x"))
			d := c.plain("")
			once := d.message(2, 7, c.topic("x"), "once")
			d.send(once)
			d.acknowledged(0x50, 7)
			once[0] |= 8
			d.send(once)
			d.acknowledged(0x50, 7)
			d.send([]byte{0x62, 2, 0, 7})
			d.acknowledged(0x70, 7)
			hears.gets("once")
			hears.quiet("the same message again")
			d.send(d.message(2, 7, c.topic("x"), "twice")) // the identifier is free again
			d.acknowledged(0x50, 7)
			d.send([]byte{0x62, 2, 0, 7})
			d.acknowledged(0x70, 7)
			hears.gets("twice")
		},
	},
	{
		name: "ARefusedQoS2IsForgotten", v5: "4.3.3-9",
		run: func(c *trial) {
			d := c.plain("")
			for range 2 {
				d.send(d.message(2, 7, "denied/x", "x"))
				d.expect("PUBREC", []byte{0x50, 3, 0, 7, 0x87})
			}
			d.put(2, false, c.topic("x"), "x")
		},
	},
	{
		name: "QoS1IsNewAfterItsPuback", v3: "4.3.2-2", v5: "4.3.2-5",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(1, c.topic("x"))
			d := c.plain("")
			m := d.message(1, 7, c.topic("x"), "x")
			m[0] |= 8 // what DUP says does not matter, nor is it passed on
			for range 2 {
				d.send(m)
				d.acknowledged(0x40, 7)
				if got := hears.next(); got.dup || got.payload != "x" {
					c.Errorf("got %+v", got)
				}
			}
		},
	},
	{
		name: "DupIsTheSendersOwn", v3: "3.3.1-2 3.3.1-3", v5: "3.3.1-2 3.3.1-3",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(1, c.topic("x"))
			d := c.plain("")
			m := d.message(1, 7, c.topic("x"), "x")
			m[0] |= 8
			d.send(m)
			d.acknowledged(0x40, 7)
			if got := hears.next(); got.dup {
				c.Errorf("got %+v", got)
			}
			m = d.message(0, 0, c.topic("x"), "x")
			m[0] |= 8
			d.broken("DUP with QoS 0", 0x81, m)
		},
	},
	{
		name: "AForbiddenMessageIsAcknowledged", v3: "3.3.5-2",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(2, "denied/"+c.id)
			d := c.plain("")
			for qos := range byte(3) {
				d.put(qos, false, "denied/"+c.id, "x")
			}
			d.put(1, false, c.topic("x"), "x")
			hears.quiet("a forbidden message")
		},
	},
	{
		name: "ARetainedMessageIsKept", v3: "3.1.2-7 3.3.1-5 3.3.1-6 3.3.1-7 3.3.1-8 3.3.1-9 3.3.1-10 3.3.1-11 3.3.1-12",
		v5: "3.3.1-5 3.3.1-6 3.3.1-7 3.3.1-8 3.3.1-9 3.3.1-12",
		run: func(c *trial) {
			live := c.plain(":l")
			live.sub(1, c.topic("x"))
			d := c.plain("")
			late := func(want string) {
				c.Helper()
				var m arrived
				for range 20 { // an engine may answer the sender before late comers see it
					h := c.plain(":h")
					h.sub(1, c.topic("#"))
					h.sub(0, c.topic("end")) // what is retained comes right behind its SUBACK
					d.put(1, false, c.topic("end"), "end")
					m = h.next()
					if m.payload == "end" {
						m = arrived{topic: c.topic("x"), retain: true}
					} else {
						h.gets("end")
					}
					_ = h.raw.Close()
					if m.payload == want {
						break
					}
				}
				if m.payload != want || !m.retain || m.topic != c.topic("x") {
					c.Errorf("retained: got %+v, want %q", m, want)
				}
			}
			for _, step := range []struct {
				qos              byte
				retain           bool
				payload, retains string
			}{{1, true, "one", "one"}, {1, false, "not kept", "one"}, {0, true, "two", "two"}, {2, true, "three", "three"}, {1, false, "", "three"}, {1, true, "", ""}} {
				d.put(step.qos, step.retain, c.topic("x"), step.payload)
				if m := live.next(); m.payload != step.payload || m.retain {
					c.Errorf("live: got %+v, want %q without RETAIN", m, step.payload)
				}
				late(step.retains)
			}
			d.put(1, true, c.topic("x"), "stays")
			_ = d.raw.Close() // and outlives its sender
			d = c.plain("")
			late("stays")
			d.put(1, true, c.topic("x"), "")
		},
	},
	{
		name: "RetainHandlingIsKept", v5: "3.3.1-10 3.3.1-11",
		run: func(c *trial) {
			d := c.plain("")
			d.put(1, true, c.topic("x"), "kept")
			d.sub(0x21, c.topic("x"))
			d.quiet("retain handling 2")
			d.sub(0x11, c.topic("x"))
			d.quiet("retain handling 1, subscribed before")
			d.sub(0x11, c.topic("+"))
			if m := d.next(); m.payload != "kept" || !m.retain {
				c.Errorf("retain handling 1: got %+v", m)
			}
			d.sub(0x01, c.topic("x"))
			if m := d.next(); m.payload != "kept" || !m.retain {
				c.Errorf("retain handling 0: got %+v", m)
			}
			d.put(1, true, c.topic("x"), "")
		},
	},
	{
		name: "RetainAsPublished", v5: "3.3.1-13",
		run: func(c *trial) {
			d := c.plain("")
			d.sub(0x08, c.topic("x"))
			d.put(1, true, c.topic("x"), "kept")
			if m := d.next(); m.payload != "kept" || !m.retain {
				c.Errorf("got %+v, want RETAIN", m)
			}
			d.put(1, true, c.topic("x"), "")
		},
	},
	{
		name: "TopicAliasesUp", v5: "3.2.2-17 3.2.2-18 3.3.2-7 3.3.2-8 3.3.2-9 3.3.2-12",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(1, c.topic("#"))
			d := c.plain("")
			alias := func(n byte) []byte { return []byte{0x23, 0, n} }
			d.put(1, false, c.topic("a"), "1", alias(1))
			d.put(1, false, c.topic("b"), "2", alias(10))
			d.put(2, false, "", "3", alias(1))
			d.put(0, false, "", "4", alias(10))
			d.put(0, false, c.topic("c"), "5", alias(1))
			d.put(0, false, "", "6", alias(1))
			got := map[string]string{} // each quality of service has its own order
			for range 6 {
				m := hears.next()
				got[m.payload] = m.topic
			}
			for i, want := range []string{"a", "b", "a", "b", "c", "c"} {
				if topic := got[fmt.Sprint(i+1)]; topic != c.topic(want) {
					c.Errorf("message %d: got %s, want %s", i+1, topic, want)
				}
			}
			d = c.plain("")
			d.broken("an alias of another connection", 0x82, d.message(0, 0, "", "x", alias(1)))
			d = c.plain("")
			d.broken("alias 0", 0x94, d.message(0, 0, c.topic("a"), "x", alias(0)))
			d = c.plain("")
			d.broken("an alias over the maximum", 0x94, d.message(0, 0, c.topic("a"), "x", []byte{0x23, 0x7F, 0xFF}))
			d = c.plain("")
			d.broken("no topic and no alias", 0x82, d.message(0, 0, "", "x"))
		},
	},
	{
		name: "TopicAliasesDown", v5: "3.1.2-26 3.1.2-27 3.3.2-11",
		run: func(c *trial) {
			none := c.plain("")
			some, _, _ := c.open(opening{suffix: ":s", props: [][]byte{{0x22, 0, 2}}})
			for _, d := range []*device{none, some} {
				d.sub(0, c.topic("#"))
			}
			p := c.plain(":p")
			known := map[byte]string{}
			for i := range 12 {
				topic := c.topic(fmt.Sprint(i % 4))
				p.put(0, false, topic, "x")
				if m := none.next(); m.topic != topic || bytes.Contains(m.props, []byte{0x23}) {
					c.Errorf("without aliases: got %+v", m)
				}
				m := some.next()
				if _, rest, ok := bytes.Cut(m.props, []byte{0x23, 0}); ok {
					if rest[0] == 0 || rest[0] > 2 {
						c.Errorf("alias %d", rest[0])
					}
					if m.topic == "" {
						m.topic = known[rest[0]]
					}
					known[rest[0]] = m.topic
				}
				if m.topic != topic {
					c.Errorf("with aliases: got %+v, want %s", m, topic)
				}
			}
		},
	},
	{
		name: "MaximumPacketSizeIsKept", v5: "3.1.2-24 3.1.2-25",
		run: func(c *trial) {
			d, _, _ := c.open(opening{props: [][]byte{{0x27, 0, 0, 0, 200}}})
			d.sub(2, c.topic("x"))
			p := c.plain(":p")
			for qos := range byte(3) {
				p.put(qos, false, c.topic("x"), strings.Repeat("x", 300))
				p.put(qos, false, c.topic("x"), fmt.Sprint(qos))
				d.gets(fmt.Sprint(qos))
			}
		},
	},
	{
		name: "ReceiveMaximumIsKept", v5: "3.3.4-9 3.3.4-10 4.9.0-1 4.9.0-2 4.9.0-3",
		run: func(c *trial) {
			d, _, _ := c.open(opening{props: [][]byte{{0x21, 0, 2}}})
			d.sub(2, c.topic("x"))
			p := c.plain(":p")
			for i := range 6 {
				p.put(byte(1+i%2), false, c.topic("x"), fmt.Sprint(i))
			}
			first, second := d.unacknowledged(), d.unacknowledged()
			d.quiet("a third message in flight")
			d.send([]byte{0xC0, 0})
			d.expect("PINGRESP with no quota left", []byte{0xD0, 0})
			d.sub(1, c.topic("y"))
			d.send([]byte{0x40, 2, byte(first.id >> 8), byte(first.id)})
			third := d.unacknowledged()
			d.send([]byte{0x50, 2, byte(second.id >> 8), byte(second.id)})
			d.acknowledged(0x62, second.id)
			d.send([]byte{0x70, 2, byte(second.id >> 8), byte(second.id)})
			d.send([]byte{0x40, 2, byte(third.id >> 8), byte(third.id)})
			got := first.payload + second.payload + third.payload
			for range 3 {
				got += d.next().payload
			}
			if got != "012345" {
				c.Errorf("got %q", got)
			}
		},
	},
	{
		name: "ClientsCannotFloodWithQoS", v5: "3.3.4-7",
		run: func(c *trial) {
			d := c.plain("")
			for i := range 1000 { // no PUBREL: they stay in flight
				_, _ = d.Write(d.message(2, uint16(i+1), c.topic("x"), "x"))
			}
			d.gone("more than the Receive Maximum", 0x93)
		},
	},
	{
		name: "SubscriptionIdentifiersAreTheServers", v5: "3.3.4-6",
		run: func(c *trial) {
			d := c.plain("")
			d.broken("a subscription identifier from a client", 0x82, d.message(0, 0, c.topic("x"), "x", []byte{0x0B, 1}))
		},
	},
	{
		name: "PropertiesReachTheReceiver", v5: "3.3.2-4 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-20",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(1, c.topic("x"))
			user := cat([]byte{0x26}, str("b"), str("1"), []byte{0x26}, str("a"), str("2"), []byte{0x26}, str("b"), str("3"))
			list := [][]byte{{0x01, 1}, prop(0x08, "c/answer"), prop(0x09, "\x00\xff"), prop(0x03, "text/plain"), user}
			c.plain("").put(1, false, c.topic("x"), "x", list...)
			holds(c, hears.next().props, list...)
		},
	},
	{
		name: "MessagesExpire", v5: "3.3.2-5 3.3.2-6 4.3.3-7",
		run: func(c *trial) {
			d, _, _ := c.open(opening{keep: true})
			d.sub(1, c.topic("x"))
			_ = d.raw.Close()
			p := c.plain(":p")
			p.put(1, false, c.topic("x"), "short", []byte{0x02, 0, 0, 0, 1})
			p.put(1, false, c.topic("x"), "long", []byte{0x02, 0, 0, 0, 100})
			time.Sleep(2500 * time.Millisecond)
			again, _, _ := c.open(opening{keep: true})
			m := again.next()
			if i := bytes.Index(m.props, []byte{0x02, 0, 0, 0}); m.payload != "long" || i < 0 || m.props[i+4] >= 100 || m.props[i+4] < 90 {
				c.Errorf("got %+v", m)
			}
		},
	},
	{
		name: "RetainedMessagesExpire", v5: "3.3.2-5 3.3.2-6",
		run: func(c *trial) {
			p := c.plain(":p")
			p.put(1, true, c.topic("short"), "short", []byte{0x02, 0, 0, 0, 1})
			p.put(1, true, c.topic("long"), "long", []byte{0x02, 0, 0, 0, 100})
			time.Sleep(2500 * time.Millisecond)
			d := c.plain("")
			d.sub(1, c.topic("#"))
			m := d.next()
			if i := bytes.Index(m.props, []byte{0x02, 0, 0, 0}); m.payload != "long" || i < 0 || m.props[i+4] >= 100 {
				c.Errorf("got %+v, want the message that lives, with what is left of its interval", m)
			}
			d.quiet("a retained message that has expired")
			p.put(1, true, c.topic("long"), "")
		},
	},
	{
		name: "MessagesKeepTheirOrder", v3: "4.6.0-5 4.6.0-6", v5: "4.6.0-5 4.6.0-6",
		run: func(c *trial) {
			for qos := range byte(3) {
				hears := c.plain(":h")
				hears.sub(2, c.topic("x"))
				d := c.plain("")
				for i := range 30 {
					d.put(qos, false, c.topic("x"), fmt.Sprint(i))
				}
				for i := range 30 {
					hears.gets(fmt.Sprint(i))
				}
			}
		},
	},
}
