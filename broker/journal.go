package broker

import (
	"context"
	"fmt"
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
	// writtenTime bounds how long a clean start waits for the record of its old session's
	// end: commits take less, clients wait longer for CONNACK, and so do the others that
	// share its lock.
	writtenTime = 2 * time.Second
	// failureEvery bounds how often it is logged that transactions fail.
	failureEvery = 10 * time.Second
	// maxCommitted is how many committed batches wait for the goroutine that delivers them.
	maxCommitted = 4
)

var errNotStored = countersign.Errorf(countersign.Unavailable, "the message could not be stored")

// opKind is the kind of a change of the record.
type opKind byte

const (
	opPurge       opKind = iota + 1 // the end of all that a device had; first, before its next life
	opNothing                       // it is done when what was added before it is on record, or has failed
	opSession                       // a new session's row
	opChange                        // what has changed of it
	opSubscribe                     // a subscription
	opUnsubscribe                   // its end
	opRetain                        // a retained message, or its end
	opReceive                       // QoS 2: a message of the client
	opComplete                      // QoS 2: its PUBREL
	opHand                          // nothing is written: a session that is not kept gets a message of QoS 2 then
	opInsert                        // a message for a session
	opRelease                       // QoS 2: PUBREC for it
	opGone                          // its end
	opDelete                        // the end of all of a page
	opTrim                          // the end of all up to a place
	opDrain                         // the end of those that wait behind what is in flight
	opWipe                          // the end of a session
	opExpire                        // of a retained message, if it is still that one
)

// lazy reports that no client waits for changes of the kind. They are tried again
// until they are on record.
func (k opKind) lazy() bool {
	return k == opGone || k == opDelete || k == opTrim || k == opWipe || k == opExpire || k == opPurge
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
	old  bool        // opSubscribe: the session had the filter of sub already; opUnsubscribe: it has it still
	row  *sessionRow // opChange: nil: what is so when it is written
	c    *Conn       // opChange: it has the session now; nil: the change is another
	from uint64      // a place in the queue; opDrain: behind it
	to   uint64      // up to this one
	part bool        // opTrim: others of the page are left
	p    *publication
	// waits: it was not on record at once, and is settled with a later transaction.
	waits bool
	done  func(err error, f *flusher)
}

// journal writes the changes of the record: one goroutine makes transactions of what
// waits, another has what was committed delivered. Both keep the order.
type journal struct {
	b *Broker

	mu      sync.Mutex
	pending [][]op // each was added at once, and is in one transaction
	urgent  bool   // a client waits for one of them
	retry   []op   // to be written alone: what failed beside them may fail again
	again   bool   // it is time to
	ordered bool   // nothing is written before retry is
	closed  bool
	lost    int // changes that could not be written before the end

	// Owned by write.
	batchID  int64
	then     []func() // what is so in memory once the transaction is on record
	loggedAt time.Time
	unlogged int // changes of failed transactions that were not logged

	wake      chan struct{}
	committed chan batch
	stopped   chan struct{}
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
		j.wakeUp()
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

// awaitWritten returns once what was added before it is on record, or could not be
// written, and after writtenTime: a record that takes nothing now refuses no clean start.
func (j *journal) awaitWritten(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, writtenTime)
	defer cancel()
	_ = j.wait(ctx, []op{{kind: opNothing}})
}

// close writes what waits and stops both goroutines. It waits for them until ctx ends.
func (j *journal) close(ctx context.Context) error {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.wakeUp()
	select {
	case <-j.stopped:
	case <-ctx.Done():
		return fmt.Errorf("changes of MQTT sessions wait for the database still: %w", ctx.Err())
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lost > 0 {
		return fmt.Errorf("couldn't write %d changes of MQTT sessions", j.lost)
	}
	return nil
}

func (j *journal) wakeUp() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// take returns what is to be one transaction.
func (j *journal) take() (groups [][]op, closed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.retry) > 0 && (j.again || j.closed) {
		for _, o := range j.retry { // each may be written without the others
			groups = append(groups, []op{o})
		}
		j.retry, j.again, j.ordered = nil, false, false
		return groups, j.closed
	}
	if j.ordered {
		return nil, false
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
		groups, closed := j.take()
		switch {
		case len(groups) > 0:
			j.commit(groups)
		case closed:
			return
		default:
			<-j.wake
			j.rest()
		}
	}
}

// rest waits for more where no client waits.
func (j *journal) rest() {
	j.mu.Lock()
	wait := (!j.urgent || j.ordered) && !j.closed && !j.again
	j.mu.Unlock()
	if !wait {
		return
	}
	t := time.NewTimer(lazyDelay)
	defer t.Stop()
	select {
	case <-j.wake:
	case <-t.C:
	}
}

// commit writes groups of changes as one transaction and hands them on.
func (j *journal) commit(groups [][]op) {
	if groups = j.refuse(groups); len(groups) == 0 {
		return
	}
	ops := groups[0]
	if len(groups) > 1 {
		ops = slices.Concat(groups...)
	}
	prepare(ops)
	err := j.transact(ops)
	if impossible(err) && len(groups) > 1 && !j.b.displaced.Load() {
		// One that the database cannot take is to hurt no other.
		for i, g := range groups {
			if j.commit([][]op{g}); j.keepOrder(groups[i+1:]) {
				break
			}
		}
		return
	}
	if err == nil {
		for _, fn := range j.then {
			fn()
		}
	} else {
		j.failed(len(ops), err)
		if !impossible(err) {
			j.later(ops, err)
		}
	}
	j.committed <- batch{ops, err}
}

// recordedThen has fn called once the transaction is on record. What is changed at once would
// be so although the transaction fails, or is run again by the store and finds it done.
func (j *journal) recordedThen(fn func()) { j.then = append(j.then, fn) }

// failed counts a transaction that failed, and logs it, once per failureEvery.
func (j *journal) failed(changes int, err error) {
	j.b.commitFailed.Add(1)
	j.unlogged += changes
	if now := j.b.o.Now(); now.Sub(j.loggedAt) >= failureEvery {
		j.b.o.Log.Error("messages of kept sessions not stored", "changes", j.unlogged, "error", err)
		j.loggedAt, j.unlogged = now, 0
	}
}

func (j *journal) transact(ops []op) error {
	if j.b.displaced.Load() {
		return j.b.errDisplaced()
	}
	ctx, cancel := context.WithTimeout(context.Background(), commitTime)
	defer cancel()
	j.batchID++
	j.then = nil
	err := j.b.o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		return j.record(ctx, tx, ops, j.batchID)
	})
	if store.Unconfirmed(err) {
		return j.findOut(err)
	}
	return err
}

// findOut finds out what became of the newest transaction. Until then nothing is
// written, and who waits is not answered: a message that is on record would be delivered
// although its publisher was refused, and not be counted.
func (j *journal) findOut(cause error) error {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), commitTime)
		known, recorded := j.recorded(ctx, j.batchID)
		cancel()
		j.mu.Lock()
		closed := j.closed
		j.mu.Unlock()
		switch {
		case known && recorded:
			return nil
		case known || closed:
			return cause
		}
		time.Sleep(retryAfter)
	}
}

// deliver has what was committed delivered, and answers the callers that wait.
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
	if o.waits {
		return
	}
	switch o.kind {
	case opChange:
		// Where there is no space, the messages must not wait: to deliver them is what makes
		// room for the record. Otherwise it is tried again, or can never be recorded.
		if o.c != nil && (err == nil || store.Full(err) || impossible(err)) {
			o.s.entered(o.c, f)
		}
	case opInsert:
		if err == nil {
			if pg := o.e.page; pg.first == o.e.seq { // those behind it come with it
				o.s.committed(pg, f)
			}
		} else {
			o.s.lost(o.e, err)
		}
	case opHand:
		if err == nil {
			o.s.hand(o.e, f)
		} else {
			o.s.lost(o.e, err)
		}
	case opComplete:
		if err == nil {
			o.s.completed(o.id, f)
		} else if impossible(err) {
			o.s.undoComplete(o.id)
		}
	case opRelease:
		if err == nil {
			o.s.release(o.e, f)
		} else if impossible(err) {
			o.s.undoRelease(o.e)
		}
	case opSubscribe, opUnsubscribe:
		o.s.changed(o, err)
	case opRetain:
		if err == nil {
			j.b.retain(o.a, o.m)
		} else {
			j.b.unretain(o.a, o.m)
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

// lost drops a message that did not get on record. A retained message that its client asked
// for has no publisher that sends it again: it is asked for again.
func (s *session) lost(e *entry, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || e.drains != s.drains {
		return
	}
	s.count(-1, -e.m.cost())
	s.a.unqueue(1, e.m.cost())
	if e.asked != nil && slices.Contains(s.subs, e.asked) && !impossible(err) {
		s.ask = append(s.ask, asked{e.m, e.asked})
		if s.conn != nil {
			time.AfterFunc(retryAfter, s.conn.Wake)
		}
	}
}
