package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign"
)

// Gate accepts the connections of one gateway, terminates TLS and passes on those
// that completed the handshake. The zero Limits are the defaults.
type Gate struct {
	Name   string      // of the listener, in the counts of connections turned away
	TLS    *tls.Config // see TLSConfig
	Guard  *Guard      // shared with the other listeners of the node; nil: one of its own
	Limits Limits
	// Handle admits one connection and returns what serves it, or nil. The connection is
	// closed after that. They run in two goroutines, because the stack that a handshake and
	// an admission grow would stay for the connection's life. ctx ends when the gate closes.
	Handle func(ctx context.Context, c *Conn) (serve func())
	Log    *slog.Logger
	Now    func() time.Time // the clock of the sockets' deadlines

	once   sync.Once
	config *tls.Config // TLS, with what the guard adds
	census census
	count  counters

	mu        sync.Mutex
	conns     map[*Conn]struct{}
	listeners []net.Listener
	closed    bool
	wg        sync.WaitGroup
}

type counters struct {
	accepted, turnedAway, handshakeFailed atomic.Uint64
}

// Stats are the counts of a gate since it was made, and what is open now.
type Stats struct {
	Accepted        uint64 // connections taken from the kernel
	TurnedAway      uint64 // closed at once, over a limit
	HandshakeFailed uint64
	Open            int
	PreAuth         int // of Open: not yet admitted
}

// Plus returns the counts of two gates together.
func (s Stats) Plus(o Stats) Stats {
	return Stats{s.Accepted + o.Accepted, s.TurnedAway + o.TurnedAway, s.HandshakeFailed + o.HandshakeFailed, s.Open + o.Open, s.PreAuth + o.PreAuth}
}

// acceptRetryMax bounds the pause after a temporary accept error, such as too
// many open files.
const acceptRetryMax = time.Second

// sendBuffer is what the kernel may hold of what a client does not read. By itself it
// would take up to 4 MiB for each; this fills a link of 20 Mbit/s with 100 ms.
const sendBuffer = 256 << 10

func (g *Gate) init() {
	g.once.Do(func() {
		g.Limits = g.Limits.withDefaults()
		g.config = listening(g.TLS, true)
		if g.Guard == nil {
			g.Guard = &Guard{Now: g.Now}
		}
		g.Guard.init()
		g.census = census{limits: g.Limits, addresses: map[netip.Prefix]*address{}}
		g.conns = map[*Conn]struct{}{}
	})
}

// Serve accepts from ln until ctx ends, Close is called or ln fails for good. It
// closes ln. The error is nil after ctx or Close.
func (g *Gate) Serve(ctx context.Context, ln net.Listener) error {
	g.init()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	defer func() { _ = ln.Close() }()
	if !g.hold(ln) {
		return nil
	}
	defer g.wg.Done()
	var pause time.Duration
	for {
		raw, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
		case ctx.Err() != nil || g.isClosed():
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("couldn't accept connections: %w", err)
		default:
			pause = min(max(2*pause, 5*time.Millisecond), acceptRetryMax)
			g.Log.WarnContext(ctx, "accept failed, trying again", "error", err, "pause", pause)
			if !sleep(ctx, pause) {
				return nil
			}
			continue
		}
		g.count.accepted.Add(1)
		g.take(ctx, raw)
	}
}

// take counts a new socket and starts its goroutine, or turns it away.
func (g *Gate) take(ctx context.Context, raw net.Conn) {
	remote := remoteOf(raw)
	from, _ := countersign.SourceOf(remote.Addr())
	known, why := g.Guard.ask(remote.Addr(), g.Limits.Tries, false)
	s := &socket{Conn: raw, guard: g.Guard, from: from, known: known, wait: g.Limits.Handshake}
	c := &Conn{Conn: tls.Server(s, g.config), Remote: remote, census: &g.census, raw: s, visit: visit{from: from, known: known, abort: s.abort}}
	var evicted *visit
	if why == "" {
		evicted, why = g.census.enter(&c.visit, g.Now())
	}
	if why != "" {
		g.turnAway(from, why)
		s.abort()
		return
	}
	if evicted != nil {
		g.turnAway(evicted.from, ReasonEvicted)
		g.Guard.failed(evicted.from)
		evicted.abort()
	}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		g.census.leave(&c.visit, g.Now())
		s.abort()
		return
	}
	g.conns[c] = struct{}{}
	g.wg.Add(1)
	g.mu.Unlock()
	go g.serve(ctx, c)
}

func (g *Gate) turnAway(from netip.Prefix, why Reason) {
	g.count.turnedAway.Add(1)
	g.Guard.TurnAway(g.Name, from, why)
}

// serve has the connection admitted, then served by another goroutine.
func (g *Gate) serve(ctx context.Context, c *Conn) {
	session := g.admit(ctx, c)
	if session == nil {
		g.end(c)
		return
	}
	go func() {
		defer g.end(c)
		session()
	}()
}

// admit returns what serves the connection, or nil.
func (g *Gate) admit(ctx context.Context, c *Conn) (session func()) {
	if tcp, ok := c.raw.Conn.(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true) // Nagle with delayed acknowledgments adds 45 ms per round trip
		_ = tcp.SetWriteBuffer(sendBuffer)
		c.raw.sys = rawConn(tcp)
	}
	why, err := c.raw.handshake(ctx, g.Name, c.Conn)
	if why != "" {
		g.turnAway(c.visit.from, why)
	}
	if err != nil {
		if why != ReasonChains { // then the handshake was over
			g.count.handshakeFailed.Add(1)
		}
		return nil
	}
	c.Hello = c.raw.hello
	return g.Handle(ctx, c)
}

// end closes a connection that has been served and removes it from the counts.
func (g *Gate) end(c *Conn) {
	defer g.wg.Done()
	_ = c.raw.Close() // never tls.Conn.Close: it can wait for a stalled peer
	if g.census.leave(&c.visit, g.Now()) && !c.admitted.Load() && !g.isClosed() {
		g.Guard.failed(c.visit.from)
	}
	g.mu.Lock()
	delete(g.conns, c)
	g.mu.Unlock()
}

// Stats returns the counts of the gate.
func (g *Gate) Stats() Stats {
	g.init()
	s := Stats{
		Accepted:        g.count.accepted.Load(),
		TurnedAway:      g.count.turnedAway.Load(),
		HandshakeFailed: g.count.handshakeFailed.Load(),
	}
	s.Open, s.PreAuth = g.census.counts()
	return s
}

// Stop ends the accepting and aborts what is not yet admitted. Sessions stay open.
func (g *Gate) Stop() {
	g.init()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, ln := range g.listeners {
		_ = ln.Close()
	}
	for c := range g.conns {
		if !c.admitted.Load() {
			c.Abort()
		}
	}
}

// Close stops accepting and waits until the handlers have returned. What is
// still open when ctx ends is aborted. The caller ends its sessions first.
func (g *Gate) Close(ctx context.Context) error {
	g.Stop()
	done := make(chan struct{})
	go func() { g.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	for c := range g.conns {
		c.Abort()
	}
	g.mu.Unlock()
	<-done
	return ctx.Err()
}

func (g *Gate) isClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

// hold makes Close wait for the accept loop too; false once closed.
func (g *Gate) hold(ln net.Listener) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.listeners = append(g.listeners, ln)
	g.wg.Add(1)
	return true
}

func remoteOf(raw net.Conn) netip.AddrPort {
	if a, ok := raw.RemoteAddr().(*net.TCPAddr); ok {
		p := a.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
