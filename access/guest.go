package access

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
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
	// guestArrival is how long a guest who was let in may take to open its session.
	guestArrival = 30 * time.Second
)

// guests counts those who are here.
type guests struct {
	mu sync.Mutex
	by map[string]map[string]time.Time // by fleet and name: when it is gone for sure
}

// take gives a guest a place and tells false when there is none.
func (g *guests) take(fleet, name string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	here := g.by[fleet]
	if len(here) >= maxGuests {
		for n, until := range here {
			if now.After(until) {
				delete(here, n)
			}
		}
	}
	if len(here) >= maxGuests {
		return false
	}
	if here == nil {
		here = map[string]time.Time{}
	}
	if g.by == nil {
		g.by = map[string]map[string]time.Time{}
	}
	here[name] = now.Add(guestArrival)
	g.by[fleet] = here
	return true
}

// Opened tells of a session, of which only those of guests matter here.
func (d *Desk) Opened(s countersign.Session) {
	if s.Credential != guestCredential {
		return
	}
	d.guests.mu.Lock()
	defer d.guests.mu.Unlock()
	if here := d.guests.by[s.Fleet]; here != nil {
		here[s.Device] = s.NotAfter
	}
}

// Closed tells of the end of a session.
func (d *Desk) Closed(s countersign.Session) {
	if s.Credential != guestCredential {
		return
	}
	d.guests.mu.Lock()
	defer d.guests.mu.Unlock()
	here := d.guests.by[s.Fleet]
	if delete(here, s.Device); len(here) == 0 {
		delete(d.guests.by, s.Fleet)
	}
}

// asGuest admits a client that shows nothing to a fleet that takes guests. The user
// name says which; the client id is what the guest says of itself.
func (d *Desk) asGuest(ctx context.Context, c countersign.Connection) Decision {
	none := refuse(countersign.Unauthenticated, "neither a client certificate nor a secret was shown")
	fleet := cmp.Or(c.Username, countersign.DefaultFleet)
	if countersign.CheckName(fleet) != nil {
		return none
	}
	var text string
	err := d.DB.QueryRow(ctx, `SELECT rules FROM fleet WHERE name = $1`, fleet).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return none
	}
	if err != nil {
		return refuse(countersign.Unavailable, "the rules of the fleet cannot be read now")
	}
	a, err := d.rules.accessOf(fleet, text)
	if err != nil {
		return refuse(countersign.Unavailable, "the rules of the fleet cannot be read now")
	}
	if !a.Guests {
		return none
	}
	now, name := d.Now(), guestPrefix+strings.ToLower(rand.Text())
	if !d.guests.take(fleet, name, now) {
		return refuse(countersign.RateLimited, "the fleet has as many guests as it may")
	}
	return Decision{Verdict: countersign.Verdict{
		Device: name, Fleet: fleet, Credential: guestCredential, Ephemeral: true, NotAfter: now.Add(guestTime),
	}}
}
