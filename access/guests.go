package access

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// guestPrefix is the prefix of a guest's name. No device id can have it.
	guestPrefix = "guest/"
	// guestTime is the longest session of a guest. It must then connect again, under the
	// fleet's rules of that time.
	guestTime = time.Hour
	// maxGuests bounds the guests of one fleet on one node, because an attacker can open
	// such sessions at no cost.
	maxGuests = 1000
	// maxGuestsPerAddress leaves three quarters of the places to other addresses; an
	// address is what countersign.SourceOf returns.
	maxGuestsPerAddress = maxGuests / 4
	// guestArrival is how long a guest that was admitted may take to open its session.
	guestArrival = 30 * time.Second
)

// guests counts the guests that are connected or about to be.
type guests struct {
	mu sync.Mutex
	by map[string]*fleetGuests // by fleet
}

// fleetGuests are the guests of one fleet.
type fleetGuests struct {
	guests map[string]guest // by name
	from   map[netip.Prefix]int
}

type guest struct {
	until time.Time // after which its place is free in any case
	from  netip.Prefix
}

// take reserves a place for a guest and reports whether one was free, both of the fleet and
// of the address. If a broker does not pass the address on, only the fleet's limit counts.
func (g *guests) take(fleet, name string, from netip.Prefix, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	here := g.by[fleet]
	if here == nil {
		here = &fleetGuests{guests: map[string]guest{}, from: map[netip.Prefix]int{}}
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
		g.by = map[string]*fleetGuests{}
	}
	here.guests[name] = guest{now.Add(guestArrival), from}
	here.from[from]++
	g.by[fleet] = here
	return true
}

func (p *fleetGuests) leave(name string) {
	one, ok := p.guests[name]
	if !ok {
		return
	}
	delete(p.guests, name)
	if p.from[one.from]--; p.from[one.from] == 0 {
		delete(p.from, one.from)
	}
}
