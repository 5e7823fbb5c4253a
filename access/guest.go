package access

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"strings"

	"github.com/countersign-iot/countersign"
)

// Opened records that a guest's session was opened. It ignores other sessions.
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

// Closed records that a guest's session has ended. It ignores other sessions.
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

// asGuest admits a client without a credential to a fleet that accepts guests. The user
// name is the name of the fleet; the client id is only a claim of the guest.
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
