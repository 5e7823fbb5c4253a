package access

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// guestPrefix begins the name of a guest. No device can be called so.
	guestPrefix = "guest/"
	// guestTime is the longest session of a guest, who has to come again then and
	// meets the fleet's rules of that time.
	guestTime = time.Hour
	// maxGuests bounds the guests of one fleet on one node: they cost a stranger that sends
	// them nothing.
	maxGuests = 1000
	// maxGuestsPerAddress leaves three quarters of the places to other addresses; an
	// address is what countersign.SourceOf returns.
	maxGuestsPerAddress = maxGuests / 4
	// guestArrival is how long a guest who was let in may take to open its session.
	guestArrival = 30 * time.Second
)

// guests counts those who are here.
type guests struct {
	mu sync.Mutex
	by map[string]*party // by fleet
}

// party are the guests of one fleet.
type party struct {
	guests map[string]guest // by name
	from   map[netip.Prefix]int
}

type guest struct {
	until time.Time // when it is gone for sure
	from  netip.Prefix
}

// take reserves a place for a guest and reports whether there was one, for the fleet and for
// its address. An address that a broker does not pass on has no share of its own.
func (g *guests) take(fleet, name string, from netip.Prefix, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	here := g.by[fleet]
	if here == nil {
		here = &party{guests: map[string]guest{}, from: map[netip.Prefix]int{}}
	}
	full := func() bool {
		return len(here.guests) >= maxGuests || from.IsValid() && here.from[from] >= maxGuestsPerAddress
	}
	if full() {
		for n, one := range here.guests {
			if now.After(one.until) {
				here.leave(n)
			}
		}
	}
	if full() {
		return false
	}
	if g.by == nil {
		g.by = map[string]*party{}
	}
	here.guests[name] = guest{now.Add(guestArrival), from}
	here.from[from]++
	g.by[fleet] = here
	return true
}

func (p *party) leave(name string) {
	one, ok := p.guests[name]
	if !ok {
		return
	}
	delete(p.guests, name)
	if p.from[one.from]--; p.from[one.from] == 0 {
		delete(p.from, one.from)
	}
}
