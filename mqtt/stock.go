package mqtt

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	countersign "github.com/countersign-iot/countersign"
)

// stock is what each device uses of the gateway, and of the engine's store, over all
// of its sessions: so that one bad device takes no more than its share.
type stock struct {
	limits *Limits
	keeper Keeper // nil: what an earlier process left is not known

	mu    sync.Mutex
	by    map[string]*account
	owner map[string]*account // who retained a message, by topic
}

// account is the share of one device. The stock's lock owns it, except for limiter.
type account struct {
	device   string
	live     int // sessions
	keeps    int // sessions that may be stored beside those that are live
	limiter  *rate.Limiter
	sessions map[string]*stored // live and stored ones, by client identifier at the engine
	retained map[string]int     // octets, by topic
	octets   int                // of retained
}

// stored is one session of a device, as far as the engine keeps something of it.
type stored struct {
	id       string // at the engine
	filters  map[string]struct{}
	restored int // filters of an earlier process, whose names are not known
	live     int // connections; more than one while one takes over another
	left     time.Time
	info     countersign.Session // of the connection that left; the zero value: an earlier process had it
}

// Keeper is an engine that knows what it stores of devices, that of an earlier process
// included.
type Keeper interface {
	// Kept returns the stored sessions of a device: the number of filters of each, by
	// its client identifier at the engine.
	Kept(device string) map[string]int
	// Drop ends a stored session by its client identifier at the engine.
	Drop(ctx context.Context, id string) error
	// Retained calls each for every retained message that a device is known to have sent.
	Retained(ctx context.Context, each func(device, topic string, octets int)) error
}

// retainedCost is what a retained message takes beside its topic and payload.
const retainedCost = 128

// publishUnit is how many octets of a PUBLISH count as one message: a device with the
// largest messages has no more of the engine than one with many.
const publishUnit = 16 << 10

// enter begins a session of a device. leave ends it.
func (k *stock) enter(device string, b countersign.Budget) *account {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.accountLocked(device)
	a.live++
	a.keeps = b.Sessions
	limit, burst := rate.Limit(b.Publishes), max(b.Publishes, k.limits.MaxPacket/publishUnit+1)
	if a.limiter == nil {
		a.limiter = rate.NewLimiter(limit, burst)
	} else if a.limiter.Limit() != limit {
		a.limiter.SetLimit(limit)
		a.limiter.SetBurst(burst)
	}
	return a
}

func (k *stock) accountLocked(device string) *account {
	a := k.by[device]
	if a == nil {
		a = &account{device: device, sessions: map[string]*stored{}}
		if k.keeper != nil {
			for id, n := range k.keeper.Kept(device) {
				a.sessions[id] = &stored{id: id, restored: n}
			}
		}
		k.by[device] = a
	}
	return a
}

// begin notes that the engine has a session of the account. What it had under the same
// identifier is over unless it was resumed.
func (k *stock) begin(a *account, id string, resumed bool) *stored {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := a.sessions[id]
	if s == nil {
		s = &stored{id: id}
		a.sessions[id] = s
	}
	if !resumed {
		s.filters, s.restored = nil, 0
	}
	s.live++
	return s
}

// leave ends what enter and begin began; s may be nil. Where the engine keeps the
// session, it returns those that the device has stored beyond its share, the oldest
// first: the caller has the engine drop them.
func (k *stock) leave(a *account, s *stored, kept *countersign.Session, now time.Time) (drop []*stored) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a.live--; s != nil {
		s.live--
		switch {
		case s.live > 0:
		case kept == nil:
			if a.sessions[s.id] == s {
				delete(a.sessions, s.id)
			}
		default:
			s.left, s.info = now, *kept
			drop = a.excess(a.keeps)
		}
	}
	k.tidy(a)
	return drop
}

// excess takes the stored sessions beyond the newest most out of the account.
func (a *account) excess(most int) (drop []*stored) {
	var idle []*stored
	for _, s := range a.sessions {
		if s.live == 0 {
			idle = append(idle, s)
		}
	}
	if len(idle) <= most {
		return nil
	}
	slices.SortFunc(idle, func(a, b *stored) int { return a.left.Compare(b.left) })
	drop = idle[:len(idle)-most]
	for _, s := range drop {
		delete(a.sessions, s.id)
	}
	return drop
}

// tidy forgets an account of which nothing is left.
func (k *stock) tidy(a *account) {
	if a.live == 0 && len(a.sessions) == 0 && len(a.retained) == 0 && k.by[a.device] == a {
		delete(k.by, a.device)
	}
}

// subscribe counts a filter of a session in. Where the device has as many as it may,
// its stored sessions, which nobody uses now, make room, the oldest first; the caller
// has the engine drop them.
func (k *stock) subscribe(a *account, s *stored, filter string) (drop []*stored, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, have := s.filters[filter]; have {
		return nil, true
	}
	for a.filters() >= k.limits.Subscriptions {
		idle := 0
		for _, other := range a.sessions {
			if other.live == 0 {
				idle++
			}
		}
		if idle == 0 {
			return drop, false
		}
		drop = append(drop, a.excess(idle-1)...)
	}
	put(&s.filters, filter, struct{}{})
	return drop, true
}

func (a *account) filters() int {
	n := 0
	for _, s := range a.sessions {
		n += max(len(s.filters), s.restored)
	}
	return n
}

func (k *stock) unsubscribe(s *stored, filter string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !take(s.filters, filter) && s.restored > 0 {
		s.restored--
	}
}

// retain counts a retained message in, or out if octets is 0, and reports whether the
// device may have it. Another device's message on the topic is replaced by it.
func (k *stock) retain(device, topic string, octets int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	owner := k.owner[topic]
	if octets == 0 {
		k.releaseLocked(owner, topic)
		return true
	}
	size := octets + len(topic) + retainedCost
	a := k.accountLocked(device)
	had := a.retained[topic]
	if had == 0 && len(a.retained) >= k.limits.Retained || a.octets-had+size > k.limits.RetainedOctets {
		k.tidy(a)
		return false
	}
	if owner != a {
		k.releaseLocked(owner, topic)
	}
	put(&a.retained, topic, size)
	a.octets += size - had
	k.owner[topic] = a
	return true
}

func (k *stock) releaseLocked(owner *account, topic string) {
	if owner == nil {
		return
	}
	owner.octets -= owner.retained[topic]
	delete(owner.retained, topic)
	delete(k.owner, topic)
	k.tidy(owner)
}

// restore counts what an earlier process left in. It is more than the share of a
// device where that was larger then.
func (k *stock) restore(device, topic string, octets int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.owner[topic] != nil {
		return
	}
	a := k.accountLocked(device)
	size := octets + len(topic) + retainedCost
	put(&a.retained, topic, size)
	a.octets += size
	k.owner[topic] = a
}

// restoreTime bounds the reading of what an earlier process left: 100,000 retained
// messages take some seconds.
const restoreTime = time.Minute

// restoreStock reads what an earlier process left, before the first device comes.
func (s *Server) restoreStock(ctx context.Context) {
	if s.stock.keeper == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, restoreTime)
	defer cancel()
	if err := s.stock.keeper.Retained(ctx, s.stock.restore); err != nil {
		s.Log.ErrorContext(ctx, "retained messages not counted, devices may have more of them than they should", "error", err)
	}
}
