package edge

import (
	"container/list"
	"net/netip"
	"sync"
)

const (
	// knownFirst is how many turns go to known addresses before one stranger that
	// waits is served: strangers wait longer, but not forever.
	knownFirst = 3
	// maxWaiting bounds the connections that wait for a turn, over all listeners of the
	// node. The default caps for strangers add up to less; it applies if those are raised.
	maxWaiting = 16_384
)

// turns bounds how many TLS handshakes compute at the same time. A turn begins when
// the whole ClientHello is received and ends when the answer to it is written, so no
// turn is held while the server waits for the client, and a few turns keep the
// processors busy.
//
// A connection without a turn waits in the queue of its address, and the addresses take
// turns: one with ten thousand connections gets no more turns than one with a single one.
type turns struct {
	mu        sync.Mutex
	limit     int // at once
	strange   int // of them, for strangers
	running   int
	strangers int // of those running
	lines     [2]line
	begun     uint64
	passed    int // turns that known addresses got since a stranger last did
}

// The lines.
const (
	ofKnown = iota
	ofStrangers
)

// rankOf is the line of an address.
func rankOf(known bool) int {
	if known {
		return ofKnown
	}
	return ofStrangers
}

// line has a queue for each address, and the addresses in the order of their turns.
type line struct {
	queues map[netip.Prefix]*queue
	round  list.List // of *queue
	n      int
}

type queue struct {
	from    netip.Prefix
	waiters list.List // of *waiter, first come first
	place   *list.Element
}

// waiter is one connection that waits. granted receives one value: whether it may continue.
type waiter struct {
	granted chan bool
	line    int
	queue   *queue
	place   *list.Element // nil once it no longer waits
}

// enter returns a turn at once, or a waiter to wait on. With neither, too many wait
// already.
func (t *turns) enter(from netip.Prefix, known bool) (w *waiter, now bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	of := rankOf(known)
	if t.lines[of].n == 0 && t.running < t.limit && (known || t.strangers < t.strange) {
		t.begin(of)
		return nil, true
	}
	if t.lines[ofKnown].n+t.lines[ofStrangers].n >= maxWaiting {
		return nil, false
	}
	w = &waiter{granted: make(chan bool, 1), line: of}
	t.lines[of].add(w, from)
	return w, false
}

func (t *turns) begin(of int) {
	t.running++
	t.begun++
	if of == ofStrangers {
		t.strangers++
	}
}

// leave ends a turn and starts the next ones.
func (t *turns) leave(known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
	if !known {
		t.strangers--
	}
	for t.running < t.limit {
		w := t.next()
		if w == nil {
			return
		}
		t.begin(w.line)
		w.granted <- true
	}
}

// next removes the next waiter from its line; nil if none may begin.
func (t *turns) next() *waiter {
	strangers := t.lines[ofStrangers].n > 0 && t.strangers < t.strange
	if t.lines[ofKnown].n > 0 && (!strangers || t.passed < knownFirst) {
		t.passed++
		return t.lines[ofKnown].next()
	}
	if !strangers {
		return nil
	}
	t.passed = 0
	return t.lines[ofStrangers].next()
}

// drop ends a wait. One that had its turn granted meanwhile reads that from granted.
func (t *turns) drop(w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.place == nil {
		return
	}
	t.lines[w.line].remove(w)
	w.granted <- false
}

func (t *turns) waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lines[ofKnown].n + t.lines[ofStrangers].n
}

func (l *line) add(w *waiter, from netip.Prefix) {
	q := l.queues[from]
	if q == nil {
		if l.queues == nil {
			l.queues = map[netip.Prefix]*queue{}
		}
		q = &queue{from: from}
		q.place = l.round.PushBack(q)
		l.queues[from] = q
	}
	w.queue, w.place = q, q.waiters.PushBack(w)
	l.n++
}

// next returns the first waiter of the next address, and puts the address last.
func (l *line) next() *waiter {
	q, _ := l.round.Front().Value.(*queue)
	w, _ := q.waiters.Front().Value.(*waiter)
	l.round.MoveToBack(q.place)
	l.remove(w)
	return w
}

func (l *line) remove(w *waiter) {
	q := w.queue
	q.waiters.Remove(w.place)
	w.place = nil
	l.n--
	if q.waiters.Len() == 0 {
		l.round.Remove(q.place)
		delete(l.queues, q.from)
	}
}
