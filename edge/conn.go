package edge

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
	"unique"
)

// Peer returns the chain that the client presented, leaf first; empty if it
// presented none. Once the connection is admitted only the octets are kept, and
// each call parses them.
func (c *Conn) Peer() []*x509.Certificate {
	if c.chain == nil {
		return slices.Clone(c.ConnectionState().PeerCertificates)
	}
	all := make([]*x509.Certificate, len(c.chain))
	for i, one := range c.chain {
		cert, err := x509.ParseCertificate([]byte(one.Value()))
		if err != nil { // it was parsed before
			return nil
		}
		all[i] = cert
	}
	return all
}

// HasPeer reports whether the client presented a certificate.
func (c *Conn) HasPeer() bool { return len(c.ConnectionState().PeerCertificates) > 0 }

// leaner releases the parsed chain: it has ten times the size of its octets, for the
// life of a session that needs it once. crypto/tls returns the slice that it keeps. The
// octets of an authority's certificate are kept once for all connections.
func (c *Conn) leaner() {
	kept := c.ConnectionState().PeerCertificates
	for i, cert := range kept {
		c.chain = append(c.chain, unique.Make(string(cert.Raw)))
		kept[i] = nil
	}
}

// Conn is one connection after the TLS handshake. Writes that must not outlive
// a cut set their deadline on it and look at Live.Ended before they write.
type Conn struct {
	*tls.Conn
	Remote netip.AddrPort
	Hello  string // see Fingerprint

	census   *census
	raw      *socket
	visit    visit
	admitted atomic.Bool
	chain    []unique.Handle[string] // DER, see leaner; nil before
}

// Admitted removes the connection from the caps for strangers and keeps only the octets
// of the client's chain. The goroutine that serves the connection calls it.
func (c *Conn) Admitted() {
	if c.admitted.Swap(true) || !c.census.admit(&c.visit) {
		return
	}
	c.raw.guard.admitted(c.visit.from)
	c.leaner()
	c.raw.forgetChain()
}

// Abort closes the socket at once and drops what is still to be sent. It waits
// for nothing.
func (c *Conn) Abort() { c.raw.abort() }

// hangUp closes the socket at once; the kernel still sends what was written.
func (c *Conn) hangUp() { _ = c.raw.Close() }

// SetWriteDeadline reaches the socket itself; it waits for no writer.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.raw.SetWriteDeadline(t) }

// Room returns how many octets can be written now without waiting for the peer; 0 where
// that is not known. It makes a system call.
func (c *Conn) Room() int {
	if c.raw.sys == nil {
		return 0
	}
	waiting, ok := unsent(c.raw.sys)
	if !ok {
		return 0
	}
	return max(sendBuffer/2-waiting, 0)
}
