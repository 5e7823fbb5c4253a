package edge

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"sync"
)

const (
	// MaxChain bounds the certificates that a client presents, in octets of DER. A
	// leaf below two authorities with RSA keys has 5 KiB. crypto/tls would take 256
	// KiB and keep ten times as much, parsed, for the life of the connection.
	MaxChain = 16 << 10
	// MaxChainLength bounds their number. RFC 5280 names no maximum; a path has three
	// or four certificates.
	MaxChainLength = 10
	// maxGreeting bounds what is read of a client before its handshake is over: the
	// chain, and two ClientHellos, CertificateVerify and Finished, which have less
	// than 8 KiB. It is what bounds the chain before it is parsed.
	maxGreeting = MaxChain + 16<<10
	// maxChains bounds the chains of all connections that are not admitted, over all
	// listeners of the node, once for known addresses and once for strangers: 4,096
	// of an ordinary size each. Parsed they take up to ten times as much.
	maxChains = 16 << 20
	// maxChainsPerAddress leaves three quarters of it to others.
	maxChainsPerAddress = maxChains / 4
)

// errGreeting ends a handshake whose client sends more than any handshake needs.
var errGreeting = fmt.Errorf("more than %d octets before the end of the handshake", maxGreeting)

// errChain ends a handshake with a chain that is over a bound.
var errChain = errors.New("the client's certificate chain is over a bound")

// checkChain is for tls.Config.VerifyConnection: it checks the client's chain against
// MaxChain and MaxChainLength and nothing else.
func checkChain(state tls.ConnectionState) error {
	if n := len(state.PeerCertificates); n > MaxChainLength {
		return fmt.Errorf("%w: %d certificates, more than %d", errChain, n, MaxChainLength)
	}
	if n := octets(state.PeerCertificates); n > MaxChain {
		return fmt.Errorf("%w: %d octets, more than %d", errChain, n, MaxChain)
	}
	return nil
}

// octets returns the size of a chain in DER.
func octets(chain []*x509.Certificate) int {
	total := 0
	for _, cert := range chain {
		total += len(cert.Raw)
	}
	return total
}

// chains counts the octets of the chains of connections that are not admitted.
type chains struct {
	mu    sync.Mutex
	total [2]int // of known addresses, of strange ones
	by    map[netip.Prefix]int
}

// take counts a chain and reports whether there is room for it.
func (c *chains) take(from netip.Prefix, known bool, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := rankOf(known)
	if c.total[of]+n > maxChains || c.by[from]+n > maxChainsPerAddress {
		return false
	}
	if c.by == nil {
		c.by = map[netip.Prefix]int{}
	}
	c.total[of] += n
	c.by[from] += n
	return true
}

func (c *chains) release(from netip.Prefix, known bool, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total[rankOf(known)] -= n
	if c.by[from] -= n; c.by[from] <= 0 {
		delete(c.by, from)
	}
}
