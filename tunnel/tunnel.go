// Package tunnel puts the edge in front of any TCP service: it terminates TLS, admits
// devices with a valid certificate, passes their identity to the service (PROXY
// protocol, version 2), and copies bytes until one side closes or the device is cut.
package tunnel

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
)

// Server is one tunnel. Set the fields, call Serve, then Close once.
type Server struct {
	Gatekeeper countersign.Gatekeeper
	Index      *edge.Index
	TLS        *tls.Config // see edge.TLSConfig
	Name       string      // of the tunnel, in sessions and events; empty: tunnel
	To         string      // host:port of the service
	Plain      bool        // send no PROXY header: the service gets the device's bytes and nothing else
	Fleets     []string    // that are admitted; empty: all
	Caps       edge.Limits
	Guard      *edge.Guard // shared with the other listeners of the node; nil: one of its own
	Log        *slog.Logger
	Now        func() time.Time

	once  sync.Once
	gate  edge.Gate
	count counters
}

type counters struct {
	refused, opened, unreachable, up, down atomic.Uint64
}

// Stats are the counts of a tunnel since it was made.
type Stats struct {
	edge.Stats
	Refused     uint64 // by the Gatekeeper or the tunnel
	Opened      uint64 // sessions
	Unreachable uint64 // sessions that ended at once because the service did not answer
	Up, Down    uint64 // octets from devices, to devices
}

const (
	// dialTimeout bounds the wait for a service, which is expected to be near.
	dialTimeout = 5 * time.Second
	// writeTimeout is how long either side may read nothing of what is sent to it.
	writeTimeout = 30 * time.Second
	// halfOpen is how long one side may be silent once the other has ended.
	halfOpen = 5 * time.Minute
	// bufferSize is one TLS record.
	bufferSize = 16 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

func (s *Server) init() {
	s.once.Do(func() {
		s.Name = cmp.Or(s.Name, "tunnel")
		s.gate.Name, s.gate.Guard = s.Name, s.Guard
		s.gate.TLS, s.gate.Limits, s.gate.Log, s.gate.Now = s.TLS, s.Caps, s.Log, s.Now
		s.gate.Handle = s.handle
	})
}

// Serve accepts connections from ln, a plain TCP listener, until ctx ends or
// Close is called. It closes ln. The error is nil after ctx or Close.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.init()
	return s.gate.Serve(ctx, ln)
}

// Close stops accepting, ends all sessions of this tunnel and waits for them. What
// is left when ctx ends is aborted.
func (s *Server) Close(ctx context.Context) error {
	s.init()
	s.gate.Stop()
	s.Index.CloseGateway(s.Name)
	return s.gate.Close(ctx)
}

// Stats returns the counts of the tunnel.
func (s *Server) Stats() Stats {
	s.init()
	c := &s.count
	return Stats{
		Stats: s.gate.Stats(), Refused: c.refused.Load(), Opened: c.opened.Load(),
		Unreachable: c.unreachable.Load(), Up: c.up.Load(), Down: c.down.Load(),
	}
}

// handle admits one connection that completed the TLS handshake. A refusal only
// closes it, because the protocol of the service is unknown. The reason is in the
// log.
func (s *Server) handle(ctx context.Context, c *edge.Conn) func() {
	live := s.Index.Register(c, func(countersign.Ending) bool { return false })
	info, ok := s.admit(ctx, c, live)
	if !ok {
		live.Remove()
		s.count.refused.Add(1)
		return nil
	}
	return func() {
		defer live.Remove()
		s.Gatekeeper.Opened(info)
		s.count.opened.Add(1)
		end := s.serve(ctx, c, live, info)
		if e, ended := live.Ended(); ended {
			end = e
		}
		s.Gatekeeper.Closed(info, end)
	}
}

func (s *Server) admit(ctx context.Context, c *edge.Conn, live *edge.Live) (countersign.Session, bool) {
	const protocol = "TLS"
	v := s.Gatekeeper.Admit(ctx, countersign.Connection{Gateway: s.Name, Remote: c.Remote, Protocol: protocol, Peer: c.Peer(), Hello: c.Hello})
	if !v.Allow {
		return countersign.Session{}, false
	}
	info := countersign.Session{
		ID: strings.ToLower(rand.Text()), Device: v.Device, Fleet: v.Fleet, Cert: v.Cert, Credential: v.Credential,
		Gateway: s.Name, Protocol: protocol, Hello: c.Hello, Remote: c.Remote, Since: s.Now(), NotAfter: v.NotAfter,
	}
	// A client without a certificate is a guest at best, and guests are not admitted here.
	if v.Cert.IsZero() || len(s.Fleets) > 0 && !slices.Contains(s.Fleets, v.Fleet) {
		s.Gatekeeper.Judged(info, countersign.Act{Action: "connect", Topic: s.Name})
		return info, false
	}
	budget := v.Budget.WithDefaults()
	e := live.Admit(info, budget.Sessions)
	if e != nil && e.Code == countersign.OverBudget {
		s.Gatekeeper.Exceeded(info, countersign.BudgetSessions, int64(budget.Sessions))
	}
	return info, e == nil
}

// serve copies bytes both ways and returns how it ended.
func (s *Server) serve(ctx context.Context, c *edge.Conn, live *edge.Live, info countersign.Session) countersign.Ending {
	service, err := s.dial(ctx, c, info)
	if err != nil {
		s.count.unreachable.Add(1)
		s.Log.WarnContext(ctx, "service of a tunnel not reached", "tunnel", s.Name, "device", info.Device, "error", err)
		return countersign.Ending{Code: countersign.EndEngine, Reason: "service not reached"}
	}
	defer func() { _ = service.Close() }()
	// The cut closes the device's socket; the one to the service is closed here.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-live.Done():
			_ = service.Close()
		case <-stop:
		}
	}()
	var half atomic.Bool
	down := make(chan countersign.Ending, 1)
	go func() {
		how, good := s.move(stream{to: c, from: service, back: c, live: live, half: &half, count: &s.count.down}, countersign.Ending{Code: countersign.EndEngine, Reason: "service left"})
		if !good {
			c.Abort() // what the device sends is discarded
		}
		down <- how
	}()
	up, good := s.move(stream{to: service, from: c, back: service, live: live, half: &half, count: &s.count.up}, countersign.Ending{Code: countersign.EndClientLeft, Reason: "client left"})
	if !good {
		c.Abort()
		_ = service.Close()
	}
	if other := <-down; good {
		return other // the later one, or the error
	}
	return up
}

// dial connects to the service and sends it the header.
func (s *Server) dial(ctx context.Context, c *edge.Conn, info countersign.Session) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", s.To)
	if err != nil {
		return nil, err
	}
	service := conn.(*net.TCPConn) //nolint:forcetypeassert // dialed as tcp
	if s.Plain {
		return service, nil
	}
	h, err := header(c, info)
	if err == nil {
		_ = service.SetWriteDeadline(s.Now().Add(writeTimeout))
		_, err = service.Write(h)
	}
	if err != nil {
		return nil, errors.Join(err, service.Close())
	}
	return service, nil
}

// stream is one direction.
type stream struct {
	to interface {
		net.Conn
		CloseWrite() error
	}
	from  net.Conn
	back  net.Conn // what the other direction reads
	live  *edge.Live
	half  *atomic.Bool // the other direction has ended
	count *atomic.Uint64
}

// move copies until the sender ends, and passes that end on. Nothing is written
// once the session has ended: the deadline is set before that is checked, as edge.Live
// requires.
func (s *Server) move(x stream, end countersign.Ending) (how countersign.Ending, good bool) {
	lost := func(why string) (countersign.Ending, bool) {
		return countersign.Ending{Code: countersign.EndLost, Reason: why}, false
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		if x.half.Load() {
			_ = x.from.SetReadDeadline(s.Now().Add(halfOpen))
		}
		n, err := x.from.Read(*buf)
		if n > 0 {
			_ = x.to.SetWriteDeadline(s.Now().Add(writeTimeout))
			if _, ended := x.live.Ended(); ended {
				return lost("ended")
			}
			if _, err := x.to.Write((*buf)[:n]); errors.Is(err, os.ErrDeadlineExceeded) {
				return lost("a side takes no data")
			} else if err != nil {
				return lost("network error")
			}
			x.count.Add(uint64(n))
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			_ = x.to.CloseWrite()
			x.half.Store(true)
			_ = x.back.SetReadDeadline(s.Now().Add(halfOpen)) // it may be waiting already
			return end, true
		case errors.Is(err, os.ErrDeadlineExceeded):
			return lost("one side left, the other is silent")
		default:
			return lost("network error")
		}
	}
}
