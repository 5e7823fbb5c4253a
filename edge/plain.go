package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/countersign-iot/countersign"
)

// Listener accepts connections for net/http under the same limits as a gate. It
// does not know what becomes of one, so all of them count as strangers and none counts against
// the tries of its address, unless the address is suspect.
type Listener struct {
	net.Listener
	name   string
	guard  *Guard
	census census
}

// Listen wraps a listener with the limits of the guard. Of the limits, those of
// strangers and the accept rate apply.
func (g *Guard) Listen(name string, ln net.Listener, limits Limits) *Listener {
	g.init()
	limits = limits.withDefaults()
	limits.Connections, limits.PerAddress = -1, -1
	return &Listener{Listener: ln, name: name, guard: g, census: census{limits: limits, addresses: map[netip.Prefix]*address{}}}
}

// Accept returns the next connection that may stay. The others are reset.
func (l *Listener) Accept() (net.Conn, error) {
	s, err := l.accept()
	if err != nil {
		return nil, err
	}
	s.endHandshake() // there is none
	return s, nil
}

func (l *Listener) accept() (*socket, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		remote := remoteOf(raw).Addr()
		from, _ := countersign.SourceOf(remote)
		known, why := l.guard.ask(remote, l.census.limits.Tries, true)
		s := &socket{Conn: raw, guard: l.guard, from: from, known: known, wait: l.census.limits.Handshake}
		v := &visit{from: from, known: known, abort: s.abort}
		var evicted *visit
		if why == "" {
			evicted, why = l.census.enter(v, l.guard.Now())
		}
		if why != "" {
			l.guard.TurnAway(l.name, from, why)
			s.abort()
			continue
		}
		if evicted != nil {
			l.guard.TurnAway(l.name, evicted.from, ReasonEvicted)
			evicted.abort()
		}
		s.left = func() { l.census.leave(v, l.guard.Now()) }
		return s, nil
	}
}

// TLS terminates TLS on what the listener accepts, each handshake in its turn and within
// the limit for it. Accept of the result returns a *tls.Conn whose handshake is over.
func (l *Listener) TLS(c *tls.Config) net.Listener {
	return &secure{Listener: l, config: listening(c, false), ready: make(chan accepted), done: make(chan struct{}), greeting: map[*socket]struct{}{}}
}

// secure is a Listener with TLS. The handshakes run in goroutines of their own, so that
// none delays another.
type secure struct {
	*Listener
	config *tls.Config
	ready  chan accepted
	done   chan struct{} // closed by Close
	start  sync.Once

	mu       sync.Mutex
	greeting map[*socket]struct{} // in their handshake
	closed   bool
}

// accepted is what Accept returns.
type accepted struct {
	conn net.Conn
	err  error
}

// Accept returns the next connection whose handshake succeeded.
func (l *secure) Accept() (net.Conn, error) {
	l.start.Do(func() { go l.run() })
	select {
	case a := <-l.ready:
		return a.conn, a.err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends the accepting and the handshakes under way.
func (l *secure) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.done)
	}
	for s := range l.greeting {
		s.abort()
	}
	l.mu.Unlock()
	return l.Listener.Close()
}

func (l *secure) run() {
	for {
		s, err := l.accept()
		if err != nil {
			if !l.pass(accepted{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // Accept's caller waits before it asks again
		}
		l.mu.Lock()
		closed := l.closed
		l.greeting[s] = struct{}{}
		l.mu.Unlock()
		if closed {
			s.abort()
			return
		}
		go l.greet(s)
	}
}

func (l *secure) pass(a accepted) bool {
	select {
	case l.ready <- a:
		return true
	case <-l.done:
		return false
	}
}

// greet does the handshake of one connection.
func (l *secure) greet(s *socket) {
	conn := tls.Server(s, l.config)
	why, err := s.handshake(context.Background(), l.name, conn)
	l.mu.Lock()
	delete(l.greeting, s)
	l.mu.Unlock()
	if why != "" {
		l.guard.TurnAway(l.name, s.from, why)
	}
	switch {
	case err == nil && l.pass(accepted{conn: conn}):
	case err == nil, why == ReasonChains:
		s.abort()
	default:
		answerPlain(err)
		_ = s.Close()
	}
}

// answerPlain answers a client that speaks HTTP where TLS is spoken, as net/http does.
func answerPlain(err error) {
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok && e.Conn != nil {
		switch string(e.RecordHeader[:]) {
		case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
			_, _ = io.WriteString(e.Conn, "HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nthis port speaks https\n")
		}
	}
}
