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
// reads the client, except Wake, Interrupt and Close.
type Conn struct {
	b       *Broker
	s       *session
	client  Client
	will    *Will
	kept    int // sessions that the device may have stored
	started bool
	touched atomic.Bool
	out     flusher
	fresh   []asking // of the last Subscribe

	mu      sync.Mutex
	room    *sync.Cond // made when the client has to wait
	answers []*answer  // in the order of the publishes
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

// Flush writes what the client's publishes left in the output of their receivers.
func (c *Conn) Flush() { c.out.flush() }

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
			known, err := c.s.receive(id)
			if err != nil {
				return err
			}
			if known {
				c.reply(p.answer, Success)
				return nil
			}
		}
	}
	if !c.b.mayRetain(m) {
		if m.QoS == 2 {
			c.s.forget(id)
		}
		if p.answer != nil {
			c.reply(p.answer, QuotaExceeded)
		}
		return nil
	}
	whole := &p
	if m.QoS == 2 && c.s.kept {
		whole.ops = append(whole.ops, op{kind: opReceive, s: c.s, id: id, p: whole})
	}
	if !c.b.submit(m, c.s, whole, &c.out) && p.answer != nil {
		c.reply(p.answer, Success)
	}
	return nil
}

// expect notes that an acknowledgment is due, and waits while too many are.
func (c *Conn) expect(kind Acknowledgment, id uint16) *answer {
	a := &answer{kind: kind, id: id}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.answers) >= maxUnanswered && !c.closed {
		if c.room == nil {
			c.room = sync.NewCond(&c.mu)
		}
		c.mu.Unlock()
		c.out.flush()
		c.client.Flush()
		c.mu.Lock()
		if len(c.answers) >= maxUnanswered && !c.closed {
			c.room.Wait()
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
		c.room.Broadcast()
	}
}

// receive notes a message of QoS 2 and reports whether it was known.
func (s *session) receive(id uint16) (known bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known = s.inbound[id]; known {
		return true, nil
	}
	if len(s.inbound) >= maxInbound {
		return false, countersign.Errorf(countersign.OverBudget, "more than %d messages of QoS 2 wait for PUBREL", maxInbound)
	}
	if s.inbound == nil {
		s.inbound = map[uint16]struct{}{}
	}
	s.inbound[id] = struct{}{}
	return false, nil
}

func (s *session) forget(id uint16) (known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known = s.inbound[id]
	delete(s.inbound, id)
	return known
}

// Release takes PUBREL of the client. It is answered with PUBCOMP once it is on record.
func (c *Conn) Release(id uint16) {
	if !c.s.forget(id) {
		c.client.Acknowledge(Pubcomp, id, NotFound)
		return
	}
	if !c.s.kept {
		c.client.Acknowledge(Pubcomp, id, Success)
		return
	}
	c.b.journal.add(op{kind: opComplete, s: c.s, id: id, done: func(err error, f *flusher) {
		if err == nil {
			c.client.Acknowledge(Pubcomp, id, Success)
			f.touch(c)
		}
	}})
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
	var ops []op
	news := make([]asking, len(subs))
	for i, one := range subs {
		codes[i] = one.QoS
		if slices.ContainsFunc(subs[i+1:], func(later Subscription) bool { return later.Filter == one.Filter }) {
			continue // the later one replaces it
		}
		sub := &subscription{Subscription: one, s: s}
		old := s.subscription(one.Filter)
		switch {
		case levels(one.Filter) > maxLevels:
			codes[i] = QuotaExceeded
			continue
		case old != nil:
			sub.n = old.n
		case !c.b.subscribe(s.a):
			codes[i] = QuotaExceeded
			c.b.exceeded(s.a, countersign.BudgetSubscriptions, c.b.o.Limits.Subscriptions)
			continue
		default:
			s.lastSub++
			sub.n = s.lastSub
		}
		news[i] = asking{sub, old != nil}
		ops = append(ops, op{kind: opSubscribe, s: s, sub: sub})
	}
	failed := s.kept && len(ops) > 0 && c.b.journal.wait(ctx, ops) != nil
	c.fresh = c.fresh[:0]
	for i, n := range news {
		switch {
		case n.sub == nil:
		case failed:
			codes[i] = Unspecified
			if !n.old {
				c.b.unsubscribe(s.a, 1)
			}
		default:
			s.put(n.sub)
			c.fresh = append(c.fresh, n)
		}
	}
	return codes
}

// subscription returns the subscription of a filter, nil if there is none. Only the
// goroutine of the connection changes them.
func (s *session) subscription(filter string) *subscription {
	for _, sub := range s.subs {
		if sub.Filter == filter {
			return sub
		}
	}
	return nil
}

// put puts a subscription in force, in place of the one of the same filter.
func (s *session) put(sub *subscription) {
	s.b.tree.add(sub)
	s.mu.Lock()
	i := slices.IndexFunc(s.subs, func(old *subscription) bool { return old.Filter == sub.Filter })
	var old *subscription
	dead := s.dead
	switch {
	case dead:
	case i >= 0:
		old, s.subs[i] = s.subs[i], sub
	default:
		s.subs = append(s.subs, sub)
	}
	s.mu.Unlock()
	if old != nil {
		s.b.tree.remove(old)
	}
	if dead { // it was removed meanwhile, without this one
		s.b.tree.remove(sub)
		if old == nil {
			s.b.unsubscribe(s.a, 1)
		}
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
	for i, filter := range filters {
		sub := s.subscription(filter)
		if sub == nil || slices.ContainsFunc(ops, func(o op) bool { return o.sub == sub }) {
			codes[i] = NoSubscription
			continue
		}
		ops = append(ops, op{kind: opUnsubscribe, s: s, sub: sub})
	}
	if s.kept && len(ops) > 0 && c.b.journal.wait(ctx, ops) != nil {
		for i := range codes {
			codes[i] = Unspecified
		}
		return codes
	}
	for _, o := range ops {
		s.b.tree.remove(o.sub)
		s.mu.Lock()
		s.subs = slices.DeleteFunc(s.subs, func(sub *subscription) bool { return sub == o.sub })
		if !s.dead {
			s.b.unsubscribe(s.a, 1)
		}
		s.ask = slices.DeleteFunc(s.ask, func(a asked) bool { return a.sub == o.sub })
		s.mu.Unlock()
	}
	return codes
}

// Close ends the connection: the session is kept for its expiry, or for *expiry if that
// is not nil (MQTT 5, 3.14.2.2.2), and the will is published, now or after its delay,
// unless will is false. Only the first call counts; after a takeover none does.
func (c *Conn) Close(will bool, expiry *time.Duration) {
	c.Interrupt()
	c.b.detach(c, will, expiry, false)
}

// Interrupt has a Publish that waits return, and no more acknowledgments sent: the
// connection is about to be closed. Any goroutine may call it.
func (c *Conn) Interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.room != nil {
		c.room.Broadcast()
	}
}
