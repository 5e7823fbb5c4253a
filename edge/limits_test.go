package edge

import (
	"net/netip"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
)

func addressOf(a netip.Addr) netip.Prefix {
	from, _ := countersign.SourceOf(a)
	return from
}

// TestAGuardCountsBySource: all of IPv4 is in one /64 behind a translator, so one
// client that fails there must not use up the tries of the others.
func TestAGuardCountsBySource(t *testing.T) {
	now := time.Unix(1, 0)
	for _, tt := range []struct {
		failing, other string
		same           bool
	}{
		{"192.0.2.7", "192.0.2.8", false},
		{"192.0.2.7", "::ffff:192.0.2.7", true},
		{"192.0.2.7", "64:ff9b::192.0.2.7", true},
		{"64:ff9b::192.0.2.7", "64:ff9b::192.0.2.8", false},
		{"2001:db8::1", "2001:db8::2", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%eth0", "fe80::1%eth1", true},
	} {
		g := &Guard{Now: func() time.Time { return now }, Suspect: func(netip.Addr) bool { return true }}
		g.init()
		for range 3 {
			g.ask(netip.MustParseAddr(tt.failing), 30, true) // a suspect has a tenth
		}
		if _, why := g.ask(netip.MustParseAddr(tt.other), 30, true); (why != "") != tt.same {
			t.Errorf("%s, after the tries of %s: got %q, want refused %t", tt.other, tt.failing, why, tt.same)
		}
	}
}

func newCensus(l Limits) *census {
	return &census{limits: l.withDefaults(), addresses: map[netip.Prefix]*address{}}
}

// numbered returns a different address for each number.
func numbered(i int) netip.Prefix {
	return addressOf(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
}

func TestTheCensusForgetsAddressesAtRest(t *testing.T) {
	c := newCensus(Limits{AcceptRate: 10})
	now := time.Unix(1, 0)
	for i := range 2 * maxAddresses {
		v := &visit{from: numbered(i)}
		if _, why := c.enter(v, now); why != "" {
			t.Fatalf("address %d was turned away: %s", i, why)
		}
		if i%2 == 0 {
			c.admit(v)
		}
		c.leave(v, now)
	}
	if n := len(c.addresses); n > maxAddresses {
		t.Errorf("addresses remembered: got %d, more than %d", n, maxAddresses)
	}
	if total, preAuth := c.counts(); total != 0 || preAuth != 0 {
		t.Errorf("counts: got %d and %d, want 0", total, preAuth)
	}
	v := &visit{from: addressOf(netip.MustParseAddr("192.0.2.1"))}
	c.enter(v, now)
	c.leave(v, now.Add(time.Minute))
	if _, ok := c.addresses[v.from]; ok {
		t.Error("an address at rest is still remembered")
	}
}

func TestAFullHouseMakesRoomAtTheGreediestAddress(t *testing.T) {
	c := newCensus(Limits{PreAuth: 6, PreAuthPerAddress: 5})
	now := time.Unix(1, 0)
	var greedy []*visit
	for range 5 {
		v := &visit{from: numbered(1)}
		if _, why := c.enter(v, now); why != "" {
			t.Fatal(why)
		}
		greedy = append(greedy, v)
	}
	c.enter(&visit{from: numbered(2)}, now)
	if _, why := c.enter(&visit{from: numbered(1)}, now); why != ReasonAddressHandshakes {
		t.Errorf("a sixth of the greedy address: got %q", why)
	}
	got, why := c.enter(&visit{from: numbered(3)}, now)
	if why != "" || got != greedy[0] {
		t.Errorf("a first of another address: got %q, evicted the oldest: %t", why, got == greedy[0])
	}
	if c.leave(greedy[0], now) || c.admit(greedy[0]) {
		t.Error("the evicted one was counted again")
	}
	c.admit(greedy[1]) // an admitted connection is never evicted
	c.enter(&visit{from: numbered(4)}, now)
	if got, _ := c.enter(&visit{from: numbered(5)}, now); got != greedy[2] {
		t.Error("the oldest stranger of the greedy address stayed")
	}
	if total, preAuth := c.counts(); total != 7 || preAuth != 6 {
		t.Errorf("counts: got %d and %d, want 7 and 6", total, preAuth)
	}
}

func TestStrangersTakeNoPlaceOfKnownAddresses(t *testing.T) {
	c := newCensus(Limits{PreAuth: 4})
	now := time.Unix(1, 0)
	stranger := &visit{from: numbered(1)}
	c.enter(stranger, now)
	for range 3 { // a known site, all at once
		c.enter(&visit{from: numbered(2), known: true}, now)
	}
	if got, why := c.enter(&visit{from: numbered(1)}, now); got != nil || why != ReasonHandshakes {
		t.Errorf("a second stranger: got %v, %q", got, why)
	}
	if got, why := c.enter(&visit{from: numbered(2), known: true}, now); got != stranger || why != "" {
		t.Errorf("one more of the known site: got %v, %q", got, why)
	}
	if got, why := c.enter(&visit{from: numbered(2), known: true}, now); got != nil || why != ReasonHandshakes {
		t.Errorf("one more, of nothing but itself: got %v, %q", got, why)
	}
	if got, why := c.enter(&visit{from: numbered(4), known: true}, now); got == nil || why != "" {
		t.Errorf("another known address: got %v, %q", got, why)
	}
}

func TestTheRankingFindsTheMost(t *testing.T) {
	c := newCensus(Limits{PreAuth: -1, PreAuthPerAddress: -1, Connections: -1, AcceptRate: -1})
	now := time.Unix(1, 0)
	var in []*visit
	state := uint32(7)
	random := func(n int) int { // repeatable
		state = state*1664525 + 1013904223
		return int(state>>8) % n
	}
	for range 20_000 {
		switch random(3) {
		case 0, 1:
			v := &visit{from: numbered(random(50)), known: random(9) == 0}
			c.enter(v, now)
			in = append(in, v)
		default:
			if len(in) == 0 {
				continue
			}
			i := random(len(in))
			if random(2) == 0 {
				c.admit(in[i])
			}
			c.leave(in[i], now)
			in = append(in[:i], in[i+1:]...)
		}
		for of := range c.ranks {
			want := 0
			for _, a := range c.addresses {
				if a.of == of {
					want = max(want, a.pending.Len())
				}
			}
			got := 0
			if a := c.ranks[of].most(); a != nil {
				got = a.pending.Len()
			}
			if got != want {
				t.Fatalf("most pending in rank %d: got %d, want %d", of, got, want)
			}
		}
	}
}

// TestChainsOfAllConnectionsAreBounded fills what chains may take, of one address and
// of many. Those of known addresses have a share that strangers cannot take.
func TestChainsOfAllConnectionsAreBounded(t *testing.T) {
	var c chains
	fill := func(from func(i int) netip.Prefix, known bool) (total int) {
		for i := 0; c.take(from(i), known, MaxChain); i++ {
			if total += MaxChain; total > 2*maxChains {
				t.Fatalf("more than %d octets were taken", total)
			}
		}
		return total
	}
	one := func(int) netip.Prefix { return numbered(1) }
	if got := fill(one, false); got != maxChainsPerAddress {
		t.Errorf("one address took %d octets, want %d", got, maxChainsPerAddress)
	}
	many := func(i int) netip.Prefix { return numbered(i + 2) }
	if got := fill(many, false); got != maxChains-maxChainsPerAddress {
		t.Errorf("the other strangers took %d octets, want %d", got, maxChains-maxChainsPerAddress)
	}
	if got := fill(func(i int) netip.Prefix { return numbered(1<<16 + i) }, true); got != maxChains {
		t.Errorf("known addresses took %d octets, want %d", got, maxChains)
	}
	c.release(numbered(1), false, MaxChain)
	if !c.take(numbered(1), false, MaxChain) || c.take(numbered(1), false, MaxChain) {
		t.Error("what was released is not there again, or more than that")
	}
}

// TestAFullCensusForgetsOneAddress: a flood of addresses costs each connection the work of
// one entry, and the address that was here last is kept.
func TestAFullCensusForgetsOneAddress(t *testing.T) {
	c := newCensus(Limits{AcceptRate: 10})
	now := time.Unix(1, 0)
	for i := range maxAddresses + 5 {
		v := &visit{from: numbered(i)}
		if _, why := c.enter(v, now); why != "" {
			t.Fatalf("address %d was turned away: %s", i, why)
		}
		c.leave(v, now)
		if want := min(i+1, maxAddresses); len(c.addresses) != want || c.idle.Len() != want {
			t.Fatalf("after %d addresses: got %d remembered and %d idle, want %d", i+1, len(c.addresses), c.idle.Len(), want)
		}
	}
	for i, want := range map[int]bool{4: false, 5: true, maxAddresses + 4: true} {
		if _, ok := c.addresses[numbered(i)]; ok != want {
			t.Errorf("address %d is remembered: %t, want %t", i, ok, want)
		}
	}
}

func TestAFullGuardForgetsOneAddress(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	g := newGuard(&now)
	formerly := addressOf(netip.MustParseAddr("192.0.2.1"))
	g.admitted(formerly)
	now = now.Add(knownFor)
	known := addressOf(netip.MustParseAddr("192.0.2.2"))
	g.admitted(known)
	for i := range maxStandings - 2 {
		g.failed(numbered(i))
	}
	g.failed(numbered(0)) // seen again
	for i, forgotten := range []netip.Prefix{formerly, numbered(1), numbered(2)} {
		if _, ok := g.standings[forgotten]; !ok {
			t.Errorf("%s is forgotten too early", forgotten)
		}
		g.failed(numbered(maxStandings + i))
		if _, ok := g.standings[forgotten]; ok || len(g.standings) != maxStandings {
			t.Errorf("a new address made the guard forget %d others, %s not among them: %t", maxStandings-len(g.standings), forgotten, ok)
		}
	}
	for _, kept := range []netip.Prefix{known, numbered(0), numbered(3)} {
		if _, ok := g.standings[kept]; !ok {
			t.Errorf("%s is forgotten", kept)
		}
	}
}
