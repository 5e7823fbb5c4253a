package edge

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

// socket is the TCP connection below TLS. It keeps the contents of its ClientHello, and
// makes the handshake wait for its turn.
type socket struct {
	net.Conn
	guard *Guard
	from  netip.Prefix
	known bool          // its address had a session lately
	wait  time.Duration // for a turn, at most
	hello string

	offer   *tls.ClientHelloInfo // until the handshake is over, as config
	config  *tls.Config
	sys     syscall.RawConn // for Room; nil: not known
	greeted bool            // the handshake is over; only its goroutine, then the reader
	read    int             // octets before that
	chain   atomic.Int64    // octets of the chain that are counted, see keepChain

	turn    atomic.Bool            // it has one
	waiting atomic.Pointer[waiter] // for one
	again   bool                   // another ClientHello will come; only the handshake's goroutine
	closed  atomic.Bool
	left    func() // removes it from the counts; nil where the owner does
}

// errNoTurn ends a handshake that the node had no time for.
var errNoTurn = errors.New("no turn for the handshake in time")

// endHandshake releases what only the handshake needs.
func (s *socket) endHandshake() { s.greeted, s.offer, s.config = true, nil, nil }

// keepChain counts the chain that the client presented and reports whether the
// node has room for it. It is counted until the connection ends, or until
// forgetChain.
func (s *socket) keepChain(c *tls.Conn) bool {
	n := octets(c.ConnectionState().PeerCertificates)
	if n == 0 {
		return true
	}
	if !s.guard.chains.take(s.from, s.known, n) {
		return false
	}
	s.chain.Store(int64(n))
	if s.closed.Load() { // release may have looked before
		s.forgetChain()
	}
	return true
}

func (s *socket) forgetChain() {
	if n := s.chain.Swap(0); n > 0 {
		s.guard.chains.release(s.from, s.known, int(n))
	}
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
// could have its keys computed out of turn, by offering a group that the server does not
// prefer. A client that sends the second ClientHello in pieces returns the turn between
// them, so that no turn is held while the server waits. It reads no more than maxGreeting
// before the handshake is over.
func (s *socket) Read(b []byte) (int, error) {
	if s.greeted {
		return s.Conn.Read(b)
	}
	if s.read > maxGreeting {
		return 0, errGreeting
	}
	if s.again {
		s.endTurn()
	}
	n, err := s.Conn.Read(b)
	s.read += n
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
	s.forgetChain()
	if s.left != nil {
		s.left()
	}
}

// retryRandom is the Random that makes a ServerHello a HelloRetryRequest (RFC 8446, 4.1.3).
var retryRandom = [32]byte{
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
}

// isRetry reports whether b is a record with a HelloRetryRequest: 5 octets of record,
// 4 of handshake header, 2 of version, the Random (RFC 8446, 5.1 and 4.1.3).
func isRetry(b []byte) bool {
	const at = 5 + 4 + 2
	return len(b) >= at+len(retryRandom) && b[0] == 22 && b[5] == 2 && bytes.Equal(b[at:at+len(retryRandom)], retryRandom[:])
}
