package mqtt_test

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

var conformanceCases = slices.Concat(connectCases, sessionCases, publishCases, subscribeCases, orderCases)

// bad are byte strings that are no text (MQTT 5, 1.5.4).
var bad = []string{"\xff", "\xed\xa0\x80", "a\x00b"}

// connectCases are about CONNECT, CONNACK and what else the gateway answers alone.
var connectCases = []conformanceCase{
	{
		name: "TheFirstPacketIsConnect", v3: "3.1.0-1", v5: "3.1.0-1 3.14.0-1",
		run: func(c *trial) {
			for _, p := range [][]byte{{0xC0, 0}, {0xE0, 0}, c.conn("").message(0, 0, "a", "x")} {
				d := c.conn("")
				d.send(p)
				d.gone("without CONNECT", 0)
			}
		},
	},
	{
		name: "ASecondConnectEndsTheConnection", v3: "3.1.0-2 4.8.0-1", v5: "3.1.0-2 4.13.1-1",
		run: func(c *trial) { c.plain("").broken("a second CONNECT", 0x82, c.connect(opening{})) },
	},
	{
		name: "ProtocolNameAndVersionAreChecked", v3: "3.1.2-1 3.1.2-2 3.2.2-4 3.2.2-5", v5: "3.1.2-1 3.1.2-2",
		run: func(c *trial) {
			d := c.conn("")
			d.send(pkt(0x10, str("MQTX"), []byte{c.level, 2, 0, 60}, str(c.id)))
			d.gone("another name", 0)
			d = c.conn("")
			d.send(pkt(0x10, str("MQTT"), []byte{3, 2, 0, 60}, str(c.id)))
			d.expect("level 3", []byte{0x20, 2, 0, 1})
			d.gone("level 3", 0)
			d = c.conn("")
			d.send(pkt(0x10, str("MQTT"), []byte{6, 2, 0, 60}, str(c.id)))
			if kind, body := d.recv(); kind != 0x20 || body[1] != 0x84 {
				c.Errorf("level 6: got %#x % x", kind, body)
			}
			d.gone("level 6", 0)
		},
	},
	{
		name: "AMalformedConnectIsRefused",
		v3:   "3.1.2-3 3.1.2-9 3.1.2-11 3.1.2-13 3.1.2-14 3.1.2-15 3.1.2-18 3.1.2-19 3.1.2-20 3.1.2-21 3.1.2-22 3.1.3-1 3.1.3-3 3.1.4-1 3.2.2-6",
		v5:   "3.1.2-3 3.1.2-9 3.1.2-11 3.1.2-12 3.1.2-13 3.1.2-16 3.1.2-17 3.1.2-18 3.1.2-19 3.1.3-1 3.1.3-3 3.1.4-1 3.1.4-2 3.2.2-6 3.2.2-7 3.2.2-8 4.13.2-1",
		run: func(c *trial) {
			no := []byte{}
			if c.level == 5 {
				no = []byte{0}
			}
			with := func(flags byte, payload ...[]byte) []byte {
				return pkt(0x10, str("MQTT"), []byte{c.level, flags, 0, 60}, no, cat(payload...))
			}
			id := str(c.id)
			list := []struct {
				what string
				sent []byte
			}{
				{"reserved connect flag", with(0x03, id)},
				{"no client identifier", with(0x02)},
				{"will QoS without will", with(0x0A, id)},
				{"will retain without will", with(0x22, id)},
				{"will QoS 3", with(0x1E, id, no, str("a"), str("x"))},
				{"will without its fields", with(0x06, id)},
				{"will without its payload", with(0x06, id, no, str("a"))},
				{"will that the flag denies", with(0x02, id, no, str("a"), str("x"))},
				{"no user name", with(0x82, id)},
				{"a user name that the flag denies", with(0x02, id, str("u"))},
				{"no password", with(0xC2, id, str("u"))},
				{"a password that the flag denies", with(0x82, id, str("u"), str("p"))},
			}
			if c.level == 4 {
				list = append(list, struct {
					what string
					sent []byte
				}{"password without user name", with(0x42, id, str("p"))})
			}
			for _, l := range list {
				c.refusedConnect(l.what, 0, 0x81, l.sent)
			}
			c.refusedConnect("fixed header flags", 0, 0, append([]byte{0x11}, with(0x02, id)[1:]...)) // whatever version
		},
	},
	{
		name: "IllFormedTextIsRefused",
		v3:   "1.5.3-1 1.5.3-2 3.1.3-4 3.1.3-10 3.1.3-11 3.3.2-1 3.8.3-1 3.10.3-1 4.7.3-2",
		v5:   "1.5.4-1 1.5.4-2 1.5.7-1 3.1.3-4 3.1.3-11 3.1.3-12 3.3.2-1 3.3.2-13 3.3.2-19 3.8.3-1 3.10.3-1 4.7.3-2",
		run: func(c *trial) {
			for _, s := range bad {
				c.refusedConnect("client identifier", 0, 0x81, c.connect(opening{suffix: ":" + s}))
				c.refusedConnect("will topic", 0, 0x81, c.connect(opening{flags: 4, after: c.will("c/"+s, "x")}))
				c.refusedConnect("user name", 0, 0x81, c.connect(opening{flags: 0x80, after: str(s)}))
				d := c.plain("")
				code := byte(0x81)
				if strings.Contains(s, "\x00") {
					code = 0x90
				}
				d.broken("topic", code, d.message(0, 0, "c/"+s, "x"))
				d = c.plain("")
				d.broken("filter", 0x81, d.subscribe(1, "c/"+s))
				d = c.plain("")
				none := []byte{}
				if d.v5 {
					none = []byte{0}
				}
				d.broken("filter to unsubscribe", 0x81, pkt(0xA2, []byte{0, 1}, none, str("c/"+s)))
				if c.level == 4 {
					continue
				}
				for what, p := range map[string][]byte{
					"response topic": prop(0x08, s), "content type": prop(0x03, s), "user property": cat([]byte{0x26}, str("k"), str(s)),
				} {
					d = c.plain("")
					d.broken(what, 0x81, d.message(0, 0, c.topic("x"), "x", p))
				}
			}
		},
	},
	{
		name: "PropertiesAreChecked", v5: "1.5.5-1 2.2.1-3 2.2.2-1 3.3.2-14",
		run: func(c *trial) {
			expiry := []byte{0x11, 0, 0, 0, 1}
			c.refusedConnect("a property twice", 0, 0x82, c.connect(opening{props: [][]byte{expiry, expiry}}))
			c.refusedConnect("a property twice, and a will with a good one", 0, 0x82, c.connect(opening{
				flags: 4, props: [][]byte{expiry, expiry}, after: cat(props([]byte{0x01, 0}), str(c.topic("will")), str("x")),
			}))
			c.refusedConnect("a property of PUBLISH", 0, 0x81, c.connect(opening{props: [][]byte{{0x01, 0}}}))
			c.refusedConnect("an unknown property", 0, 0x81, c.connect(opening{props: [][]byte{{0x7F, 0}}}))
			c.refusedConnect("a longer number than need be", 0, 0x81, pkt(0x10, str("MQTT"), []byte{5, 2, 0, 60, 0x80, 0x00}, str(c.id)))
			c.refusedConnect("no property length", 0, 0x81, pkt(0x10, str("MQTT"), []byte{5, 2, 0, 60}))
			d := c.plain("")
			d.broken("a response topic with wildcards", 0x82, d.message(0, 0, c.topic("x"), "x", prop(0x08, "a/+")))
			f, zero, user := str("c/f"), []byte{0, 0}, props(cat(prop(0x26, "a"), str("b"))) // good properties hide no identifier 0
			for _, l := range []struct {
				what string
				sent []byte
			}{
				{"PUBLISH", pkt(0x32, f, zero, user)},
				{"PUBACK", pkt(0x40, zero, []byte{0}, user)},
				{"SUBSCRIBE", pkt(0x82, zero, user, f, []byte{0})},
				{"UNSUBSCRIBE", pkt(0xA2, zero, user, f)},
			} {
				c.plain("").broken(l.what+" with identifier 0 and a property", 0x81, l.sent)
			}
		},
	},
	{
		name: "ReservedFlagsAreChecked",
		v3:   "2.2.2-1 2.2.2-2 2.3.1-1 3.3.1-4 3.6.1-1 3.8.1-1 3.8.3-3 3.8.3-4 3.10.1-1 3.10.3-2 3.14.1-1",
		v5:   "2.1.3-1 2.2.1-3 3.3.1-4 3.6.1-1 3.8.1-1 3.8.3-2 3.8.3-5 3.10.1-1 3.10.3-2 3.14.1-1",
		run: func(c *trial) {
			none := []byte{}
			if c.level == 5 {
				none = []byte{0}
			}
			f := str("c/f")
			for _, l := range []struct {
				what string
				code byte
				sent []byte
			}{
				{"packet type 0", 0x81, []byte{0x00, 0}},
				{"PUBREL", 0x81, []byte{0x60, 2, 0, 1}},
				{"SUBSCRIBE", 0x81, pkt(0x80, []byte{0, 1}, none, f, []byte{0})},
				{"UNSUBSCRIBE", 0x81, pkt(0xA0, []byte{0, 1}, none, f)},
				{"PINGREQ", 0x81, []byte{0xC1, 0}},
				{"DISCONNECT", 0x81, []byte{0xE1, 0}},
				{"QoS 3", 0x81, pkt(0x36, f, []byte{0, 1}, none)},
				{"subscription options", 0x81, pkt(0x82, []byte{0, 1}, none, f, []byte{0xC0})},
				{"QoS 3 in SUBSCRIBE", 0x81, pkt(0x82, []byte{0, 1}, none, f, []byte{0x03})},
				{"no filter to subscribe", 0x82, pkt(0x82, []byte{0, 1}, none)},
				{"no filter to unsubscribe", 0x82, pkt(0xA2, []byte{0, 1}, none)},
				{"PUBLISH with identifier 0", 0x81, pkt(0x32, f, []byte{0, 0}, none)},
				{"SUBSCRIBE with identifier 0", 0x81, pkt(0x82, []byte{0, 0}, none, f, []byte{0})},
				{"UNSUBSCRIBE with identifier 0", 0x81, pkt(0xA2, []byte{0, 0}, none, f)},
			} {
				c.plain("").broken(l.what, l.code, l.sent)
			}
		},
	},
	{
		name: "ClientIdentifiersOfTwentyThreeBytes", v3: "3.1.3-2 3.1.3-5 3.1.4-4", v5: "3.1.3-2 3.1.3-5 3.1.4-5",
		run: func(c *trial) {
			for _, id := range []string{"a" + c.id, (c.id + "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")[:23]} {
				d := c.g.dial(c, id)
				d.hello(c.level, id)
			}
		},
	},
	{
		name: "AnEmptyClientIdentifierIsReplaced", v3: "3.1.3-6 3.1.3-7 3.1.3-8", v5: "3.1.3-6 3.1.3-7 3.2.2-16",
		run: func(c *trial) {
			seen := map[string]bool{}
			for range 2 {
				d := c.conn("")
				d.send(connectPacket(c.level, "", 2, 60, nil))
				kind, body := d.recv()
				if kind != 0x20 || body[1] != 0 {
					c.Fatalf("got %#x % x", kind, body)
				}
				if _, rest, ok := strings.Cut(string(body), "\x12\x00"); c.level == 5 {
					if !ok || seen[rest[1:1+rest[0]]] {
						c.Errorf("no Assigned Client Identifier, or one that is in use: % x", body)
					} else {
						seen[rest[1:1+rest[0]]] = true
					}
				}
				d.sub(0, c.topic("x"))
			}
			if c.level == 4 {
				c.refusedConnect("empty, and to be kept", 2, 0, connectPacket(4, "", 0, 60, nil))
			}
		},
	},
	{
		name: "ARejectedClientIdentifierIsAnswered", v3: "3.1.3-9 3.2.0-1", v5: "3.1.3-8 3.2.0-1",
		run: func(c *trial) {
			c.refusedConnect("somebody else's", 2, 0x85, connectPacket(c.level, "somebody", 2, 60, nil))
			c.refusedConnect("a long one", 2, 0x85, connectPacket(c.level, c.id+":"+strings.Repeat("x", 300), 2, 60, nil))
		},
	},
	{
		name: "NothingIsDoneForARefusedClient", v3: "3.1.4-5", v5: "3.1.4-6",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(0, c.topic("x"))
			d := c.conn("")
			d.send(cat(connectPacket(c.level, "somebody", 2, 60, nil), hears.message(0, 0, c.topic("x"), "no")))
			d.recv()
			hears.quiet("a message of a refused client")
			d = c.conn("")
			d.send(cat(c.connect(opening{}), hears.message(0, 0, c.topic("x"), "yes"))) // before CONNACK
			d.recv()
			hears.gets("yes")
		},
	},
	{
		name: "OneConnack", v3: "3.12.4-1", v5: "3.2.0-2 3.2.2-1 3.12.4-1",
		run: func(c *trial) {
			d := c.plain("")
			for range 3 {
				d.send([]byte{0xC0, 0})
				d.expect("PINGRESP", []byte{0xD0, 0})
			}
		},
	},
	{
		name: "TheSameClientIdentifierTakesOver", v3: "3.1.4-2", v5: "3.1.4-3",
		run: func(c *trial) {
			older := c.plain("")
			c.plain("")
			code := byte(0)
			if c.level == 5 {
				code = 0x8E
			}
			older.gone("the older connection", code)
		},
	},
	{
		name: "KeepAliveIsKept", v3: "3.1.2-24", v5: "3.1.2-22 3.2.2-22",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(0, c.topic("will"))
			d, _, _ := c.open(opening{silent: 1, flags: 4, after: c.will(c.topic("will"), "silent")})
			began := time.Now()
			code := byte(0)
			if c.level == 5 {
				code = 0x8D
			}
			d.gone("a silent client", code)
			if took := time.Since(began); took < 1400*time.Millisecond {
				c.Errorf("closed after %v, want one and a half seconds", took)
			}
			hears.gets("silent")
		},
	},
	{
		name: "NothingIsToldThatWasNotAskedFor", v5: "3.1.2-28 3.1.2-29 3.4.2-1 3.4.2-2 3.4.2-3 3.5.2-1 3.5.2-2 3.5.2-3 3.9.2-1 3.9.2-2 3.11.2-1 3.11.2-2 4.12.0-6",
		run: func(c *trial) {
			d, _, connack := c.open(opening{props: [][]byte{{0x17, 0}, {0x19, 0}}})
			for id := range propertiesOf(connack[2:]) {
				if id == 0x1A || id == 0x15 {
					c.Errorf("CONNACK has property %#x", id)
				}
			}
			d.send(d.message(1, 1, "denied/x", "x"))
			d.expect("PUBACK", []byte{0x40, 3, 0, 1, 0x87})
			d.send(d.message(2, 2, "denied/x", "x"))
			d.expect("PUBREC", []byte{0x50, 3, 0, 2, 0x87})
			d.send(d.subscribe(3, "$x/y"))
			d.expect("SUBACK", []byte{0x90, 4, 0, 3, 0, 0x87})
			d.send(pkt(0xA2, []byte{0, 4, 0}, str("$x/y")))
			d.expect("UNSUBACK", []byte{0xB0, 4, 0, 4, 0, 0x11})
		},
	},
	{
		name: "ReasonsFitTheClientsPackets", v5: "3.2.2-19 3.2.2-20 3.14.2-1 3.14.2-2 3.14.2-3 3.14.2-4 3.14.4-1 3.14.4-2",
		run: func(c *trial) {
			d := c.conn("")
			d.send(pkt(0x10, str("MQTT"), []byte{5, 2, 0, 60}, props([]byte{0x27, 0, 0, 0, 8}), str("somebody")))
			d.expect("CONNACK", []byte{0x20, 3, 0, 0x85, 0})
			d.gone("refused", 0)
			d, _, _ = c.open(opening{props: [][]byte{{0x27, 0, 0, 0, 100}}})
			d.send([]byte{0xC1, 0})
			if kind, body := d.recv(); kind != 0xE0 || len(body) > 98 || body[0] != 0x81 || len(body) > 1 && propertiesOf(body[1:])[0x11] {
				c.Errorf("got %#x % x, want DISCONNECT 0x81", kind, body)
			}
			if _, _, err := d.read(); err == nil {
				c.Error("something came after DISCONNECT")
			}
		},
	},
	{
		name: "AnswersFitTheClientsPackets", v5: "3.1.2-24",
		run: func(c *trial) {
			c.refusedConnect("no room for CONNACK", 0, 0x95, c.connect(opening{props: [][]byte{{0x27, 0, 0, 0, 6}}}))
			c.refusedConnect("no room for any CONNACK", 0, 0, c.connect(opening{props: [][]byte{{0x27, 0, 0, 0, 4}}}))
			for _, kind := range []byte{0x82, 0xA2} {
				d, _, _ := c.open(opening{props: [][]byte{{0x27, 0, 0, 0, 60}}})
				packet := [][]byte{{0, 1, 0}}
				for i := range 60 { // a code for each, and five octets before them
					packet = append(packet, str(c.topic(fmt.Sprint(i))))
					if kind == 0x82 {
						packet = append(packet, []byte{0})
					}
				}
				d.broken("no room for the codes", 0x95, pkt(kind, packet...))
			}
		},
	},
	{
		name: "OversizedPacketsEndTheConnection", v5: "3.2.2-15",
		run: func(c *trial) {
			d := c.plain("")
			d.broken("a large packet", 0x95, []byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F})
		},
	},
}

// propertiesOf tells which properties are in a block of fixed-size and text properties.
func propertiesOf(b []byte) map[byte]bool {
	found := map[byte]bool{}
	b = b[1:]
	for len(b) > 0 {
		found[b[0]] = true
		var n int
		switch b[0] {
		case 0x11, 0x27:
			n = 4
		case 0x13, 0x21, 0x22:
			n = 2
		case 0x24, 0x25, 0x28, 0x29, 0x2A:
			n = 1
		default:
			n = 2 + int(b[1])<<8 + int(b[2])
		}
		b = b[1+n:]
	}
	return found
}
