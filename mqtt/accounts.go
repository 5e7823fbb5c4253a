package mqtt

import (
	"sync"

	"golang.org/x/time/rate"

	countersign "github.com/countersign-iot/countersign"
)

// accounts are the rates at which devices publish, over all of their sessions: so that
// one bad device takes no more than its share.
type accounts struct {
	mu sync.Mutex
	by map[string]*account
}

// account is the rate of one device. The lock of accounts owns live.
type account struct {
	live    int // sessions
	limiter *rate.Limiter
}

// publishUnit is how many octets of a PUBLISH count as one message: a device with the
// largest messages has no more of the node than one with many.
const publishUnit = 16 << 10

// enter begins a session of a device. leave ends it.
func (k *accounts) enter(device string, b countersign.Budget, maxPacket int) *account {
	k.mu.Lock()
	defer k.mu.Unlock()
	a := k.by[device]
	if a == nil {
		a = &account{}
		put(&k.by, device, a)
	}
	a.live++
	limit, burst := rate.Limit(b.Publishes), max(b.Publishes, maxPacket/publishUnit+1)
	if a.limiter == nil {
		a.limiter = rate.NewLimiter(limit, burst)
	} else if a.limiter.Limit() != limit {
		a.limiter.SetLimit(limit)
		a.limiter.SetBurst(burst)
	}
	return a
}

func (k *accounts) leave(device string, a *account) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a.live--; a.live == 0 {
		delete(k.by, device)
	}
}
