package ca

import (
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
)

// publishedLists remembers the newest list of each authority that this process
// published or read. A database that was set back under it, as by a failover to a
// standby that was behind, has an older one and would number the next ones anew, but a
// list must not be followed by one with the same or a lower number (RFC 5280, 5.2.3):
// relying parties ignore it, with all revocations on it. It has an entry for each list.
type publishedLists struct {
	mu sync.Mutex
	by map[listName]lastList
}

// lastList identifies the newest list. Of one that is known by its number alone, thisUpdate
// is zero.
type lastList struct {
	number     int64
	thisUpdate time.Time
	size       int64
	setBack    bool // the database had an older one, or another one with the number
}

// last returns what is known of a list. What a transaction that begins afterwards reads
// must not be older.
func (p *publishedLists) last(name listName) lastList {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.by[name]
}

func (p *publishedLists) all() map[listName]lastList {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.by)
}

// check compares a record of the database, nil if it has none, with what was known before
// it was read, and remembers it if it is newer. It refuses with Unavailable where the
// database was set back; then the list is due.
func (p *publishedLists) check(name listName, before lastList, record *countersign.CRL) error {
	var read lastList
	if record != nil {
		read = lastList{number: record.Number, thisUpdate: record.ThisUpdate, size: record.Size}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.by[name]
	same := before.thisUpdate.IsZero() || before.thisUpdate.Equal(read.thisUpdate) && before.size == read.size
	switch {
	case read.number < before.number, read.number == before.number && !same:
		if known.number == before.number {
			known.setBack = true
			p.set(name, known)
		}
		return countersign.Errorf(countersign.Unavailable, "the database was set back: its CRL %s/%d has number %d, and number %d was published", name.issuer, name.shard, read.number, before.number).
			WithNext("wait until the next one is published, with a higher number")
	case read.number > known.number:
		p.set(name, read)
	case read.number == known.number && known.thisUpdate.IsZero() && read.number > 0:
		read.setBack = known.setBack
		p.set(name, read)
	}
	return nil
}

// set replaces an entry. The caller holds mu.
func (p *publishedLists) set(name listName, l lastList) {
	if p.by == nil {
		p.by = map[listName]lastList{}
	}
	p.by[name] = l
}

// KeepNumbersAbove has the next CRLs get numbers above those that were given out, as
// ListNumbers names them, since the database was set back: see RaiseNumbers, which does
// that on record for a server that does not run. All of them are due; one that is older
// is not served any more.
func (c *CA) KeepNumbersAbove(numbers map[string]int64) {
	c.published.mu.Lock()
	defer c.published.mu.Unlock()
	for list, number := range numbers {
		issuer, shard, _ := strings.Cut(list, "/")
		n, err := strconv.Atoi(shard)
		if err != nil { // not one of ListNumbers
			continue
		}
		last := c.published.by[listName{issuer, n}]
		if last.number < number {
			last = lastList{number: number}
		}
		last.setBack = true
		c.published.set(listName{issuer, n}, last)
	}
}
