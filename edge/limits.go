package edge

import (
	"cmp"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits bound what strangers can take of a listener. Zero means the default,
// negative means no limit.
type Limits struct {
	Connections       int           // at once, in all
	PreAuth           int           // at once, not yet admitted
	PerAddress        int           // at once, from one address
	PreAuthPerAddress int           // at once, not yet admitted, from one address
	AcceptRate        int           // new connections per second from one address
	Handshake         time.Duration // from accept to the end of the TLS handshake
}

// The defaults. An address is one IPv4 address or one IPv6 /64, which is what one
// subscriber gets.
const (
	// DefaultConnections is what the embedded engine can hold: about 100 KiB each.
	DefaultConnections = 20_000
	// DefaultPreAuth costs at most about 64 KiB each, 128 MiB in all.
	DefaultPreAuth = 2048
	// DefaultPerAddress lets a whole site live behind one NAT address.
	DefaultPerAddress = 10_000
	// DefaultPreAuthPerAddress leaves three quarters of PreAuth to others.
	DefaultPreAuthPerAddress = 512
	// DefaultAcceptRate is about what one core can greet: a handshake costs near 1 ms.
	DefaultAcceptRate = 1000
	// DefaultHandshake is generous for a device on a slow radio link.
	DefaultHandshake = 5 * time.Second
)

func (l Limits) withDefaults() Limits {
	l.Connections = cmp.Or(l.Connections, DefaultConnections)
	l.PreAuth = cmp.Or(l.PreAuth, DefaultPreAuth)
	l.PerAddress = cmp.Or(l.PerAddress, DefaultPerAddress)
	l.PreAuthPerAddress = cmp.Or(l.PreAuthPerAddress, DefaultPreAuthPerAddress)
	l.AcceptRate = cmp.Or(l.AcceptRate, DefaultAcceptRate)
	l.Handshake = cmp.Or(l.Handshake, DefaultHandshake)
	return l
}

// maxAddresses bounds the table of addresses that are remembered for their rate
// only. At 100 bytes each it stays under 8 MiB.
const maxAddresses = 65_536

// census counts the connections of a listener, in all and by address.
type census struct {
	limits Limits

	mu        sync.Mutex
	total     int
	preAuth   int
	addresses map[netip.Prefix]*address
}

type address struct {
	total   int
	preAuth int
	rate    *rate.Limiter // nil without an accept rate
}

// addressOf is the unit that the limits count: one IPv4 address, one IPv6 /64.
func addressOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil { // the zero Addr: one bucket for what has no address
		return netip.Prefix{}
	}
	return p
}

// over tells whether n more than the limit allows.
func over(n, limit int) bool { return limit >= 0 && n >= limit }

// enter counts a new connection and tells whether it may stay.
func (c *census) enter(from netip.Prefix, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if over(c.total, c.limits.Connections) || over(c.preAuth, c.limits.PreAuth) {
		return false
	}
	a := c.addresses[from]
	if a == nil {
		if len(c.addresses) >= maxAddresses && !c.sweep() {
			return false
		}
		a = &address{}
		if r := c.limits.AcceptRate; r > 0 {
			a.rate = rate.NewLimiter(rate.Limit(r), 2*r)
		}
		c.addresses[from] = a
	}
	if over(a.total, c.limits.PerAddress) || over(a.preAuth, c.limits.PreAuthPerAddress) {
		return false
	}
	if a.rate != nil && !a.rate.AllowN(now, 1) {
		return false
	}
	c.total++
	c.preAuth++
	a.total++
	a.preAuth++
	return true
}

// admit moves a connection from the strangers to the guests.
func (c *census) admit(from netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.preAuth--
	c.addresses[from].preAuth--
}

// leave counts a connection out. An address without connections is remembered
// only while its accept rate is not yet at rest.
func (c *census) leave(from netip.Prefix, admitted bool, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.addresses[from]
	c.total--
	a.total--
	if !admitted {
		c.preAuth--
		a.preAuth--
	}
	if a.total == 0 && (a.rate == nil || a.rate.TokensAt(now) >= float64(a.rate.Burst())) {
		delete(c.addresses, from)
	}
}

// sweep forgets the addresses without connections and tells whether that made room.
func (c *census) sweep() bool {
	for k, a := range c.addresses {
		if a.total == 0 {
			delete(c.addresses, k)
		}
	}
	return len(c.addresses) < maxAddresses
}

func (c *census) counts() (total, preAuth int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total, c.preAuth
}
