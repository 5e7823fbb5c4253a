package edge

import (
	"crypto/tls"
	"net"
	"net/netip"
)

// Listener accepts connections for net/http under the same limits as a gate. It
// never learns what became of one, so all of them count as strangers and none costs its address
// a try, unless the address is suspect.
type Listener struct {
	net.Listener
	name   string
	guard  *Guard
	census census
}

// Listen puts a listener under the guard. Of the limits, those of strangers and the
// accept rate count.
func (g *Guard) Listen(name string, ln net.Listener, limits Limits) *Listener {
	g.init()
	limits = limits.withDefaults()
	limits.Connections, limits.PerAddress = -1, -1
	return &Listener{Listener: ln, name: name, guard: g, census: census{limits: limits, addresses: map[netip.Prefix]*address{}}}
}

// TLS ends TLS on what the listener accepts, each handshake in its turn.
func (l *Listener) TLS(c *tls.Config) net.Listener { return tls.NewListener(l, listening(c)) }

// Accept gives the next connection that may stay. The others are reset.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		remote := remoteOf(raw).Addr()
		from := addressOf(remote)
		known, why := l.guard.ask(remote, l.census.limits.Tries, true)
		s := &socket{Conn: raw, guard: l.guard, from: from, known: known, wait: l.census.limits.Handshake}
		v := &visit{from: from, known: known, abort: s.abort}
		var evicted *visit
		if why == "" {
			evicted, why = l.census.enter(v, l.guard.Now())
		}
		if why != "" {
			l.guard.turnAway(l.name, from, why)
			s.abort()
			continue
		}
		if evicted != nil {
			l.guard.turnAway(l.name, evicted.from, ReasonEvicted)
			evicted.abort()
		}
		s.left = func() { l.census.leave(v, l.guard.Now()) }
		return s, nil
	}
}
