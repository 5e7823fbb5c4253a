package mqtt

import (
	"context"
	"encoding/binary"

	countersign "github.com/countersign-iot/countersign"
)

func (r *remote) flush() error { return r.up.flush() }

// publish passes on a message, from an MQTT 5 client with the sender's name.
func (r *remote) publish(f frame, p publish, _ string) error {
	if r.level < 5 {
		return r.up.send(f.raw)
	}
	props := p.props
	if p.sender {
		props = keepProperties(props, pktPublish, isSender)
	}
	var a, b [16]byte
	middle := a[:0]
	if p.qos > 0 {
		middle = binary.BigEndian.AppendUint16(middle, p.id)
	}
	middle = appendVarint(middle, len(props)+len(r.stamp))
	n := 2 + len(p.topic) + len(middle) + len(props) + len(r.stamp) + len(p.payload)
	start := appendVarint(append(b[:0], f.raw[0]), n)
	start = binary.BigEndian.AppendUint16(start, uint16(len(p.topic))) //nolint:gosec // read from 16 bits
	return r.up.send(start, p.topic, middle, props, r.stamp, p.payload)
}

// refuse acknowledges at once. After PUBREC with success, PUBREL follows.
func (r *remote) refuse(p publish, code Reason) error {
	kind := byte(pktPuback)
	if p.qos == 2 {
		kind = pktPubrec
		if code == Success {
			if err := r.expectPubrel(p.id); err != nil {
				return err
			}
		}
	}
	r.land(kind, code)
	return r.down.send(ackPacket(kind, p.id, code))
}

func (r *remote) expectPubrel(id uint16) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.refusedUp) >= maxPending {
		return breach(ReceiveMaximumExceeded, "too many refused messages wait for PUBREL")
	}
	put(&r.refusedUp, id, struct{}{})
	return nil
}

// acknowledge passes on an acknowledgment, or ends an exchange that the gateway holds by
// itself.
func (r *remote) acknowledge(f frame, a ack) error {
	r.mu.Lock()
	mine := f.kind() == pktPubrel && take(r.refusedUp, a.id)
	r.mu.Unlock()
	if mine {
		return r.down.send(ackPacket(pktPubcomp, a.id, Success))
	}
	return r.up.send(f.raw)
}

// ping is answered by the broker of an MQTT 5 session, which has a keep alive of its own.
func (r *remote) ping(f frame) error {
	if r.level < 5 {
		return r.down.send([]byte{pktPingresp << 4, 0})
	}
	return r.up.send(f.raw)
}

// subscribe passes on the filters that are permitted. The codes of the others wait for
// the broker's answer and are merged into it.
func (r *remote) subscribe(_ context.Context, f frame, p *subscribe, codes []byte) error {
	kind := f.kind()
	pass := p.filters[:0]
	for i, all := 0, p.filters; i < len(codes); i++ {
		if codes[i] != fromBack {
			continue
		}
		sub := all[0]
		all = all[1:]
		switch _, have := r.filters[sub.filter]; {
		case kind == pktUnsubscribe:
			delete(r.filters, sub.filter)
		case !have && len(r.filters) >= r.srv.Limits.Subscriptions:
			r.exceeded(countersign.BudgetSubscriptions, int64(r.srv.Limits.Subscriptions))
			codes[i] = byte(QuotaExceeded)
			continue
		default:
			put(&r.filters, sub.filter, struct{}{})
		}
		pass = append(pass, sub)
	}
	switch {
	case len(pass) == 0:
		return r.answerSubscribe(kind, p.id, codes)
	case len(pass) == len(codes):
		return r.up.send(f.raw)
	}
	r.mu.Lock()
	m := r.mergedOf(kind)
	full := len(*m) >= maxPending
	put(m, p.id, codes)
	r.mu.Unlock()
	if full {
		return breach(ReceiveMaximumExceeded, "too many subscriptions wait for their answer")
	}
	p.filters = pass
	return r.up.send(p.encode(kind, r.level))
}

// leave passes on DISCONNECT.
func (r *remote) leave(f frame, d disconnect) error {
	if p := r.closeInbox(); p != nil {
		if err := r.up.send(p); err != nil {
			return err
		}
	}
	if r.level == 5 && r.ephemeral {
		return r.up.send(disconnectPacket(d.code, "", 0)) // without an expiry
	}
	return r.up.send(f.raw)
}
