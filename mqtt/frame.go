package mqtt

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// The packet types (MQTT 5, 2.1.2).
const (
	pktConnect     = 1
	pktConnack     = 2
	pktPublish     = 3
	pktPuback      = 4
	pktPubrec      = 5
	pktPubrel      = 6
	pktPubcomp     = 7
	pktSubscribe   = 8
	pktSuback      = 9
	pktUnsubscribe = 10
	pktUnsuback    = 11
	pktPingreq     = 12
	pktPingresp    = 13
	pktDisconnect  = 14
	pktAuth        = 15
)

// frame is one control packet. Its bytes are valid until the next one is read.
type frame struct {
	raw  []byte // all of it, as on the wire
	body []byte // without the fixed header
}

func (f frame) kind() byte  { return f.raw[0] >> 4 }
func (f frame) flags() byte { return f.raw[0] & 0x0f }

// checkFlags holds the fixed header's flags against MQTT 5, 2.1.3.
func (f frame) checkFlags() error {
	want := byte(0)
	switch f.kind() {
	case 0:
		return malformed("packet type 0")
	case pktPublish:
		if f.flags()&0x06 == 0x06 {
			return malformed("PUBLISH with QoS 3")
		}
		return nil
	case pktPubrel, pktSubscribe, pktUnsubscribe:
		want = 0x02
	}
	if f.flags() != want {
		return malformed("packet type %d with flags %x", f.kind(), f.flags())
	}
	return nil
}

// bufferSize serves nearly every frame of a device. Buffers come from a pool and
// go back whenever a connection has nothing in flight, so an idle one holds none.
const bufferSize = 4 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// frameReader cuts a stream into frames of at most max bytes.
type frameReader struct {
	src io.Reader
	max int

	first  [1]byte
	pooled *[]byte // the buffer to give back; nil while idle
	buf    []byte  // *pooled, or a larger one while a larger frame passes
	r, w   int     // buf[r:w] is read and not yet handed out
}

// buffered tells whether a part of the next frame is here already.
func (fr *frameReader) buffered() bool { return fr.r < fr.w }

// next reads one frame. At the end of the stream between frames the error is
// io.EOF, within one io.ErrUnexpectedEOF.
func (fr *frameReader) next() (frame, error) {
	if !fr.buffered() {
		if err := fr.wait(); err != nil {
			return frame{}, err
		}
	}
	for need := 2; ; need++ {
		if err := fr.fill(need); err != nil {
			return frame{}, err
		}
		n, size := remainingLength(fr.buf[fr.r+1 : fr.r+need])
		if size < 0 {
			return frame{}, malformed("remaining length of more than four bytes")
		}
		if size == 0 {
			continue
		}
		total := 1 + size + n
		if total > fr.max {
			return frame{}, breach(PacketTooLarge, "packet of %d bytes, more than %d", total, fr.max)
		}
		if err := fr.fill(total); err != nil {
			return frame{}, err
		}
		raw := fr.buf[fr.r : fr.r+total]
		fr.r += total
		return frame{raw: raw, body: raw[1+size:]}, nil
	}
}

// remainingLength reads the variable byte integer at the start of b: its value
// and size. Size 0 asks for more bytes, -1 means that it is malformed.
func remainingLength(b []byte) (n, size int) {
	for i, c := range b {
		if i == 4 {
			return 0, -1
		}
		n |= int(c&0x7f) << (7 * i)
		if c < 0x80 {
			return n, i + 1
		}
	}
	if len(b) >= 4 {
		return 0, -1
	}
	return 0, 0
}

// wait gives the buffer back and waits for one byte without one.
func (fr *frameReader) wait() error {
	fr.release()
	if _, err := io.ReadFull(fr.src, fr.first[:]); err != nil {
		return err
	}
	fr.pooled = buffers.Get().(*[]byte)
	fr.buf = *fr.pooled
	fr.buf[0] = fr.first[0]
	fr.r, fr.w = 0, 1
	return nil
}

func (fr *frameReader) release() {
	if fr.pooled != nil {
		buffers.Put(fr.pooled)
	}
	fr.pooled, fr.buf, fr.r, fr.w = nil, nil, 0, 0
}

// fill reads until n bytes of the frame are here. The buffer grows with what has
// arrived, not with what a length field promises.
func (fr *frameReader) fill(n int) error {
	for fr.w-fr.r < n {
		if fr.w == len(fr.buf) {
			if fr.r > 0 {
				fr.w = copy(fr.buf, fr.buf[fr.r:fr.w])
				fr.r = 0
			} else {
				fr.buf = append(fr.buf, make([]byte, min(len(fr.buf), max(fr.max-len(fr.buf), 1)))...)
			}
		}
		m, err := fr.src.Read(fr.buf[fr.w:])
		fr.w += m
		if err != nil && fr.w-fr.r < n {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// writeTimeout is how long a peer may take none of what is sent to it. It is
// what ends a session whose device stopped reading but goes on sending.
const writeTimeout = 15 * time.Second

// What a writer gets once this side has ended the session, and when the peer has
// taken nothing for writeTimeout.
var (
	errEnded   = errors.New("the session has ended")
	errStalled = errors.New("the peer takes no data")
)

type deadlineWriter interface {
	io.Writer
	SetWriteDeadline(t time.Time) error
}

// outbox gathers frames for one side of a session and writes many of them at
// once. Both directions write to both sides: answers go against the stream.
type outbox struct {
	dst   deadlineWriter
	ended func() bool // looked at before each write
	now   func() time.Time
	// closing writes the last frame, or none, and what ends the stream; nil: nothing does.
	closing func(last []byte) error

	mu     sync.Mutex
	pooled *[]byte // nil while empty
	n      int     // (*pooled)[:n] waits to be written
	wrote  bool    // something went out
	err    error   // the first failure; nothing is written after it
}

// send adds one frame, given in parts.
func (o *outbox) send(parts ...[]byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return o.err
	}
	total := 0
	for _, p := range parts {
		total += len(p)
	}
	if o.n+total > bufferSize {
		if err := o.flushLocked(); err != nil {
			return err
		}
	}
	if total > bufferSize {
		big := make([]byte, 0, total)
		for _, p := range parts {
			big = append(big, p...)
		}
		return o.writeLocked(big)
	}
	if o.pooled == nil {
		o.pooled = buffers.Get().(*[]byte)
	}
	for _, p := range parts {
		o.n += copy((*o.pooled)[o.n:], p)
	}
	return nil
}

// flush writes what was gathered.
func (o *outbox) flush() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.flushLocked()
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
	// The order matters to a cut: see edge.Live.
	_ = o.dst.SetWriteDeadline(o.now().Add(writeTimeout))
	if o.ended() {
		o.err = errEnded
		return o.err
	}
	o.wrote = true
	_, err := o.dst.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errStalled // a read has deadlines too, and they mean something else
	}
	o.err = err
	return err
}

// last drops what was gathered and writes one frame as the last, within the
// deadline that is already set. frame is told whether anything was written
// before. After a failed write it does nothing. It tells whether the frame went out.
func (o *outbox) last(frame func(wrote bool) []byte) (said bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pooled != nil {
		buffers.Put(o.pooled)
		o.pooled, o.n = nil, 0
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
	return said
}
