package mqtt

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/topics"

	countersign "github.com/countersign-iot/countersign"
)

// runUp reads the device's frames until the device leaves, breaks the protocol
// or is no longer wanted.
func (x *session) runUp(ctx context.Context) error {
	for {
		if !x.in.buffered() {
			if err := x.flushBoth(&x.up, &x.down); err != nil {
				return err
			}
			var limit time.Time
			if x.keepAlive > 0 {
				limit = x.now().Add(x.keepAlive)
			}
			_ = x.conn.SetReadDeadline(limit)
			if x.done.Load() { // finishDown sets it, then a deadline that this one may have undone
				return nil
			}
		}
		f, err := x.in.next()
		if err != nil {
			return err
		}
		if x.ended() {
			return errEnded
		}
		if err := f.checkFlags(); err != nil {
			return err
		}
		if err := x.slowDown(f); err != nil {
			return err
		}
		if err := x.fromDevice(ctx, f); err != nil || x.cleanLeave {
			if x.cleanLeave {
				x.end(ending(countersign.EndClientLeft, "client left"), nil) // before the engine hears it and closes
			}
			_ = x.flushBoth(&x.up, &x.down)
			return err
		}
	}
}

func (x *session) flushBoth(first, second *outbox) error {
	if err := first.flush(); err != nil {
		return err
	}
	return second.flush()
}

func (x *session) fromDevice(ctx context.Context, f frame) error {
	switch f.kind() {
	case pktPublish:
		return x.devicePublish(ctx, f)
	case pktPuback, pktPubrec, pktPubrel, pktPubcomp:
		return x.deviceAck(ctx, f)
	case pktSubscribe, pktUnsubscribe:
		return x.deviceSubscribe(ctx, f)
	case pktPingreq:
		if len(f.body) > 0 {
			return malformed("PINGREQ with a body")
		}
		if x.level == 4 {
			// The engine's side has no keep alive: the gateway keeps it.
			return x.down.send([]byte{pktPingresp << 4, 0})
		}
		return x.up.send(f.raw)
	case pktDisconnect:
		return x.deviceDisconnect(f)
	case pktAuth:
		return x.deviceAuth(ctx, f)
	case pktConnect:
		return breach(ProtocolError, "a second CONNECT")
	}
	return breach(ProtocolError, "packet type %d from a client", f.kind())
}

func (x *session) devicePublish(ctx context.Context, f frame) error {
	p, err := parsePublish(f, x.connect.level)
	if err != nil {
		return err
	}
	if p.subID { // [MQTT-3.3.4-6]
		return breach(ProtocolError, "a subscription identifier from a client")
	}
	topic, err := x.topicUp(p)
	if err != nil {
		return err
	}
	if topic == refusedTopic {
		x.srv.count.denied.Add(1) // it was told of when the alias was set
		return x.refusePublish(p, NotAuthorized)
	}
	retain := f.flags()&0x01 != 0
	if topic != x.lastTopic || retain && !x.lastRetain {
		if code := x.judgePublish(topic, retain); code != Success {
			x.forgetAlias(p)
			return x.refusePublish(p, code)
		}
		x.lastTopic, x.lastRetain = topic, retain
	}
	if err := x.learnAlias(p, topic); err != nil {
		return err
	}
	if retain {
		octets := 0 // takes a retained message away
		if len(p.payload) > 0 {
			octets = len(p.payload) + len(p.props)
		}
		if !x.mayRetainMore(topic, octets) {
			return x.refusePublish(p, QuotaExceeded)
		}
	}
	if p.qos == 2 {
		if err := x.forget(ctx); err != nil {
			return err
		}
	}
	x.srv.count.published.Add(1)
	if p.qos == 2 || p.qos == 1 && x.connect.level == 5 { // those of QoS 2 the engine stores
		if err := x.takeOff(p.id); err != nil {
			return err
		}
	}
	if x.level == 5 {
		return x.sendStamped(f.raw[0], p)
	}
	wrapped := x.traits.Wraps && x.wrapUp(&p, retain)
	if !x.shim() && !wrapped {
		return x.up.send(f.raw)
	}
	return sendPublish(&x.up, f.raw[0], topic, p, 4)
}

// takeOff counts a message of the device as in flight.
func (x *session) takeOff(id uint16) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, again := x.inUp[id]; !again && len(x.inUp) >= x.flight { // [MQTT-3.3.4-7]
		return breach(ReceiveMaximumExceeded, "more than %d messages in flight", x.flight)
	}
	put(&x.inUp, id, struct{}{})
	return nil
}

// topicUp is the topic of a message from the device, with its alias resolved:
// the permissions depend on it, so the gateway keeps the table itself.
func (x *session) topicUp(p publish) (string, error) {
	if p.alias > x.aliasMax { // [MQTT-3.3.2-9]
		return "", breach(BadTopicAlias, "topic alias %d is over the maximum of %d", p.alias, x.aliasMax)
	}
	if len(p.topic) == 0 {
		topic, ok := x.aliasesUp[p.alias]
		if !ok {
			return "", breach(ProtocolError, "topic alias %d stands for nothing", p.alias)
		}
		return topic, nil
	}
	topic := x.lastTopic
	if string(p.topic) != topic { // else it was checked, and no string is made
		topic = string(p.topic)
		if !validText(p.topic) {
			return "", malformed("the topic is not valid UTF-8")
		}
		if !topics.ValidName(topic) { // [MQTT-3.3.2-2]
			return "", breach(BadTopicName, "%.80q is no topic name", topic)
		}
	}
	return topic, nil
}

// learnAlias keeps the topic of an alias once the message has been permitted, within
// maxAliasOctets of topics.
func (x *session) learnAlias(p publish, topic string) error {
	if p.alias == 0 || len(p.topic) == 0 || x.aliasesUp[p.alias] == topic {
		return nil
	}
	x.aliasOctets += len(topic) - len(x.aliasesUp[p.alias])
	if x.aliasOctets > maxAliasOctets {
		return breach(QuotaExceeded, "more than %d octets of topics have aliases", maxAliasOctets)
	}
	put(&x.aliasesUp, p.alias, topic)
	return nil
}

// refusedTopic is what an alias stands for whose message was refused. It is no topic
// name, so that it is refused again, and takes no room.
const refusedTopic = ""

// forgetAlias notes that an alias stands for a topic that the device may not publish
// to.
func (x *session) forgetAlias(p publish) {
	if p.alias > 0 && len(p.topic) > 0 {
		x.aliasOctets -= len(x.aliasesUp[p.alias])
		put(&x.aliasesUp, p.alias, refusedTopic)
	}
}

func (x *session) mayPublish(topic string) bool {
	return !strings.HasPrefix(topic, "$") && topics.Allowed(x.perms.Publish.Allow, x.perms.Publish.Deny, topic)
}

// mayRetain is about what may be published.
func (x *session) mayRetain(topic string) bool {
	return !isInbox(topic) && topics.Allowed(x.perms.Retain.Allow, x.perms.Retain.Deny, topic)
}

func (x *session) judgePublish(topic string, retain bool) Reason {
	allowed := x.mayPublish(topic)
	x.judged("publish", topic, allowed)
	if allowed && retain {
		allowed = x.mayRetain(topic)
		x.judged("retain", topic, allowed)
	}
	if !allowed {
		return NotAuthorized
	}
	if x.badTopic(topic) {
		return BadTopicName
	}
	return Success
}

// refusePublish drops a message. With QoS 1 and 2 it is acknowledged, in MQTT 5
// with the reason; MQTT 3.1.1 offers that or to close, and a device that is
// closed would only send it again ([MQTT-3.3.5-2] of 3.1.1).
func (x *session) refusePublish(p publish, code Reason) error {
	if x.connect.level == 4 {
		code = Success
	}
	switch p.qos {
	case 1:
		return x.down.send(ackPacket(pktPuback, p.id, code))
	case 2:
		if code == Success { // the exchange goes on to PUBREL
			x.mu.Lock()
			full := len(x.refusedUp) >= maxPending
			put(&x.refusedUp, p.id, true)
			x.mu.Unlock()
			if full {
				return breach(ReceiveMaximumExceeded, "too many refused messages wait for PUBREL")
			}
		}
		return x.down.send(ackPacket(pktPubrec, p.id, code))
	}
	return nil
}

// forget sees to it that a session which the engine began anew does not meet the
// QoS 2 messages of an earlier one, [MQTT-3.1.2-6] of 3.1.1.
func (x *session) forget(ctx context.Context) error {
	if x.fresh || x.resumed || x.traits.Forget == nil {
		return nil
	}
	x.fresh = true
	if err := x.traits.Forget(ctx, x.info); err != nil {
		return fmt.Errorf("couldn't drop the messages of an earlier session: %w", err)
	}
	return nil
}

// deviceAck passes on an acknowledgment, or ends an exchange that the gateway
// holds by itself.
func (x *session) deviceAck(ctx context.Context, f frame) error {
	a, err := parseAck(f, x.connect.level)
	if err != nil {
		return err
	}
	kind := f.kind()
	if kind == pktPubrel {
		if err := x.forget(ctx); err != nil {
			return err
		}
	}
	x.mu.Lock()
	mine := kind == pktPubrel && take(x.refusedUp, a.id)
	dropped := x.shim() && kind == pktPubrec && a.code >= UnspecifiedError
	if dropped { // MQTT 3.1.1 knows no such end: finish with the engine
		put(&x.refusedDn, a.id, true)
	}
	if kind == pktPuback || kind == pktPubcomp || dropped {
		if take(x.inDown, a.id) {
			err = x.release()
			x.slot.Signal()
		}
	}
	x.mu.Unlock()
	if err != nil {
		return err
	}
	switch {
	case mine:
		return x.down.send(ackPacket(pktPubcomp, a.id, Success))
	case x.shim():
		return x.up.send(ackPacket(kind, a.id, Success))
	}
	return x.up.send(f.raw)
}

// deviceSubscribe passes on the filters that are permitted. The codes of the
// others wait for the engine's answer and are merged into it.
func (x *session) deviceSubscribe(ctx context.Context, f frame) error {
	p, err := parseSubscribe(f, x.connect.level)
	if err != nil {
		return err
	}
	if x.shim() && p.hasID {
		return breach(NoSubscriptionIDs, "subscription identifiers are not available")
	}
	kind := f.kind()
	if x.shim() && kind == pktSubscribe {
		x.askRetained(p)
	}
	codes := make([]byte, len(p.filters))
	pass := p.filters[:0:0]
	for i, sub := range p.filters {
		code, err := x.judgeFilter(ctx, kind, sub.filter)
		if err != nil {
			return err
		}
		if codes[i] = byte(code); code == fromEngine {
			pass = append(pass, sub)
		} else if x.connect.level == 4 {
			codes[i] = subFailure
		}
	}
	answer := kind + 1 // SUBACK, UNSUBACK
	if len(pass) == 0 {
		return x.down.send((&suback{id: p.id, codes: codes}).encode(answer, x.connect.level))
	}
	if len(pass) < len(p.filters) || x.shim() {
		if err := x.remember(kind, p.id, codes); err != nil {
			return err
		}
		p.filters = pass
		return x.up.send(p.encode(kind, x.level))
	}
	return x.up.send(f.raw)
}

func (x *session) remember(kind byte, id uint16, codes []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := &x.subAnswers
	if kind == pktUnsubscribe {
		m = &x.unAnswers
	}
	if len(*m) >= maxPending {
		return breach(ReceiveMaximumExceeded, "too many subscriptions wait for their answer")
	}
	put(m, id, codes)
	return nil
}

// judgeFilter is the code of a filter that is refused, or fromEngine.
func (x *session) judgeFilter(ctx context.Context, kind byte, filter string) (Reason, error) {
	inner, shared, ok := topics.Shared(filter)
	if !ok || !topics.ValidFilter(inner) {
		return 0, breach(BadTopicFilter, "%.80q is no topic filter", filter)
	}
	if kind == pktUnsubscribe {
		if x.badTopic(inner) || strings.HasPrefix(inner, "$") || shared && x.level == 4 {
			return NoSubscriptionExisted, nil
		}
		_, have := x.filters[filter]
		delete(x.filters, filter)
		x.srv.stock.unsubscribe(x.stored, filter)
		if x.shim() && !have && !x.resumed { // an UNSUBACK of 3.1.1 would not tell
			return NoSubscriptionExisted, nil
		}
		return fromEngine, nil
	}
	allowed := !strings.HasPrefix(inner, "$") && !x.othersInbox(inner) && topics.Allowed(x.perms.Subscribe.Allow, x.perms.Subscribe.Deny, inner)
	x.judged("subscribe", filter, allowed)
	switch {
	case !allowed:
		return NotAuthorized, nil
	case shared && x.level == 4:
		return NoSharedSubscriptions, nil
	case x.badTopic(inner):
		return BadTopicFilter, nil
	}
	drop, ok := x.srv.stock.subscribe(x.account, x.stored, filter)
	x.drop(ctx, drop)
	if !ok {
		x.exceeded(countersign.BudgetSubscriptions, int64(x.srv.Limits.Subscriptions))
		return QuotaExceeded, nil
	}
	put(&x.filters, filter, struct{}{})
	return fromEngine, nil
}

func (x *session) deviceDisconnect(f frame) error {
	d, err := parseDisconnect(f, x.connect.level)
	if err != nil {
		return err
	}
	if x.ephemeral {
		d.hasExpiry = false
	}
	if d.hasExpiry {
		if x.connect.sessionExpiry == 0 && d.expiry > 0 { // MQTT 5, 3.14.2.2.2
			return breach(ProtocolError, "a session that should expire at once cannot be kept")
		}
		x.expiry = d.expiry
	}
	x.cleanLeave = true
	if p := x.closeInbox(); p != nil {
		if err := x.up.send(p); err != nil {
			return err
		}
	}
	switch {
	case x.level == 5 && x.ephemeral:
		return x.up.send(disconnectPacket(d.code, "", 0)) // without an expiry
	case !x.shim():
		return x.up.send(f.raw)
	case d.code == DisconnectWithWill:
		return nil // the engine's side just closes, which publishes the will
	}
	return x.up.send([]byte{pktDisconnect << 4, 0})
}

// put makes the map if need be; most sessions never use most of theirs.
func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

// take removes k and tells whether it was there.
func take[K comparable, V any](m map[K]V, k K) bool {
	_, ok := m[k]
	delete(m, k)
	return ok
}
