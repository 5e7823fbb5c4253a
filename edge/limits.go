package edge

import (
	"cmp"
	"time"
)

// Limits bound what clients that are not admitted can use of a listener. Zero means
// the default, negative means no limit.
type Limits struct {
	Connections       int           // at once, in all
	PreAuth           int           // at once, not yet admitted
	PerAddress        int           // at once, from one address
	PreAuthPerAddress int           // at once, not yet admitted, from one address
	AcceptRate        int           // new connections per second from one address
	Tries             int           // connections of one address that may end without an admission, see DefaultTries
	Handshake         time.Duration // from accept to the end of the TLS handshake
}

// The defaults. An address is what countersign.SourceOf returns; clients without one
// share the zero Prefix.
const (
	// DefaultConnections is what a machine with 2 GB of memory holds, with a session on
	// the broker core behind each.
	DefaultConnections = 20_000
	// DefaultPreAuth costs at most about 64 KiB each, 128 MiB in all.
	DefaultPreAuth = 2048
	// DefaultPerAddress allows a whole site behind one NAT address.
	DefaultPerAddress = 10_000
	// DefaultPreAuthPerAddress leaves three quarters of PreAuth to others, and brings
	// 5,000 devices behind one address back within seconds: each is a stranger for
	// some 10 ms of work, and what is turned away tries again.
	DefaultPreAuthPerAddress = 512
	// DefaultAcceptRate is about what one core can greet: a handshake costs near 1 ms.
	DefaultAcceptRate = 1000
	// DefaultTries is how many connections of an address may end before they are
	// admitted; a hundredth of it is forgiven each second. Beyond it a connection is
	// refused before anything is computed. An address that had a session
	// within 24 hours has 1,000 and 50 a second, one whose guesses are refused 20 and
	// one a second, or 200 and 10 if it had a session. A connection that is
	// admitted costs none, so a site that comes back after a power cut is not held up.
	DefaultTries = 200
	// DefaultHandshake is three round trips of 6 s, as NB-IoT has them, and half as
	// much for what is lost. A client that sends slowly uses one place of PreAuth meanwhile
	// and no more, and loses it first.
	DefaultHandshake = 30 * time.Second
)

func (l Limits) withDefaults() Limits {
	l.Connections = cmp.Or(l.Connections, DefaultConnections)
	l.PreAuth = cmp.Or(l.PreAuth, DefaultPreAuth)
	l.PerAddress = cmp.Or(l.PerAddress, DefaultPerAddress)
	l.PreAuthPerAddress = cmp.Or(l.PreAuthPerAddress, DefaultPreAuthPerAddress)
	l.AcceptRate = cmp.Or(l.AcceptRate, DefaultAcceptRate)
	l.Tries = cmp.Or(l.Tries, DefaultTries)
	l.Handshake = cmp.Or(l.Handshake, DefaultHandshake)
	return l
}

// over reports whether n is more than the limit allows.
func over(n, limit int) bool { return limit >= 0 && n >= limit }
