package hook

import (
	"sync"
	"time"
)

const (
	// denialPause is how long a session's next denied act goes untold, as at our
	// own gateway.
	denialPause = time.Second
	// maxDenials bounds the sessions that are remembered for it.
	maxDenials = 4096
)

// denials thins out what is told of denied acts.
type denials struct {
	mu   sync.Mutex
	last map[key]time.Time
}

func (d *denials) allow(k key, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last, ok := d.last[k]; ok && now.Sub(last) < denialPause {
		return false
	}
	if d.last == nil || len(d.last) >= maxDenials {
		d.last = map[key]time.Time{}
	}
	d.last[k] = now
	return true
}
