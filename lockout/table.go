package lockout

import (
	"iter"
	"time"
)

// Table is a bounded map that keeps the entries that were touched last. A call looks at no
// more than two entries besides its own, so that a client that fills the table does not
// slow others down. At Max entries a new one replaces the one that was touched least
// recently: a client cannot choose another one, whatever keys it uses.
type Table[K comparable, V any] struct {
	Max int
	TTL time.Duration // an entry that was not touched for so long is dropped; 0: never

	by             map[K]*entry[K, V]
	newest, oldest *entry[K, V]
}

type entry[K comparable, V any] struct {
	key          K
	touched      time.Time
	newer, older *entry[K, V]
	value        V
}

// swept is how many entries Touch checks for their TTL. Two are enough to keep up, because
// a call adds at most one.
const swept = 2

// Touch returns the entry of a key, which it makes the newest one. It adds an entry if
// there is none; found is false then.
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
	// now may be a little earlier than that of the last call; the list has the order of calls.
	e.touched = now
	if e.older = t.newest; e.older != nil {
		e.older.newer = e
	} else {
		t.oldest = e
	}
	t.newest = e
	return &e.value, found
}

// Look returns the entry of a key, or nil if there is none. It does not touch the entry.
func (t *Table[K, V]) Look(key K) *V {
	if e := t.by[key]; e != nil {
		return &e.value
	}
	return nil
}

// Room makes room for a new key in a full table whose entries must not simply be replaced.
// It calls free for the two oldest entries and drops the first for which free returns
// true. An entry that stays becomes the newest, so that the next call checks others. Room
// reports whether there is room for the key.
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

// Drop removes a key.
func (t *Table[K, V]) Drop(key K) {
	if e := t.by[key]; e != nil {
		t.unlink(e)
		delete(t.by, key)
	}
}

// All returns the entries from the oldest to the newest. The loop may touch or drop its
// current entry.
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
