package detect

import "time"

// table is a bounded memory: what was not touched for ttl is forgotten, and at max
// entries the one that was touched least recently makes room.
type table[K comparable, V any] struct {
	max int
	ttl time.Duration

	by             map[K]*entry[K, V]
	newest, oldest *entry[K, V]
}

type entry[K comparable, V any] struct {
	key          K
	touched      time.Time
	newer, older *entry[K, V]
	value        V
}

// swept is how many entries a touch looks at to forget them. Two are enough to
// keep up, since a touch adds at most one.
const swept = 2

// touch gives the entry of a key, made if there is none.
func (t *table[K, V]) touch(key K, now time.Time) (v *V, found bool) {
	for range swept {
		if t.oldest != nil && now.Sub(t.oldest.touched) > t.ttl {
			t.drop(t.oldest.key)
		}
	}
	e, found := t.by[key]
	if found {
		t.unlink(e)
	} else {
		if len(t.by) >= t.max {
			t.drop(t.oldest.key)
		}
		e = &entry[K, V]{key: key}
		if t.by == nil {
			t.by = map[K]*entry[K, V]{}
		}
		t.by[key] = e
	}
	// Events may be a little out of order; the list is in that of their arrival.
	e.touched = now
	if e.older = t.newest; e.older != nil {
		e.older.newer = e
	} else {
		t.oldest = e
	}
	t.newest = e
	return &e.value, found
}

// look gives the entry of a key, nil if there is none.
func (t *table[K, V]) look(key K) *V {
	if e := t.by[key]; e != nil {
		return &e.value
	}
	return nil
}

func (t *table[K, V]) drop(key K) {
	if e := t.by[key]; e != nil {
		t.unlink(e)
		delete(t.by, key)
	}
}

func (t *table[K, V]) unlink(e *entry[K, V]) {
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		t.newest = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		t.oldest = e.newer
	}
	e.newer, e.older = nil, nil
}

// hit is one event that counts.
type hit struct {
	at  time.Time
	seq int64
	key string // hits with one key count once; empty: each counts
}

// burst counts hits over a sliding window.
type burst struct {
	hits []hit // at most the rule's threshold
	told time.Time
}

// add counts h and says whether that makes a finding: the rule's threshold is
// reached within its window, and the last finding is as long ago as the rule wants.
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
	b.told = h.at
	return true
}

// quiet says whether the last finding about the subject is long enough ago.
func (b *burst) quiet(r *Rule, at time.Time) bool {
	return b.told.IsZero() || at.Sub(b.told) >= r.Again
}

// seqs are the events that count now.
func (b *burst) seqs() []int64 {
	list := make([]int64, 0, len(b.hits))
	for _, h := range b.hits {
		if n := len(list); n == 0 || list[n-1] != h.seq {
			list = append(list, h.seq)
		}
	}
	return list
}
