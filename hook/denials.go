package hook

import (
	"sync"
	"time"
)

const (
	// denialPause is for how long further denied acts of a session are not reported, as at
	// the MQTT gateway.
	denialPause = time.Second
	// maxDenials bounds the sessions that are kept for it.
	maxDenials = 4096
)

// denials limits how often denied acts are reported.
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
