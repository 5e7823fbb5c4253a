package mqtt

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultStall is how long a peer may take none of what is sent to it. It is
	// what ends a session whose device stopped reading but goes on sending.
	DefaultStall = 15 * time.Second
	// writePiece is what is written at once, so that a slow link that carries a large
	// message shows that it moves.
	writePiece = 16 << 10
	// stallSlack is the part of DefaultStall, a quarter, that a peer may have beyond it: a
	// deadline is moved only once it has less than DefaultStall left.
	stallSlack = 4
	// recordCost is what TLS and WebSocket add to a piece, generously.
	recordCost = 64
)

// What a writer gets once this side has ended the session, and when the peer has
// taken nothing for the time of a stall.
var (
	errEnded   = errors.New("the session has ended")
	errStalled = errors.New("the peer takes no data")
)

type deadlineWriter interface {
	io.Writer
	SetWriteDeadline(t time.Time) error
}

// outbox gathers frames for one side of a session and writes many of them at
// once. Any goroutine may add to it.
//
// Without a limit flush writes, and waits for the peer. With one it writes what the
// peer's socket takes at once; beyond that a goroutine writes while there is something
// to write, and send waits only when limit octets wait for the peer already. offer adds
// nothing then, and add does not look.
type outbox struct {
	dst   deadlineWriter
	ended func() bool // looked at before each write
	now   func() time.Time
	stall time.Duration // see DefaultStall
	// closing writes the last frame, or none, and what ends the stream; nil: nothing does.
	closing func(last []byte) error
	// With a limit: failed is called after a write that failed, emptied when there is room
	// for what offer did not add.
	failed  func(error)
	emptied func()
	// room returns how many octets the peer's socket takes without a wait; nil: not known.
	room func() int

	mu       sync.Mutex
	moved    sync.Cond // its lock is mu: something was written, or err was set
	limit    int
	pooled   *[]byte                   // nil while empty
	n        int                       // (*pooled)[:n] waits to be written
	queue    []chunk                   // full buffers and large frames, before pooled
	waiting  int                       // octets in queue, and in the one that is being written
	free     int                       // octets that the socket takes at least
	deadline time.Time                 // of writes; owned by who writes
	writing  bool                      // the goroutine is at work
	sealed   bool                      // the last frame was added
	missed   bool                      // offer found no room since emptied was called
	wrote    bool                      // something went out
	err      error                     // the first failure; nothing is written after it
	closeBy  atomic.Pointer[time.Time] // when all writing ends, see finish
}

// chunk is whole frames that wait.
type chunk struct {
	b      []byte
	pooled *[]byte // where b is, if it is from the pool
}

// recycle returns the buffer to the pool.
func (c chunk) recycle() {
	if c.pooled != nil {
		buffers.Put(c.pooled)
	}
}

// bound sets the limit, and what is called after a failure.
func (o *outbox) bound(limit int, failed func(error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.moved.L = &o.mu
	o.limit, o.failed = limit, failed
}

// roomLocked reports whether n more octets may wait.
func (o *outbox) roomLocked(n int) bool {
	held := o.waiting + o.n
	return o.limit == 0 || held == 0 || held+n <= o.limit
}

// held is how many octets wait.
func (o *outbox) held() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.waiting + o.n
}

// send adds one frame, given in parts.
func (o *outbox) send(parts ...[]byte) error {
	total := octets(parts)
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.err == nil && !o.roomLocked(total) {
		o.startLocked()
		o.moved.Wait()
	}
	return o.addLocked(total, parts)
}

// offer adds one frame if it has room, and reports whether it had.
func (o *outbox) offer(parts ...[]byte) (room bool, err error) {
	total := octets(parts)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil && !o.roomLocked(total) {
		o.missed = true
		o.startLocked()
		return false, nil
	}
	err = o.addLocked(total, parts)
	return err == nil, err
}

// add adds one frame whether it has room or not: an acknowledgment, of which there are
// no more than messages in flight.
func (o *outbox) add(frame []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_ = o.addLocked(len(frame), [][]byte{frame}) // the next flush returns it
}

func octets(parts [][]byte) (n int) {
	for _, p := range parts {
		n += len(p)
	}
	return n
}

func (o *outbox) addLocked(total int, parts [][]byte) error {
	switch {
	case o.err != nil:
		return o.err
	case o.sealed:
		return errEnded
	case total == 0:
		return nil
	}
	if o.n+total > bufferSize {
		if err := o.passLocked(); err != nil {
			return err
		}
	}
	if total > bufferSize {
		big := make([]byte, 0, total)
		for _, p := range parts {
			big = append(big, p...)
		}
		if o.direct(total) {
			return o.writeLocked(big)
		}
		o.pushLocked(chunk{b: big})
		o.startLocked()
		return nil
	}
	if o.pooled == nil {
		o.pooled = buffers.Get().(*[]byte)
	}
	for _, p := range parts {
		o.n += copy((*o.pooled)[o.n:], p)
	}
	return nil
}

// flush writes what was gathered, or has it written.
func (o *outbox) flush() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.err != nil, o.n == 0:
		return o.err
	case o.direct(o.n):
		return o.flushLocked()
	}
	o.startLocked()
	return nil
}

// direct reports whether the caller may write n octets by itself.
func (o *outbox) direct(n int) bool {
	if o.limit == 0 {
		return true
	}
	if o.writing || len(o.queue) > 0 || o.room == nil {
		return false
	}
	n += (n/writePiece + 1) * recordCost
	if o.free < n { // the socket is asked when what it had room for is used up
		o.free = o.room()
	}
	if o.free < n {
		return false
	}
	o.free -= n
	return true
}

// passLocked makes room in the buffer.
func (o *outbox) passLocked() error {
	switch {
	case o.n == 0:
		return nil
	case o.direct(o.n):
		return o.flushLocked()
	}
	o.gatheredLocked()
	o.startLocked()
	return nil
}

// gatheredLocked puts the buffer into the queue.
func (o *outbox) gatheredLocked() {
	o.pushLocked(chunk{(*o.pooled)[:o.n], o.pooled})
	o.pooled, o.n = nil, 0
}

func (o *outbox) pushLocked(c chunk) {
	o.queue = append(o.queue, c)
	o.waiting += len(c.b)
}

func (o *outbox) startLocked() {
	if !o.writing {
		o.writing, o.free = true, 0
		go o.drain()
	}
}

// drain writes what waits until nothing does.
func (o *outbox) drain() {
	o.mu.Lock()
	for o.err == nil {
		if len(o.queue) == 0 && o.n > 0 {
			o.gatheredLocked()
		}
		if len(o.queue) == 0 {
			break
		}
		c := o.queue[0]
		o.queue[0] = chunk{}
		if o.queue = o.queue[1:]; len(o.queue) == 0 {
			o.queue = nil
		}
		o.wrote = true
		o.mu.Unlock()
		err := o.write(c.b)
		o.mu.Lock()
		o.waiting -= len(c.b)
		c.recycle()
		if err != nil && o.err == nil {
			o.err = err
		}
		o.moved.Broadcast()
	}
	o.writing = false
	o.moved.Broadcast()
	err, missed := o.err, o.missed
	o.missed = false
	o.mu.Unlock()
	switch {
	case err != nil && o.failed != nil:
		o.failed(err)
	case err == nil && missed && o.emptied != nil:
		o.emptied()
	}
}

// write writes b in pieces, each of which has the time of a stall.
func (o *outbox) write(b []byte) error {
	for len(b) > 0 {
		// The order matters to a cut: see edge.Live.
		limit := o.now().Add(o.stall)
		if by := o.closeBy.Load(); by != nil && by.Before(limit) {
			_ = o.dst.SetWriteDeadline(*by)
		} else if o.deadline.Before(limit) { // it is moved as rarely as that allows
			o.deadline = limit.Add(o.stall / stallSlack)
			_ = o.dst.SetWriteDeadline(o.deadline)
		}
		if o.ended() {
			return errEnded
		}
		n, err := o.dst.Write(b[:min(len(b), writePiece)])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errStalled // a read has deadlines too, and they mean something else
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (o *outbox) flushLocked() error {
	if o.err != nil || o.n == 0 {
		return o.err
	}
	err := o.writeLocked((*o.pooled)[:o.n])
	buffers.Put(o.pooled)
	o.pooled, o.n = nil, 0
	return err
}

func (o *outbox) writeLocked(b []byte) error {
	o.wrote = o.wrote || !o.ended()
	o.err = o.write(b)
	return o.err
}

// finish writes what waits and one frame as the last, if it is not empty, within
// limit. Nothing is added from then on. It reports whether that went out.
func (o *outbox) finish(frame []byte, limit time.Time) bool {
	o.until(limit)
	o.mu.Lock()
	err := o.addLocked(len(frame), [][]byte{frame})
	o.sealed = true
	o.mu.Unlock()
	if err != nil || o.flush() != nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.writing {
		o.moved.Wait()
	}
	return o.err == nil
}

// broken reports whether a write failed: the peer takes nothing, or is gone.
func (o *outbox) broken() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err != nil && !errors.Is(o.err, errEnded)
}

// until bounds all writing from now on, what is under way included.
func (o *outbox) until(limit time.Time) {
	o.closeBy.Store(&limit)
	_ = o.dst.SetWriteDeadline(limit)
}

// last drops what was gathered and writes one frame as the last, within the
// deadline that is already set. frame is called with whether anything was written
// before. After a failed write it does nothing. It reports whether the frame went out.
func (o *outbox) last(frame func(wrote bool) []byte) (said bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pooled != nil {
		buffers.Put(o.pooled)
		o.pooled, o.n = nil, 0
	}
	for _, c := range o.queue {
		o.waiting -= len(c.b)
		c.recycle()
	}
	o.queue = nil
	for o.writing { // a frame is not cut in two
		o.moved.Wait()
	}
	if o.err == nil || errors.Is(o.err, errEnded) {
		b := frame(o.wrote)
		if o.closing != nil {
			said = o.closing(b) == nil
		} else if len(b) > 0 {
			_, err := o.dst.Write(b)
			said = err == nil
		}
	}
	o.err = net.ErrClosed
	if o.limit > 0 {
		o.moved.Broadcast()
	}
	return said
}
