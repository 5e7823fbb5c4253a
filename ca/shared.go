package ca

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// maxSupersededOctets bounds the lists that are no longer current and kept for
// downloads that began before, all together: the list of a million entries and some.
// The last one of each authority is kept whatever its size. What an older download
// was reading is dropped: the client fetches the new list.
const maxSupersededOctets = 64 << 20

// errListDropped ends a download of a list that has been superseded twice or more.
var errListDropped = countersign.Errorf(countersign.Unavailable, "the list was superseded while it was read").WithNext("fetch the current one")

// CRLRecord returns the record of the published list of an authority, without its
// octets: reading it costs the same whatever the size of the list. While the database has
// an older list than was published before, it is the one that OpenCRL opens; it fails with
// Unavailable where there is no copy of that.
func (c *CA) CRLRecord(ctx context.Context, issuer string, shard int) (*countersign.CRL, error) {
	name := listName{issuer, shard}
	before := c.published.last(name)
	l, err := c.readCRLRecord(ctx, issuer, shard)
	if err != nil && (countersign.CodeOf(err) != countersign.NotFound || before.number == 0) {
		return nil, err
	}
	if err := c.published.check(name, before, l); err != nil {
		if held := c.shared.held(name, before); held != nil {
			return held, nil
		}
		return nil, err
	}
	return l, nil
}

func (c *CA) readCRLRecord(ctx context.Context, issuer string, shard int) (*countersign.CRL, error) {
	l := &countersign.CRL{Issuer: issuer, Shard: shard}
	var this, next int64
	err := c.DB.QueryRow(ctx, `SELECT published, this_update, next_update, entries, length(der) FROM crl WHERE issuer = $1 AND shard = $2`, issuer, shard).
		Scan(&l.Number, &this, &next, &l.Entries, &l.Size)
	if errors.Is(err, sql.ErrNoRows) || err == nil && l.Number == 0 {
		return nil, countersign.Errorf(countersign.NotFound, "there is no CRL %s/%d", issuer, shard)
	}
	if err != nil {
		return nil, fmt.Errorf("read CRL %s/%d: %w", issuer, shard, err)
	}
	l.ThisUpdate, l.NextUpdate = store.Time(this), store.Time(next)
	return l, nil
}

// OpenCRL opens the published list of an authority and returns its record beside it.
// All readers of one list share one copy of its octets. The caller closes the reader;
// a Read fails with Unavailable where the list had to be dropped, see
// maxSupersededOctets.
func (c *CA) OpenCRL(ctx context.Context, issuer string, shard int) (*countersign.CRL, io.ReadSeekCloser, error) {
	record, err := c.CRLRecord(ctx, issuer, shard)
	if err != nil {
		return nil, nil, err
	}
	return c.shared.open(ctx, record, c.CRL)
}

// sharedLists keeps one copy in memory of each list that is being downloaded, or was.
type sharedLists struct {
	mu         sync.Mutex
	current    map[listName]*sharedList
	loading    map[listName]chan struct{} // closed when the load under way ends
	superseded []*sharedList              // with readers, the oldest first
}

type listName struct {
	issuer string
	shard  int
}

// sharedList is a copy of a list.
type sharedList struct {
	record  countersign.CRL // without DER
	der     atomic.Pointer[[]byte]
	readers int // under sharedLists.mu
}

func (l *sharedList) is(record *countersign.CRL) bool {
	return l != nil && l.record.Number == record.Number && l.record.ThisUpdate.Equal(record.ThisUpdate) && l.record.Size == record.Size
}

// held returns the record of the copy of a list, nil if there is none or it is not the
// newest one.
func (s *sharedLists) held(name listName, newest lastList) *countersign.CRL {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.current[name]; l != nil && l.record.Number >= newest.number {
		record := l.record
		return &record
	}
	return nil
}

// open returns a reader of the list of that record, or of a newer one. The first that
// needs a list loads it; the others wait for that.
func (s *sharedLists) open(ctx context.Context, record *countersign.CRL, load func(context.Context, string, int) (*countersign.CRL, error)) (*countersign.CRL, io.ReadSeekCloser, error) {
	name := listName{record.Issuer, record.Shard}
	for {
		s.mu.Lock()
		if l := s.current[name]; l.is(record) || l != nil && l.record.Number > record.Number {
			l.readers++
			s.mu.Unlock()
			return &l.record, &listReader{lists: s, list: l}, nil
		}
		wait := s.loading[name]
		if wait == nil {
			if s.loading == nil {
				s.loading = map[listName]chan struct{}{}
			}
			s.loading[name] = make(chan struct{})
		}
		s.mu.Unlock()
		if wait == nil {
			l, err := load(ctx, name.issuer, name.shard)
			if err == nil {
				record = s.take(l)
			}
			s.mu.Lock()
			close(s.loading[name])
			delete(s.loading, name)
			s.mu.Unlock()
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

// take makes a list the current copy, unless a newer one is, and returns the record
// of the current one.
func (s *sharedLists) take(l *countersign.CRL) *countersign.CRL {
	next := &sharedList{record: *l}
	next.record.DER, next.record.Size = nil, int64(len(l.DER))
	next.der.Store(&l.DER)
	name := listName{l.Issuer, l.Shard}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		s.current = map[listName]*sharedList{}
	}
	before := s.current[name]
	s.current[name] = next
	if before != nil && before.readers > 0 {
		s.superseded = append(s.superseded, before)
		s.trim()
	}
	return &next.record
}

// follow puts a list that was just published in the place of the copy before it, so
// that it is not read from the database again. Where there is no copy, no client
// fetched the list before.
func (s *sharedLists) follow(l *countersign.CRL) {
	s.mu.Lock()
	before := s.current[listName{l.Issuer, l.Shard}]
	s.mu.Unlock()
	if before != nil && before.record.Number < l.Number {
		s.take(l)
	}
}

// trim drops the oldest superseded lists while they are too large together. The last
// one of each name stays.
func (s *sharedLists) trim() {
	total := int64(0)
	for _, l := range s.superseded {
		total += l.record.Size
	}
	kept := s.superseded[:0]
	for i, l := range s.superseded {
		if total > maxSupersededOctets && s.followed(i) {
			total -= l.record.Size
			l.der.Store(nil)
			continue
		}
		kept = append(kept, l)
	}
	clear(s.superseded[len(kept):])
	s.superseded = kept
}

// followed reports whether another superseded list of the same name is newer.
func (s *sharedLists) followed(i int) bool {
	for _, l := range s.superseded[i+1:] {
		if l.record.Issuer == s.superseded[i].record.Issuer && l.record.Shard == s.superseded[i].record.Shard {
			return true
		}
	}
	return false
}

// leave counts a reader out and lets a superseded list go with its last one.
func (s *sharedLists) leave(l *sharedList) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.readers--; l.readers > 0 {
		return
	}
	for i, old := range s.superseded {
		if old == l {
			s.superseded = append(s.superseded[:i], s.superseded[i+1:]...)
			return
		}
	}
}

// listReader reads a shared list. It has no WriteTo on purpose: one write of the
// whole would hold the octets for as long as the client takes.
type listReader struct {
	lists *sharedLists
	list  *sharedList
	at    int64
	once  sync.Once
}

func (r *listReader) Read(p []byte) (int, error) {
	der := r.list.der.Load()
	if der == nil {
		return 0, errListDropped
	}
	if r.at >= int64(len(*der)) {
		return 0, io.EOF
	}
	n := copy(p, (*der)[r.at:])
	r.at += int64(n)
	return n, nil
}

func (r *listReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.list.record.Size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start of the list")
	}
	r.at = offset
	return offset, nil
}

func (r *listReader) Close() error {
	r.once.Do(func() { r.lists.leave(r.list) })
	return nil
}
