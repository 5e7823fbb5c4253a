package edge

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// socket is the TCP connection below TLS. It keeps what its ClientHello said, and
// has the handshake wait for its turn.
type socket struct {
	net.Conn
	guard *Guard
	from  netip.Prefix
	known bool          // its address had a session lately
	wait  time.Duration // for a turn, at most
	hello string

	turn    atomic.Bool            // it has one
	waiting atomic.Pointer[waiter] // for one
	again   bool                   // another ClientHello will come; only the handshake's goroutine
	closed  atomic.Bool
	left    func() // counts it out; nil where the owner does
}

// errNoTurn ends a handshake that the node had no time for.
var errNoTurn = errors.New("no turn for the handshake in time")

// listening makes c note the fingerprint of each ClientHello on a socket of ours and
// wait for a turn before anything is computed.
func listening(c *tls.Config) *tls.Config {
	c = c.Clone()
	next := c.GetConfigForClient
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if s, ok := hello.Conn.(*socket); ok {
			s.hello = Fingerprint(hello)
			if err := s.takeTurn(); err != nil {
				return nil, err
			}
		}
		if next == nil {
			return nil, nil
		}
		return next(hello)
	}
	return c
}

func (s *socket) takeTurn() error {
	w, ok := s.guard.turns.enter(s.from, s.known)
	switch {
	case w != nil:
		s.waiting.Store(w)
		if s.closed.Load() { // Close may have looked before
			s.guard.turns.drop(w)
		}
		t := time.NewTimer(s.wait)
		select {
		case ok = <-w.granted:
		case <-t.C:
			s.guard.turns.drop(w)
			ok = <-w.granted
		}
		t.Stop()
		s.waiting.Store(nil)
	case !ok:
		return errNoTurn
	}
	if !ok {
		return errNoTurn
	}
	s.turn.Store(true)
	if s.closed.Load() {
		s.endTurn()
		return net.ErrClosed
	}
	return nil
}

func (s *socket) endTurn() bool {
	if !s.turn.Load() || !s.turn.Swap(false) {
		return false
	}
	s.guard.turns.leave(s.known)
	return true
}

// Write ends the turn: what is written first has been computed.
func (s *socket) Write(b []byte) (int, error) {
	if s.endTurn() {
		s.again = isRetry(b)
	}
	return s.Conn.Write(b)
}

// Read waits for another turn after a HelloRetryRequest. Without that a client
// would have its keys computed out of turn, by offering a group that we do not want.
// Whoever sends the second ClientHello in pieces gives the turn back between them: it
// is not held while we wait for him.
func (s *socket) Read(b []byte) (int, error) {
	if s.again {
		s.endTurn()
	}
	n, err := s.Conn.Read(b)
	if s.again && n > 0 {
		if e := s.takeTurn(); e != nil {
			return 0, e
		}
	}
	return n, err
}

// Close closes the socket and lets go of everything that it holds.
func (s *socket) Close() error {
	err := s.Conn.Close()
	s.release()
	return err
}

// abort is Close that drops what is still to be sent.
func (s *socket) abort() {
	if tcp, ok := s.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = s.Close()
}

func (s *socket) release() {
	if s.closed.Swap(true) {
		return
	}
	if w := s.waiting.Load(); w != nil {
		s.guard.turns.drop(w)
	}
	s.endTurn()
	if s.left != nil {
		s.left()
	}
}

// retryRandom is the Random that makes a ServerHello a HelloRetryRequest (RFC 8446, 4.1.3).
var retryRandom = [32]byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// isRetry tells whether b is a record with a HelloRetryRequest: 5 octets of record,
// 4 of handshake header, 2 of version, the Random (RFC 8446, 5.1 and 4.1.3).
func isRetry(b []byte) bool {
	const at = 5 + 4 + 2
	return len(b) >= at+len(retryRandom) && b[0] == 22 && b[5] == 2 && bytes.Equal(b[at:at+len(retryRandom)], retryRandom[:])
}
