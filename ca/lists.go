package ca

import (
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// DefaultCRLValidity is the time from thisUpdate to nextUpdate of a CRL for
	// device certificates. It is reissued at half of it and on each revocation.
	DefaultCRLValidity = 24 * time.Hour
	// rootCRLValidity is long because the root key should rest; a revoked issuing
	// authority is published at once all the same.
	rootCRLValidity = 180 * 24 * time.Hour
	// reserveShare bounds the part of the database's reserve that one list may take on a
	// full disk: revocations themselves go first, since gateways and OCSP read those.
	reserveShare = 8
	// numberMargin is how far numbers are raised above the highest that is known: some may
	// have been used after it was noted, at most a few in each pause of the publisher.
	numberMargin = 1000
)

// lists publishes the CRLs of the managed authorities. It remembers the newest list of
// each that this process published or read. A database that was set back under it, as by a
// failover to a standby that was behind, has an older one and would number the next ones
// anew, but a list must not be followed by one with the same or a lower number (RFC 5280,
// 5.2.3): relying parties ignore it, with all revocations on it.
type lists struct {
	*authorities
	copies copies

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

// last returns the newest list that is known. What a transaction that begins afterwards
// reads must not be older.
func (p *lists) last(name listName) lastList {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.by[name]
}

// errSetBack is the cause of a refusal to serve the list of a database that was set back.
var errSetBack = errors.New("the database has an older list than was published")

// check compares a record of the database, nil if it has none, with what was known before
// it was read, and remembers it if it is newer. It refuses with Unavailable where the
// database was set back; then the list is due.
func (p *lists) check(name listName, before lastList, record *countersign.CRL) error {
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
		known.setBack = known.setBack || known.number == before.number
		p.by[name] = known
		return countersign.Errorf(countersign.Unavailable, "the database was set back: its CRL %s/%d has number %d, and number %d was published", name.issuer, name.shard, read.number, before.number).
			WithNext("wait until the next one is published, with a higher number").WithCause(errSetBack)
	case read.number > known.number:
		p.by[name] = read
	case read.number == known.number && known.thisUpdate.IsZero() && read.number > 0:
		read.setBack = known.setBack
		p.by[name] = read
	}
	return nil
}

// readList reads the record of the published list of an authority: NotFound if there is none.
func readList(ctx context.Context, r store.Reader, name listName) (*countersign.CRL, error) {
	return scanList(r.QueryRow(ctx, `SELECT `+listColumns+` FROM crl WHERE issuer = $1 AND shard = $2`, name.issuer, name.shard), name)
}

// readOctets is readList with all octets of the list but those of its chunks, whose ids it
// returns.
func readOctets(ctx context.Context, r store.Reader, name listName) (l *countersign.CRL, c *content, ids []int64, err error) {
	c = &content{}
	var manifest []byte
	l, err = scanList(r.QueryRow(ctx, `SELECT `+listColumns+`, head, tail, chunks FROM crl WHERE issuer = $1 AND shard = $2`, name.issuer, name.shard), name, &c.head, &c.tail, &manifest)
	return l, c, chunkIDs(manifest), err
}

const listColumns = `published, this_update, next_update, entries, size`

func scanList(row store.Row, name listName, more ...any) (*countersign.CRL, error) {
	l := &countersign.CRL{Issuer: name.issuer, Shard: name.shard}
	var this, next int64
	err := row.Scan(append([]any{&l.Number, &this, &next, &l.Entries, &l.Size}, more...)...)
	if errors.Is(err, sql.ErrNoRows) || err == nil && l.Number == 0 {
		return nil, countersign.Errorf(countersign.NotFound, "there is no CRL %s/%d", name.issuer, name.shard)
	}
	if err != nil {
		return nil, fmt.Errorf("read CRL %s/%d: %w", name.issuer, name.shard, store.Wrap(err))
	}
	l.ThisUpdate, l.NextUpdate = store.Time(this), store.Time(next)
	return l, nil
}

// CRL reads the published list of an authority with its octets. Those who only need
// to know which one it is call CRLRecord; doors open it with OpenCRL. It fails with
// Unavailable while the database has an older list than was published before.
func (p *lists) CRL(ctx context.Context, issuer string, shard int) (*countersign.CRL, error) {
	s, err := p.signed(ctx, listName{issuer, shard})
	if err != nil {
		return nil, err
	}
	l := s.record
	l.DER = s.content.bytes()
	return &l, nil
}

// CRLRecord returns the record of the published list of an authority, without its
// octets: reading it costs the same whatever the size of the list. While the database has
// an older list than was published before, it is the one that OpenCRL opens; it fails with
// Unavailable where there is no copy of that.
func (p *lists) CRLRecord(ctx context.Context, issuer string, shard int) (*countersign.CRL, error) {
	name := listName{issuer, shard}
	before := p.last(name)
	l, err := readList(ctx, p.DB, name)
	if err != nil && (countersign.CodeOf(err) != countersign.NotFound || before.number == 0) {
		return nil, err
	}
	if err := p.check(name, before, l); err != nil {
		if held := p.copies.held(name, before.number); held != nil {
			return held, nil
		}
		return nil, err
	}
	return l, nil
}

// OpenCRL opens the published list of an authority and returns its record beside it.
// All readers of one list share one copy of its octets. The caller closes the reader;
// a Read fails with Unavailable where the list had to be dropped, see
// maxSupersededOctets.
func (p *lists) OpenCRL(ctx context.Context, issuer string, shard int) (*countersign.CRL, io.ReadSeekCloser, error) {
	record, err := p.CRLRecord(ctx, issuer, shard)
	if err != nil {
		return nil, nil, err
	}
	return p.copies.open(ctx, record, p.signed)
}

// ListRecords reads the records of all lists that the authorities publish, without
// their octets. The number of one that was never published is 0.
func ListRecords(ctx context.Context, r store.Reader) ([]countersign.CRL, error) {
	list, err := store.List(ctx, r, func(row store.Row) (l countersign.CRL, err error) {
		var this, next int64
		err = row.Scan(&l.Issuer, &l.Shard, &l.Number, &this, &next)
		l.ThisUpdate, l.NextUpdate = store.Time(this), store.Time(next)
		return l, err
	}, `SELECT issuer, shard, published, this_update, next_update FROM crl ORDER BY issuer, shard`)
	if err != nil {
		return nil, fmt.Errorf("read the records of revocation lists: %w", err)
	}
	return list, nil
}

// RecordedList reads a list as the database has it, which after a restore may be an
// older one than was published; nil if none was.
func RecordedList(ctx context.Context, r store.Reader, issuer string, shard int) (*x509.RevocationList, error) {
	_, c, ids, err := readOctets(ctx, r, listName{issuer, shard})
	if err == nil {
		err = c.readChunks(ctx, r, ids, nil)
	}
	if countersign.CodeOf(err) == countersign.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(c.bytes())
	if err != nil {
		return nil, fmt.Errorf("parse CRL %s/%d: %w", issuer, shard, err)
	}
	return list, nil
}

// Due lists the CRLs that have to be published: for their age, which is never published,
// or past half of their life, which began when they were signed; since the database was set
// back and has an older one; or since a process ended before it published what has changed.
func (p *lists) Due(ctx context.Context) (due []countersign.CRL, err error) {
	p.mu.Lock()
	before := maps.Clone(p.by)
	p.mu.Unlock()
	list, err := ListRecords(ctx, p.DB)
	if err != nil {
		return nil, err
	}
	changed := map[listName]bool{}
	for name, err := range store.Rows(ctx, p.DB, func(row store.Row) (n listName, err error) {
		err = row.Scan(&n.issuer, &n.shard)
		return n, err
	}, `SELECT issuer, shard FROM crl WHERE EXISTS (SELECT 1 FROM crl_change c WHERE c.issuer = crl.issuer AND c.shard = crl.shard)`) {
		if err != nil {
			return nil, fmt.Errorf("read which revocation lists have changes: %w", err)
		}
		changed[name] = true
	}
	for _, l := range list {
		name := listName{l.Issuer, l.Shard}
		if changed[name] || p.isDue(&l, before[name]) {
			due = append(due, l)
		}
	}
	return due, nil
}

func (p *lists) isDue(l *countersign.CRL, last lastList) bool {
	signed := l.ThisUpdate.Add(statusBackdate)
	aged := l.Number == 0 || !p.Now().Before(signed.Add(l.NextUpdate.Sub(signed)/2))
	return aged || last.setBack || l.Number < last.number
}

func (p *lists) takeNumber(ctx context.Context, l *countersign.CRL) error {
	last := p.last(listName{l.Issuer, l.Shard}).number
	return p.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `UPDATE crl SET number = CASE WHEN number < $3 THEN $4 ELSE number + 1 END WHERE issuer = $1 AND shard = $2 RETURNING number`,
			l.Issuer, l.Shard, last, last+numberMargin).Scan(&l.Number)
	})
}

// ListNumbers returns the highest number that was used for each CRL, by issuer/shard.
func ListNumbers(ctx context.Context, r store.Reader) (numbers map[string]int64, err error) {
	numbers = map[string]int64{}
	for l, err := range store.Rows(ctx, r, func(row store.Row) (l countersign.CRL, err error) {
		err = row.Scan(&l.Issuer, &l.Shard, &l.Number)
		return l, err
	}, `SELECT issuer, shard, number FROM crl`) {
		if err != nil {
			return nil, fmt.Errorf("read the numbers of CRLs: %w", err)
		}
		numbers[l.Issuer+"/"+strconv.Itoa(l.Shard)] = l.Number
	}
	return numbers, nil
}

// nameOf reads a name as ListNumbers writes it.
func nameOf(list string) (listName, error) {
	issuer, shard, _ := strings.Cut(list, "/")
	n, err := strconv.Atoi(shard)
	return listName{issuer, n}, err
}

// RaiseNumbers has the next CRLs get numbers above those that were used, as
// ListNumbers names them: a relying party accepts no list with a lower number than it
// knows (RFC 5280, 5.2.3). The lists are due at once.
func RaiseNumbers(ctx context.Context, tx *store.Tx, above map[string]int64) error {
	for list, number := range above {
		name, err := nameOf(list)
		if err == nil {
			_, err = tx.Exec(ctx, `UPDATE crl SET number = $3, this_update = 0, next_update = 0 WHERE issuer = $1 AND shard = $2 AND number < $3`, name.issuer, name.shard, number+numberMargin)
		}
		if err != nil {
			return fmt.Errorf("raise the number of CRL %q: %w", list, err)
		}
	}
	return nil
}

// KeepNumbersAbove has the next CRLs get numbers above those that were used, as
// ListNumbers names them, since the database was set back: see RaiseNumbers, which does
// that on record for a server that does not run. All of them are due; one that is older
// is not served any more.
func (p *lists) KeepNumbersAbove(numbers map[string]int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for list, number := range numbers {
		name, err := nameOf(list)
		if err != nil { // not one of ListNumbers
			continue
		}
		last := p.by[name]
		if last.number < number {
			last = lastList{number: number}
		}
		last.setBack = true
		p.by[name] = last
	}
}
