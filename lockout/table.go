package lockout

import (
	"iter"
	"time"
)

// Table is a bounded memory of what was touched last. Whatever it holds, a call looks at
// two entries at most, so that a client that fills it makes no other wait. At Max entries
// the one that was touched least recently makes room: no key and no order of keys lets a
// client choose another one.
type Table[K comparable, V any] struct {
	Max int
	TTL time.Duration // what was not touched for so long is forgotten; 0: nothing is

	by             map[K]*entry[K, V]
	newest, oldest *entry[K, V]
}

type entry[K comparable, V any] struct {
	key          K
	touched      time.Time
	newer, older *entry[K, V]
	value        V
}

// swept is how many entries Touch looks at to forget them. Two are enough to
// keep up, since it adds at most one.
const swept = 2

// Touch returns the entry of a key, made if there is none.
func (t *Table[K, V]) Touch(key K, now time.Time) (v *V, found bool) {
	for range swept {
		if t.TTL > 0 && t.oldest != nil && now.Sub(t.oldest.touched) > t.TTL {
			t.Drop(t.oldest.key)
		}
	}
	e, found := t.by[key]
	if found {
		t.unlink(e)
	} else {
		if len(t.by) >= t.Max {
			t.Drop(t.oldest.key)
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

// Look returns the entry of a key, nil if there is none.
func (t *Table[K, V]) Look(key K) *V {
	if e := t.by[key]; e != nil {
		return &e.value
	}
	return nil
}

// Room makes room for a key that is new to a full table, for values that must not simply
// be pushed out: it drops one that free allows. It asks free about the oldest two, and
// those that stay become the newest, so that the next call asks about others. It reports
// whether there is room.
func (t *Table[K, V]) Room(key K, now time.Time, free func(K, *V) bool) bool {
	if len(t.by) < t.Max || t.by[key] != nil {
		return true
	}
	for range swept {
		oldest := t.oldest
		if free(oldest.key, &oldest.value) {
			t.Drop(oldest.key)
			return true
		}
		t.Touch(oldest.key, now)
	}
	return false
}

// Drop forgets a key.
func (t *Table[K, V]) Drop(key K) {
	if e := t.by[key]; e != nil {
		t.unlink(e)
		delete(t.by, key)
	}
}

// All returns the entries from the oldest to the newest. The loop may touch or drop the
// one that it is at.
func (t *Table[K, V]) All() iter.Seq2[K, *V] {
	return func(yield func(K, *V) bool) {
		last := t.newest
		for e := t.oldest; e != nil; {
			next := e.newer
			if !yield(e.key, &e.value) || e == last {
				return
			}
			e = next
		}
	}
}

func (t *Table[K, V]) unlink(e *entry[K, V]) {
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
