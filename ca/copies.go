package ca

import (
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/countersign-iot/countersign"
)

// maxSupersededOctets bounds the lists that are no longer current and kept for
// downloads that began before, all together: the list of a million entries and some.
// The last one of each authority is kept whatever its size. What an older download
// was reading is dropped: the client fetches the new list.
const maxSupersededOctets = 64 << 20

// errListDropped ends a download of a list that has been superseded twice or more.
var errListDropped = countersign.Errorf(countersign.Unavailable, "the list was superseded while it was read").WithNext("fetch the current one")

type listName struct {
	issuer string
	shard  int
}

// copies keeps one copy in memory of each list that is being downloaded, or was.
type copies struct {
	mu         sync.Mutex
	current    map[listName]*sharedList
	loading    map[listName]chan struct{} // closed when the load under way ends
	superseded []*sharedList              // with readers, the oldest first
}

// sharedList is a copy of a list.
type sharedList struct {
	record  countersign.CRL         // without DER
	content atomic.Pointer[content] // nil: it was dropped
	readers int                     // under copies.mu
}

func (l *sharedList) name() listName { return listName{l.record.Issuer, l.record.Shard} }

func (l *sharedList) is(record *countersign.CRL) bool {
	return l.record.Number == record.Number && l.record.ThisUpdate.Equal(record.ThisUpdate) && l.record.Size == record.Size
}

func (l *sharedList) ReadAt(p []byte, at int64) (int, error) {
	c := l.content.Load()
	if c == nil {
		return 0, errListDropped
	}
	return c.ReadAt(p, at)
}

// listReader reads a shared list. It has no WriteTo on purpose: one write of the
// whole would hold the octets for as long as the client takes.
type listReader struct {
	*io.SectionReader
	leave func()
}

func (r *listReader) Close() error {
	r.leave()
	return nil
}

// held returns the record of the copy of a list with this number or a higher one, nil if
// there is none.
func (c *copies) held(name listName, number int64) *countersign.CRL {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.current[name]; l != nil && l.record.Number >= number {
		record := l.record
		return &record
	}
	return nil
}

// open returns a reader of the list of that record, or of a newer one. The first that
// needs a list loads it; the others wait for that.
func (c *copies) open(ctx context.Context, record *countersign.CRL, load func(context.Context, listName) (*signedList, error)) (*countersign.CRL, io.ReadSeekCloser, error) {
	name := listName{record.Issuer, record.Shard}
	for {
		c.mu.Lock()
		if l := c.current[name]; l != nil && (l.is(record) || l.record.Number > record.Number) {
			l.readers++
			c.mu.Unlock()
			return &l.record, &listReader{io.NewSectionReader(l, 0, l.record.Size), sync.OnceFunc(func() { c.leave(l) })}, nil
		}
		wait := c.loading[name]
		if wait == nil {
			c.loading[name] = make(chan struct{})
		}
		c.mu.Unlock()
		if wait == nil {
			s, err := load(ctx, name)
			c.mu.Lock()
			if err == nil {
				if now := c.current[name]; now == nil || now.record.Number <= s.record.Number { // else it was published meanwhile
					c.replace(&s.record, s.content)
				}
				record = &s.record
			}
			close(c.loading[name])
			delete(c.loading, name)
			c.mu.Unlock()
			if err != nil {
				return nil, nil, err
			}
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// content returns what the current copy of a list consists of, nil if there is none.
func (c *copies) content(name listName) *content {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.current[name]; l != nil {
		return l.content.Load()
	}
	return nil
}

// follow puts a list that was just published in the place of the copy before it, so
// that neither the next download nor the next list reads it from the database.
func (c *copies) follow(l *countersign.CRL, octets *content) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if before := c.current[listName{l.Issuer, l.Shard}]; before == nil || before.record.Number < l.Number {
		c.replace(l, octets)
	}
}

// replace makes a list the current copy. The caller holds mu.
func (c *copies) replace(l *countersign.CRL, octets *content) {
	next := &sharedList{record: *l}
	next.record.DER = nil
	next.content.Store(octets)
	before := c.current[next.name()]
	c.current[next.name()] = next
	if before != nil && before.readers > 0 {
		c.superseded = append(c.superseded, before)
		c.trim()
	}
}

// trim drops the oldest superseded lists while what they have beside the current ones is
// too large together. The last one of each name stays.
func (c *copies) trim() {
	counted := map[*byte]bool{}
	for _, l := range c.current {
		l.count(counted)
	}
	newest := map[listName]*sharedList{}
	for _, l := range c.superseded {
		newest[l.name()] = l
	}
	total := int64(0)
	for _, l := range slices.Backward(c.superseded) { // what lists share counts for the newest of them
		if total += l.count(counted); total > maxSupersededOctets && newest[l.name()] != l {
			l.content.Store(nil)
		}
	}
	c.superseded = slices.DeleteFunc(c.superseded, func(l *sharedList) bool { return l.content.Load() == nil })
}

// count returns how many octets of the list were not counted, and counts them.
func (l *sharedList) count(counted map[*byte]bool) (octets int64) {
	for part := range l.content.Load().parts {
		if len(part) > 0 && !counted[&part[0]] {
			counted[&part[0]] = true
			octets += int64(len(part))
		}
	}
	return octets
}

// leave counts a reader out and drops a superseded list with its last one.
func (c *copies) leave(l *sharedList) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.readers--; l.readers == 0 {
		c.superseded = slices.DeleteFunc(c.superseded, func(old *sharedList) bool { return old == l })
	}
}
