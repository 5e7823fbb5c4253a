package broker

import (
	"context"
	"hash/maphash"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	countersign "github.com/countersign-iot/countersign"
)

// Broker is the core. Open makes one; Close it once, after its connections.
type Broker struct {
	o        Options
	tree     tree
	retained retained
	journal  *journal

	mu       sync.Mutex
	sessions map[string]*session // by client identifier
	accounts map[string]*account // by device
	closed   bool
	// displaced: another process has taken over the rows of the node.
	displaced atomic.Bool

	// connecting has one connection at a time of those client identifiers that share a
	// lock: taking over waits for the record.
	connecting [64]sync.Mutex
	seed       maphash.Seed
	ids        atomic.Int64 // the highest session id
	started    int64        // names this run among those of the node
	fills      chan struct{}
	stop       chan struct{} // closed by Close
	background sync.WaitGroup

	queued, queuedOctets, retainedCount, retainedOctets atomic.Int64
	dropped, expired, sessionsDropped, commitFailed     atomic.Uint64
}

// maxFills bounds the queues that are read from the database at once.
const maxFills = 8

// Open reads what is stored and starts the core.
func Open(ctx context.Context, o Options) (*Broker, error) {
	o.Limits = o.Limits.withDefaults()
	b := &Broker{
		o: o, sessions: map[string]*session{}, accounts: map[string]*account{},
		seed: maphash.MakeSeed(), fills: make(chan struct{}, maxFills), started: o.Now().UnixMicro(), stop: make(chan struct{}),
	}
	b.journal = newJournal(b)
	if err := b.restore(ctx); err != nil {
		return nil, err
	}
	b.journal.start()
	b.background.Go(b.sweep)
	return b, nil
}

// sweepEvery is how often expired retained messages are looked for. Until then no client
// receives them, but they count.
const sweepEvery = 10 * time.Minute

// sweep drops expired retained messages until Close.
func (b *Broker) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			return
		case <-tick.C:
			b.dropExpired()
		}
	}
}

func (b *Broker) dropExpired() {
	for _, m := range b.retained.expired(b.o.Now()) {
		if a, ok := b.forgetRetained(m); ok {
			b.journal.add(op{kind: opExpire, m: m, a: a})
		}
	}
}

// Close writes what waits and stops the core, or returns an error when ctx ends: what a
// database that hangs has not taken by then is lost. Wills whose delay is not over are on
// record and are published by the next Open.
func (b *Broker) Close(ctx context.Context) error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	close(b.stop)
	all := make([]*session, 0, len(b.sessions))
	for _, s := range b.sessions {
		all = append(all, s)
	}
	b.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		if s.timer != nil {
			s.timer.Stop()
		}
		c := s.conn
		s.mu.Unlock()
		if c != nil {
			c.client.Lost(serverShuttingDown, "the message broker is closing")
		}
	}
	err := b.journal.close(ctx)
	if ctx.Err() == nil {
		b.background.Wait()
	}
	return err
}

// newID returns the id of a new session: higher than all before it on this node, and
// another one than on other nodes.
func (b *Broker) newID() string { return strconv.FormatInt(b.newSessionID(), 36) }

func (b *Broker) newSessionID() int64 {
	const nodes = 1024
	at := b.o.Now().UnixMicro()
	for {
		last := b.ids.Load()
		id := max(at, last/nodes+1)*nodes + int64(nodeNumber(b.o.Node)%nodes)
		if b.ids.CompareAndSwap(last, id) {
			return id
		}
	}
}

// Connect makes or resumes the session of a client. It takes over from a connection
// that has it still, which is Lost. A session that is to be kept is on record when
// Connect returns. The caller sends CONNACK, then calls Start.
//
// The error has the code Unavailable when the record does not take the session, and
// Conflict when another process has taken over the rows of the node.
func (b *Broker) Connect(ctx context.Context, h Hello, client Client) (conn *Conn, present bool, err error) {
	lock := &b.connecting[maphash.String(b.seed, h.ClientID)%uint64(len(b.connecting))]
	lock.Lock()
	defer lock.Unlock()
	b.mu.Lock()
	s := b.sessions[h.ClientID]
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return nil, false, countersign.Errorf(countersign.Unavailable, "the message broker is closing")
	}
	if h.Expiry > 0 && b.displaced.Load() {
		return nil, false, b.errDisplaced()
	}
	c := &Conn{b: b, client: client, will: h.Will, kept: h.Kept, done: h.Done, resends: h.Resends}
	h.Expiry = min(h.Expiry, b.o.Limits.Expiry)
	if s != nil {
		ends := h.Clean || s.a.device != h.Device
		s.mu.Lock()
		older := s.conn
		s.mu.Unlock()
		if older != nil {
			older.client.Lost(sessionTakenOver, "the same client identifier connected again")
			b.detach(older, true, nil, !ends)
		}
		if ends {
			b.remove(s)
			if s.kept && h.Expiry == 0 { // or a crash brings it back
				b.journal.awaitWritten(ctx)
			}
		} else if s.attach(c, h) {
			return c, true, nil
		}
	}
	s = &session{b: b, id: b.newSessionID(), client: h.ClientID, kept: h.Expiry > 0}
	s.attach(c, h)
	b.enter(s, h.Device)
	if s.kept {
		if err := b.journal.wait(ctx, []op{{kind: opSession, s: s}}); err != nil {
			b.detach(c, false, new(time.Duration), false)
			return nil, false, err
		}
	}
	return c, false, nil
}

// enter puts a session into the maps.
func (b *Broker) enter(s *session, device string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions[s.client] = s
	a := b.accountLocked(device)
	s.a = a
	a.mu.Lock()
	a.sessions[s] = struct{}{}
	a.mu.Unlock()
}

// attach binds a connection to the session. It returns false if the session is over.
func (s *session) attach(c *Conn, h Hello) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return false
	}
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	changed := s.left.Load() != 0
	c.s, s.conn, s.next, s.load, s.early, s.will = s, c, 0, false, nil, nil
	s.expiry, s.limit = h.Expiry, s.b.o.Limits.Inflight
	if h.ReceiveMax > 0 {
		s.limit = min(s.limit, int(h.ReceiveMax))
	}
	s.left.Store(0)
	s.live.Store(true)
	if s.unrecorded = s.kept && changed; s.unrecorded {
		s.b.journal.add(op{kind: opChange, s: s, row: s.row(), c: c})
	}
	return true
}

// detach ends a connection. resumed: another one has the session now, so that a will
// that is to wait is not published ([MQTT-3.1.3-9]).
func (b *Broker) detach(c *Conn, will bool, expiry *time.Duration, resumed bool) {
	s := c.s
	s.mu.Lock()
	if s.conn != c {
		s.mu.Unlock()
		return
	}
	if expiry != nil {
		s.expiry = min(*expiry, b.o.Limits.Expiry)
	}
	now := b.o.Now()
	s.conn = nil
	s.live.Store(false)
	s.left.Store(max(now.UnixMicro(), 1))
	w := c.will
	if c.will = nil; !will {
		w = nil
	}
	over := s.expiry <= 0 || !s.kept
	if !over {
		s.suspend()
		if w != nil && w.Delay > 0 {
			if !resumed {
				s.will, s.willAt = w, now.Add(w.Delay)
			}
			w = nil
		}
		s.schedule(now)
		b.journal.add(op{kind: opChange, s: s, row: s.row()})
	}
	s.mu.Unlock()
	if over {
		b.remove(s)
	}
	if w != nil {
		b.publishWill(s, w)
	}
	if !over && !resumed {
		for _, old := range s.a.oldest(c.kept) {
			b.sessionsDropped.Add(1)
			b.remove(old)
		}
	}
}

// schedule sets the timer for the end of the session, or for its will before that. The
// caller holds the lock.
func (s *session) schedule(now time.Time) {
	d := time.UnixMicro(s.left.Load()).Add(s.expiry).Sub(now)
	if s.will != nil {
		d = min(d, s.willAt.Sub(now))
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	s.timer = time.AfterFunc(max(d, 0), func() { s.b.due(s) })
}

// due publishes the will of a session whose delay is over, and ends a session that has
// expired.
func (b *Broker) due(s *session) {
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	s.mu.Lock()
	if closed || s.dead || s.conn != nil {
		s.mu.Unlock()
		return
	}
	now := b.o.Now()
	w := s.will
	over := !now.Before(time.UnixMicro(s.left.Load()).Add(s.expiry))
	if w != nil && !over && now.Before(s.willAt) {
		w = nil
	}
	if over { // remove publishes its will
		s.mu.Unlock()
		b.remove(s)
		return
	}
	if w != nil {
		s.will = nil
	}
	s.schedule(now)
	s.mu.Unlock()
	if w != nil { // a client may come before it is recorded: what is so then
		b.publishWill(s, w, op{kind: opChange, s: s})
	}
}

// remove ends a session for good. A will that waits is published ([MQTT-3.1.3-9]).
func (b *Broker) remove(s *session) {
	w, wipe := b.end(s)
	var ops []op
	if wipe {
		ops = append(ops, op{kind: opWipe, s: s})
	}
	if w != nil {
		b.publishWill(s, w, ops...)
	} else {
		b.journal.add(ops...)
	}
}

// end drops a session from memory.
func (b *Broker) end(s *session) (w *Will, wipe bool) {
	s.mu.Lock()
	if s.dead {
		s.mu.Unlock()
		return nil, false
	}
	s.dead = true
	s.live.Store(false)
	if s.timer != nil {
		s.timer.Stop()
	}
	w, s.will = s.will, nil
	subs := s.subs
	s.a.unqueue(s.total, s.octets)
	s.subs, s.queue, s.ask, s.inbound, s.next, s.total, s.octets = nil, nil, nil, nil, 0, 0, 0
	conn := s.conn
	s.conn = nil
	s.mu.Unlock()
	for _, sub := range subs {
		b.tree.remove(sub)
	}
	b.mu.Lock()
	if b.sessions[s.client] == s {
		delete(b.sessions, s.client)
	}
	b.mu.Unlock()
	s.a.mu.Lock()
	delete(s.a.sessions, s)
	s.a.subs -= len(subs)
	s.a.mu.Unlock()
	s.a.tidy()
	if conn != nil {
		conn.client.Lost(administrative, "the session was removed")
	}
	return w, s.kept
}

// Forget drops from memory what [Erase] removed from the record, and what was on its
// way there. The device's connections are cut before.
func (b *Broker) Forget(device string) {
	b.mu.Lock()
	a := b.accounts[device]
	if a == nil {
		b.mu.Unlock()
		return
	}
	a.mu.Lock()
	a.gone = true
	// The device may come again, with nothing: what its next life has recorded comes
	// behind this, which ends what was written between Erase and now.
	delete(b.accounts, device)
	b.journal.add(op{kind: opPurge, a: a})
	a.mu.Unlock()
	b.mu.Unlock()
	sessions, messages := a.stored()
	for _, s := range sessions {
		// Without its will: the device lost its identity. What was recorded behind Erase has
		// no session any more by which opPurge could find it.
		if _, wipe := b.end(s); wipe {
			b.journal.add(op{kind: opWipe, s: s})
		}
	}
	for _, m := range messages {
		b.forgetRetained(m)
	}
}

// DropWills drops the wills of a device that wait for their delay: a device whose
// sessions were cut publishes nothing, and is not announced as lost. Its sessions stay.
func (b *Broker) DropWills(device string) {
	b.mu.Lock()
	a := b.accounts[device]
	b.mu.Unlock()
	if a == nil {
		return
	}
	sessions, _ := a.stored()
	for _, s := range sessions {
		s.mu.Lock()
		if s.will != nil && !s.dead {
			s.will = nil
			b.journal.add(op{kind: opChange, s: s, row: s.row()})
		}
		s.mu.Unlock()
	}
}

// entered has what waited for the record to have the session connected sent.
func (s *session) entered(c *Conn, f *flusher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c {
		return
	}
	s.unrecorded = false
	s.pump(f)
}

// row is what the record has of the session. The caller holds the lock.
func (s *session) row() *sessionRow {
	r := &sessionRow{expiry: int64(s.expiry / time.Second), left: s.left.Load(), sent: int64(s.sent)} //nolint:gosec // a count
	if s.will != nil {
		r.will, r.willAt = encodeWill(s.will), s.willAt.UnixMicro()
	}
	return r
}
