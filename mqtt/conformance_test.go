package mqtt_test

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// conformanceCase shows that statements of MQTT 3.1.1 (v3) and MQTT 5 (v5) hold, byte
// by byte over TLS. It runs in the versions that it names statements of, against each
// engine but those that lack what it takes.
type conformanceCase struct {
	name   string
	v3, v5 string // numbers of statements
	lacks  string // builtin or mosquitto: a limit of that engine
	run    func(*trial)
}

// trial is one run of a case: one device with as many clients as it opens.
type trial struct {
	testing.TB
	g     *gateway
	level byte
	id    string
	cert  tls.Certificate
}

func TestConformance(t *testing.T) {
	for _, name := range []string{"builtin", "builtin on PostgreSQL", "mosquitto"} {
		t.Run(name, func(t *testing.T) {
			var e engine
			switch name {
			case "mosquitto":
				e = relayTo(startMosquitto(t, "allow_anonymous true\nallow_duplicate_messages true\nmax_inflight_messages 100\nmax_topic_alias 10\n"))
			case "builtin on PostgreSQL":
				db, err := store.Open(t.Context(), store.Options{URL: storetest.PostgresURL(t), Now: time.Now, Log: quiet()})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = db.Close() })
				e = coreOn(t, db)
			}
			g := start(t, e)
			g.guard.common = &countersign.Permissions{
				Publish: countersign.Filters{Allow: []string{"#"}, Deny: []string{"denied/#"}}, Retain: countersign.Filters{Allow: []string{"#"}},
				Subscribe: countersign.Filters{Allow: []string{"#"}}, Receive: countersign.Filters{Allow: []string{"#"}},
			}
			slots := make(chan struct{}, 8) // they wait more than they work
			var all sync.WaitGroup
			for i, c := range conformanceCases {
				for level, ids := range map[byte]string{4: c.v3, 5: c.v5} {
					if ids == "" || c.lacks != "" && strings.HasPrefix(name, c.lacks) {
						continue
					}
					slots <- struct{}{}
					all.Go(func() {
						defer func() { <-slots }()
						t.Run(fmt.Sprintf("%s/v%d", c.name, level), func(t *testing.T) {
							id := fmt.Sprintf("c%dv%d", i, level)
							c.run(&trial{TB: t, g: g, level: level, id: id, cert: g.issue(id, time.Hour)})
						})
					})
				}
			}
			all.Wait()
		})
	}
}

// conn opens a connection without CONNECT. suffix tells clients of the case apart.
func (c *trial) conn(suffix string) *device {
	c.Helper()
	d := c.g.dialWith(c, c.id+suffix, c.cert)
	d.v5 = c.level == 5
	return d
}

// opening is what a CONNECT says beside the client identifier.
type opening struct {
	suffix string
	keep   bool     // Clean Start 0 and, with MQTT 5, a Session Expiry Interval of an hour
	flags  byte     // of will, user name and password
	silent uint16   // keep alive; 0: a minute
	props  [][]byte // MQTT 5
	after  []byte   // will, user name, password
}

// open connects and expects success; present tells Session Present.
func (c *trial) open(o opening) (d *device, present bool, connack []byte) {
	c.Helper()
	d = c.conn(o.suffix)
	d.send(c.connect(o))
	kind, body := d.recv()
	if kind != 0x20 || body[1] != 0 || body[0]&^1 != 0 {
		c.Fatalf("CONNACK: got type %#x % x", kind, body)
	}
	return d, body[0] == 1, body
}

func (c *trial) connect(o opening) []byte {
	flags, block := o.flags|0x02, o.props
	if o.keep {
		flags &^= 0x02
		block = append(slices.Clip(block), []byte{0x11, 0, 0, 0x0E, 0x10})
	}
	silent := o.silent
	if silent == 0 {
		silent = 60
	}
	var p []byte
	if c.level == 5 {
		p = props(block...)
	}
	return pkt(0x10, str("MQTT"), []byte{c.level, flags, byte(silent >> 8), byte(silent)}, p, str(c.id+o.suffix), o.after)
}

// plain is a client that starts afresh and keeps nothing.
func (c *trial) plain(suffix string) *device {
	c.Helper()
	d, _, _ := c.open(opening{suffix: suffix})
	return d
}

func (c *trial) topic(name string) string { return "c/" + c.id + "/" + name }

// will is the end of a CONNECT with a will, and its flags.
func (c *trial) will(topic, payload string, props ...[]byte) []byte {
	var p []byte
	if c.level == 5 {
		p = block(props...)
	}
	return cat(p, str(topic), str(payload))
}

// block is a property block of few bytes.
func block(list ...[]byte) []byte { return props(list...) }

// sub subscribes with options and expects them to be granted as asked.
func (d *device) sub(options byte, filters ...string) {
	d.t.Helper()
	for _, f := range filters {
		if got := d.subscribeTo(options, f); len(got) != 1 || got[0] != options&3 {
			d.t.Fatalf("SUBACK of %s: got % x, want %x", f, got, options&3)
		}
	}
}

// subscribeTo returns the codes of the SUBACK. Messages that come before it are an error.
func (d *device) subscribeTo(options byte, filter string, block ...[]byte) []byte {
	d.t.Helper()
	var p []byte
	if d.v5 {
		p = props(block...)
	}
	d.send(pkt(0x82, []byte{0x12, 0x34}, p, str(filter), []byte{options}))
	return d.answer(0x90, 0x1234)
}

// packet is one that came.
type packet struct {
	kind byte
	body []byte
}

// pull waits for a packet and puts aside those that come before it.
func (d *device) pull(what string, match func(packet) bool) packet {
	d.t.Helper()
	if i := slices.IndexFunc(d.aside, match); i >= 0 {
		p := d.aside[i]
		d.aside = slices.Delete(d.aside, i, i+1)
		return p
	}
	for {
		_ = d.SetReadDeadline(time.Now().Add(10 * time.Second))
		kind, body, err := d.read()
		if err != nil {
			d.t.Fatalf("%s waits for %s: %v, after %x", d.id, what, err, d.aside)
		}
		p := packet{kind, body}
		if match(p) {
			return p
		}
		d.aside = append(d.aside, p)
	}
}

// answer expects SUBACK or UNSUBACK and returns its codes.
func (d *device) answer(kind byte, id uint16) []byte {
	d.t.Helper()
	p := d.pull("SUBACK or UNSUBACK", func(p packet) bool { return p.kind == kind })
	if binary.BigEndian.Uint16(p.body) != id {
		d.t.Fatalf("got type %#x % x, want %x", p.kind, p.body, id)
	}
	body := p.body[2:]
	if d.v5 {
		body = body[1+int(body[0]):]
	}
	return body
}

// put publishes a message and takes it through to its end.
func (d *device) put(qos byte, retain bool, topic, payload string, block ...[]byte) {
	d.t.Helper()
	m := d.message(qos, 0x55, topic, payload, block...)
	if retain {
		m[0] |= 1
	}
	d.send(m)
	switch qos {
	case 1:
		d.acknowledged(0x40, 0x55)
	case 2:
		d.acknowledged(0x50, 0x55)
		d.send([]byte{0x62, 2, 0, 0x55})
		d.acknowledged(0x70, 0x55)
	}
}

func (d *device) message(qos byte, id uint16, topic, payload string, block ...[]byte) []byte {
	parts := [][]byte{str(topic)}
	if qos > 0 {
		parts = append(parts, binary.BigEndian.AppendUint16(nil, id))
	}
	if d.v5 {
		parts = append(parts, props(block...))
	}
	return pkt(0x30|qos<<1, append(parts, []byte(payload))...)
}

// acknowledged expects an acknowledgment that does not refuse.
func (d *device) acknowledged(kind byte, id uint16) {
	d.t.Helper()
	p := d.pull("an acknowledgment", func(p packet) bool { return p.kind == kind })
	if binary.BigEndian.Uint16(p.body) != id || len(p.body) > 2 && p.body[2] >= 0x80 {
		d.t.Fatalf("%s: got type %#x % x, want %#x %x", d.id, p.kind, p.body, kind, id)
	}
}

// arrived is a PUBLISH from the server.
type arrived struct {
	topic, payload string
	qos            byte
	dup, retain    bool
	id             uint16
	props          []byte
}

// next reads a message and acknowledges it.
func (d *device) next() arrived {
	d.t.Helper()
	m := d.unacknowledged()
	switch m.qos {
	case 1:
		d.send(binary.BigEndian.AppendUint16([]byte{0x40, 2}, m.id))
	case 2:
		d.send(binary.BigEndian.AppendUint16([]byte{0x50, 2}, m.id))
		d.acknowledged(0x62, m.id)
		d.send(binary.BigEndian.AppendUint16([]byte{0x70, 2}, m.id))
	}
	return m
}

// unacknowledged reads a message.
func (d *device) unacknowledged() arrived {
	d.t.Helper()
	p := d.pull("a message", func(p packet) bool { return p.kind&0xF0 == 0x30 })
	k, body := p.kind, p.body
	m := arrived{qos: k >> 1 & 3, dup: k&8 != 0, retain: k&1 != 0}
	n := 2 + int(binary.BigEndian.Uint16(body))
	m.topic, body = string(body[2:n]), body[n:]
	if m.qos > 0 {
		m.id, body = binary.BigEndian.Uint16(body), body[2:]
	}
	if d.v5 {
		n, size := binary.Uvarint(body)
		m.props, body = body[size:size+int(n)], body[size+int(n):]
	}
	m.payload = string(body)
	return m
}

// gets expects messages of these payloads, in order.
func (d *device) gets(payloads ...string) {
	d.t.Helper()
	for _, want := range payloads {
		if m := d.next(); m.payload != want {
			d.t.Errorf("%s: got %q on %s, want %q", d.id, m.payload, m.topic, want)
		}
	}
}

// quiet expects that nothing comes for a while.
func (d *device) quiet(what string) {
	d.t.Helper()
	if len(d.aside) > 0 {
		d.t.Errorf("%s: got %x, want nothing", what, d.aside)
	}
	_ = d.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
	kind, body, err := d.read()
	if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		d.t.Errorf("%s: got type %#x %q %v, want nothing", what, kind, body, err)
	}
}

// broken sends and expects the end of the connection, with MQTT 5 after a DISCONNECT
// of the code.
func (d *device) broken(what string, code byte, sent []byte) {
	d.t.Helper()
	d.send(sent)
	if !d.v5 {
		code = 0
	}
	d.gone(what, code)
}

// refusedConnect sends a CONNECT and expects, with MQTT 5, a CONNACK of the code, with
// 3.1.1 one of v3 or, if that is 0, none; and the end of the connection.
func (c *trial) refusedConnect(what string, v3, v5 byte, sent []byte) {
	c.Helper()
	d := c.conn("")
	d.send(sent)
	want := v3
	if c.level == 5 {
		want = v5
	}
	if want != 0 {
		if kind, body := d.recv(); kind != 0x20 || body[0] != 0 || body[1] != want {
			c.Errorf("%s: got type %#x % x, want CONNACK %#x", what, kind, body, want)
		}
	}
	d.gone(what, 0)
}
