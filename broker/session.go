package broker

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// fillMessages is about how many queued messages are read from the database at once.
	fillMessages = 256
	// fillOctets is about how much of a queue is in memory; one message may be larger.
	fillOctets = 256 << 10
	// maxInbound bounds the QoS 2 messages of a client that wait for its PUBREL.
	maxInbound = 1024
)

// The states of an entry. Those after waiting are in flight.
const (
	waiting  byte = iota
	sent          // PUBLISH went out
	received      // QoS 2: PUBREC came, and is on its way to the record
	released      // QoS 2: PUBREL is due or went out
)

// entry is one message of QoS 1 or 2 in the queue of a session.
type entry struct {
	m      *Message
	seq    uint64
	ids    []uint32
	qos    byte
	retain bool
	state  byte
	drains int           // of the session before it was offered
	page   *page         // where it is on record
	asked  *subscription // that a retained message was asked for with; nil: it was not
}

// id is the packet identifier: it follows from the place in the queue, so that it is the
// same after a restart, and needs no record of its own.
func (e *entry) id() uint16 { return uint16(e.seq%maxPacketID) + 1 }

// asked is a retained message that waits for room.
type asked struct {
	m   *Message
	sub *subscription
}

// session is the state of one client (MQTT 5, 4.1). The lock is taken before those of
// the account, the journal and the client's output, and never together with the tree's
// or another session's.
type session struct {
	b      *Broker
	id     int64
	client string
	a      *account
	kept   bool // it has rows
	live   atomic.Bool
	left   atomic.Int64 // when its connection ended, Unix microseconds; 0: it has one

	mu      sync.Mutex
	conn    *Conn // nil: none
	dead    bool
	expiry  time.Duration
	limit   int // messages in flight
	subs    []*subscription
	lastSub int64
	inbound map[uint16]*publication // QoS 2 messages of the client that wait for its PUBREL; nil: answered
	// completing are those whose PUBREL is on its way to the record, and who is answered.
	completing map[uint16]*Conn

	queue      []*entry // in the order of seq; those before next are in flight
	next       int
	held       int      // octets in queue
	total      int      // messages that wait, those on record included
	octets     int      // of total
	seq        uint64   // of the newest message; kept: owned by the journal
	sent       uint64   // the highest seq that was sent once
	loaded     uint64   // kept: the highest seq that is or was in queue
	stored     uint64   // kept: the highest seq that is on record
	more       bool     // kept: rows beyond loaded are on record
	load       bool     // they are being read
	unrecorded bool     // the record does not have it connected yet: nothing is sent for the first time
	early      []uint16 // PUBREC came meanwhile for what was not in queue
	ask        []asked
	drains     int // how often what waited was dropped
	// What is acknowledged up to trimTo is to be taken off the record, which holds others
	// of the last page if trimPart.
	trimTo   uint64
	trimPart bool
	trimming bool // the journal has a change for it
	// Owned by the journal: places up to it are on record as used, see reservePlace.
	reserved uint64
	// Owned by the journal: what mqtt_mark has.
	passed bool   // a mark of a page that was acknowledged in part
	marked uint64 // other marks, up to this place

	will   *Will // after its connection
	willAt time.Time
	timer  *time.Timer
}

// offer delivers a message to the session or queues it, and reports false if it is not for
// the session: its client may not receive it, or there is none and it is not kept. p
// collects what waits for a commit.
func (s *session) offer(m *Message, sub *merged, p *publication, f *flusher) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	qos := min(m.QoS, sub.qos)
	if s.dead || s.conn == nil && (qos == 0 || !s.kept) || s.conn != nil && !s.conn.client.Receives(m.Topic) {
		return false
	}
	retain := m.Retain && sub.asPublished
	if qos == 0 {
		if s.conn.started && s.conn.client.Deliver(Delivery{Message: m, Retain: retain, SubIDs: sub.ids}) == Sent {
			f.touch(s.conn)
		}
		return true
	}
	if !s.a.queue(m.cost()) {
		s.b.dropped.Add(1)
		p.full = append(p.full, s.a)
		return true
	}
	e := &entry{m: m, ids: sub.ids, qos: qos, retain: retain, drains: s.drains}
	s.count(1, m.cost())
	switch {
	case s.kept: // the journal numbers it
		p.ops = append(p.ops, op{kind: opInsert, s: s, e: e, p: p})
	case p.once && qos == 2:
		p.ops = append(p.ops, op{kind: opHand, s: s, e: e, p: p})
	default:
		e.seq = s.number()
		s.push(e)
		s.pump(f)
	}
	return true
}

// number returns the place of the next message in the queue. For a kept session it is
// for the journal alone to call, since its order is the order of the record.
func (s *session) number() uint64 {
	s.seq++
	return s.seq
}

// count changes what waits for the session in all, in memory and on record.
func (s *session) count(n, octets int) {
	s.total += n
	s.octets += octets
}

func (s *session) push(e *entry) {
	s.queue = append(s.queue, e)
	s.held += e.m.cost()
	if e.page != nil {
		e.page.held++
	}
}

// dropBehind takes what is behind the first n out of the queue in memory.
func (s *session) dropBehind(n int) {
	for _, e := range s.queue[n:] {
		s.held -= e.m.cost()
		if e.page != nil {
			e.page.held--
		}
	}
	s.queue = slices.Clone(s.queue[:n])
}

// committed takes a page that is on record now. It is called in the order of their places.
func (s *session) committed(pg *page, f *flusher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored = max(s.stored, pg.last)
	if s.dead {
		return
	}
	grown := false
	for _, e := range pg.entries {
		switch {
		case e.seq <= s.loaded: // read meanwhile
		case e.drains != s.drains:
			if !s.more {
				s.loaded = e.seq
			}
			s.b.journal.add(s.gone(pg, e))
		case s.conn == nil || s.more || len(s.queue) >= s.limit+fillMessages || s.held > fillOctets:
			s.more = true
		default:
			s.loaded = e.seq
			s.push(e)
			grown = true
		}
	}
	pg.entries = nil
	if grown {
		s.pump(f)
	}
}

// gone is the change of the record for a message of a page that has ended out of turn.
func (s *session) gone(pg *page, e *entry) op {
	if pg.held == 0 && pg.last <= s.loaded { // as all others of its page
		return op{kind: opDelete, s: s, from: pg.first, to: pg.last}
	}
	return op{kind: opGone, s: s, from: e.seq, to: e.seq}
}

// trim notes that a message and all before it have ended. The journal asks how far that
// is when it writes: one change may be for many acknowledgments.
func (s *session) trim(e *entry) {
	if s.trimPart = e.page.held > 0 || e.page.last > s.loaded; s.trimPart {
		s.trimTo = e.seq
	} else {
		s.trimTo = e.page.last
	}
	if !s.trimming {
		s.trimming = true
		s.b.journal.add(op{kind: opTrim, s: s})
	}
}

// takeTrim returns up to which place all messages have ended. part: others of the page
// of the last one are left.
func (s *session) takeTrim() (to uint64, part bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trimming = false
	return s.trimTo, s.trimPart
}

// pump sends what the client takes now. f collects the connections that it sent to; nil: the caller
// flushes.
func (s *session) pump(f *flusher) {
	c := s.conn
	if c == nil || !c.started {
		return
	}
	for grown := true; grown; grown = s.pumpAsked(f) {
		if !s.pumpQueue(c, f) {
			return
		}
	}
	if s.more && !s.load && s.next == len(s.queue) && s.next < s.limit {
		s.load = true
		s.b.background.Go(func() { s.b.fill(s, c) })
	}
}

// pumpQueue sends what the client takes now of the queue in memory, and reports false if
// something has to wait for room.
func (s *session) pumpQueue(c *Conn, f *flusher) bool {
	now := s.b.o.Now()
	for s.next < s.limit && s.next < len(s.queue) {
		e := s.queue[s.next]
		if e.seq-s.queue[0].seq >= maxPacketID { // its identifier may be in use
			return false
		}
		if s.unrecorded && e.seq > s.sent { // after a crash none would know that it went out
			return false
		}
		if e.state == released || e.state == received {
			if e.state == released {
				c.client.Acknowledge(Pubrel, e.id(), Success)
				f.touch(c)
			}
			s.next++
			continue
		}
		if !e.m.Expires.IsZero() && !now.Before(e.m.Expires) && e.state == waiting && e.seq > s.sent {
			s.b.expired.Add(1)
			s.remove(s.next)
			continue
		}
		d := Delivery{Message: e.m, QoS: e.qos, Retain: e.retain, Dup: e.seq <= s.sent, ID: e.id(), SubIDs: e.ids}
		switch c.client.Deliver(d) {
		case Full:
			return false
		case Dropped:
			s.remove(s.next)
			continue
		}
		f.touch(c)
		e.state = sent
		s.sent = max(s.sent, e.seq)
		s.next++
	}
	return true
}

// pumpAsked sends the retained messages that wait, those of QoS 1 and 2 through the
// queue. It reports whether the queue has grown.
func (s *session) pumpAsked(f *flusher) (grown bool) {
	for len(s.ask) > 0 {
		before, sub := s.ask[0].m, s.ask[0].sub
		// What has replaced it since came through the subscription. An older one is shown
		// again where it did not get on record.
		m := s.b.retained.get(before.Topic)
		if m == nil || m.newer(before) && min(m.QoS, sub.QoS) > 0 {
			s.asked()
			continue
		}
		d := Delivery{Message: m, QoS: min(m.QoS, sub.QoS), Retain: true, Patient: true}
		if sub.ID > 0 {
			d.SubIDs = []uint32{sub.ID}
		}
		expired := !m.Expires.IsZero() && !s.b.o.Now().Before(m.Expires)
		switch {
		case expired || !s.conn.client.Receives(m.Topic):
		case d.QoS == 0:
			if s.conn.client.Deliver(d) == Full {
				return grown
			}
			f.touch(s.conn)
		case s.total >= s.limit: // those that wait include what is on its way to the record
			return grown
		case !s.a.queue(m.cost()):
			if s.total > 0 { // its acknowledgment comes back here
				return grown
			}
			s.b.dropped.Add(1)
		default:
			grown = grown || !s.kept
			s.enqueue(&entry{m: m, ids: d.SubIDs, qos: d.QoS, retain: true, asked: sub})
		}
		s.asked()
	}
	return grown
}

// asked drops the first of the retained messages that wait.
func (s *session) asked() {
	s.ask[0] = asked{}
	if s.ask = s.ask[1:]; len(s.ask) == 0 {
		s.ask = nil
	}
}

// enqueue adds a message that no publisher waits for.
func (s *session) enqueue(e *entry) {
	e.drains = s.drains
	s.count(1, e.m.cost())
	if s.kept {
		s.b.journal.add(op{kind: opInsert, s: s, e: e})
		return
	}
	e.seq = s.number()
	s.push(e)
}

// remove takes the entry at i out of the queue, and off the record.
func (s *session) remove(i int) {
	e := s.queue[i]
	cost := e.m.cost()
	if i == 0 {
		s.queue[0] = nil
		s.queue = s.queue[1:]
	} else {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	if len(s.queue) == 0 {
		s.queue = nil
	}
	if i < s.next {
		s.next--
	}
	s.held -= cost
	s.count(-1, -cost)
	s.a.unqueue(1, cost)
	switch {
	case !s.kept:
		return
	case i == 0:
		e.page.held--
		s.trim(e)
	default:
		e.page.held--
		s.b.journal.add(s.gone(e.page, e))
	}
}

// find returns the place of the message with a packet identifier, or -1. It is in flight,
// or was so over an earlier connection and is to be sent again.
func (s *session) find(id uint16) int {
	for i, e := range s.queue {
		if i >= s.next && e.state == waiting && e.seq > s.sent {
			break
		}
		if e.id() == id {
			return i
		}
	}
	return -1
}

// acknowledge takes PUBACK, PUBREC or PUBCOMP of the client.
func (s *session) acknowledge(c *Conn, kind Acknowledgment, id uint16, code byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c {
		return
	}
	i := s.find(id)
	if i < 0 {
		switch {
		case kind != Pubrec || code >= Unspecified:
		case s.whole():
			c.client.Acknowledge(Pubrel, id, NotFound)
		case len(s.early) < s.limit: // the message may be among those that are being read
			s.early = append(s.early, id)
		}
		return
	}
	e := s.queue[i]
	switch {
	case kind == Puback && e.qos == 1 && e.state == sent,
		kind == Pubrec && code >= Unspecified && e.qos == 2 && e.state == sent,
		kind == Pubcomp && e.state == released:
		s.remove(i)
		s.pump(nil)
	case kind == Pubrec && code < Unspecified:
		s.pubrec(c, e)
	}
}

// whole reports that all that may have been sent and is not acknowledged is in queue.
func (s *session) whole() bool { return !s.kept || s.loaded >= s.sent }

// pubrec takes PUBREC for a message. One that comes before the message was sent again
// over this connection is for the time before: the client has the message, and one that
// was sent again would be another one to a client that does not compare identifiers.
func (s *session) pubrec(c *Conn, e *entry) {
	switch {
	case e.state == released:
		c.client.Acknowledge(Pubrel, e.id(), Success)
	case e.qos != 2 || e.state == received:
	case !s.kept:
		e.state = released
		c.client.Acknowledge(Pubrel, e.id(), Success)
	default:
		e.state = received
		s.b.journal.add(op{kind: opRelease, s: s, e: e})
	}
}

// release sends PUBREL for a message whose PUBREC is on record now.
func (s *session) release(e *entry, f *flusher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.state = released
	if s.dead || s.conn == nil || !s.conn.started || !slices.Contains(s.queue[:s.next], e) {
		return
	}
	s.conn.client.Acknowledge(Pubrel, e.id(), Success)
	f.touch(s.conn)
}

// flying returns how many messages of the queue are in flight. They may be more than
// next, since a connection may have sent only a part of them again. Between them are
// acknowledged ones that may be on record still, so that they cannot be read again.
func (s *session) flying() int {
	n := s.next
	for n < len(s.queue) && s.queue[n].state != waiting {
		n++
	}
	return n
}

// suspend drops from memory what can be read again: a session without a connection
// keeps what is in flight only. The caller holds the lock.
func (s *session) suspend() {
	if !s.kept {
		return
	}
	n := s.flying()
	if n < len(s.queue) {
		s.more = true
		s.loaded = s.queue[n].seq - 1
	}
	s.dropBehind(n)
	s.next = 0
}
