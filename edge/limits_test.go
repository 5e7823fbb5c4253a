package edge

import (
	"net/netip"
	"testing"
	"time"
)

func TestAnAddressIsAnIPv6Network(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7/32", "::ffff:192.0.2.7": "192.0.2.7/32",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := addressOf(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("addressOf(%s): got %s, want %s", in, got, want)
		}
	}
}

func TestTheCensusForgetsAddressesAtRest(t *testing.T) {
	c := census{limits: Limits{AcceptRate: 10}.withDefaults(), addresses: map[netip.Prefix]*address{}}
	now := time.Unix(1, 0)
	for i := range 2 * maxAddresses {
		p := addressOf(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		if !c.enter(p, now) {
			t.Fatalf("address %d was turned away", i)
		}
		c.leave(p, i%2 == 0 && admitted(&c, p), now)
	}
	if n := len(c.addresses); n > maxAddresses {
		t.Errorf("addresses remembered: got %d, more than %d", n, maxAddresses)
	}
	if total, preAuth := c.counts(); total != 0 || preAuth != 0 {
		t.Errorf("counts: got %d and %d, want 0", total, preAuth)
	}
	p := addressOf(netip.MustParseAddr("192.0.2.1"))
	c.enter(p, now)
	c.leave(p, false, now.Add(time.Minute))
	if _, ok := c.addresses[p]; ok {
		t.Error("an address at rest is still remembered")
	}
}

func admitted(c *census, p netip.Prefix) bool {
	c.admit(p)
	return true
}
