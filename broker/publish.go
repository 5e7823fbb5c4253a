package broker

import (
	"context"
	"strings"
	"sync"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/topics"
)

// publication is one message on its way: what of it waits for the record, and who is
// answered then.
type publication struct {
	ops    []op
	left   int  // ops that are not yet on record; owned by the journal
	failed bool // one of them will not be
	full   []*account
	retain *account // of mayRetain

	// once: its client sends it again where the record does not take it, so that no
	// session may have it before.
	once   bool
	c      *Conn   // nil: not a client's
	answer *answer // nil: none is due
	more   []joined
	done   chan error

	will   *session // whose will it is; nil: it is none
	leftAt int64    // when its connection ended
	late   bool     // it was not on record at once
}

// merged is what the subscriptions of one session that match a topic come to: one
// message with the highest QoS and all identifiers (MQTT 5, 3.3.4).
type merged struct {
	s           *session
	qos         byte
	asPublished bool
	ids         []uint32
	shared      *subscription // nil: it is none
}

func (sub *subscription) merged() merged {
	one := merged{s: sub.s, qos: sub.QoS, asPublished: sub.AsPublished, ids: sub.ids()}
	if sub.group != nil {
		one.shared = sub
	}
	return one
}

func (sub *subscription) ids() []uint32 {
	if sub.ID == 0 {
		return nil
	}
	return []uint32{sub.ID}
}

var hitsPool = sync.Pool{New: func() any { return &hits{} }}

// maxPooled bounds the room that a pooled list keeps: a fan-out of a few hundred.
const maxPooled = 512

// route offers a message to all sessions whose subscriptions match. from published it; nil: the node.
func (b *Broker) route(m *Message, from *session, p *publication, f *flusher) {
	h := hitsPool.Get().(*hits)
	b.tree.match(m.Topic, h)
	if h.nodes <= 1 {
		for _, sub := range h.subs {
			if !sub.NoLocal || sub.s != from {
				one := sub.merged()
				b.offer(m, &one, p, f)
			}
		}
	} else {
		b.routeMerged(m, from, h, p, f)
	}
	if clear(h.subs); cap(h.subs) <= maxPooled {
		h.subs, h.nodes = h.subs[:0], 0
		hitsPool.Put(h)
	}
}

func (b *Broker) routeMerged(m *Message, from *session, h *hits, p *publication, f *flusher) {
	var all []merged
	at := make(map[*session]int, len(h.subs))
	for _, sub := range h.subs {
		if sub.NoLocal && sub.s == from {
			continue
		}
		i, twice := at[sub.s]
		if !twice || sub.group != nil { // a shared subscription is on its own
			if sub.group == nil {
				at[sub.s] = len(all)
			}
			all = append(all, sub.merged())
			continue
		}
		one := &all[i]
		one.qos = max(one.qos, sub.QoS)
		one.asPublished = one.asPublished || sub.AsPublished
		if sub.ID > 0 {
			one.ids = append(one.ids, sub.ID)
		}
	}
	for i := range all {
		b.offer(m, &all[i], p, f)
	}
}

// offer offers a message to a session, and that of a shared subscription to the other
// members if it is not for this one: a client that may not receive it any more is not to
// take the turns of those that may.
func (b *Broker) offer(m *Message, to *merged, p *publication, f *flusher) {
	if to.s.offer(m, to, p, f) || to.shared == nil {
		return
	}
	for _, sub := range b.tree.members(to.shared) {
		if one := sub.merged(); sub != to.shared && one.s.offer(m, &one, p, f) {
			return
		}
	}
}

// submit routes a message, has what it concerns written, and reports whether anything
// is to be written.
func (b *Broker) submit(m *Message, from *session, p *publication, f *flusher) (waits bool) {
	if m.Retain {
		if b.retained.announce(m) {
			p.ops = append(p.ops, op{kind: opRetain, m: m, a: p.retain, p: p})
		} else {
			p.retain.tidy()
		}
	}
	b.route(m, from, p, f)
	for _, a := range p.full {
		a.exceeded(countersign.BudgetQueued, b.o.Limits.Queued)
	}
	p.left = len(p.ops)
	if p.left == 0 {
		return false
	}
	ops := p.ops
	p.ops = nil
	b.journal.add(ops...)
	return true
}

// mayRetain counts a retained message in and reports whether its device may have it. a
// is the account for submit, nil for what is not to be retained.
func (b *Broker) mayRetain(m *Message, from *session) (a *account, ok bool) {
	if !m.Retain {
		return nil, true
	}
	old := b.retained.get(m.Topic)
	b.mu.Lock()
	if from != nil && from.a.device == m.Device && from.a.isGone() {
		a = from.a // what it sent before it was purged is not of its next life
	} else {
		a = b.accountLocked(m.Device)
	}
	ok = len(m.Payload) == 0 || levels(m.Topic) <= maxLevels && a.reserve(m, old)
	b.mu.Unlock()
	if !ok {
		a.tidy()
		a.exceeded(countersign.BudgetRetained, b.o.Limits.RetainedOctets)
	}
	return a, ok
}

// retain makes m, which is on record, the retained message of its topic, or drops that
// if m is empty.
func (b *Broker) retain(a *account, m *Message) {
	ends := len(m.Payload) == 0
	if ends && a.isGone() || !ends && !a.keep(m) {
		b.unretain(a, m)
		return
	}
	old, owner := b.retained.set(m, a)
	if old != nil {
		b.retainedCount.Add(-1)
		owner.release(old)
	}
	if ends {
		a.tidy()
		return
	}
	b.retainedCount.Add(1)
	if a.isGone() { // since keep: Forget may not have found it
		b.forgetRetained(m)
	}
}

// unretain ends a retained message that is not on record.
func (b *Broker) unretain(a *account, m *Message) {
	b.retained.cancel(m)
	if len(m.Payload) > 0 {
		a.release(m)
	} else {
		a.tidy()
	}
}

// forgetRetained drops m from memory if it is still the retained message of its topic.
func (b *Broker) forgetRetained(m *Message) (a *account, ok bool) {
	if a, ok = b.retained.drop(m); ok {
		b.retainedCount.Add(-1)
		a.release(m)
	}
	return a, ok
}

// hand delivers a message of QoS 2 to a session that is not kept, once the record has that
// it was received.
func (s *session) hand(e *entry, f *flusher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || e.drains != s.drains {
		return
	}
	e.seq = s.number()
	s.push(e)
	s.pump(f)
}

// undoRelease takes back PUBREC of a client where the record cannot have it: its next
// connection gets the message again, and answers.
func (s *session) undoRelease(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.state = sent; s.conn != nil {
		s.conn.client.Lost(Unspecified, "an acknowledgment could not be stored")
	}
}

// undoComplete takes back PUBREL of a client where the record cannot have it: its next
// connection sends it again.
func (s *session) undoComplete(id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.completing[id]
	if delete(s.completing, id); c == nil || s.dead {
		return
	}
	if s.inbound == nil {
		s.inbound = map[uint16]*publication{}
	}
	if _, again := s.inbound[id]; !again {
		s.inbound[id] = nil
	}
	c.client.Lost(Unspecified, "an acknowledgment could not be stored")
}

// finish answers a publication of which everything is on record, or will not be.
func (p *publication) finish(f *flusher) {
	if p.done != nil {
		var err error
		if p.failed {
			err = errNotStored
		}
		p.done <- err
	}
	code := Success
	if p.failed {
		code = Unspecified
	}
	p.reply(code, f)
}

// reply acknowledges the publish, if it is to be. f nil: its reader flushes.
func (p *publication) reply(code byte, f *flusher) {
	if p.answer == nil {
		return
	}
	var more []joined
	if p.answer.kind == Pubrec {
		more = p.c.s.received(p.answer.id, p, code < Unspecified)
	}
	p.c.reply(p.answer, code)
	f.touch(p.c)
	for _, one := range more {
		one.c.reply(one.answer, code)
		if f.touch(one.c); f == nil {
			one.c.client.Flush()
		}
	}
}

// Publish routes a message of the node itself and returns once what it concerns is on
// record. The error has the code BadRequest for what is no topic name, OverBudget where
// the message may not be retained, and Unavailable where the record does not take it.
func (b *Broker) Publish(ctx context.Context, m *Message) error {
	if !topics.ValidName(m.Topic) {
		return countersign.Errorf(countersign.BadRequest, "%.80q is no topic name", m.Topic)
	}
	a, ok := b.mayRetain(m, nil)
	if !ok {
		return countersign.Errorf(countersign.OverBudget, "no more messages may be retained")
	}
	var f flusher
	p := &publication{done: make(chan error, 1), retain: a}
	waits := b.submit(m, nil, p, &f)
	f.flush()
	if !waits {
		return nil
	}
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// publishWill publishes the will of a session whose connection was lost. The changes with
// it are recorded in the same transaction: no crash loses the will, or has it come twice.
func (b *Broker) publishWill(s *session, w *Will, with ...op) {
	m := w.Message
	if w.Life > 0 {
		m.Expires = b.o.Now().Add(w.Life)
	}
	a, ok := b.mayRetain(&m, s)
	if !ok {
		m.Retain = false // it is published all the same
	}
	var f flusher
	b.submit(&m, s, &publication{retain: a, ops: with, will: s, leftAt: s.left.Load()}, &f)
	f.flush()
}

// listener is the node's own client: it has its messages in memory.
type listener struct {
	messages chan *Message
	lost     chan struct{}
	once     sync.Once
}

// listenBuffer is how many messages wait for a receiver of the node.
const listenBuffer = 4096

func (l *listener) Deliver(d Delivery) Outcome {
	select {
	case l.messages <- d.Message:
		return Sent
	default:
		return Dropped
	}
}
func (l *listener) Acknowledge(Acknowledgment, uint16, byte) {}
func (l *listener) Flush()                                   {}
func (l *listener) Receives(string) bool                     { return true }
func (l *listener) Lost(byte, string)                        { l.once.Do(func() { close(l.lost) }) }

// Listen calls receive for each message that matches filter, one after another, until
// ctx ends. It returns once the subscription is in force. Messages are dropped while
// listenBuffer of them wait.
func (b *Broker) Listen(ctx context.Context, filter string, receive func(*Message)) error {
	if !topics.ValidFilter(filter) {
		return countersign.Errorf(countersign.BadRequest, "%.80q is no topic filter", filter)
	}
	l := &listener{messages: make(chan *Message, listenBuffer), lost: make(chan struct{})}
	c, _, err := b.Connect(ctx, Hello{ClientID: nodeClient + b.newID(), Device: nodeClient, Clean: true}, l)
	if err != nil {
		return err
	}
	if code := c.Subscribe(ctx, []Subscription{{Filter: filter}})[0]; code >= Unspecified {
		c.Close(false, nil)
		return countersign.Errorf(countersign.Unavailable, "the subscription was refused with reason code %#x", code)
	}
	c.Start()
	go func() { // Close does not wait for it: a receiver may hold it up
		defer c.Close(false, nil)
		for {
			select {
			case m := <-l.messages:
				receive(m)
			case <-l.lost:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return nil
}

// nodeClient is the account of the node's own sessions. No device id has a slash.
const nodeClient = "/node"

func isNode(device string) bool { return strings.HasPrefix(device, nodeClient) }
