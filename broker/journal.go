package broker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// batchOps is about how many changes are one transaction: beyond it the commit costs
	// less than the statements, and other writers wait.
	batchOps = 512
	// lazyDelay is how long changes wait that no client waits for, such as the end of an
	// acknowledged message: most become part of a transaction that is written anyway.
	lazyDelay = 100 * time.Millisecond
	// commitTime bounds one transaction; what it would have recorded fails then.
	commitTime = 30 * time.Second
	// retryAfter is the pause after a transaction failed whose changes must not be lost.
	retryAfter = time.Second
	// maxCommitted is how many committed batches wait for the goroutine that delivers them.
	maxCommitted = 4
)

var errNotStored = countersign.Errorf(countersign.Unavailable, "the message could not be stored")

// opKind is the kind of a change of the record.
type opKind byte

const (
	opPurge       opKind = iota + 1 // the end of all that a device had; first, before its next life
	opSession                       // a session's row, new or changed
	opSubscribe                     // a subscription
	opUnsubscribe                   // its end
	opRetain                        // a retained message, or its end
	opReceive                       // QoS 2: a message of the client
	opComplete                      // QoS 2: its PUBREL
	opInsert                        // a message for a session
	opRelease                       // QoS 2: PUBREC for it
	opDelete                        // its end
	opTrim                          // its end, with all before it
	opDrain                         // the end of those that wait behind what is in flight
	opWipe                          // the end of a session
	opExpire                        // of a retained message, if it is still that one
)

// lazy reports that no client waits for changes of the kind. They are tried again
// until they are on record.
func (k opKind) lazy() bool {
	return k == opDelete || k == opTrim || k == opWipe || k == opExpire || k == opPurge
}

// op is one change of the record, and who is to know when it is made.
type op struct {
	kind opKind
	id   uint16
	s    *session
	a    *account
	e    *entry
	m    *Message
	sub  *subscription
	row  *sessionRow
	from uint64 // opDrain: behind this place in the queue
	to   uint64 // up to this one
	p    *publication
	done func(err error, f *flusher)
}

// journal writes the changes of the record: one goroutine makes transactions of what
// waits, another has what was committed delivered. Both keep the order.
type journal struct {
	b *Broker

	mu      sync.Mutex
	retry   []op   // to be written alone: what failed beside them may fail again
	pending [][]op // each was added at once, and is in one transaction
	urgent  bool
	closed  bool

	wake      chan struct{}
	committed chan batch
	stopped   chan struct{}
	batchID   int64
}

type batch struct {
	ops []op
	err error
}

func newJournal(b *Broker) *journal {
	return &journal{b: b, wake: make(chan struct{}, 1), committed: make(chan batch, maxCommitted), stopped: make(chan struct{})}
}

func (j *journal) start() {
	go j.write()
	go j.deliver()
}

// add has changes written in one transaction. After close they are dropped.
func (j *journal) add(ops ...op) {
	if len(ops) == 0 {
		return
	}
	j.mu.Lock()
	j.pending = append(j.pending, ops)
	first := len(j.pending) == 1
	for _, o := range ops {
		if !o.kind.lazy() && !j.urgent {
			j.urgent, first = true, true
		}
	}
	j.mu.Unlock()
	if first {
		select {
		case j.wake <- struct{}{}:
		default:
		}
	}
}

// wait has changes written and returns once they are, or will not be.
func (j *journal) wait(ctx context.Context, ops []op) error {
	done := make(chan error, 1)
	ops[len(ops)-1].done = func(err error, _ *flusher) { done <- err }
	j.add(ops...)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-j.stopped:
		return errNotStored
	}
}

// close writes what waits and stops both goroutines.
func (j *journal) close() error {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
	<-j.stopped
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.pending)+len(j.retry) > 0 {
		return errors.New("not all changes of MQTT sessions could be written")
	}
	return nil
}

// take returns what is to be one transaction.
func (j *journal) take() (groups [][]op, closed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.retry) > 0 {
		groups, j.retry = [][]op{j.retry}, nil
		return groups, j.closed
	}
	n, size := 0, 0
	for n < len(j.pending) && (n == 0 || size+len(j.pending[n]) <= batchOps) {
		size += len(j.pending[n])
		n++
	}
	groups = j.pending[:n:n]
	if j.pending = j.pending[n:]; len(j.pending) == 0 {
		j.pending, j.urgent = nil, false
	}
	return groups, j.closed
}

func (j *journal) write() {
	defer close(j.committed)
	for {
		<-j.wake
		j.mu.Lock()
		urgent, closed := j.urgent, j.closed
		j.mu.Unlock()
		if !urgent && !closed {
			select {
			case <-j.wake:
			case <-time.After(lazyDelay):
			}
		}
		for {
			groups, closed := j.take()
			if len(groups) == 0 {
				if closed {
					return
				}
				break
			}
			if again := j.commit(groups); again && closed {
				return // the database is gone; nothing can be done any more
			} else if again {
				time.Sleep(retryAfter)
			}
		}
	}
}

// commit writes groups of changes as one transaction and hands them on. It reports
// whether some of them are to be tried again.
func (j *journal) commit(groups [][]op) (again bool) {
	ops := groups[0]
	if len(groups) > 1 {
		ops = slices.Concat(groups...)
	}
	for i := range ops {
		if o := &ops[i]; o.kind == opInsert && o.e.seq == 0 {
			o.s.mu.Lock()
			o.e.seq = o.s.number()
			o.s.mu.Unlock()
		}
	}
	err := j.transact(ops)
	if err != nil && countersign.CodeOf(err) != countersign.Unavailable && len(groups) > 1 {
		// One that the database cannot take is to hurt no other.
		for _, g := range groups {
			again = j.commit([][]op{g}) || again
		}
		return again
	}
	if err != nil {
		j.b.commitFailed.Add(1)
		j.b.o.Log.Error("messages not stored", "changes", len(ops), "error", err)
		again = countersign.CodeOf(err) == countersign.Unavailable && j.later(ops)
	}
	j.committed <- batch{ops, err}
	return again
}

// later has the changes written again that must not be lost.
func (j *journal) later(ops []op) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, o := range ops {
		if o.kind.lazy() || o.kind == opRelease || o.kind == opSession && o.row != nil && o.done == nil {
			j.retry = append(j.retry, o)
		}
	}
	return len(j.retry) > 0
}

func (j *journal) transact(ops []op) error {
	ctx, cancel := context.WithTimeout(context.Background(), commitTime)
	defer cancel()
	j.batchID++
	return j.b.o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		return j.b.record(ctx, tx, ops, j.batchID)
	})
}

// deliver has what was committed delivered, and tells who waits.
func (j *journal) deliver() {
	defer close(j.stopped)
	var f flusher
	for b := range j.committed {
		for i := range b.ops {
			j.settle(&b.ops[i], b.err, &f)
		}
		f.flush()
	}
}

func (j *journal) settle(o *op, err error, f *flusher) {
	switch o.kind {
	case opInsert:
		if err == nil {
			o.s.committed(o.e, f)
		} else {
			o.s.lost(o.e)
		}
	case opRelease:
		if err == nil {
			o.s.release(o.e, f)
		}
	case opRetain:
		switch {
		case err == nil:
			j.b.retain(o.a, o.m)
		case len(o.m.Payload) > 0:
			j.b.release(o.a, o.m)
		}
	}
	if o.done != nil {
		o.done(err, f)
	}
	if p := o.p; p != nil {
		p.failed = p.failed || err != nil
		if p.left--; p.left == 0 {
			p.finish(f)
		}
	}
}

// lost drops a message that did not get on record.
func (s *session) lost(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || e.drains != s.drains {
		return
	}
	s.count(-1, -e.m.cost())
	s.b.unqueue(s.a, 1, e.m.cost())
}
