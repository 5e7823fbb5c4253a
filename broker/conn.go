package broker

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

// maxUnanswered bounds the publishes of a client that wait for the record.
const maxUnanswered = 256

// Conn is a client's connection to its session. Its methods are for the goroutine that
// reads the client, except Wake and Close.
type Conn struct {
	b       *Broker
	s       *session
	client  Client
	will    *Will
	kept    int // sessions that the device may have stored
	done    <-chan struct{}
	started bool
	resends bool
	refused bool                    // owned by the journal: it takes no publish any more, see Hello.Resends
	toucher atomic.Pointer[flusher] // the last one that is to flush it
	out     flusher
	fresh   []asking // of the last Subscribe

	mu      sync.Mutex
	room    chan struct{} // made when the client has to wait; holds one for each that was answered meanwhile
	answers []*answer     // in the order of the publishes
	closed  bool
}

// answer is the acknowledgment of a publish, which comes no sooner than those before it,
// [MQTT-4.6.0-2].
type answer struct {
	kind Acknowledgment
	id   uint16
	code byte
	done bool
}

type asking struct {
	sub *subscription
	old bool // the session had the filter already
}

// Start has what waits for the client delivered.
func (c *Conn) Start() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.started = true
	if c.s.conn == c {
		c.s.pump(nil)
	}
}

// Wake has messages that found no room delivered. Any goroutine may call it.
func (c *Conn) Wake() {
	c.s.mu.Lock()
	if c.s.conn == c {
		c.s.pump(nil)
	}
	c.s.mu.Unlock()
	c.client.Flush()
}

// Flush writes what the client's publishes left in the output of their receivers. The
// reader calls it before it waits for the client, and once more at its end.
func (c *Conn) Flush() { c.out.flushShared() }

// Publish routes a message of the client. With QoS 1 and 2 the client is acknowledged
// through [Client.Acknowledge] in the order of the calls: at once, or once what the
// message concerns is on record; with QuotaExceeded where the message may not be
// retained, and with Unspecified where the record does not take it: then it was not
// delivered to all. Publish waits while maxUnanswered messages of the client do. A
// message of QoS 2 that was received under the same identifier before is acknowledged
// and not routed again. The error has the code OverBudget for too many of those.
func (c *Conn) Publish(m *Message, id uint16) error {
	p := publication{c: c}
	if m.QoS > 0 {
		kind := Puback
		if m.QoS == 2 {
			kind = Pubrec
		}
		p.answer = c.expect(kind, id)
		if m.QoS == 2 {
			known, waits, err := c.s.receive(id, &p)
			if err != nil {
				return err
			}
			if known {
				if !waits {
					c.reply(p.answer, Success)
				}
				return nil
			}
		}
	}
	a, ok := c.b.mayRetain(m, c.s)
	if !ok {
		p.reply(QuotaExceeded, nil)
		return nil
	}
	whole := &p
	whole.retain = a
	if m.QoS == 2 && c.s.kept {
		whole.once = true
		whole.ops = append(whole.ops, op{kind: opReceive, s: c.s, id: id, p: whole})
	}
	if !c.b.submit(m, c.s, whole, &c.out) {
		p.reply(Success, nil)
	}
	return nil
}

// Refuse acknowledges a publish that the gateway drops, after those before it,
// [MQTT-4.6.0-2].
func (c *Conn) Refuse(kind Acknowledgment, id uint16, code byte) {
	c.reply(c.expect(kind, id), code)
}

// expect notes that an acknowledgment is due, and waits while too many are.
func (c *Conn) expect(kind Acknowledgment, id uint16) *answer {
	a := &answer{kind: kind, id: id}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.answers) >= maxUnanswered && !c.closed {
		if c.room == nil {
			c.room = make(chan struct{}, 1)
		}
		c.mu.Unlock()
		c.out.flush()
		c.client.Flush()
		select {
		case <-c.room:
		case <-c.done:
		}
		c.mu.Lock()
		select {
		case <-c.done:
			c.closed = true
		default:
		}
	}
	c.answers = append(c.answers, a)
	return a
}

// reply acknowledges a publish, and those behind it that waited for it.
func (c *Conn) reply(a *answer, code byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.code, a.done = code, true
	n := 0
	for n < len(c.answers) && c.answers[n].done {
		if one := c.answers[n]; !c.closed {
			c.client.Acknowledge(one.kind, one.id, one.code)
		}
		n++
	}
	if c.answers = slices.Delete(c.answers, 0, n); len(c.answers) == 0 {
		c.answers = nil
	}
	if c.room != nil && n > 0 {
		select {
		case c.room <- struct{}{}:
		default:
		}
	}
}

// joined is a message of QoS 2 that came again, on another connection, before the first
// was answered.
type joined struct {
	c      *Conn
	answer *answer
}

// receive notes a message of QoS 2 and reports whether it was known, and if so whether it
// waits for the answer of the first. p nil: it is on record.
func (s *session) receive(id uint16, p *publication) (known, waits bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, known := s.inbound[id]
	if known {
		if first != nil && p != nil {
			first.more = append(first.more, joined{p.c, p.answer})
			return true, true, nil
		}
		return true, false, nil
	}
	if len(s.inbound) >= maxInbound {
		return false, false, countersign.Errorf(countersign.OverBudget, "more than %d messages of QoS 2 wait for PUBREL", maxInbound)
	}
	if s.inbound == nil {
		s.inbound = map[uint16]*publication{}
	}
	s.inbound[id] = p
	return false, false, nil
}

// received ends what receive began, and returns those who wait for the same answer. !ok:
// the client may send the message again.
func (s *session) received(id uint16, p *publication, ok bool) (more []joined) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first, known := s.inbound[id]; known && first == p {
		if s.inbound[id] = nil; !ok {
			delete(s.inbound, id)
		}
	}
	more, p.more = p.more, nil
	return more
}

// Release takes PUBREL of the client. It is answered with PUBCOMP once it is on record,
// on the connection that sent it last: an identifier that is used again before would be
// that of a message that was received before.
func (c *Conn) Release(id uint16) {
	known, waits := c.s.complete(id, c)
	switch {
	case waits:
	case !known:
		c.client.Acknowledge(Pubcomp, id, NotFound)
	case !c.s.kept:
		c.client.Acknowledge(Pubcomp, id, Success)
	default:
		c.b.journal.add(op{kind: opComplete, s: c.s, id: id})
	}
}

// complete forgets a message of QoS 2 and reports whether it was known, and whether its
// end is on its way to the record already; c is answered then.
func (s *session) complete(id uint16, c *Conn) (known, waits bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known = s.inbound[id]
	delete(s.inbound, id)
	if _, waits = s.completing[id]; !s.kept || !known && !waits {
		return known, false
	}
	if s.completing == nil {
		s.completing = map[uint16]*Conn{}
	}
	s.completing[id] = c
	return known, waits
}

// completed sends PUBCOMP for a PUBREL that is on record now.
func (s *session) completed(id uint16, f *flusher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.completing[id]; c != nil {
		delete(s.completing, id)
		c.client.Acknowledge(Pubcomp, id, Success)
		f.touch(c)
	}
}

// Acknowledge takes PUBACK, PUBREC or PUBCOMP of the client; code is its reason code.
func (c *Conn) Acknowledge(kind Acknowledgment, id uint16, code byte) {
	c.s.acknowledge(c, kind, id, code)
}

// Subscribe adds subscriptions and returns a reason code for each: the granted QoS,
// QuotaExceeded, or Unspecified where the record does not take it. Those of a kept
// session are on record then. The caller sends SUBACK, then calls Retained.
func (c *Conn) Subscribe(ctx context.Context, subs []Subscription) (codes []byte) {
	s := c.s
	codes = make([]byte, len(subs))
	last := make(map[string]int, len(subs))
	for i, one := range subs {
		last[one.Filter] = i // it replaces those before it
	}
	var ops []op
	full := false
	news := make([]asking, len(subs))
	s.mu.Lock()
	for i, one := range subs {
		codes[i] = one.QoS
		if last[one.Filter] != i {
			continue
		}
		sub := &subscription{Subscription: one, s: s}
		old := s.subscription(one.Filter)
		switch {
		case levels(one.Filter) > maxLevels:
			codes[i] = QuotaExceeded
			continue
		case old != nil:
			sub.n = old.n
		case !s.a.subscribe() && !s.makeRoom():
			codes[i], full = QuotaExceeded, true
			continue
		default:
			s.lastSub++
			sub.n = s.lastSub
		}
		news[i] = asking{sub, old != nil}
		ops = append(ops, op{kind: opSubscribe, s: s, sub: sub, old: old != nil})
	}
	s.mu.Unlock()
	if full {
		s.a.exceeded(countersign.BudgetSubscriptions, c.b.o.Limits.Subscriptions)
	}
	failed := c.change(ctx, ops) != nil
	c.fresh = c.fresh[:0]
	for i, n := range news {
		switch {
		case n.sub == nil:
		case failed:
			codes[i] = Unspecified
		default:
			c.fresh = append(c.fresh, n)
		}
	}
	return codes
}

// makeRoom counts a subscription in for which others of the device have to go. The caller
// holds the lock, which is free meanwhile: their wills may be for this session.
func (s *session) makeRoom() bool {
	s.mu.Unlock()
	defer s.mu.Lock()
	return s.a.makeRoom()
}

// change has subscriptions put in force, or ended, once that is on record. It may be so
// although an error is returned, since the context may end before.
func (c *Conn) change(ctx context.Context, ops []op) error {
	if len(ops) == 0 {
		return nil
	}
	if c.s.kept {
		c.out.flush() // others' output does not wait for the record
		return c.b.journal.wait(ctx, ops)
	}
	for i := range ops {
		c.s.changed(&ops[i], nil)
	}
	return nil
}

// changed makes the change of a subscription; err: it is not on record.
func (s *session) changed(o *op, err error) {
	switch {
	case err == nil && o.kind == opSubscribe:
		s.put(o.sub, o.old)
	case err == nil && !o.old:
		s.drop(o.sub.Filter)
	case err != nil && o.kind == opSubscribe && !o.old:
		s.a.unsubscribe(1)
	}
}

// Filters returns the filters of the session's subscriptions.
func (c *Conn) Filters() []string {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	filters := make([]string, len(c.s.subs))
	for i, sub := range c.s.subs {
		filters[i] = sub.Filter
	}
	return filters
}

// subscription returns the subscription of a filter, nil if there is none. The caller
// holds the lock.
func (s *session) subscription(filter string) *subscription {
	for _, sub := range s.subs {
		if sub.Filter == filter {
			return sub
		}
	}
	return nil
}

// put puts a subscription in force, in place of the one of the same filter. replaces: it
// was not counted, since there was one already.
func (s *session) put(sub *subscription, replaces bool) {
	s.mu.Lock()
	if s.dead { // all that was counted for s.subs was counted out
		s.mu.Unlock()
		if !replaces {
			s.a.unsubscribe(1)
		}
		return
	}
	i := slices.IndexFunc(s.subs, func(old *subscription) bool { return old.Filter == sub.Filter })
	var old *subscription
	if i >= 0 {
		old, s.subs[i] = s.subs[i], sub
	} else {
		s.subs = append(s.subs, sub)
	}
	s.mu.Unlock()
	s.b.tree.replace(old, sub)
	switch {
	case old == nil && replaces: // it was removed meanwhile
		s.a.unsubscribe(-1)
	case old != nil && !replaces: // two connections, of which one took over, added it
		s.a.unsubscribe(1)
		if s.kept && old.n != sub.n {
			s.b.journal.add(op{kind: opUnsubscribe, s: s, sub: old, old: true})
		}
	}
	s.mu.Lock()
	gone := s.dead
	s.mu.Unlock()
	if gone { // removed between, when the tree did not have it yet
		s.b.tree.remove(sub)
	}
}

// drop ends the subscription of a filter: another connection may have put a newer one in
// force since its end was asked for.
func (s *session) drop(filter string) {
	s.mu.Lock()
	sub := s.subscription(filter)
	if sub != nil {
		s.subs = slices.DeleteFunc(s.subs, func(one *subscription) bool { return one == sub })
		s.ask = slices.DeleteFunc(s.ask, func(a asked) bool { return a.sub.Filter == filter })
	}
	s.mu.Unlock()
	if sub != nil {
		s.b.tree.remove(sub)
		s.a.unsubscribe(1)
	}
}

// Retained delivers the retained messages that the last Subscribe asked for.
func (c *Conn) Retained() {
	s := c.s
	for _, n := range c.fresh {
		if n.sub.group != nil || n.sub.Handling == retainNotAtAll || n.sub.Handling == retainIfNew && n.old {
			continue
		}
		found := c.b.retained.match(n.sub.Filter)
		s.mu.Lock()
		s.ask = slices.DeleteFunc(s.ask, func(a asked) bool { return a.sub.Filter == n.sub.Filter })
		for _, m := range found {
			s.ask = append(s.ask, asked{m, n.sub})
		}
		s.mu.Unlock()
	}
	c.fresh = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == c {
		s.pump(nil)
	}
}

// Unsubscribe removes subscriptions and returns a reason code for each: Success,
// NoSubscription, or Unspecified where the record does not take it.
func (c *Conn) Unsubscribe(ctx context.Context, filters []string) (codes []byte) {
	s := c.s
	codes = make([]byte, len(filters))
	var ops []op
	s.mu.Lock()
	for i, filter := range filters {
		sub := s.subscription(filter)
		if sub == nil || slices.ContainsFunc(ops, func(o op) bool { return o.sub == sub }) {
			codes[i] = NoSubscription
			continue
		}
		ops = append(ops, op{kind: opUnsubscribe, s: s, sub: sub})
	}
	s.mu.Unlock()
	if c.change(ctx, ops) != nil {
		for i := range codes {
			codes[i] = Unspecified
		}
	}
	return codes
}

// Close ends the connection: the session is kept for its expiry, or for *expiry if that
// is not nil (MQTT 5, 3.14.2.2.2), and the will is published, now or after its delay,
// unless will is false. Only the first call counts; after a takeover none does.
func (c *Conn) Close(will bool, expiry *time.Duration) {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.b.detach(c, will, expiry, false)
}
