package mqtt

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"
	"testing/iotest"

	"github.com/countersign-iot/countersign/topics"
)

func FuzzReadConnect(f *testing.F) {
	for _, c := range []connect{
		{level: 4, cleanStart: true, keepAlive: 60, clientID: "dev"},
		{level: 5, clientID: "dev/1", props: []byte{0x11, 0, 0, 0, 9, 0x21, 0, 5}, username: "u", password: []byte{0, 1}},
		{level: 5, clientID: "d", will: &will{qos: 1, retain: true, topic: "a/b", payload: []byte("x"), props: []byte{0x18, 0, 0, 0, 1}}},
	} {
		f.Add(c.encode(c.level))
	}
	f.Add([]byte("\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x03dev"))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr := frameReader{src: bytes.NewReader(b), max: maxConnect}
		defer fr.release()
		p, err := fr.next()
		if err != nil {
			return
		}
		c, err := parseConnect(p)
		if err != nil {
			return
		}
		if c.will != nil && !topics.ValidName(c.will.topic) {
			t.Fatalf("will topic %q was accepted", c.will.topic)
		}
		again := frameReader{src: bytes.NewReader(c.encode(c.level)), max: 2 * maxConnect}
		defer again.release()
		q, err := again.next()
		if err != nil {
			t.Fatalf("what was encoded does not read: %v", err)
		}
		d, err := parseConnect(q)
		if err != nil || d.clientID != c.clientID || d.keepAlive != c.keepAlive || d.sessionExpiry != c.sessionExpiry ||
			d.cleanStart != c.cleanStart || !bytes.Equal(d.props, c.props) || !reflect.DeepEqual(d.will, c.will) {
			t.Fatalf("decode of encode: got %+v %v, want %+v", d, err, c)
		}
	})
}

// FuzzFrame reads a stream as frames, whole and byte by byte, parses each in both
// versions and holds the two readings against each other.
func FuzzFrame(f *testing.F) {
	f.Add([]byte{0x30, 5, 0, 1, 'a', 'x', 'y', 0xC0, 0})
	f.Add([]byte{0x32, 9, 0, 1, 'a', 0, 7, 3, 0x23, 0, 1})
	f.Add([]byte{0x32, 9, 0, 1, 'a', 0, 0, 3, 0x23, 0, 1}) // identifier 0 and a good property
	f.Add([]byte{0x82, 7, 0, 1, 0, 0, 1, 'a', 1})
	f.Add([]byte{0xF0, 10, 0x18, 8, 0x15, 0, 1, 'S', 0x16, 0, 1, 'x'})
	f.Add([]byte{0x90, 4, 0, 1, 0, 0x87, 0xE0, 3, 0x98, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 8 << 10
		whole := frameReader{src: bytes.NewReader(b), max: limit}
		bits := frameReader{src: iotest.OneByteReader(bytes.NewReader(b)), max: limit}
		defer whole.release()
		defer bits.release()
		rest := b
		for {
			p, err := whole.next()
			q, err2 := bits.next()
			if (err == nil) != (err2 == nil) {
				t.Fatalf("whole: %v, byte by byte: %v", err, err2)
			}
			if err != nil {
				if _, ok := errors.AsType[*protocolError](err); !ok && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("unexpected error %v", err)
				}
				return
			}
			if !bytes.Equal(p.raw, q.raw) || !bytes.HasPrefix(rest, p.raw) {
				t.Fatalf("frames differ: % x and % x of % x", p.raw, q.raw, rest)
			}
			rest = rest[len(p.raw):]
			if p.checkFlags(5) == nil {
				parseAll(t, p)
			}
		}
	})
}

func parseAll(t *testing.T, f frame) {
	for _, level := range []byte{4, 5} {
		switch f.kind() {
		case pktPublish:
			if p, err := parsePublish(f, level); err == nil && (p.qos > 0) != (p.id > 0) {
				t.Fatalf("QoS %d with identifier %d", p.qos, p.id)
			}
		case pktPuback, pktPubrec, pktPubrel, pktPubcomp:
			if a, err := parseAck(f, level); err == nil && a.id == 0 {
				t.Fatal("identifier 0 was accepted")
			}
		case pktSubscribe, pktUnsubscribe:
			p, err := parseSubscribe(f, level)
			if err != nil {
				continue
			}
			if len(p.filters) == 0 || p.id == 0 {
				t.Fatalf("accepted %+v", p)
			}
			fr := frameReader{src: bytes.NewReader(p.encode(f.kind(), level)), max: 1 << 20}
			g, err := fr.next()
			if err != nil {
				t.Fatal(err)
			}
			if again, err := parseSubscribe(g, level); err != nil || !reflect.DeepEqual(p, again) {
				t.Fatalf("decode of encode: got %+v %v, want %+v", again, err, p)
			}
			fr.release()
		case pktSuback, pktUnsuback:
			_, _ = parseSuback(f, level)
		case pktConnack:
			_, _ = parseConnack(f, level)
		case pktAuth:
			a, err := parseAuth(f)
			if err != nil || level == 4 {
				continue
			}
			fr := frameReader{src: bytes.NewReader(a.encode()), max: 1 << 20}
			g, err := fr.next()
			if err != nil {
				t.Fatal(err)
			}
			if again, err := parseAuth(g); err != nil || again.code != a.code || again.method != a.method || !bytes.Equal(again.data, a.data) {
				t.Fatalf("decode of encode: got %+v %v, want %+v", again, err, a)
			}
			fr.release()
		case pktDisconnect:
			_, _ = parseDisconnect(f, level)
		}
	}
}
