package countersign

import (
	"net/netip"
	"strings"
)

// ParseNetwork reads a network as people write it, 203.0.113.0/24 or one address,
// and gives it in its one form: without the bits of a host, IPv4 as IPv4. It
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
	if p.Addr().Is4In6() {
		if p.Bits() < mappedBits {
			return netip.Prefix{}, bad
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mappedBits)
	}
	return p.Masked(), nil
}

// mappedBits is what stands before an IPv4 address in ::ffff:0:0/96.
const mappedBits = 96
