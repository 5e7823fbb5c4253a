package access

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxAddresses bounds the ledger. When it is full one that failed long ago is
	// forgotten, so a flood of addresses costs memory, not service.
	maxAddresses = 64 << 10
	// forgiveness is how long after its last failure an address starts afresh.
	forgiveness = 10 * time.Minute
	// firstDelay slows the first wrong answer; each further one doubles it.
	firstDelay = 200 * time.Millisecond
	// maxDelay bounds it, since a slow answer holds a connection of ours too.
	maxDelay = 5 * time.Second
	// maxWaiting bounds how many callers are being delayed at once over all
	// addresses; beyond it refusals are quick rather than hoarding connections.
	maxWaiting = 512
)

// Ledger counts failed credentials by address, IPv6 by /64, and slows the answers
// down. It is memory of this process. The zero value with Now is ready.
type Ledger struct {
	Now func() time.Time

	mu      sync.Mutex
	by      map[netip.Prefix]*tally
	waiting int
}

type tally struct {
	failures int
	last     time.Time
}

// source is what counts as one address: IPv4 alone, IPv6 by the /64 that one
// customer commonly has to himself.
func source(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// Fail counts a wrong credential from addr and gives the count.
func (l *Ledger) Fail(addr netip.Addr) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.Now()
	if l.by == nil {
		l.by = map[netip.Prefix]*tally{}
	}
	key := source(addr)
	t := l.by[key]
	if t == nil || now.Sub(t.last) > forgiveness {
		if t == nil && len(l.by) >= maxAddresses {
			l.forgetOldest(now)
		}
		t = &tally{}
		l.by[key] = t
	}
	t.failures++
	t.last = now
	return t.failures
}

// forgetOldest makes room: first what is forgiven, else the oldest of a sample.
// Map order is random, so the sample needs no more than that.
func (l *Ledger) forgetOldest(now time.Time) {
	const sample = 64
	var oldest netip.Prefix
	var when time.Time
	n := 0
	for k, t := range l.by {
		if now.Sub(t.last) > forgiveness {
			delete(l.by, k)
			return
		}
		if when.IsZero() || t.last.Before(when) {
			oldest, when = k, t.last
		}
		if n++; n == sample {
			break
		}
	}
	delete(l.by, oldest)
}

// Delay holds the answer to a failed caller for as long as its count asks, or
// until ctx ends.
func (l *Ledger) Delay(ctx context.Context, failures int) {
	d := min(firstDelay<<min(max(failures-1, 0), 10), maxDelay)
	l.mu.Lock()
	if l.waiting >= maxWaiting {
		l.mu.Unlock()
		return
	}
	l.waiting++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.waiting--
		l.mu.Unlock()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
