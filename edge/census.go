package edge

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxAddresses bounds the table of addresses that are kept for their accept rate
// only. At 250 bytes each it stays under 16 MiB.
const maxAddresses = 65_536

// census counts the connections of a listener, in total and by address. Connections
// that are not yet admitted are strangers. When there are as many strangers as are
// allowed, the next one replaces the oldest one of the address that has the most: so
// neither many slow addresses nor one fast one keeps a single honest device out.
type census struct {
	limits Limits

	mu        sync.Mutex
	total     int
	preAuth   int
	addresses map[netip.Prefix]*address
	idle      list.List  // of *address: those without connections, the latest last
	ranks     [2]ranking // of known addresses, of strange ones
}

type address struct {
	from    netip.Prefix
	of      int // which ranking: ofKnown, ofStrangers
	total   int
	pending list.List     // of *visit: not yet admitted, the oldest first
	place   *list.Element // in its ranking, if at least one is pending
	ranked  int           // as which number
	idle    *list.Element // nil while it has connections
	rate    *rate.Limiter // nil without an accept rate
}

// visit is one counted connection.
type visit struct {
	from  netip.Prefix
	known bool
	abort func() // ends it, when another takes its place

	address *address
	place   *list.Element // among the pending; nil once admitted
	gone    bool
}

// enter counts a new connection. It may replace another one, which the caller aborts.
// If enter returns a reason, the connection is refused.
func (c *census) enter(v *visit, now time.Time) (evicted *visit, why Reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if over(c.total, c.limits.Connections) {
		return nil, ReasonConnections
	}
	a, why := c.address(v, now)
	if why != "" {
		return nil, why
	}
	if over(c.preAuth, c.limits.PreAuth) {
		if evicted = c.room(a); evicted == nil {
			return nil, ReasonHandshakes
		}
		c.remove(evicted)
	}
	v.address, v.place = a, a.pending.PushBack(v)
	c.total++
	c.preAuth++
	if a.total++; a.idle != nil {
		c.idle.Remove(a.idle)
		a.idle = nil
	}
	c.ranks[a.of].set(a)
	return evicted, ""
}

// address finds or adds the address of a visit and checks the visit against the
// limits per address.
func (c *census) address(v *visit, now time.Time) (*address, Reason) {
	a := c.addresses[v.from]
	if a == nil {
		if len(c.addresses) >= maxAddresses && !c.forget() {
			return nil, ReasonConnections
		}
		a = &address{from: v.from}
		a.idle = c.idle.PushBack(a)
		if r := c.limits.AcceptRate; r > 0 && v.from.IsValid() {
			a.rate = rate.NewLimiter(rate.Limit(r), 2*r)
		}
		c.addresses[v.from] = a
	}
	if a.rate != nil && !a.rate.AllowN(now, 1) {
		return nil, ReasonAddressRate
	}
	if of := rankOf(v.known); of != a.of {
		c.ranks[a.of].clear(a)
		a.of = of
		c.ranks[of].set(a)
	}
	switch {
	case over(a.total, c.limits.PerAddress):
		return nil, ReasonAddressConnections
	case over(a.pending.Len(), c.limits.PreAuthPerAddress):
		return nil, ReasonAddressHandshakes
	}
	return a, ""
}

// room chooses the visit that a new one from a replaces: strangers before those from
// known addresses, and only of an address that has more than a.
func (c *census) room(a *address) *visit {
	for _, of := range []int{ofStrangers, ofKnown} {
		most := c.ranks[of].most()
		if most == nil || of < a.of { // a stranger takes no place of a known one
			continue
		}
		if of == a.of && most.pending.Len() <= a.pending.Len() {
			return nil
		}
		v, _ := most.pending.Front().Value.(*visit)
		return v
	}
	return nil
}

// admit moves a connection from the strangers to the guests; false if it is gone.
func (c *census) admit(v *visit) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v.gone || v.place == nil {
		return false
	}
	c.settle(v)
	return true
}

func (c *census) settle(v *visit) {
	c.preAuth--
	v.address.pending.Remove(v.place)
	v.place = nil
	c.ranks[v.address.of].set(v.address)
}

// leave removes a connection from the counts; false if it was removed already. An
// address without connections is kept only until its accept rate is full again.
func (c *census) leave(v *visit, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v.gone {
		return false
	}
	c.remove(v)
	if a := v.address; a.total == 0 && (a.rate == nil || a.rate.TokensAt(now) >= float64(a.rate.Burst())) {
		c.drop(a)
	}
	return true
}

func (c *census) remove(v *visit) {
	if v.place != nil {
		c.settle(v)
	}
	v.gone = true
	c.total--
	if v.address.total--; v.address.total == 0 {
		v.address.idle = c.idle.PushBack(v.address)
	}
}

// forget drops the address that has been without connections for the longest. It
// reports whether there was one. It looks at no other, so that a flood of addresses
// delays no connection.
func (c *census) forget() bool {
	front := c.idle.Front()
	if front == nil {
		return false
	}
	a, _ := front.Value.(*address)
	c.drop(a)
	return true
}

// drop removes an address without connections.
func (c *census) drop(a *address) {
	c.idle.Remove(a.idle)
	delete(c.addresses, a.from)
}

func (c *census) counts() (total, preAuth int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.total, c.preAuth
}

// ranking finds the address with the most pending connections without a search:
// addresses move between lists, one for each number.
type ranking struct {
	with    map[int]*list.List // of *address, by how many are pending
	highest int
}

// set moves an address to the list of its number.
func (r *ranking) set(a *address) {
	n := a.pending.Len()
	if a.place != nil {
		if a.ranked == n {
			return
		}
		r.clear(a)
	}
	if n > 0 {
		if r.with == nil {
			r.with = map[int]*list.List{}
		}
		if r.with[n] == nil {
			r.with[n] = &list.List{}
		}
		a.place, a.ranked = r.with[n].PushBack(a), n
		r.highest = max(r.highest, n)
	}
}

func (r *ranking) clear(a *address) {
	if a.place == nil {
		return
	}
	n := a.ranked
	r.with[n].Remove(a.place)
	if r.with[n].Len() == 0 {
		delete(r.with, n)
	}
	a.place = nil
	for r.highest > 0 && r.with[r.highest] == nil {
		r.highest--
	}
}

func (r *ranking) most() *address {
	if r.highest == 0 {
		return nil
	}
	a, _ := r.with[r.highest].Front().Value.(*address)
	return a
}
