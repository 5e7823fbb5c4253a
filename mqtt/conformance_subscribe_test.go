package mqtt_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// subscribeCases are about SUBSCRIBE, UNSUBSCRIBE and the matching of topics.
var subscribeCases = []conformanceCase{
	{
		name: "EachFilterIsAnsweredInOrder", v3: "2.3.1-7 3.8.4-1 3.8.4-2 3.8.4-4 3.8.4-5 3.9.3-1 3.9.3-2 3.8.3-2",
		v5: "2.2.1-6 3.8.4-1 3.8.4-2 3.8.4-5 3.8.4-6 3.8.4-7 3.9.3-1 3.9.3-2",
		run: func(c *trial) {
			d := c.plain("")
			var p []byte
			refused := byte(0x80)
			if d.v5 {
				p, refused = []byte{0}, 0x87
			}
			d.send(pkt(0x82, []byte{0xAB, 0xCD}, p, str(c.topic("0")), []byte{0}, str("$SYS/x"), []byte{1}, str(c.topic("+/1")), []byte{1}, str(c.topic("2/#")), []byte{2}))
			if got := d.answer(0x90, 0xABCD); !bytes.Equal(got, []byte{0, refused, 1, 2}) {
				c.Errorf("SUBACK: got % x", got)
			}
			for _, topic := range []string{"0", "x/1", "2/y/z"} {
				d.put(0, false, c.topic(topic), topic)
				d.gets(topic)
			}
		},
	},
	{
		name: "TheLowerQualityOfServiceCounts", v3: "3.8.4-6", v5: "3.8.4-8",
		run: func(c *trial) {
			p := c.plain(":p")
			for granted := range byte(3) {
				d := c.plain("")
				d.sub(granted, c.topic("x"))
				for sent := range byte(3) {
					p.put(sent, false, c.topic("x"), "x")
					if m := d.next(); m.qos != min(granted, sent) {
						c.Errorf("granted %d, sent %d: got %d", granted, sent, m.qos)
					}
				}
			}
		},
	},
	{
		name: "ASubscriptionIsReplaced", v3: "3.8.4-3", v5: "3.8.4-3 3.8.4-4",
		run: func(c *trial) {
			p := c.plain(":p")
			p.put(1, true, c.topic("x"), "kept")
			d := c.plain("")
			for qos := range byte(3) {
				d.sub(qos, c.topic("x"))
				if m := d.next(); m.payload != "kept" || !m.retain {
					c.Errorf("QoS %d: got %+v, want the retained message again", qos, m)
				}
			}
			d.sub(0, c.topic("x"))
			d.gets("kept")
			p.put(2, false, c.topic("x"), "live")
			if m := d.next(); m.payload != "live" || m.qos != 0 {
				c.Errorf("got %+v, want QoS 0", m)
			}
			d.quiet("a second copy")
			p.put(1, true, c.topic("x"), "")
		},
	},
	{
		name: "OverlappingSubscriptionsGetTheHighestQoS", v3: "3.3.5-1", v5: "3.3.4-2",
		run: func(c *trial) {
			d := c.plain("")
			d.sub(2, c.topic("#"))
			d.sub(1, c.topic("+"))
			d.sub(0, c.topic("x"))
			c.plain(":p").put(2, false, c.topic("x"), "x")
			if m := d.next(); m.qos == 2 {
				return
			}
			for range 2 { // copies for the others are permitted
				if m := d.next(); m.qos == 2 {
					return
				}
			}
			c.Error("no copy has QoS 2")
		},
	},
	{
		name: "SubscriptionIdentifiersComeAlong", v5: "3.3.4-3 3.3.4-4 3.3.4-5",
		run: func(c *trial) {
			d := c.plain("")
			d.subscribeTo(1, c.topic("#"), []byte{0x0B, 5})
			d.subscribeTo(1, c.topic("x"), []byte{0x0B, 0x81, 0x01})
			c.plain(":p").put(1, false, c.topic("x"), "x")
			all := d.next().props
			if !bytes.Contains(all, []byte{0x0B, 5}) || !bytes.Contains(all, []byte{0x0B, 0x81, 0x01}) {
				all = append(all, d.next().props...)
			}
			holds(c, all, []byte{0x0B, 5}, []byte{0x0B, 0x81, 0x01})
			d = c.plain(":again")
			d.subscribeTo(1, c.topic("x"), []byte{0x0B, 5})
			d.subscribeTo(1, c.topic("x")) // replaces it with one that has none
			c.plain(":p").put(1, true, c.topic("x"), "kept")
			if m := d.next(); bytes.Contains(m.props, []byte{0x0B, 5}) {
				c.Errorf("got % x, want no identifier", m.props)
			}
			d.subscribeTo(1, c.topic("+"), []byte{0x0B, 7})
			holds(c, d.next().props, []byte{0x0B, 7}) // of what is retained, too
			c.plain(":p").put(1, true, c.topic("x"), "")
		},
	},
	{
		name: "NoLocal", v5: "3.8.3-3",
		run: func(c *trial) {
			d := c.plain("")
			d.sub(0x05, c.topic("x"))
			d.put(1, false, c.topic("x"), "mine")
			c.plain(":p").put(1, false, c.topic("x"), "yours")
			d.gets("yours")
		},
	},
	{
		name: "NoLocalIsNotForShared", v5: "3.8.3-4",
		run: func(c *trial) {
			d := c.plain("")
			d.broken("no local on a shared subscription", 0x82, pkt(0x82, []byte{0, 1, 0}, str("$share/g/c/x"), []byte{0x04}))
		},
	},
	{
		name: "UnsubscribingStopsMessages", v3: "3.10.4-1 3.10.4-2 3.10.4-4 3.10.4-5 3.10.4-6",
		v5: "3.10.4-1 3.10.4-2 3.10.4-4 3.10.4-5 3.10.4-6 3.11.3-1 3.11.3-2",
		run: func(c *trial) {
			d := c.plain("")
			d.sub(1, c.topic("a"), c.topic("b"), c.topic("+/c"))
			var none []byte
			if d.v5 {
				none = []byte{0}
			}
			d.send(pkt(0xA2, []byte{0, 9}, none, str(c.topic("a")), str(c.topic("never")), str(c.topic("x/c")), str(c.topic("b"))))
			want := []byte{}
			if d.v5 {
				want = []byte{0, 0x11, 0x11, 0}
			}
			if got := d.answer(0xB0, 9); !bytes.Equal(got, want) {
				c.Errorf("UNSUBACK: got % x, want % x", got, want)
			}
			p := c.plain(":p")
			for _, topic := range []string{"a", "b", "x/c"} {
				p.put(1, false, c.topic(topic), topic)
			}
			d.gets("x/c") // its filter was not named character by character
			d.quiet("messages after UNSUBACK")
		},
	},
	{
		name: "UnsubscribingFinishesWhatBegan", v3: "3.10.4-3", v5: "3.10.4-3",
		run: func(c *trial) {
			d := c.plain("")
			d.sub(2, c.topic("x"))
			c.plain(":p").put(2, false, c.topic("x"), "x")
			m := d.unacknowledged()
			var none []byte
			if d.v5 {
				none = []byte{0}
			}
			d.send(pkt(0xA2, []byte{0, 9}, none, str(c.topic("x"))))
			d.answer(0xB0, 9)
			d.send([]byte{0x50, 2, byte(m.id >> 8), byte(m.id)})
			d.acknowledged(0x62, m.id)
			d.send([]byte{0x70, 2, byte(m.id >> 8), byte(m.id)})
		},
	},
	{
		name: "WildcardsAreWholeLevels", v3: "3.3.2-2 4.7.1-1 4.7.1-2 4.7.1-3 4.7.3-1", v5: "3.3.2-2 4.7.0-1 4.7.1-1 4.7.1-2 4.7.3-1",
		run: func(c *trial) {
			for _, f := range []string{"c/x#", "c/#/y", "c+", "c/+x/y", "#/", "++", ""} {
				d := c.plain("")
				d.broken("filter "+f, 0x8F, d.subscribe(1, f))
			}
			for _, topic := range []string{"c/+", "#", "c/#", "c/a+b"} {
				d := c.plain("")
				d.broken("topic "+topic, 0x90, d.message(0, 0, topic, "x"))
			}
			d := c.plain("")
			d.broken("an empty topic", 0x82, d.message(0, 0, "", "x"))
		},
	},
	{
		name: "FiltersMatchByTheRules", v3: "3.3.2-3 4.7.3-3 4.7.3-4 1.5.3-3", v5: "3.3.2-3 4.7.3-3 4.7.3-4 1.5.4-3",
		run: func(c *trial) {
			names := []string{"a", "a/b", "a/b/c", "a/", "/a", "A", "a//c", "\ufeffa", "a.b", "ä/b", "a/B"}
			matches := func(filter, name string) bool { // MQTT 5, 4.7.1
				f, n := strings.Split(filter, "/"), strings.Split(name, "/")
				for i, level := range f {
					switch {
					case level == "#":
						return len(n) >= i
					case i >= len(n) || level != "+" && level != n[i]:
						return false
					}
				}
				return len(f) == len(n)
			}
			p := c.plain(":p")
			for _, filter := range []string{"#", "+", "a/#", "a/+", "+/b", "+/+", "a/+/c", "a", "/+", "+/", "\ufeffa", "a.b", "a/b/#", "+/b/#"} {
				d := c.plain("")
				d.sub(0, c.topic(filter))
				d.sub(0, c.topic("end!"))
				var want, got []string
				for _, name := range names {
					p.put(0, false, c.topic(name), name)
					if matches(filter, name) {
						want = append(want, name)
					}
				}
				p.put(0, false, c.topic("end!"), "end")
				for {
					m := d.next()
					if m.payload == "end" {
						break
					}
					if m.topic != c.topic(m.payload) {
						c.Errorf("topic %q carries what was sent to %q", m.topic, m.payload)
					}
					got = append(got, m.payload)
				}
				if !slices.Equal(got, want) {
					c.Errorf("filter %q: got %q, want %q", filter, got, want)
				}
			}
		},
	},
	{
		name: "DollarTopicsAreApart", v3: "4.7.2-1", v5: "4.7.2-1",
		run: func(c *trial) {
			d := c.plain("")
			d.sub(0, "+/"+c.id, "#")
			p := c.plain(":p")
			p.put(0, false, "$x/"+c.id, "no")
			p.put(1, false, c.topic("dollar"), "end")
			for {
				if m := d.next(); strings.HasPrefix(m.topic, "$") {
					c.Errorf("a wildcard matched %s", m.topic)
				} else if m.topic == c.topic("dollar") {
					return
				}
			}
		},
	},
	{
		name: "SharedSubscriptionsAreShared", v5: "4.8.2-1 4.8.2-2 4.8.2-3",
		run: func(c *trial) {
			one, two := c.plain(":1"), c.plain(":2")
			one.sub(1, "$share/g/"+c.topic("x"))
			two.sub(1, "$share/g/"+c.topic("x"))
			p := c.plain(":p")
			for i := range 6 {
				p.put(2, false, c.topic("x"), fmt.Sprint(i))
			}
			var got []string
			for _, d := range []*device{one, two} {
				p.put(1, false, c.topic("end"), "end")
				for range 3 { // mosquitto takes turns
					m := d.next()
					if m.qos != 1 {
						c.Errorf("got %+v", m)
					}
					got = append(got, m.payload)
				}
				d.quiet("more than its share")
			}
			if slices.Sort(got); strings.Join(got, "") != "012345" {
				c.Errorf("got %q, want each once", got)
			}
			for _, f := range []string{"$share/g", "$share//x", "$share/+/x", "$share/g/"} {
				d := c.plain("")
				d.send(d.subscribe(1, f))
				d.gone("filter "+f, 0x8F)
			}
		},
	},
	{
		name: "SharedMessagesStayWithTheirClient", v5: "4.8.2-4 4.8.2-5 4.8.2-6",
		run: func(c *trial) {
			one, _, _ := c.open(opening{suffix: ":1", keep: true})
			one.sub(2, "$share/g/"+c.topic("x"))
			p := c.plain(":p")
			p.put(2, false, c.topic("x"), "begun")
			m := one.unacknowledged()
			two := c.plain(":2")
			two.sub(2, "$share/g/"+c.topic("x"))
			_ = one.raw.Close()
			two.quiet("a message that another client has begun with")
			one, _, _ = c.open(opening{suffix: ":1", keep: true})
			if again := one.next(); again.id != m.id || !again.dup || again.payload != "begun" {
				c.Errorf("after the reconnect: got %+v", again)
			}
			for range 2 { // whose turn it is
				p.put(1, false, c.topic("x"), "refused")
				p.put(1, false, c.topic("x"), "refused")
			}
			for _, d := range []*device{one, two} {
				for range 2 {
					m := d.unacknowledged()
					d.send([]byte{0x40, 3, byte(m.id >> 8), byte(m.id), 0x80})
				}
			}
			one.quiet("what the other refused")
			two.quiet("what the other refused")
			p.put(2, false, c.topic("x"), "dropped")
			p.put(2, false, c.topic("x"), "dropped")
			one.unacknowledged()
			two.unacknowledged()
			_ = one.raw.Close()
			c.plain(":1") // ends the session
			two.quiet("what was begun with a session that ended")
		},
	},
	{
		name: "WhatIsMissingIsSaid", v5: "3.2.2-9 3.2.2-10 3.2.2-12 3.2.2-13",
		run: func(c *trial) {
			d, _, connack := c.open(opening{flags: 0x34, after: c.will(c.topic("will"), "x")})
			if p := propertiesOf(connack[2:]); p[0x24] || p[0x25] { // Maximum QoS, Retain Available: all is available
				c.Errorf("CONNACK: got % x", connack)
			}
			d.send([]byte{0xE0, 0})
		},
	},
}
