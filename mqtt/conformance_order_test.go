package mqtt_test

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// orderCases are about the order of what is sent again and of acknowledgments (MQTT 5,
// 4.6). The standards ask these of clients alone; here the server keeps them, too.
var orderCases = []conformanceCase{
	{
		name: "WhatComesAgainKeepsItsOrder", v3: "4.6.0-1", v5: "4.6.0-1",
		run: func(c *trial) {
			d, _, _ := c.open(opening{keep: true})
			d.sub(2, c.topic("#"))
			p := c.plain(":p")
			var sent []uint16
			for i := range 12 {
				p.put(1+byte(i%2), false, c.topic(fmt.Sprint(i)), fmt.Sprint(i))
				sent = append(sent, d.unacknowledged().id)
			}
			_ = d.raw.Close()
			again, _, _ := c.open(opening{keep: true})
			for i := range 12 {
				if m := again.unacknowledged(); m.payload != fmt.Sprint(i) || m.id != sent[i] || !m.dup {
					c.Errorf("message %d: got %+v, want it with DUP and identifier %d", i, m, sent[i])
				}
			}
		},
	},
	{
		// To a broker of others a refused message does not go, so its acknowledgment may
		// come before those of the broker.
		name: "AcknowledgmentsKeepTheirOrder", v3: "4.6.0-2 4.6.0-3", v5: "4.6.0-2 4.6.0-3", lacks: "mosquitto",
		run: func(c *trial) {
			for _, keep := range []bool{false, true} { // the second waits for the record
				s, _, _ := c.open(opening{suffix: ":s", keep: true})
				if keep {
					s.sub(2, c.topic("kept"))
				}
				_ = s.raw.Close()
				d := c.plain("")
				var all []byte
				var want, got []uint16
				for i := range uint16(120) {
					topic := []string{c.topic("kept"), "denied/x", c.topic("else")}[i%3]
					all = append(all, d.message(1+byte(i%2), i+1, topic, "x")...)
					want = append(want, i+1)
				}
				d.send(all)
				for range want {
					p := d.pull("an acknowledgment", func(packet) bool { return true })
					id := binary.BigEndian.Uint16(p.body)
					if wanted := byte(0x50 - 0x10*(id%2)); p.kind != wanted {
						c.Fatalf("message %d: got type %#x, want %#x", id, p.kind, wanted)
					}
					got = append(got, id)
				}
				if !slices.Equal(got, want) {
					c.Errorf("for a kept session %t: got acknowledgments of %v, want them in the order of the messages", keep, got)
				}
			}
		},
	},
	{
		name: "ReleasesKeepTheirOrder", v3: "4.6.0-4", v5: "4.6.0-4",
		run: func(c *trial) {
			for _, keep := range []bool{false, true} {
				d, _, _ := c.open(opening{keep: keep})
				d.sub(2, c.topic("x"))
				p := c.plain(":p")
				var ids []uint16
				for i := range 12 {
					p.put(2, false, c.topic("x"), fmt.Sprint(i))
					ids = append(ids, d.unacknowledged().id)
				}
				slices.Reverse(ids) // the client is free to
				for _, id := range ids {
					d.send(binary.BigEndian.AppendUint16([]byte{0x50, 2}, id))
				}
				for _, id := range ids {
					d.acknowledged(0x62, id)
				}
				d.send([]byte{0xE0, 0})
				d.gone("after DISCONNECT", 0)
			}
		},
	},
}
