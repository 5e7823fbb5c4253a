package lockout

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxRates bounds the keys that are kept at once, about 2 MB.
const maxRates = 8192

// Rates limits how often something is done under each of many keys. A key whose bucket is
// full again is the same as a new one, so such keys are dropped first. While maxRates
// others are in use, a new key is refused: so a client cannot reset the rate of a key by
// using other keys.
type Rates[K comparable] struct {
	mu sync.Mutex
	by Table[K, *rate.Limiter]
}

// Take takes one token of a key and reports whether there was one. A key gets perMinute
// tokens and can save up to burst of them.
func (r *Rates[K]) Take(key K, perMinute, burst int, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.by.Max = maxRates
	atRest := func(_ K, l **rate.Limiter) bool { return (*l).TokensAt(now) >= float64((*l).Burst()) }
	if !r.by.Room(key, now, atRest) {
		return false
	}
	l, known := r.by.Touch(key, now)
	if !known {
		*l = rate.NewLimiter(rate.Limit(float64(perMinute)/60), burst)
	}
	return (*l).AllowN(now, 1)
}
