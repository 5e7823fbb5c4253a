package access

import (
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

const (
	// triesPerMinute is how often all those behind one blocked address may prove
	// themselves: a site of some hundred devices comes back within minutes, and a guesser
	// costs no more than one honest device that reconnects.
	triesPerMinute = 60
	// triesAtOnce is how many of them may at once: the devices of one cabinet.
	triesAtOnce = 20
	// maxTries bounds the addresses whose tries are counted, about 1 MB. Beyond it a
	// blocked address waits until its block ends.
	maxTries = 8192
)

// tries counts the tries of blocked addresses.
type tries struct {
	by map[netip.Prefix]*rate.Limiter
}

func (t *tries) allow(src netip.Prefix, now time.Time) bool {
	l := t.by[src]
	if l == nil {
		if len(t.by) >= maxTries {
			t.sweep(now)
		}
		if len(t.by) >= maxTries {
			return false
		}
		if t.by == nil {
			t.by = map[netip.Prefix]*rate.Limiter{}
		}
		l = rate.NewLimiter(rate.Limit(float64(triesPerMinute)/60), triesAtOnce)
		t.by[src] = l
	}
	return l.AllowN(now, 1)
}

// sweep forgets the addresses that have all their tries back.
func (t *tries) sweep(now time.Time) {
	for src, l := range t.by {
		if l.TokensAt(now) >= triesAtOnce {
			delete(t.by, src)
		}
	}
}
