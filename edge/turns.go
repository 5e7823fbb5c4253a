package edge

import (
	"container/list"
	"net/netip"
	"sync"
)

const (
	// knownFirst is how many turns go to known addresses before one stranger that
	// waits is let pass: strangers wait longer, and never for ever.
	knownFirst = 3
	// maxWaiting bounds who waits for a turn, over all listeners of the node. Their caps
	// for strangers come to less; it holds should somebody lift those.
	maxWaiting = 16_384
)

// turns hands out the right to compute within a TLS handshake. A turn begins when
// the whole ClientHello is there and ends when the answer to it is written, so
// nobody holds one while we wait for him, and a few keep the processors busy.
//
// Who has no turn waits in the line of his address, and the addresses take turns:
// one with ten thousand connections gets no more of them than one with a single one.
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

// waiter is one connection that waits. granted gets one value: whether it may go on.
type waiter struct {
	granted chan bool
	line    int
	queue   *queue
	place   *list.Element // nil once it waits no more
}

// enter returns a turn at once, or a waiter to wait with. Both nil and false: too
// many wait already.
func (t *turns) enter(from netip.Prefix, known bool) (w *waiter, now bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	of := ofStrangers
	if known {
		of = ofKnown
	}
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

// leave ends a turn and lets the next ones begin theirs.
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

// next takes the one whose turn it is out of its line; nil if none may begin.
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

// next takes the first of the address whose turn it is, and puts the address last.
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
