package lockout

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxRates bounds how many rates are kept at once, about 2 MB.
const maxRates = 8192

// Rates limits how often something is done under each of many keys. A key whose rate is
// at rest is as good as a new one, and is forgotten first. While maxRates others are in
// use, a new key is refused: nothing that a client does under other keys resets its rate.
type Rates[K comparable] struct {
	mu sync.Mutex
	by Table[K, *rate.Limiter]
}

// Take takes one of perMinute, of which burst may be taken at once, and reports whether
// there was one.
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
