package mqtt

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/countersign-iot/countersign/broker"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

// local is a session in the broker core of this process, and the core's Client. The core
// calls it from any goroutine, also for a moment after the session's end.
type local struct {
	*session
	conn    *broker.Conn // nil until open
	present bool         // the session was there before
	inboxes []string     // filters of subscriptions to the own inbox; owned by the reader

	mu       sync.Mutex
	lastDown string // the last topic that was found good

	aliasing    sync.Mutex
	aliasesDown map[string]uint16 // of topics that the client was sent, the first ones; never more than it takes
	namesDown   int               // octets of the topics in it
}

func newLocal(x *session) *local {
	l := &local{session: x}
	x.down.emptied = l.emptied
	return l
}

// open connects the session to the core.
func (l *local) open(ctx context.Context) (*connack, error) {
	c := l.connect
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	conn, present, err := l.srv.Broker.Connect(ctx, broker.Hello{
		ClientID: brokerID(l.info), Device: l.info.Device, Clean: c.cleanStart, Expiry: seconds(c.sessionExpiry),
		ReceiveMax: c.receiveMax, Kept: l.budget.Sessions, Will: l.will(), Done: l.live.Done(), Resends: c.level < 5,
	}, l)
	if err != nil {
		return nil, l.backFailed(ctx, err)
	}
	l.conn, l.present = conn, present
	if present {
		l.dropInboxes(ctx)
	}
	a := &connack{present: present}
	if c.level == 5 {
		a.props = l.connackProps()
	}
	return a, nil
}

// dropInboxes ends the subscriptions to the inboxes of former connections, which close
// could not end: the server was killed, or the record did not take it. They would count
// for the device for as long as its session is kept. What fails here is tried again by
// the next connection.
func (l *local) dropInboxes(ctx context.Context) {
	former := slices.DeleteFunc(l.conn.Filters(), func(filter string) bool {
		inner, _, _ := topics.Shared(filter)
		return !isInbox(inner)
	})
	if len(former) > 0 {
		l.conn.Unsubscribe(ctx, former)
	}
}

// connackProps returns the properties of CONNACK (MQTT 5, 3.2.2.3).
func (l *local) connackProps() []byte {
	c, limits := l.connect, &l.srv.Limits
	b := appendU16Prop(nil, propReceiveMaximum, uint16(l.maxFlight))  //nolint:gosec // maxPending
	b = appendU32Prop(b, propMaxPacketSize, uint32(limits.MaxPacket)) //nolint:gosec // a small limit
	b = appendU16Prop(b, propTopicAliasMax, l.aliasMax)
	if longest := uint16(min(limits.MaxKeepAlive/time.Second, math.MaxUint16)); c.keepAlive == 0 || c.keepAlive > longest { //nolint:gosec // bounded
		l.keepAlive = limits.MaxKeepAlive * 3 / 2
		b = appendU16Prop(b, propServerKeepAlive, longest)
	}
	if kept := l.srv.Broker.Limits().Expiry; !l.ephemeral && seconds(c.sessionExpiry) > kept {
		l.expiry = uint32(kept / time.Second) //nolint:gosec // less than what four octets held
		b = appendU32Prop(b, propSessionExpiry, l.expiry)
	}
	return l.ownConnackProps(b)
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

// will is the client's will for the core. Its life begins when it is published.
func (x *session) will() *broker.Will {
	w := x.connect.will
	if w == nil {
		return nil
	}
	p := &broker.Will{Message: broker.Message{Topic: w.topic, Payload: w.payload, QoS: w.qos, Retain: w.retain, Device: x.info.Device}}
	p.Props = append(keepProperties(w.props, pktWill, func(q property) bool {
		switch q.id {
		case propWillDelay:
			p.Delay = seconds(min(q.number, x.connect.sessionExpiry)) // [MQTT-3.1.2-8]
			return true
		case propMessageExpiry:
			p.Life = seconds(q.number)
			return true
		}
		return isSender(q)
	}), x.stamp...)
	return p
}

func (l *local) start() { l.conn.Start() }

func (l *local) flush() error {
	l.conn.Flush()
	return nil
}

func (l *local) publish(f frame, p publish, topic string) error {
	m := &broker.Message{Topic: topic, QoS: p.qos, Retain: f.flags()&flagRetain != 0, Device: l.info.Device, Props: l.stamp}
	props := p.props
	if p.alias > 0 || p.sender || p.expires {
		props = keepProperties(props, pktPublish, func(q property) bool {
			if q.id == propMessageExpiry {
				m.Expires = l.now().Add(seconds(q.number))
			}
			return q.id == propTopicAlias || q.id == propMessageExpiry || isSender(q)
		})
	}
	if len(props) == 0 {
		m.Payload = slices.Clone(p.payload)
	} else { // one allocation for both
		b := make([]byte, 0, len(props)+len(l.stamp)+len(p.payload))
		b = append(append(b, props...), l.stamp...)
		m.Props = slices.Clip(b)
		b = append(b, p.payload...)
		m.Payload = b[len(m.Props):]
	}
	if err := l.conn.Publish(m, p.id); err != nil { // the client takes more than it may
		return breach(QuotaExceeded, "%v", err)
	}
	return nil
}

// refuse acknowledges in the order of the core. PUBREL for a message that the core does
// not have is answered by it.
func (l *local) refuse(p publish, code Reason) error {
	kind := broker.Puback
	if p.qos == 2 {
		kind = broker.Pubrec
	}
	l.conn.Refuse(kind, p.id, byte(code))
	return nil
}

func (l *local) acknowledge(f frame, a ack) error {
	if f.kind() == pktPubrel {
		l.conn.Release(a.id)
		return nil
	}
	l.conn.Acknowledge(broker.Acknowledgment(f.kind()), a.id, byte(a.code))
	return nil
}

func (l *local) subscribe(ctx context.Context, f frame, p *subscribe, codes []byte) error {
	var own []byte
	if f.kind() == pktUnsubscribe {
		filters := make([]string, len(p.filters))
		for i, sub := range p.filters {
			filters[i] = sub.filter
			l.inboxes = slices.DeleteFunc(l.inboxes, func(have string) bool { return have == sub.filter })
		}
		own = l.conn.Unsubscribe(ctx, filters)
	} else {
		own = l.conn.Subscribe(ctx, l.subscriptions(p))
	}
	for i := range codes {
		if codes[i] == fromBack {
			codes[i], own = own[0], own[1:]
		}
	}
	if err := l.answerSubscribe(f.kind(), p.id, codes); err != nil {
		return err
	}
	if f.kind() == pktSubscribe {
		l.conn.Retained()
	}
	return nil
}

func (l *local) subscriptions(p *subscribe) []broker.Subscription {
	subs := make([]broker.Subscription, len(p.filters))
	for i, sub := range p.filters {
		o := sub.options
		subs[i] = broker.Subscription{
			Filter: sub.filter, QoS: o & 3, NoLocal: o&0x04 != 0, AsPublished: o&0x08 != 0, Handling: o >> 4 & 3, ID: p.subID,
		}
		if l.ownInbox(sub.filter) && !slices.Contains(l.inboxes, sub.filter) {
			l.inboxes = append(l.inboxes, sub.filter)
		}
	}
	return subs
}

func (l *local) ping(frame) error {
	return l.down.send([]byte{pktPingresp << 4, 0})
}

// leave has nothing to do: close does.
func (l *local) leave(frame, disconnect) error { return nil }

// close ends the connection to the core. A cut device's will is not published. The
// subscriptions to the session's inbox do not outlive it.
func (l *local) close(ctx context.Context) {
	l.conn.Flush() // what came before a packet that was broken or cut short
	if l.expiry > 0 && len(l.inboxes) > 0 {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), engineTimeout)
		defer cancel()
		l.conn.Unsubscribe(ctx, l.inboxes)
	}
	e, ended := l.live.Ended()
	will := (!l.cleanLeave || l.withWill) && (!ended || e.Code != countersign.EndCut)
	var expiry *time.Duration
	if l.expiry != l.connect.sessionExpiry {
		d := seconds(l.expiry)
		expiry = &d
	}
	l.conn.Close(will, expiry)
}

// abandon keeps a session that was there before. A new one, of which the client does not
// know, is dropped: where the device was revoked meanwhile, the core has forgotten it
// already, and a session that is kept from now on would be the next life's.
func (l *local) abandon() {
	if l.conn == nil {
		return
	}
	var expiry *time.Duration
	if !l.present {
		expiry = new(time.Duration)
	}
	l.conn.Close(false, expiry)
}

// Deliver writes a PUBLISH for the client's version into its output.
func (l *local) Deliver(d broker.Delivery) broker.Outcome {
	switch {
	case !l.Receives(d.Topic):
		return broker.Dropped
	case l.connect.aliasMax == 0: // as before MQTT 5
		return l.encode(d, d.Topic, 0)
	}
	l.aliasing.Lock() // the client has to read what sets an alias before what uses it
	defer l.aliasing.Unlock()
	if alias, ok := l.aliasesDown[d.Topic]; ok {
		return l.encode(d, "", alias)
	}
	alias := uint16(len(l.aliasesDown)) + 1 //nolint:gosec // at most maxAliases
	if alias > l.connect.aliasMax || l.namesDown+len(d.Topic) > maxAliasOctets {
		return l.encode(d, d.Topic, 0)
	}
	o := l.encode(d, d.Topic, alias)
	if o == broker.Sent {
		put(&l.aliasesDown, d.Topic, alias)
		l.namesDown += len(d.Topic)
	}
	return o
}

// encode writes a PUBLISH with this topic name and alias, which may be 0.
func (l *local) encode(d broker.Delivery, name string, alias uint16) broker.Outcome {
	var extra [20]byte
	props, more := d.Props, extra[:0]
	size := 2 + len(name) + len(d.Payload)
	if d.QoS > 0 {
		size += 2
	}
	if l.connect.level == 5 {
		more = l.ownProps(more, d, alias)
		n := len(props) + len(more)
		if limit := int(l.connect.maxPacket); limit > 0 {
			if total := size + varintSize(n) + n; 1+varintSize(total)+total > limit {
				props = keepProperties(props, pktPublish, isSender)
				n = len(props) + len(more)
			}
			if total := size + varintSize(n) + n; 1+varintSize(total)+total > limit { // [MQTT-3.1.2-25]
				return broker.Dropped
			}
		}
		size += varintSize(n) + n
	} else {
		props = nil
	}
	var start, middle [8]byte
	s := appendVarint(append(start[:0], head(d)), size)
	s = binary.BigEndian.AppendUint16(s, uint16(len(name))) //nolint:gosec // was read from 16 bits
	m := middle[:0]
	if d.QoS > 0 {
		m = binary.BigEndian.AppendUint16(m, d.ID)
	}
	if l.connect.level == 5 {
		m = appendVarint(m, len(props)+len(more))
	}
	return l.offer(d, s, []byte(name), m, props, more, d.Payload)
}

// offer puts the parts of a PUBLISH into the output if there is room.
func (l *local) offer(d broker.Delivery, parts ...[]byte) broker.Outcome {
	room, err := l.down.offer(parts...)
	switch {
	case room:
		l.sent()
		return broker.Sent
	case d.QoS > 0 || d.Patient:
		return broker.Full
	case err == nil && l.unread():
		l.overBudget(countersign.BudgetUnread, l.budget.Unread, QuotaExceeded)
		l.stop()
	}
	return broker.Dropped
}

// head is the first octet of a PUBLISH (MQTT 5, 3.3.1).
func head(d broker.Delivery) byte {
	h := byte(pktPublish<<4) | d.QoS<<1
	if d.Dup {
		h |= flagDup
	}
	if d.Retain {
		h |= flagRetain
	}
	return h
}

// ownProps appends the properties that are this receiver's: what is left of the
// message's life, rounded up, the identifiers of its subscriptions, and the alias of its
// topic, if it has one.
func (l *local) ownProps(b []byte, d broker.Delivery, alias uint16) []byte {
	if alias > 0 {
		b = appendU16Prop(b, propTopicAlias, alias)
	}
	if !d.Expires.IsZero() {
		left := max(0, (d.Expires.Sub(l.now())+time.Second-1)/time.Second)
		b = appendU32Prop(b, propMessageExpiry, uint32(left)) //nolint:gosec // was read from four octets
	}
	for _, id := range d.SubIDs {
		b = appendVarint(append(b, propSubscriptionID), int(id))
	}
	return b
}

// Receives reports whether the client may receive messages of the topic.
func (l *local) Receives(topic string) bool {
	l.mu.Lock()
	same := topic == l.lastDown
	l.mu.Unlock()
	if same {
		return true
	}
	if !l.mayReceive(topic) {
		return false
	}
	l.mu.Lock()
	l.lastDown = topic
	l.mu.Unlock()
	return true
}

// Acknowledge writes an acknowledgment into the output.
func (l *local) Acknowledge(kind broker.Acknowledgment, id uint16, code byte) {
	l.land(byte(kind), Reason(code))
	if l.connect.level < 5 {
		if code == broker.Unspecified { // no acknowledgment can say so: the client is to send it again
			l.Lost(code, "a message could not be stored")
			return
		}
		code = byte(Success)
	}
	l.down.add(ackPacket(byte(kind), id, Reason(code)))
}

// Flush writes the output.
func (l *local) Flush() {
	if err := l.down.flush(); err != nil && !l.done.Load() {
		l.downFailed(err)
	}
}

// Lost ends the connection, in a goroutine: its last words may take a moment.
func (l *local) Lost(code byte, reason string) {
	e := ending(countersign.EndEngine, reason)
	switch Reason(code) {
	case SessionTakenOver:
		e.Code = countersign.EndTakenOver
	case ServerShuttingDown:
		e.Code = countersign.EndShutdown
	default:
		l.srv.count.engineFailed.Add(1)
	}
	go l.live.End(e)
}

// emptied has the core deliver what found no room.
func (l *local) emptied() { l.conn.Wake() }
