package ra

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/countersign-iot/countersign/registry"
)

// maxRates bounds how many credentials' rates are kept at once; when it is
// full all start afresh, which lets at most one more minute's worth through.
const maxRates = 4096

// rates holds shared credentials to their rate, on this node.
type rates struct {
	mu sync.Mutex
	by map[string]*rate.Limiter
}

func (s *rates) allow(c *registry.Credential, now time.Time) bool {
	if c.PerMinute == 0 {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil || len(s.by) >= maxRates {
		s.by = map[string]*rate.Limiter{}
	}
	l := s.by[c.ID]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(float64(c.PerMinute)/60), c.PerMinute)
		s.by[c.ID] = l
	}
	return l.AllowN(now, 1)
}
