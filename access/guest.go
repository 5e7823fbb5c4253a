package access

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
)

const (
	// guestCredential is what guests' sessions rest on: a cut of it ends them all.
	guestCredential = "guest"
	// guestPrefix begins the name of a guest. No device can be called so.
	guestPrefix = "guest/"
	// guestTime is the longest session of a guest, who has to come again then and
	// meets the fleet's rules of that time.
	guestTime = time.Hour
	// maxGuests bounds the guests of one fleet on one node: they cost whoever sends
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

// Opened records a session; only those of guests matter here.
func (d *Decider) Opened(s countersign.Session) {
	if s.Credential != guestCredential {
		return
	}
	d.guests.mu.Lock()
	defer d.guests.mu.Unlock()
	if here := d.guests.by[s.Fleet]; here != nil {
		if one, ok := here.guests[s.Device]; ok {
			one.until = s.NotAfter
			here.guests[s.Device] = one
		}
	}
}

// Closed records the end of a session.
func (d *Decider) Closed(s countersign.Session) {
	if s.Credential != guestCredential {
		return
	}
	d.guests.mu.Lock()
	defer d.guests.mu.Unlock()
	here := d.guests.by[s.Fleet]
	if here == nil {
		return
	}
	if here.leave(s.Device); len(here.guests) == 0 {
		delete(d.guests.by, s.Fleet)
	}
}

// asGuest admits a client that shows nothing to a fleet that takes guests. The user
// name says which; the client id is what the guest says of itself.
func (d *Decider) asGuest(ctx context.Context, c countersign.Connection) Decision {
	none := refuse(countersign.Unauthenticated, "neither a client certificate nor a secret was shown")
	fleet := cmp.Or(c.Username, countersign.DefaultFleet)
	if countersign.CheckName(fleet) != nil {
		return none
	}
	read, err := d.readRules(ctx, fleet)
	if errors.Is(err, sql.ErrNoRows) {
		return none
	}
	if err != nil {
		return refuse(countersign.Unavailable, "the rules of the fleet cannot be read now")
	}
	if !read.Access.Guests {
		return none
	}
	now, name := d.Now(), guestPrefix+strings.ToLower(rand.Text())
	from, _ := countersign.SourceOf(c.Remote.Addr())
	if !d.guests.take(fleet, name, from, now) {
		return refuse(countersign.RateLimited, "the fleet has as many guests, or as many from this address, as it may")
	}
	return Decision{Verdict: countersign.Verdict{
		Device: name, Fleet: fleet, Credential: guestCredential, Ephemeral: true, NotAfter: now.Add(guestTime), Budget: read.Budget.WithDefaults(),
	}}
}
