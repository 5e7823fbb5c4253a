package mqtt

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/topics"

	countersign "github.com/countersign-iot/countersign"
)

// reader is the half of a session that takes what its device sends. Its goroutine owns it.
type reader struct {
	*session
	silentAt    time.Time // when the device was silent for too long; zero: never
	waits       bool      // a read deadline is set, at silentAt or before
	aliases     map[uint16]string
	aliasOctets int       // of the topics in it
	lastTopic   string    // the last one that was found good
	lastRetain  bool      // for retained messages too
	reauthAt    time.Time // when the device may authenticate again
	heldLast    time.Time // when it was held back last
	heldSince   time.Time // the device publishes more than its budget since then
}

// runUp reads the device's frames until the device leaves, breaks the protocol
// or is no longer wanted.
func (x *reader) runUp(ctx context.Context) error {
	for {
		if !x.in.whole() { // what came before half a packet does not wait for the rest
			if err := x.flush(); err != nil {
				return err
			}
			if x.keepAlive > 0 {
				x.silentAt = x.now().Add(x.keepAlive)
			}
		}
		f, err := x.await()
		if err != nil {
			return err
		}
		if x.ended() {
			return errEnded
		}
		if err := f.checkFlags(x.connect.level); err != nil {
			return err
		}
		if err := x.slowDown(f); err != nil {
			return err
		}
		if err := x.fromDevice(ctx, f); err != nil || x.cleanLeave {
			if x.cleanLeave {
				x.end(ending(countersign.EndClientLeft, "client left"), nil) // before the back closes
			}
			_ = x.flush()
			return err
		}
	}
}

// await reads the next packet. Moving the read deadline for each packet costs more than
// one deadline that passes before the device was silent for too long, and is moved then.
// Over WebSocket none passes before its time, because the library does not read on
// behind it.
func (x *reader) await() (frame, error) {
	for {
		if !x.waits || x.web != nil {
			_ = x.conn.SetReadDeadline(x.silentAt)
			x.waits = true
		}
		if x.done.Load() { // end came before a deadline that this one may have undone, see stop
			return frame{}, errEnded
		}
		f, err := x.in.next()
		if !errors.Is(err, os.ErrDeadlineExceeded) || !x.now().Before(x.silentAt) {
			return f, err
		}
		x.waits = false
	}
}

func (x *reader) fromDevice(ctx context.Context, f frame) error {
	switch f.kind() {
	case pktPublish:
		return x.devicePublish(f)
	case pktPuback, pktPubrec, pktPubrel, pktPubcomp:
		a, err := parseAck(f, x.connect.level)
		if err != nil {
			return err
		}
		return x.back.acknowledge(f, a)
	case pktSubscribe, pktUnsubscribe:
		return x.deviceSubscribe(ctx, f)
	case pktPingreq:
		if len(f.body) > 0 {
			return malformed("PINGREQ with a body")
		}
		return x.back.ping(f)
	case pktDisconnect:
		return x.deviceDisconnect(f)
	case pktAuth:
		return x.deviceAuth(ctx, f)
	case pktConnect:
		return breach(ProtocolError, "a second CONNECT")
	}
	return breach(ProtocolError, "packet type %d from a client", f.kind())
}

func (x *reader) devicePublish(f frame) error {
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
	if p.qos > 0 && x.connect.level == 5 {
		if err := x.takeOff(); err != nil {
			return err
		}
	}
	if topic == refusedTopic {
		x.srv.count.denied.Add(1) // it was reported when the alias was set
		return x.refusePublish(p)
	}
	retain := f.flags()&flagRetain != 0
	if topic != x.lastTopic || retain && !x.lastRetain {
		if !x.judgePublish(topic, retain) {
			x.forgetAlias(p)
			return x.refusePublish(p)
		}
		x.lastTopic, x.lastRetain = topic, retain
	}
	if err := x.learnAlias(p, topic); err != nil {
		return err
	}
	x.srv.count.published.Add(1)
	return x.back.publish(f, p, topic)
}

// takeOff counts a message of the device as in flight (MQTT 5, 4.9).
func (x *reader) takeOff() error {
	if x.inFlight.Add(1) > x.maxFlight { // [MQTT-3.3.4-7]
		return breach(ReceiveMaximumExceeded, "more than %d messages in flight", x.maxFlight)
	}
	return nil
}

// topicUp is the topic of a message from the device, with its alias resolved:
// the permissions depend on it, so the gateway keeps the table itself.
func (x *reader) topicUp(p publish) (string, error) {
	if p.alias > x.aliasMax { // [MQTT-3.3.2-9]
		return "", breach(BadTopicAlias, "topic alias %d is over the maximum of %d", p.alias, x.aliasMax)
	}
	if len(p.topic) == 0 {
		topic, ok := x.aliases[p.alias]
		if !ok {
			return "", breach(ProtocolError, "topic alias %d was not set", p.alias)
		}
		return topic, nil
	}
	topic := x.lastTopic
	if string(p.topic) != topic { // else it was checked, and no string is made
		topic = string(p.topic)
		if slices.Contains(p.topic, 0) { // [MQTT-1.5.4-2]
			return "", breach(BadTopicName, "a topic with U+0000")
		}
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
func (x *reader) learnAlias(p publish, topic string) error {
	if p.alias == 0 || len(p.topic) == 0 || x.aliases[p.alias] == topic {
		return nil
	}
	x.aliasOctets += len(topic) - len(x.aliases[p.alias])
	if x.aliasOctets > maxAliasOctets {
		return breach(QuotaExceeded, "more than %d octets of topics have aliases", maxAliasOctets)
	}
	put(&x.aliases, p.alias, topic)
	return nil
}

// refusedTopic is what an alias means whose message was refused. It is no topic
// name, so that it is refused again, and takes no room.
const refusedTopic = ""

// forgetAlias notes that an alias means a topic that the device may not publish
// to.
func (x *reader) forgetAlias(p publish) {
	if p.alias > 0 && len(p.topic) > 0 {
		x.aliasOctets -= len(x.aliases[p.alias])
		put(&x.aliases, p.alias, refusedTopic)
	}
}

// judgePublish reports whether the device may publish, and retain, to topic.
func (x *reader) judgePublish(topic string, retain bool) bool {
	allowed := x.mayPublish(topic)
	x.judged("publish", topic, allowed)
	if allowed && retain {
		allowed = x.mayRetain(topic)
		x.judged("retain", topic, allowed)
	}
	return allowed
}

// refusePublish drops a message. With QoS 1 and 2 it is acknowledged, in MQTT 5
// with the reason; MQTT 3.1.1 offers that or to close, and a device that is
// closed would only send it again ([MQTT-3.3.5-2] of 3.1.1).
func (x *reader) refusePublish(p publish) error {
	code := NotAuthorized
	if x.connect.level < 5 {
		code = Success
	}
	if p.qos == 0 {
		return nil
	}
	return x.back.refuse(p, code)
}

// deviceSubscribe judges the filters. The back answers for those that are permitted.
func (x *reader) deviceSubscribe(ctx context.Context, f frame) error {
	p, err := parseSubscribe(f, x.connect.level)
	if err != nil {
		return err
	}
	kind := f.kind()
	codes := make([]byte, len(p.filters))
	if size := len((&suback{codes: codes}).encode(kind+1, x.connect.level)); x.tooLarge(size) { // [MQTT-3.1.2-24]
		return breach(PacketTooLarge, "the answer of %d octets is over the client's Maximum Packet Size of %d", size, x.connect.maxPacket)
	}
	pass := p.filters[:0:0]
	for i, sub := range p.filters {
		code, err := x.judgeFilter(kind, sub.filter)
		if err != nil {
			return err
		}
		if codes[i] = byte(code); code == fromBack {
			pass = append(pass, sub)
		}
	}
	if len(pass) == 0 {
		return x.answerSubscribe(kind, p.id, codes)
	}
	p.filters = pass
	return x.back.subscribe(ctx, f, p, codes)
}

// judgeFilter is the code of a filter that is refused, or fromBack.
func (x *reader) judgeFilter(kind byte, filter string) (Reason, error) {
	inner, _, ok := topics.Shared(filter)
	if !ok || !topics.ValidFilter(inner) {
		return 0, breach(BadTopicFilter, "%.80q is no topic filter", filter)
	}
	if kind == pktUnsubscribe {
		if strings.HasPrefix(inner, "$") {
			return NoSubscriptionExisted, nil
		}
		return fromBack, nil
	}
	allowed := !strings.HasPrefix(inner, "$") && !x.othersInbox(inner) && topics.Allowed(x.perms.Subscribe.Allow, x.perms.Subscribe.Deny, inner)
	x.judged("subscribe", filter, allowed)
	if !allowed {
		return NotAuthorized, nil
	}
	return fromBack, nil
}

func (x *reader) deviceDisconnect(f frame) error {
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
	x.cleanLeave, x.withWill = true, d.code == DisconnectWithWill
	return x.back.leave(f, d)
}

const (
	// heldTold is how long a device must publish more than its budget until an event reports it: a
	// burst of what gathered while it was away is no abuse.
	heldTold = 10 * time.Second
	// heldPause is how long a device must not be held back to begin anew.
	heldPause = time.Second
	// filterUnit is how many octets of a SUBSCRIBE or UNSUBSCRIBE count as one message:
	// each filter is put on record, or taken from it.
	filterUnit = 16
)

// errFlood ends a session that used more than its budget of publishes.
var errFlood = errors.New("the device publishes more than its budget")

// slowDown holds the device to its budget of messages by reading no faster: what its
// own TCP holds back costs us nothing. All sessions of the device share the budget.
func (x *reader) slowDown(f frame) error {
	cost := 1
	switch f.kind() {
	case pktPublish:
		cost += len(f.raw) / publishUnit
	case pktSubscribe, pktUnsubscribe:
		cost += len(f.raw) / filterUnit
	case pktPuback, pktPubrec, pktPubrel, pktPubcomp, pktDisconnect:
		return nil // what it answers to was counted
	}
	now := x.now()
	l := x.account.limiter
	if cost = min(cost, l.Burst()); l.AllowN(now, cost) {
		return nil
	}
	wait := l.ReserveN(now, cost).DelayFrom(now)
	x.srv.count.slowed.Add(1)
	if now.Sub(x.heldLast) > heldPause {
		x.heldSince = now
	}
	x.heldLast = now.Add(wait)
	switch held := now.Sub(x.heldSince); {
	case held >= x.srv.Limits.Flood:
		return errFlood
	case held >= heldTold:
		x.srv.Gatekeeper.Exceeded(x.info, countersign.BudgetPublishes, int64(x.budget.Publishes))
	}
	if err := x.flush(); err != nil {
		return err
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-x.live.Done():
		return errEnded
	}
}
