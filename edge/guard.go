package edge

import (
	"cmp"
	"container/list"
	"context"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
)

// Guard is what the listeners of a node share against floods: the turns of TLS
// handshakes, the record of which addresses are known and which only fail, and the
// counts of connections that were turned away. Set the fields, then call Run.
type Guard struct {
	Now func() time.Time
	// Suspect reports an address that failed so often that its guesses are refused.
	// It may still be the NAT of devices that hold a key, so it is not shut out; its
	// tries are cut to a few. Nil: none is. A function, because failures are counted by a
	// keeper, which no door may know.
	Suspect func(netip.Addr) bool
	// Report is called once a minute, for each address, with how often it was turned
	// away. Nil: no reports. A function, because the log of events belongs to a keeper.
	Report func(TurnedAway)
	// Log receives a line about failed handshakes, see failures. nil: no lines.
	Log *slog.Logger

	once     sync.Once
	turns    turns
	chains   chains
	failures failures

	mu         sync.Mutex
	standings  map[netip.Prefix]*standing
	order      [2]list.List // of *standing, the latest last: ofKnown, once known; ofStrangers
	remembered uint64
	strangers  standing // of all together, as if they were one
	flooded    bool     // so many of them fail that each is allowed fewer
	turned     map[turnedKey]*turned
	counts     map[Count]uint64
}

// Reason is why a connection was turned away; the set is fixed.
type Reason string

// The reasons.
const (
	ReasonConnections        Reason = "connections"         // too many at once
	ReasonHandshakes         Reason = "handshakes"          // too many strangers at once
	ReasonAddressConnections Reason = "address_connections" // too many at once from its address
	ReasonAddressHandshakes  Reason = "address_handshakes"  // too many strangers at once from its address
	ReasonAddressRate        Reason = "address_rate"        // too many a second from its address
	ReasonAddressTries       Reason = "address_tries"       // too many from its address were never admitted
	ReasonSuspect            Reason = "address_suspect"     // the same, from a suspect address
	ReasonEvicted            Reason = "evicted"             // made room: its address had the most strangers
	ReasonNoTurn             Reason = "no_turn"             // its handshake waited too long
	ReasonChains             Reason = "chains"              // no room for its certificate chain, see maxChains
	ReasonRequests           Reason = "requests"            // HTTP: no room for its request; it was answered
)

// Count identifies one counter of connections that were turned away.
type Count struct {
	Listener string
	Reason   Reason
}

// TurnedAway is how many connections of an address a listener turned away.
type TurnedAway struct {
	Listener  string
	Address   netip.Prefix // zero: of Addresses more, which had fewer each
	Addresses int
	Count     int
	Reasons   map[Reason]int
	For       time.Duration // over how long
}

type turnedKey struct {
	listener string
	address  netip.Prefix
}

type turned struct {
	count   int
	reasons map[Reason]int
}

const (
	// knownFor is how long an address is known after a session was admitted from it:
	// longer than a night without power.
	knownFor = 24 * time.Hour
	// floodAfter connections of strangers, over all addresses, that were never admitted
	// are a flood, less floodForgiven a second, which cost a tenth of a core. During a
	// flood those that are refused count too: it is over when they stop.
	floodAfter    = 500
	floodForgiven = 250
	// maxStandings bounds the addresses that are kept, at about 300 bytes each.
	maxStandings = 65_536
	// reportEvery is how often Report is called.
	reportEvery = time.Minute
	// maxReported bounds the addresses in one report; the rest are summed up.
	maxReported = 32
	// maxTurned bounds the addresses that are counted separately between two reports.
	maxTurned = 4096
)

// standing is the record of an address.
type standing struct {
	debt  float64 // connections that were never admitted, less what was forgiven with time
	at    time.Time
	known time.Time // until then
	phase float64   // below 1; see forgive

	from  netip.Prefix
	of    int // which order it is in
	place *list.Element
}

// allowance is how many connections of an address may end without an admission, and
// how many of them are forgiven each second.
type allowance struct{ burst, perSecond float64 }

// allowanceOf scales with what a strange address has. A known one has five times as
// much: a whole site whose devices are refused, say because a fleet is suspended by
// mistake, must be able to go on trying. A suspect has what lets the devices behind
// its NAT in, one after the other. In a flood, a stranger who has
// come to nothing a few times is more likely one of its sources than a device.
func (g *Guard) allowanceOf(tries int, known, suspect bool) allowance {
	n := float64(tries)
	switch {
	case g.flooded && !known:
		return allowance{n / 100, n / 400}
	case suspect && known:
		return allowance{n, n / 20}
	case suspect:
		return allowance{n / 10, n / 200}
	case known:
		return allowance{5 * n, n / 4}
	}
	return allowance{n, n / 100}
}

func (g *Guard) init() {
	g.once.Do(func() {
		procs := runtime.GOMAXPROCS(0)
		g.turns.limit = procs
		// Half of the processors stay free for sessions, whatever strangers do.
		g.turns.strange = max(1, procs/2)
		g.standings = map[netip.Prefix]*standing{}
		g.turned = map[turnedKey]*turned{}
		g.counts = map[Count]uint64{}
	})
}

// ask reports whether an address may try once more, and whether it is known. spend
// takes the try at once, for listeners that learn nothing of what became of it.
func (g *Guard) ask(addr netip.Addr, tries int, spend bool) (known bool, why Reason) {
	from, ok := countersign.SourceOf(addr)
	if !ok {
		return false, ""
	}
	suspect := g.Suspect != nil && g.Suspect(addr)
	now := g.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.watch(now)
	s := g.standings[from]
	known = s != nil && now.Before(s.known)
	switch {
	case tries < 0, spend && !suspect, s == nil && !spend:
		return known, ""
	}
	a := g.allowanceOf(tries, known, suspect)
	s = g.remember(from, now)
	s.forgive(a, now)
	switch {
	case s.debt+1 <= a.burst:
		if spend {
			s.debt++
		}
		return known, ""
	case !known && g.flooded:
		g.strangers.debt++
	}
	if suspect {
		return known, ReasonSuspect
	}
	return known, ReasonAddressTries
}

// forgive reduces the debt by what the time since the last call forgives. A debt over the
// allowance counts as the allowance and phase, which differs by address: otherwise all
// sources of a flood could try again at the same moment.
func (s *standing) forgive(a allowance, now time.Time) {
	s.debt = max(0, min(s.debt, a.burst+s.phase)-now.Sub(s.at).Seconds()*a.perSecond)
	s.at = now
}

// failed counts a connection that ended without an admission. The debt is limited by
// ask, not here, because the limit depends on what the address is at that time.
func (g *Guard) failed(from netip.Prefix) {
	if !from.IsValid() {
		return
	}
	now := g.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.remember(from, now)
	s.debt++
	if !now.Before(s.known) {
		g.strangers.debt++
	}
}

// watch reports whether strangers flood the node.
func (g *Guard) watch(now time.Time) {
	g.strangers.forgive(allowance{floodAfter, floodForgiven}, now)
	switch {
	case g.strangers.debt >= floodAfter-1:
		g.flooded = true
	case g.strangers.debt < floodAfter/2:
		g.flooded = false
	}
}

// admitted records a session. An address that becomes known by it has no debt.
func (g *Guard) admitted(from netip.Prefix) {
	if !from.IsValid() {
		return
	}
	now := g.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.remember(from, now)
	if !now.Before(s.known) {
		s.debt = 0
	}
	s.known = now.Add(knownFor)
	if s.of != ofKnown {
		g.order[s.of].Remove(s.place)
		s.of, s.place = ofKnown, g.order[ofKnown].PushBack(s)
	}
}

// remember returns the record of an address and makes it the latest.
func (g *Guard) remember(from netip.Prefix, now time.Time) *standing {
	s := g.standings[from]
	if s != nil {
		g.order[s.of].MoveToBack(s.place)
		return s
	}
	if len(g.standings) >= maxStandings {
		g.forgetOne(now)
	}
	g.remembered++
	_, phase := math.Modf(float64(g.remembered) * math.Phi)
	s = &standing{at: now, phase: phase, from: from, of: ofStrangers}
	s.place = g.order[ofStrangers].PushBack(s)
	g.standings[from] = s
	return s
}

// forgetOne drops one address: one that was known and no longer is, else a stranger, else
// a known one; of each kind the one that was seen least recently. It looks at no others,
// so that a flood of addresses delays no connection.
func (g *Guard) forgetOne(now time.Time) {
	var oldest *standing
	for _, of := range []int{ofStrangers, ofKnown} {
		front := g.order[of].Front()
		if front == nil {
			continue
		}
		s, _ := front.Value.(*standing)
		if oldest == nil || !now.Before(s.known) {
			oldest = s
		}
	}
	g.order[oldest.of].Remove(oldest.place)
	delete(g.standings, oldest.from)
}

// TurnAway counts a connection that was turned away, by a listener of the guard or by one
// on top of it.
func (g *Guard) TurnAway(listener string, from netip.Prefix, why Reason) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.counts[Count{listener, why}]++
	k := turnedKey{listener, from}
	t := g.turned[k]
	if t == nil {
		if len(g.turned) >= maxTurned {
			k.address = netip.Prefix{}
			t = g.turned[k]
		}
		if t == nil {
			t = &turned{reasons: map[Reason]int{}}
			g.turned[k] = t
		}
	}
	t.count++
	t.reasons[why]++
}

// Counts returns how many connections were turned away since the start.
func (g *Guard) Counts() map[Count]uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.counts)
}

// Waiting returns how many handshakes wait for their turn.
func (g *Guard) Waiting() int { return g.turns.waiting() }

// Run calls Report once a minute until ctx ends.
func (g *Guard) Run(ctx context.Context) error {
	g.init()
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			g.report()
			return nil
		case <-tick.C:
			g.report()
		}
	}
}

// report reports the addresses that were turned away most often, and the sum of the
// rest of each listener.
func (g *Guard) report() {
	g.mu.Lock()
	seen := g.turned
	g.turned = map[turnedKey]*turned{}
	g.mu.Unlock()
	if g.Report == nil {
		return
	}
	keys := slices.SortedFunc(maps.Keys(seen), func(a, b turnedKey) int {
		return cmp.Or(cmp.Compare(seen[b].count, seen[a].count), cmp.Compare(a.listener, b.listener), a.address.Addr().Compare(b.address.Addr()))
	})
	rest := map[string]*TurnedAway{}
	named := 0
	for _, k := range keys {
		t := TurnedAway{Listener: k.listener, Address: k.address, Addresses: 1, Count: seen[k].count, Reasons: seen[k].reasons, For: reportEvery}
		if k.address.IsValid() && named < maxReported {
			named++
			g.Report(t)
			continue
		}
		sum := rest[k.listener]
		if sum == nil {
			t.Address = netip.Prefix{}
			rest[k.listener] = &t
			continue
		}
		sum.Addresses++
		sum.Count += t.Count
		for why, n := range t.Reasons {
			sum.Reasons[why] += n
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rest)) {
		g.Report(*rest[name])
	}
}

// Failures returns how many handshakes failed since the start.
func (g *Guard) Failures() map[FailureCount]uint64 {
	g.failures.mu.Lock()
	defer g.failures.mu.Unlock()
	return maps.Clone(g.failures.counts)
}
