package mqtt_test

import (
	"fmt"
	"time"
)

// sessionCases are about what outlives a connection: sessions and wills.
var sessionCases = []conformanceCase{
	{
		name: "ACleanStartForgets", v3: "3.1.2-6 3.1.4-3 3.2.2-1", v5: "3.1.2-4 3.1.4-4 3.2.2-2",
		run: func(c *trial) {
			d, _, _ := c.open(opening{keep: true})
			d.sub(1, c.topic("x"))
			_ = d.raw.Close()
			again, present, _ := c.open(opening{})
			if present {
				c.Error("the session is present after a clean start")
			}
			c.plain(":p").put(1, false, c.topic("x"), "lost")
			again.quiet("a subscription from before")
			_ = again.raw.Close()
			if _, present, _ = c.open(opening{keep: true}); present && c.level == 4 {
				c.Error("state of a clean session was used again")
			}
		},
	},
	{
		name: "ASessionIsResumed", v3: "3.1.2-4 3.1.2-5 3.2.2-2 3.2.2-3 4.1.0-1 4.1.0-2 4.5.0-1",
		v5: "3.1.2-5 3.1.2-6 3.1.2-23 3.2.2-3 4.1.0-1 4.5.0-1",
		run: func(c *trial) {
			d, present, _ := c.open(opening{keep: true})
			if present {
				c.Error("a session is present that nobody had")
			}
			d.sub(1, c.topic("1"))
			d.sub(2, c.topic("2"))
			_ = d.raw.Close()
			p := c.plain(":p")
			p.put(1, false, c.topic("1"), "one")
			p.put(2, false, c.topic("2"), "two")
			again, present, _ := c.open(opening{keep: true})
			if !present {
				c.Error("the session is not present")
			}
			got := map[string]byte{}
			for range 2 {
				m := again.next()
				got[m.payload] = m.qos
			}
			if len(got) != 2 || got["one"] != 1 || got["two"] != 2 {
				c.Errorf("queued messages: got %v", got)
			}
			p.put(1, false, c.topic("1"), "three")
			again.gets("three")
		},
	},
	{
		name: "ASessionEndsWithItsInterval", v5: "4.1.0-2",
		run: func(c *trial) {
			for _, expiry := range []byte{0, 1} {
				d, _, _ := c.open(opening{props: [][]byte{{0x11, 0, 0, 0, expiry}}})
				d.sub(1, c.topic("x"))
				_ = d.raw.Close()
				time.Sleep(time.Duration(expiry) * 2500 * time.Millisecond)
				d = c.conn("")
				d.send(pkt(0x10, str("MQTT"), []byte{5, 0, 0, 60}, props([]byte{0x11, 0, 0, 0, 1}), str(c.id)))
				if kind, body := d.recv(); kind != 0x20 || body[0] != 0 || body[1] != 0 {
					c.Errorf("interval %d: got %#x % x, want no session present", expiry, kind, body)
				}
				_ = d.raw.Close()
			}
		},
	},
	{
		name: "DisconnectChangesTheInterval", v5: "3.1.2-23 4.1.0-2",
		run: func(c *trial) {
			ends := func(interval, atEnd byte, present bool) { // of seconds; MQTT 5, 3.14.2.2.2
				c.Helper()
				d, _, _ := c.open(opening{props: [][]byte{{0x11, 0, 0, 0, interval}}})
				d.send(pkt(0xE0, []byte{0}, props([]byte{0x11, 0, 0, 0, atEnd})))
				d.gone("after DISCONNECT", 0)
				time.Sleep(2500 * time.Millisecond)
				again := c.conn("")
				again.send(pkt(0x10, str("MQTT"), []byte{5, 0, 0, 60}, props(), str(c.id)))
				if kind, body := again.recv(); kind != 0x20 || body[1] != 0 || (body[0] == 1) != present {
					c.Errorf("an interval of %d, and %d at the end: got %#x % x, want session present %t", interval, atEnd, kind, body, present)
				}
				_ = again.raw.Close()
			}
			ends(100, 0, false)
			ends(100, 1, false)
			ends(1, 100, true)
			d := c.plain("")
			d.broken("an interval where CONNECT had none", 0x82, pkt(0xE0, []byte{0}, props([]byte{0x11, 0, 0, 0, 9})))
		},
	},
	{
		name: "QoS2IsOnceOverAReconnect", v3: "4.3.3-2", v5: "4.3.3-10 4.4.0-1",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(2, c.topic("x"))
			d, _, _ := c.open(opening{keep: true})
			once := d.message(2, 7, c.topic("x"), "once")
			d.send(once)
			d.acknowledged(0x50, 7)
			_ = d.raw.Close() // as if PUBREC had not come
			d, _, _ = c.open(opening{keep: true})
			once[0] |= 8
			d.send(once)
			d.acknowledged(0x50, 7)
			for range 2 { // as if PUBCOMP had not come
				d.send([]byte{0x62, 2, 0, 7})
				if p := d.pull("PUBCOMP", func(p packet) bool { return p.kind == 0x70 }); p.body[1] != 7 {
					c.Errorf("PUBCOMP: got % x", p.body)
				}
			}
			hears.gets("once")
			hears.quiet("the same message again")
		},
	},
	{
		name: "UnacknowledgedMessagesComeAgain", v3: "2.3.1-4 3.3.1-1 4.3.2-1 4.3.3-1 4.4.0-1", v5: "3.3.1-1 4.3.2-3 4.3.3-3 4.3.3-5 4.3.3-6 4.4.0-1",
		run: func(c *trial) {
			d, _, _ := c.open(opening{keep: true})
			d.sub(2, c.topic("#"))
			p := c.plain(":p")
			p.put(1, false, c.topic("1"), "one")
			first := d.unacknowledged()
			p.put(2, false, c.topic("2"), "two")
			second := d.unacknowledged()
			p.put(2, false, c.topic("3"), "three")
			third := d.unacknowledged()
			d.send([]byte{0x50, 2, byte(third.id >> 8), byte(third.id)})
			d.acknowledged(0x62, third.id)
			_ = d.raw.Close()
			again, _, _ := c.open(opening{keep: true})
			got := map[string]bool{}
			for len(got) < 3 {
				kind, body := again.recv()
				switch {
				case kind == 0x62 && body[0] == byte(third.id>>8) && body[1] == byte(third.id):
					got["PUBREL"] = true
				case kind&0xF8 == 0x38:
					n := 2 + int(body[1])
					for _, m := range []arrived{first, second} {
						if string(body[2:n]) == m.topic {
							if id := uint16(body[n])<<8 | uint16(body[n+1]); id != m.id {
								c.Errorf("%s came again as %d, was %d", m.topic, id, m.id)
							}
							got[m.topic] = true
						}
					}
				default:
					c.Fatalf("got %#x % x, want what was not acknowledged, with DUP", kind, body)
				}
			}
			again.quiet("what was not acknowledged, again within the connection")
			again.quiet("what was not acknowledged, later within the connection")
		},
	},
	{
		name: "RefusedMessagesAreNotSentAgain", v5: "4.4.0-2",
		run: func(c *trial) {
			d, _, _ := c.open(opening{keep: true})
			d.sub(2, c.topic("#"))
			p := c.plain(":p")
			p.put(1, false, c.topic("x"), "one")
			m := d.unacknowledged()
			d.send([]byte{0x40, 3, byte(m.id >> 8), byte(m.id), 0x80})
			p.put(2, false, c.topic("x"), "two")
			m = d.unacknowledged()
			d.send([]byte{0x50, 3, byte(m.id >> 8), byte(m.id), 0x80})
			p.put(1, false, c.topic("x"), "three")
			d.gets("three")
			d.quiet("a message that was refused")
			_ = d.raw.Close()
			again, _, _ := c.open(opening{keep: true})
			again.quiet("a message that was refused")
		},
	},
	{
		name: "AWillIsPublished", v3: "3.1.2-8 3.1.2-10 3.1.2-12 3.14.4-3", v5: "3.1.2-7 3.1.2-8 3.1.2-10 3.14.4-3",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(2, c.topic("will/#"))
			for qos := range byte(3) {
				topic := c.topic(fmt.Sprintf("will/%d", qos))
				d, _, _ := c.open(opening{flags: 4 | qos<<3, after: c.will(topic, "gone")})
				_ = d.raw.Close()
				if m := hears.next(); m.topic != topic || m.payload != "gone" || m.qos != qos || m.retain {
					c.Errorf("will of QoS %d: got %+v", qos, m)
				}
			}
			d, _, _ := c.open(opening{flags: 4, after: c.will(c.topic("will/x"), "gone")})
			d.send([]byte{0xE0, 0})
			d.gone("after DISCONNECT", 0)
			d, _, _ = c.open(opening{}) // no will
			_ = d.raw.Close()
			hears.quiet("a will after DISCONNECT")
			if c.level == 5 {
				d, _, _ = c.open(opening{flags: 4, after: c.will(c.topic("will/x"), "asked for")})
				d.send([]byte{0xE0, 1, 0x04})
				hears.gets("asked for")
			}
		},
	},
	{
		name: "AWillIsRetainedIfAskedFor", v3: "3.1.2-16 3.1.2-17", v5: "3.1.2-14 3.1.2-15",
		run: func(c *trial) {
			for _, flags := range []byte{4, 0x24} {
				live := c.plain(":l")
				live.sub(0, c.topic("will"))
				d, _, _ := c.open(opening{flags: flags, after: c.will(c.topic("will"), "gone")})
				_ = d.raw.Close()
				live.gets("gone")
				late := c.plain(":h")
				late.sub(0, c.topic("will"))
				if flags == 4 {
					late.quiet("a will that is not retained")
				} else if m := late.next(); m.payload != "gone" || !m.retain {
					c.Errorf("retained will: got %+v", m)
				}
			}
		},
	},
	{
		name: "AWillKeepsItsProperties", v5: "3.1.3-10",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(0, c.topic("will"))
			sent := cat(prop(0x03, "text/plain"), []byte{0x26}, str("b"), str("1"), []byte{0x26}, str("a"), str("2"))
			d, _, _ := c.open(opening{flags: 4, after: c.will(c.topic("will"), "gone", sent)})
			_ = d.raw.Close()
			holds(c, hears.next().props, prop(0x03, "text/plain"), cat([]byte{0x26}, str("b"), str("1"), []byte{0x26}, str("a"), str("2")))
		},
	},
	{
		name: "AWillGoesOutWithItsSession", v5: "3.1.2-8",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(0, c.topic("will"))
			d, _, _ := c.open(opening{flags: 4, after: c.will(c.topic("will"), "gone", []byte{0x18, 0, 0, 1, 0})})
			_ = d.raw.Close()
			hears.gets("gone")
		},
	},
	{
		name: "ACleanStartForgetsQoS2", v3: "3.1.2-6", v5: "3.1.2-4",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(2, c.topic("x"))
			for _, keep := range []bool{false, true} {
				d, _, _ := c.open(opening{keep: keep})
				d.send(d.message(2, 7, c.topic("x"), "never released"))
				d.acknowledged(0x50, 7)
				_ = d.raw.Close()
				d = c.plain("")
				d.send(d.message(2, 7, c.topic("x"), "new"))
				d.acknowledged(0x50, 7)
				d.send([]byte{0x62, 2, 0, 7})
				d.acknowledged(0x70, 7)
				for m := hears.next(); m.payload != "new"; m = hears.next() {
					if m.payload != "never released" { // a server may pass it on before PUBREL
						c.Errorf("got %+v, want the new message", m)
					}
				}
			}
		},
	},
	{
		name: "AWillWaits", v5: "3.1.3-9",
		run: func(c *trial) {
			hears := c.plain(":h")
			hears.sub(0, c.topic("will"))
			delayed := opening{keep: true, flags: 4, after: c.will(c.topic("will"), "gone", []byte{0x18, 0, 0, 0, 2})}
			d, _, _ := c.open(delayed)
			_ = d.raw.Close()
			hears.quiet("a will before its time")
			d, _, _ = c.open(delayed)
			time.Sleep(2500 * time.Millisecond)
			hears.quiet("a will of a client that came back")
			_ = d.raw.Close()
			hears.gets("gone")
		},
	},
}
