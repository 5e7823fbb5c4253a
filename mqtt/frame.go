package mqtt

import (
	"errors"
	"io"
	"sync"
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

// checkFlags holds the fixed header's flags against MQTT 5, 2.1.3. In MQTT 3.1 the
// packets that want an answer carry DUP when they are sent again, which it takes out.
func (f frame) checkFlags(level byte) error {
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
		if level == levelOld {
			f.raw[0] &^= flagDup
		}
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
	pooled *[]byte // the buffer to return; nil while idle
	buf    []byte  // *pooled, or a larger one while a larger frame passes
	r, w   int     // buf[r:w] is read and not yet handed out
}

// buffered reports whether a part of the next frame is here already.
func (fr *frameReader) buffered() bool { return fr.r < fr.w }

// whole reports whether next returns without another read.
func (fr *frameReader) whole() bool {
	b := fr.buf[fr.r:fr.w]
	if len(b) < 2 {
		return false
	}
	n, size := remainingLength(b[1:min(len(b), 5)])
	return size < 0 || size > 0 && len(b) >= 1+size+n
}

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

// wait returns the buffer back and waits for one byte without one.
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
