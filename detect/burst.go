package detect

import (
	"time"

	"github.com/countersign-iot/countersign/lockout"
)

// hit is one event that counts.
type hit struct {
	at  time.Time
	seq int64
	key string // hits with one key count once; empty: each counts
}

// burst counts hits over a sliding window.
type burst struct {
	hits     []hit // at most the rule's threshold
	reported time.Time
}

// add counts h and reports whether that makes a finding: the rule's threshold is reached
// within its window, and the last finding was at least the rule's Again ago.
func (b *burst) add(r *Rule, h hit) bool {
	keep := b.hits[:0]
	for _, old := range b.hits {
		if h.at.Sub(old.at) <= r.Window && (h.key == "" || old.key != h.key) {
			keep = append(keep, old)
		}
	}
	b.hits = append(keep, h)
	if over := len(b.hits) - r.Threshold; over > 0 {
		b.hits = append(b.hits[:0], b.hits[over:]...)
	}
	if len(b.hits) < r.Threshold || !b.quiet(r, h.at) {
		return false
	}
	b.reported = h.at
	return true
}

// quiet reports whether the last finding about the subject is long enough ago.
func (b *burst) quiet(r *Rule, at time.Time) bool {
	return b.reported.IsZero() || at.Sub(b.reported) >= r.Again
}

// counter counts the hits of a rule by subject.
type counter[K comparable] struct {
	rule *Rule
	by   lockout.Table[K, burst]
}

func newCounter[K comparable](r *Rule, most int) counter[K] {
	return counter[K]{r, lockout.Table[K, burst]{Max: most, TTL: lasts(r)}}
}

// add counts h n times and reports whether that makes a finding.
func (c *counter[K]) add(of K, h hit, n int) (b *burst, enough bool) {
	b, _ = c.by.Touch(of, h.at)
	return b, b.addMany(c.rule, h, n)
}

// addMany counts h n times and reports whether that makes a finding.
func (b *burst) addMany(r *Rule, h hit, n int) (enough bool) {
	for range min(n, r.Threshold) {
		enough = b.add(r, h) || enough
	}
	return enough
}

// lasts returns how long a rule must remember a subject.
func lasts(r *Rule) time.Duration { return max(r.Window, r.Again) }

// seqs returns the events that count now, by their sequence numbers.
func (b *burst) seqs() []int64 {
	list := make([]int64, 0, len(b.hits))
	for _, h := range b.hits {
		if n := len(list); n == 0 || list[n-1] != h.seq {
			list = append(list, h.seq)
		}
	}
	return list
}
