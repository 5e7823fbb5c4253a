package countersign

import (
	"net/netip"
	"slices"
	"strings"
)

// ParseNetwork reads a network as people write it, 203.0.113.0/24 or one address,
// and returns it in its one form: without the bits of a host, IPv4 as IPv4. It
// refuses with BadRequest.
func ParseNetwork(s string) (netip.Prefix, error) {
	bad := Errorf(BadRequest, "%.60q is no network", s).WithNext("write an address, or a network such as 203.0.113.0/24")
	if strings.ContainsRune(s, '%') {
		return netip.Prefix{}, bad // a zone is a name for this host's own links
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, bad
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() && p.Bits() < mappedBits {
		return netip.Prefix{}, bad
	}
	return normal(p), nil
}

// mappedBits is the length of the prefix of IPv4-mapped addresses, ::ffff:0:0/96
// (RFC 4291, 2.5.5.2).
const mappedBits = 96

// normal returns the form of a network in which Contains compares it: without host
// bits, IPv4-mapped ones as IPv4.
func normal(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= mappedBits {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mappedBits)
	}
	return p.Masked()
}

// NormalNetworks returns the networks in the form that ParseNetwork returns. It is
// for networks that were read from JSON or from a database, where an IPv4-mapped
// one would contain no address at all.
func NormalNetworks(list []netip.Prefix) []netip.Prefix {
	out := slices.Clone(list)
	for i, p := range out {
		out[i] = normal(p)
	}
	return out
}

// wellKnown is the prefix under which a translator shows IPv4 clients to an IPv6
// server (RFC 6052, 2.1): all of IPv4 within one /64.
var wellKnown = netip.MustParsePrefix("64:ff9b::/96")

// sourceBits is the length of the network that one IPv6 customer commonly has
// (RFC 6177).
const sourceBits = 64

// SourceOf returns the network that counts as one client wherever failures,
// refusals or sessions are counted by address: an IPv4 address alone, IPv6 by its
// /64. It reports false where there is no address.
func SourceOf(a netip.Addr) (netip.Prefix, bool) {
	if !a.IsValid() {
		return netip.Prefix{}, false
	}
	a = a.WithZone("")
	return SourceNetwork(netip.PrefixFrom(a, a.BitLen())), true
}

// SourceNetwork returns the network that contains the sources, see SourceOf, of the
// addresses in p: IPv4 that was mapped or translated as IPv4, and IPv6 no narrower
// than a /64.
func SourceNetwork(p netip.Prefix) netip.Prefix {
	p = normal(p)
	a := p.Addr()
	if p.Bits() >= wellKnown.Bits() && wellKnown.Contains(a) {
		b := a.As16()
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(b[12:])), p.Bits()-wellKnown.Bits())
	}
	if a.Is6() && p.Bits() > sourceBits {
		p = netip.PrefixFrom(a, sourceBits)
	}
	return p.Masked()
}
