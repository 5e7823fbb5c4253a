package mqtt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/countersign-iot/countersign/topics"

	countersign "github.com/countersign-iot/countersign"
)

// errEngineLeft is the end of a session that the engine announced.
var errEngineLeft = errors.New("the engine ended the session")

// runDown reads the engine's frames until the session is over.
func (x *session) runDown() error {
	for {
		if !x.engine.buffered() {
			if err := x.flushBoth(&x.down, &x.up); err != nil {
				return err
			}
		}
		f, err := x.engine.next()
		if err != nil {
			return engineError(err)
		}
		if x.ended() || x.done.Load() {
			x.missed = true
			return errEnded
		}
		if err := x.toDevice(f); err != nil {
			_ = x.flushBoth(&x.down, &x.up)
			return err
		}
	}
}

// engineError keeps a breach by the engine from being blamed on the device.
func engineError(err error) error {
	if p, ok := errors.AsType[*protocolError](err); ok {
		return fmt.Errorf("couldn't read the engine's packet: %s", p.text)
	}
	return err
}

func (x *session) toDevice(f frame) error {
	switch f.kind() {
	case pktPublish:
		return x.enginePublish(f)
	case pktPuback, pktPubrec, pktPubrel, pktPubcomp:
		return x.engineAck(f)
	case pktSuback, pktUnsuback:
		return x.engineSuback(f)
	case pktPingresp:
		return x.down.send(f.raw)
	case pktDisconnect:
		if x.level == 5 {
			return x.engineDisconnect(f)
		}
	}
	return fmt.Errorf("packet type %d from the engine", f.kind())
}

func (x *session) enginePublish(f frame) error {
	p, err := parsePublish(f, x.level)
	if err != nil {
		return engineError(err)
	}
	topic := x.lastDown
	if len(p.topic) == 0 {
		topic = x.aliasesDown[p.alias]
	} else if string(p.topic) != topic {
		topic = string(p.topic)
	}
	if p.alias > 0 && len(p.topic) > 0 {
		if p.alias > x.connect.aliasMax {
			return fmt.Errorf("topic alias %d from the engine, over the maximum of %d", p.alias, x.connect.aliasMax)
		}
		put(&x.aliasesDown, p.alias, topic)
	}
	if topic != x.lastDown {
		allowed := !strings.HasPrefix(topic, "$") && topics.Allowed(x.perms.Receive.Allow, x.perms.Receive.Deny, topic)
		others := allowed && x.othersInbox(topic)
		if !others { // what # brings along was not asked for
			x.judged("receive", topic, allowed)
		}
		if !allowed || others {
			return x.dropDown(p)
		}
		x.lastDown = topic
	}
	wrapped, over := x.unwrapDown(f, &p)
	if x.traits.Wraps && f.flags()&flagRetain != 0 && len(p.payload) == 0 {
		return x.dropDown(p) // the embedded engine is about to forget it, [MQTT-3.3.1-11] of 3.1.1
	}
	if over { // [MQTT-3.3.2-5]
		return x.dropDown(p)
	}
	if x.shim() {
		if f.flags()&0x01 != 0 && !x.wantsRetained(topic) {
			return x.dropDown(p)
		}
		if limit := x.connect.maxPacket; limit > 0 && publishBody(topic, p, 5)+5 > int(limit) {
			return x.dropDown(p) // [MQTT-3.1.2-25]: as if it had been delivered
		}
		if p.qos > 0 {
			return x.sendWithinQuota(f, topic, p)
		}
		if drop, err := x.unreadable(p, len(f.raw)); drop {
			return err
		}
		x.srv.count.delivered.Add(1)
		return sendPublish(&x.down, f.raw[0], topic, p, 5)
	}
	if drop, err := x.unreadable(p, len(f.raw)); drop {
		return err
	}
	if x.tooLarge(len(f.raw)) {
		return x.sendSmaller(f.raw[0], p)
	}
	if x.traits.Resume != nil && p.qos > 0 {
		x.mu.Lock()
		again := x.hasDown(p.id) && f.flags()&flagDup != 0
		if !again {
			put(&x.inDown, p.id, true)
		}
		x.mu.Unlock()
		if again { // not within a connection
			return nil
		}
	}
	x.srv.count.delivered.Add(1)
	if wrapped {
		return sendPublish(&x.down, f.raw[0], topic, p, 4)
	}
	return x.down.send(f.raw)
}

// tooLarge tells of a packet of an MQTT 5 engine that is over the client's Maximum
// Packet Size. The engine was told a larger one, for the sender's name.
func (x *session) tooLarge(size int) bool {
	return x.level == 5 && x.connect.maxPacket > 0 && size > int(x.connect.maxPacket)
}

// sendSmaller sends a message without its sender's name, if that makes it fit.
func (x *session) sendSmaller(head byte, p publish) error {
	p.props = keepProperties(p.props, pktPublish, isSender)
	b := publishPacket(head, string(p.topic), p, 5)
	if x.tooLarge(len(b)) { // [MQTT-3.1.2-25]: as if it had been delivered
		return x.dropDown(p)
	}
	x.srv.count.delivered.Add(1)
	return x.down.send(b)
}

// dropDown ends the exchange of a message that the device does not get.
func (x *session) dropDown(p publish) error {
	switch p.qos {
	case 1:
		return x.up.send(ackPacket(pktPuback, p.id, Success))
	case 2:
		x.mu.Lock()
		put(&x.refusedDn, p.id, true) // at most as many as the engine has in flight
		x.mu.Unlock()
		return x.up.send(ackPacket(pktPubrec, p.id, Success))
	}
	return nil
}

// maxHeld bounds, in bytes, the messages of a session that wait for its device's
// Receive Maximum: as much as the largest one. Beyond it the engine waits too.
const maxHeld = DefaultMaxPacket

// held is a PUBLISH that waits for the device's Receive Maximum.
type held struct {
	id  uint16
	raw []byte
}

// sendWithinQuota sends a message of QoS 1 or 2 if the device's Receive Maximum
// allows one more, [MQTT-3.3.4-9], else holds it back. Other packets go on,
// [MQTT-3.3.4-10], unless too much is held.
func (x *session) sendWithinQuota(f frame, topic string, p publish) error {
	size := publishBody(topic, p, 5) + 5
	x.mu.Lock()
	for {
		switch {
		case x.done.Load():
			x.mu.Unlock()
			return errEnded
		case f.flags()&flagDup != 0 && (x.hasDown(p.id) || x.holds(p.id)):
			x.mu.Unlock()
			return nil // the device has it, or gets it: sent again only on reconnect, [MQTT-4.4.0-1]
		case len(x.heldDown) == 0 && len(x.inDown) < int(x.connect.receiveMax):
			put(&x.inDown, p.id, true)
			x.mu.Unlock()
			x.srv.count.delivered.Add(1)
			return sendPublish(&x.down, f.raw[0], topic, p, 5)
		case len(x.heldDown) < maxPending && x.heldSize+size <= maxHeld:
			raw := publishPacket(f.raw[0], topic, p, 5)
			x.heldDown = append(x.heldDown, held{p.id, raw})
			x.heldSize += len(raw)
			x.mu.Unlock()
			return nil
		}
		x.mu.Unlock()
		if err := x.flushBoth(&x.down, &x.up); err != nil {
			return err
		}
		x.mu.Lock()
		if len(x.inDown) >= int(x.connect.receiveMax) && !x.done.Load() {
			x.slot.Wait()
		}
	}
}

// hasDown tells whether the device has the message and is not through with it.
func (x *session) hasDown(id uint16) bool {
	_, ok := x.inDown[id]
	return ok
}

func (x *session) holds(id uint16) bool {
	return slices.ContainsFunc(x.heldDown, func(h held) bool { return h.id == id })
}

// release sends what was held back, as far as the Receive Maximum allows. The caller
// has x.mu: the order of the messages depends on it.
func (x *session) release() error {
	for len(x.heldDown) > 0 && len(x.inDown) < int(x.connect.receiveMax) {
		h := x.heldDown[0]
		x.heldDown[0] = held{}
		if x.heldDown = x.heldDown[1:]; len(x.heldDown) == 0 {
			x.heldDown = nil
		}
		x.heldSize -= len(h.raw)
		put(&x.inDown, h.id, true)
		x.srv.count.delivered.Add(1)
		if err := x.down.send(h.raw); err != nil {
			return err
		}
	}
	return nil
}

func (x *session) engineAck(f frame) error {
	a, err := parseAck(f, x.level)
	if err != nil {
		return engineError(err)
	}
	x.mu.Lock()
	dropped := f.kind() == pktPubrel && take(x.refusedDn, a.id)
	again := false
	if f.kind() == pktPubrel && !dropped && x.traits.Resume != nil {
		first, ok := x.inDown[a.id]
		again = ok && !first // not within a connection
		put(&x.inDown, a.id, false)
	}
	if f.kind() == pktPuback || f.kind() == pktPubcomp || f.kind() == pktPubrec && a.code >= UnspecifiedError {
		delete(x.inUp, a.id)
	}
	x.mu.Unlock()
	switch {
	case dropped:
		return x.up.send(ackPacket(pktPubcomp, a.id, Success))
	case again:
		return nil
	}
	if x.tooLarge(len(f.raw)) {
		return x.down.send(ackPacket(f.kind(), a.id, a.code))
	}
	return x.down.send(f.raw) // without a reason code both versions look alike
}

// engineSuback puts the codes of refused filters where they belong.
func (x *session) engineSuback(f frame) error {
	p, err := parseSuback(f, x.level)
	if err != nil {
		return engineError(err)
	}
	kind := f.kind()
	x.mu.Lock()
	m := x.subAnswers
	if asks, ok := x.asking[p.id]; ok && kind == pktSuback {
		x.asked = asks
		delete(x.asking, p.id)
	}
	if kind == pktUnsuback {
		m = x.unAnswers
	}
	codes, ok := m[p.id]
	delete(m, p.id)
	x.mu.Unlock()
	large := x.tooLarge(len(f.raw))
	if !ok && !large {
		return x.down.send(f.raw)
	}
	if !ok {
		codes = p.codes
	}
	if large {
		p.props = nil
	}
	for i := range codes {
		if codes[i] != fromEngine {
			continue
		}
		switch {
		case kind == pktUnsuback && x.level == 4:
			codes[i] = byte(Success) // an UNSUBACK of 3.1.1 carries none
		case len(p.codes) == 0:
			return errors.New("the engine answered fewer filters than were asked")
		default:
			codes[i], p.codes = p.codes[0], p.codes[1:]
		}
	}
	p.codes = codes
	if x.connect.level == 4 {
		p.props = nil
	}
	return x.down.send(p.encode(kind, x.connect.level))
}

func (x *session) engineDisconnect(f frame) error {
	d, err := parseDisconnect(f, 5)
	if err != nil {
		return engineError(err)
	}
	why := ending(countersign.EndEngine, "engine closed")
	switch d.code {
	case SessionTakenOver:
		why = ending(countersign.EndTakenOver, "the same client identifier connected again")
	case KeepAliveTimeout:
		why = ending(countersign.EndSilent, "keep-alive expired")
	}
	var last []byte
	if x.connect.level == 5 {
		if last = append(last, f.raw...); x.tooLarge(len(last)) {
			last = x.disconnect(d.code, "")
		}
	}
	x.end(why, last)
	return errEngineLeft
}

// publishBody is the remaining length of a PUBLISH of level.
func publishBody(topic string, p publish, level byte) int {
	n := 2 + len(topic) + len(p.payload)
	if p.qos > 0 {
		n += 2
	}
	if level == 5 {
		n += varintSize(len(p.props)) + len(p.props)
	}
	return n
}

// publishPacket is what sendPublish writes.
func publishPacket(head byte, topic string, p publish, level byte) []byte {
	b := appendText(appendVarint([]byte{head}, publishBody(topic, p, level)), topic)
	if p.qos > 0 {
		b = binary.BigEndian.AppendUint16(b, p.id)
	}
	if level == 5 {
		b = append(appendVarint(b, len(p.props)), p.props...)
	}
	return append(b, p.payload...)
}

// sendPublish writes the message as a PUBLISH of level.
func sendPublish(o *outbox, head byte, topic string, p publish, level byte) error {
	var start, end [8]byte
	s := appendVarint(append(start[:0], head), publishBody(topic, p, level))
	s = binary.BigEndian.AppendUint16(s, uint16(len(topic))) //nolint:gosec // read from 16 bits
	e := end[:0]
	if p.qos > 0 {
		e = binary.BigEndian.AppendUint16(e, p.id)
	}
	var props []byte
	if level == 5 {
		props = p.props
		e = appendVarint(e, len(props))
	}
	name := p.topic
	if len(name) == 0 {
		name = []byte(topic)
	}
	return o.send(s, name, e, props, p.payload)
}
