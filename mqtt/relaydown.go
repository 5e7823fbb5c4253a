package mqtt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	countersign "github.com/countersign-iot/countersign"
)

// How the broker's side ends: with DISCONNECT, and after messages that the device leaves
// unread.
var (
	errEngineLeft = errors.New("the engine ended the session")
	errUnread     = errors.New("the device leaves its messages unread")
)

// runDown reads the broker's frames until the session is over.
func (r *remote) runDown() error {
	for {
		if !r.engine.buffered() {
			if err := r.down.flush(); err != nil {
				return err
			}
			if err := r.up.flush(); err != nil {
				return err
			}
		}
		f, err := r.engine.next()
		if err != nil {
			return engineError(err)
		}
		if r.ended() || r.done.Load() {
			return errEnded
		}
		if err := r.toDevice(f); err != nil {
			_ = r.flush()
			return err
		}
	}
}

// finishDown names the end that runDown came to and wakes the reader.
func (r *remote) finishDown(err error) {
	switch {
	case errors.Is(err, errEngineLeft):
		// named where it was seen
	case errors.Is(err, errUnread), errors.Is(err, io.EOF) && r.full(): // a broker ends such a session too
		r.overBudget(countersign.BudgetUnread, r.budget.Unread, QuotaExceeded)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		r.endOn(errEngine)
	default:
		r.endOn(err)
	}
	r.stop()
}

// engineError keeps a breach by the broker from being blamed on the device.
func engineError(err error) error {
	if p, ok := errors.AsType[*protocolError](err); ok {
		return fmt.Errorf("couldn't read the engine's packet: %s", p.text)
	}
	return err
}

func (r *remote) toDevice(f frame) error {
	switch f.kind() {
	case pktPublish:
		return r.enginePublish(f)
	case pktPuback, pktPubrec, pktPubrel, pktPubcomp:
		return r.engineAck(f)
	case pktSuback, pktUnsuback:
		return r.engineSuback(f)
	case pktPingresp:
		return r.down.send(f.raw)
	case pktDisconnect:
		if r.level == 5 {
			return r.engineDisconnect(f)
		}
	}
	return fmt.Errorf("packet type %d from the engine", f.kind())
}

func (r *remote) enginePublish(f frame) error {
	p, err := parsePublish(f, r.level)
	if err != nil {
		return engineError(err)
	}
	topic := r.lastDown
	if len(p.topic) == 0 {
		topic = r.aliasesDown[p.alias]
	} else if string(p.topic) != topic {
		topic = string(p.topic)
	}
	if p.alias > 0 && len(p.topic) > 0 {
		if p.alias > r.connect.aliasMax {
			return fmt.Errorf("topic alias %d from the engine, over the maximum of %d", p.alias, r.connect.aliasMax)
		}
		put(&r.aliasesDown, p.alias, topic)
	}
	if topic != r.lastDown {
		if !r.mayReceive(topic) {
			return r.dropDown(p)
		}
		r.lastDown = topic
	}
	raw := f.raw
	// The broker knows a larger size, for the sender's name: without that it may fit.
	if r.tooLarge(len(raw)) {
		p.props = keepProperties(p.props, pktPublish, isSender)
		if raw = publishPacket(f.raw[0], p); r.tooLarge(len(raw)) { // [MQTT-3.1.2-25]: as if it had been delivered
			return r.dropDown(p)
		}
	}
	if p.qos > 0 { // the broker keeps the next ones while send waits
		r.srv.count.delivered.Add(1)
		return r.down.send(raw)
	}
	switch room, err := r.down.offer(raw); {
	case room:
		r.sent()
	case err != nil:
		return err
	case r.unread():
		return errUnread
	}
	return nil
}

// publishPacket is a PUBLISH of MQTT 5 as it is now.
func publishPacket(head byte, p publish) []byte {
	body := appendText(nil, p.topic)
	if p.qos > 0 {
		body = binary.BigEndian.AppendUint16(body, p.id)
	}
	return packet(head, append(appendProps(body, 5, p.props), p.payload...))
}

// dropDown ends the exchange of a message that the device does not get.
func (r *remote) dropDown(p publish) error {
	switch p.qos {
	case 1:
		return r.up.send(ackPacket(pktPuback, p.id, Success))
	case 2:
		r.mu.Lock()
		put(&r.refusedDn, p.id, struct{}{}) // at most as many as the broker has in flight
		r.mu.Unlock()
		return r.up.send(ackPacket(pktPubrec, p.id, Success))
	}
	return nil
}

func (r *remote) engineAck(f frame) error {
	a, err := parseAck(f, r.level)
	if err != nil {
		return engineError(err)
	}
	r.mu.Lock()
	dropped := f.kind() == pktPubrel && take(r.refusedDn, a.id)
	r.mu.Unlock()
	if dropped {
		return r.up.send(ackPacket(pktPubcomp, a.id, Success))
	}
	r.land(f.kind(), a.code)
	if r.tooLarge(len(f.raw)) {
		return r.down.send(ackPacket(f.kind(), a.id, a.code))
	}
	return r.down.send(f.raw) // without a reason code both versions look alike
}

// engineSuback puts the codes of refused filters where they belong.
func (r *remote) engineSuback(f frame) error {
	p, err := parseSuback(f, r.level)
	if err != nil {
		return engineError(err)
	}
	kind := f.kind()
	r.mu.Lock()
	m := *r.mergedOf(kind)
	codes, ok := m[p.id]
	delete(m, p.id)
	r.mu.Unlock()
	large := r.tooLarge(len(f.raw))
	if !ok && !large {
		return r.down.send(f.raw)
	}
	if !ok {
		codes = p.codes
	}
	if large {
		p.props = nil
	}
	for i := range codes {
		switch {
		case codes[i] != fromBack:
			if r.level < 5 {
				codes[i] = subFailure
			}
		case kind == pktUnsuback && r.level < 5:
			codes[i] = byte(Success) // an UNSUBACK of 3.1.1 carries none
		case len(p.codes) == 0:
			return errors.New("the engine answered fewer filters than were asked")
		default:
			codes[i], p.codes = p.codes[0], p.codes[1:]
		}
	}
	p.codes = codes
	return r.down.send(p.encode(kind, r.level))
}

func (r *remote) engineDisconnect(f frame) error {
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
	last := append([]byte(nil), f.raw...)
	if r.tooLarge(len(last)) {
		last = r.disconnect(d.code, "")
	}
	r.end(why, last)
	return errEngineLeft
}
