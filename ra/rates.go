package ra

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/registry"
)

const (
	// maxRates bounds how many rates are kept at once, about 1 MB. Those that are at
	// rest are forgotten first.
	maxRates = 4096
	// refusalsPerMinute is how often one who is known, by a credential that was good once
	// or by a certificate, is told the reason of a refusal from one address. A device that
	// tries again each two seconds stays below it.
	refusalsPerMinute = 30
)

// rates holds what is shared to its rate, on this node.
type rates struct {
	mu sync.Mutex
	by map[string]*rate.Limiter
}

// allow counts a use of a credential.
func (s *rates) allow(c *registry.Credential, now time.Time) bool {
	return c.PerMinute == 0 || s.take(c.ID, c.PerMinute, now)
}

// take takes one of perMinute under a key. Where there is no room for another key it
// takes none.
func (s *rates) take(key string, perMinute int, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[string]*rate.Limiter{}
	}
	l := s.by[key]
	if l == nil {
		if len(s.by) >= maxRates {
			s.sweep(now)
		}
		if len(s.by) >= maxRates {
			return false
		}
		l = rate.NewLimiter(rate.Limit(float64(perMinute)/60), perMinute)
		s.by[key] = l
	}
	return l.AllowN(now, 1)
}

// sweep forgets the rates that have recovered.
func (s *rates) sweep(now time.Time) {
	for key, l := range s.by {
		if l.TokensAt(now) >= float64(l.Burst()) {
			delete(s.by, key)
		}
	}
}

// unworn are refusals that repeat for a good reason, or have a time to come back.
var unworn = []countersign.Code{
	countersign.Pending, countersign.RateLimited, countersign.OverBudget, countersign.Conflict, countersign.Unavailable, countersign.Internal,
}

// wornOut answers one who is known and shows the same in vain over and over with the
// time to come back. It is no guess and blocks no address, yet its work has a bound.
func (d *Desk) wornOut(r *request, err error) error {
	if r.dry || r.actor() == nobody || r.Evidence.Voucher != nil || slices.Contains(unworn, countersign.CodeOf(err)) {
		return err
	}
	src, _ := countersign.SourceOf(r.Remote.Addr())
	if d.refusals.take(string(r.actor())+" "+src.String(), refusalsPerMinute, d.Now()) {
		return err
	}
	e := countersign.Public(err)
	return countersign.Errorf(countersign.RateLimited, "%s, and it has been refused more than %d times within a minute", e.Message, refusalsPerMinute).
		WithNext(e.Next).WithRetry(time.Minute).WithCause(err)
}
