package broker

import (
	"cmp"
	"slices"
	"sync"
)

// account is what one device has of the node, over all its sessions. Where both locks
// are taken, the broker's is taken first.
type account struct {
	b      *Broker
	device string

	mu       sync.Mutex
	gone     bool // purged: nothing is written for it any more
	sessions map[*session]struct{}
	subs     int
	retained map[*Message]struct{}
	octets   int // of retained
	reserved int // messages on their way into retained
	queued   int
	waiting  int // octets of queued
}

// accountLocked returns the account of a device. The caller holds the lock.
func (b *Broker) accountLocked(device string) *account {
	a := b.accounts[device]
	if a == nil {
		a = &account{b: b, device: device, sessions: map[*session]struct{}{}}
		b.accounts[device] = a
	}
	return a
}

// tidy forgets an account of which nothing is left.
func (a *account) tidy() {
	a.b.mu.Lock()
	defer a.b.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.sessions)+len(a.retained)+a.reserved+a.queued+a.subs == 0 && a.b.accounts[a.device] == a {
		delete(a.b.accounts, a.device)
	}
}

// storeShares divides the store: retained messages may have one of them and queued
// messages the others, so that what is full of one kind refuses that kind alone.
const storeShares = 4

// queue counts a message in that is to wait for the device, and reports whether it may.
func (a *account) queue(cost int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone || a.queued >= a.b.o.Limits.Queued || a.waiting+cost > a.b.o.Limits.QueuedOctets ||
		a.b.queuedOctets.Load()+int64(cost) > a.b.o.Limits.Store/storeShares*(storeShares-1) {
		return false
	}
	a.queued++
	a.waiting += cost
	a.b.queued.Add(1)
	a.b.queuedOctets.Add(int64(cost))
	return true
}

// unqueue counts out what queue counted in.
func (a *account) unqueue(n, cost int) {
	a.mu.Lock()
	a.queued -= n
	a.waiting -= cost
	a.mu.Unlock()
	a.b.queued.Add(-int64(n))
	a.b.queuedOctets.Add(-int64(cost))
}

// reserve counts a message in that is to be retained, and reports whether the device may
// have it. old is what it will replace, or nil. Either keep or release follows.
func (a *account) reserve(m, old *Message) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	n, octets, cost := len(a.retained)+a.reserved, a.octets, m.cost()
	if old != nil && old.Device == a.device {
		n = a.reserved // one in place of another; several may be on their way
		octets -= old.cost()
	}
	if a.gone || n >= a.b.o.Limits.Retained || octets+cost > a.b.o.Limits.RetainedOctets ||
		a.b.retainedOctets.Load()+int64(cost) > a.b.o.Limits.Store/storeShares {
		return false
	}
	a.reserved++
	a.octets += cost
	a.b.retainedOctets.Add(int64(cost))
	return true
}

// keep turns a reservation into a retained message; false: the device has lost it, and
// release follows.
func (a *account) keep(m *Message) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		return false
	}
	a.reserved--
	if a.retained == nil {
		a.retained = map[*Message]struct{}{}
	}
	a.retained[m] = struct{}{}
	return true
}

// release counts a retained message out, or a reservation.
func (a *account) release(m *Message) {
	a.mu.Lock()
	if _, ok := a.retained[m]; ok {
		delete(a.retained, m)
	} else {
		a.reserved--
	}
	a.octets -= m.cost()
	a.mu.Unlock()
	a.b.retainedOctets.Add(-int64(m.cost()))
	a.tidy()
}

// subscribe counts a filter in and reports whether the device may have it.
func (a *account) subscribe() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone || a.subs >= a.b.o.Limits.Subscriptions {
		return false
	}
	a.subs++
	return true
}

// makeRoom drops sessions that no client uses now, those that were left first, until the
// device may have one more subscription, which it counts in.
func (a *account) makeRoom() bool {
	idle := a.oldest(0)
	for _, old := range idle {
		a.b.sessionsDropped.Add(1)
		a.b.remove(old)
		if a.subscribe() {
			return true
		}
	}
	return false
}

func (a *account) unsubscribe(n int) {
	a.mu.Lock()
	a.subs -= n
	a.mu.Unlock()
	a.tidy()
}

// exceeded reports that a device wanted more than its share.
func (a *account) exceeded(budget string, limit int) {
	if a.b.o.Exceeded != nil {
		a.b.o.Exceeded(a.device, budget, int64(limit))
	}
}

// oldest returns the sessions without a connection beyond the newest most, those that
// were left first.
func (a *account) oldest(most int) []*session {
	a.mu.Lock()
	defer a.mu.Unlock()
	var idle []*session
	for s := range a.sessions {
		if !s.live.Load() {
			idle = append(idle, s)
		}
	}
	if len(idle) <= most {
		return nil
	}
	slices.SortFunc(idle, func(x, y *session) int {
		return cmp.Or(cmp.Compare(x.left.Load(), y.left.Load()), cmp.Compare(x.id, y.id))
	})
	return idle[:len(idle)-most]
}
