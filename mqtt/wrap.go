package mqtt

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"
)

// An engine of MQTT 3.1.1 that only the gateway talks to (Traits.Wraps) carries the
// properties of messages in front of the payload:
//
//	wrapMark, when it expires (8 octets, Unix milliseconds, 0: never),
//	length of the properties (variable byte integer), properties, payload
//
// All ways to the engine wrap and all ways from it unwrap. A payload that begins
// with the mark by itself is wrapped, so no client can make one up.

// wrapMark cannot begin a text, and no common format begins so.
const wrapMark = "\x00\xc5\x9dmqtt5"

// wrapHead is the most that wrapping adds to properties and payload.
const wrapHead = len(wrapMark) + 8 + 4

// maxBinary is the most that a length of two octets tells.
const maxBinary = 0xFFFF

// wrapUp wraps what the device publishes and tells whether there was need. What is
// not the receiver's or not the client's to say stays out: the alias, and the
// sender's name, which is missing here rather than wrong.
func (x *session) wrapUp(p *publish, retain bool) bool {
	if len(p.payload) == 0 && retain { // takes a retained message away
		return false
	}
	var expires int64
	var props []byte
	if len(p.props) > 0 {
		props = keepProperties(p.props, pktPublish, func(q property) bool {
			if q.id == propMessageExpiry {
				expires = x.now().Add(time.Duration(q.number) * time.Second).UnixMilli()
			}
			return q.id == propMessageExpiry || q.id == propTopicAlias || isSender(q)
		})
	}
	w := wrap(props, expires, p.payload)
	if w != nil {
		p.payload = w
	}
	return w != nil
}

// wrapWill is the same for a will. When it will be published is the engine's to
// know, so its time of life cannot be kept.
func wrapWill(w *will) []byte {
	if len(w.payload) == 0 && w.retain {
		return nil
	}
	return wrap(keepProperties(w.props, pktWill, func(q property) bool {
		return q.id == propMessageExpiry || q.id == propWillDelay || isSender(q)
	}), 0, w.payload)
}

func wrap(props []byte, expires int64, payload []byte) []byte {
	if len(props) == 0 && expires == 0 && !strings.HasPrefix(string(payload[:min(len(payload), len(wrapMark))]), wrapMark) {
		return nil
	}
	b := make([]byte, 0, wrapHead+len(props)+len(payload))
	b = binary.BigEndian.AppendUint64(append(b, wrapMark...), uint64(expires)) //nolint:gosec // back again below
	b = append(appendVarint(b, len(props)), props...)
	return append(b, payload...)
}

// unwrap undoes wrapUp in place and tells whether there was anything to undo, and
// when the message expires (0: never). What is not well formed did not come by
// the gateway and stays as it is.
func unwrap(p *publish) (expires int64, ok bool) {
	b := p.payload
	if len(b) < len(wrapMark)+8 || string(b[:len(wrapMark)]) != wrapMark {
		return 0, false
	}
	expires = int64(binary.BigEndian.Uint64(b[len(wrapMark):])) //nolint:gosec // see wrap
	s := scanner{b: b[len(wrapMark)+8:]}
	props := s.properties("the properties")
	if s.err != nil || expires < 0 || walkProperties(props, pktPublish, func(property) error { return nil }) != nil {
		return 0, false
	}
	p.props, p.payload = props, s.b
	return expires, true
}

// unwrapDown unwraps a message for the device. It tells whether the message was
// wrapped and whether its time is over. With QoS 2 a message that may have been
// sent once does not expire any more, [MQTT-4.3.3-7]: the client may hold its
// packet identifier.
func (x *session) unwrapDown(f frame, p *publish) (wrapped, over bool) {
	if !x.traits.Wraps {
		return false, false
	}
	expires, ok := unwrap(p)
	if !ok || expires == 0 {
		return ok, false
	}
	left := time.UnixMilli(expires).Sub(x.now())
	if left <= 0 && (p.qos < 2 || f.flags()&flagDup == 0) {
		return true, true
	}
	// Rounded up: it is not over yet. What was written is a property's four octets.
	rest := uint32(max(0, (left+time.Second-1)/time.Second)) //nolint:gosec // see above
	p.props = appendU32Prop(slices.Clip(p.props), propMessageExpiry, rest)
	return true, false
}
