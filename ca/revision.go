package ca

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// changesAtOnce bounds the changes that one list follows, so that what they take in
	// memory is bounded: some 200 octets each. The next list follows the others.
	changesAtOnce = 20_000
	// rowsAtOnce bounds the rows that one transaction removes: other writers wait for it.
	rowsAtOnce = 200
	// chunksAtOnce bounds the chunks that one transaction writes or removes.
	chunksAtOnce = 2
	// listTries bounds the attempts at a list that other nodes overtake.
	listTries = 5
)

// Publish signs and records a new CRL, made anew from the certificates on record: what
// has expired leaves it. It returns the list with its octets. Where the database was set
// back, the number is above those that were published before. A list that another process
// overtook is returned and is not on record.
func (p *lists) Publish(ctx context.Context, issuer string, shard int) (*countersign.CRL, error) {
	name := listName{issuer, shard}
	before, err := p.signed(ctx, name)
	if err != nil && !canFollow(err) {
		return nil, err
	}
	l, c, _, err := p.anew(ctx, name, before)
	if err != nil {
		return nil, err
	}
	l.DER = c.bytes()
	return l, nil
}

// Refresh has the published CRL show all that was on record when it was called, and
// returns its record. Where something has changed since the last list, it publishes one
// that follows it: published is true. A list that is due is made anew, see Publish.
func (p *lists) Refresh(ctx context.Context, issuer string, shard int) (l *countersign.CRL, published bool, err error) {
	name := listName{issuer, shard}
	for range listTries {
		before, err := p.signed(ctx, name)
		if err != nil && !canFollow(err) {
			return nil, false, err
		}
		if before == nil || p.isDue(&before.record, p.last(name)) || before.fromBefore() {
			next, _, won, err := p.anew(ctx, name, before)
			if won || err != nil {
				return next, won, err
			}
			continue
		}
		next, won, more, err := p.follow(ctx, name, before)
		switch {
		case err != nil:
			return nil, false, err
		case next == nil: // nothing has changed
			return cmp.Or(l, &before.record), published, nil
		case !won:
			continue
		}
		if l, published = next, true; !more {
			return l, true, nil
		}
	}
	return nil, false, countersign.Errorf(countersign.Unavailable, "CRL %s/%d was published %d times, and there are more changes", issuer, shard, listTries).
		WithNext("wait for the next list")
}

// fromBefore reports that the list is of a version that kept it in one piece, and did not
// note what was to be on the next one.
func (s *signedList) fromBefore() bool { return len(s.content.tail) == 0 }

// canFollow reports that a list can be made although the one before cannot be read: there is
// none, the database was set back and has an older one, or it has lost chunks.
func canFollow(err error) bool {
	return countersign.CodeOf(err) == countersign.NotFound || errors.Is(err, errSetBack) || errors.Is(err, errListMoved)
}

// signedList is a list with its octets.
type signedList struct {
	record  countersign.CRL // without DER
	content *content
}

// signed reads the list on record.
func (p *lists) signed(ctx context.Context, name listName) (s *signedList, err error) {
	known := []*content{p.copies.content(name)}
	for range listTries {
		before := p.last(name)
		l, c, ids, err := readOctets(ctx, p.DB, name)
		if err != nil && (countersign.CodeOf(err) != countersign.NotFound || before.number == 0) {
			return nil, err
		}
		if err := p.check(name, before, l); err != nil {
			return nil, err
		}
		known = append(known, c) // what it has when another list is found in its place
		switch err = c.readChunks(ctx, p.DB, ids, known); {
		case err == nil:
			return &signedList{*l, c}, nil
		case !errors.Is(err, errListMoved):
			return nil, err
		}
	}
	return nil, errListMoved
}

// anew makes a list from the certificates on record. before is the list that it follows;
// nil if that cannot be read. won is false where another node overtook it.
func (p *lists) anew(ctx context.Context, name listName, before *signedList) (l *countersign.CRL, c *content, won bool, err error) {
	done, _, err := p.changes(ctx, name) // those that come from now on may be on this list too
	if err != nil {
		return nil, nil, false, err
	}
	a, l, err := p.begin(ctx, name)
	if err != nil {
		return nil, nil, false, err
	}
	chunks, err := readListed(ctx, p.DB, l)
	if err != nil {
		return nil, nil, false, err
	}
	if c, err = p.sign(a, l, chunks); err != nil {
		return nil, nil, false, err
	}
	rev := &revision{list: l, content: c, done: done}
	if before != nil {
		rev.before = before.content
	}
	won, err = p.record(ctx, rev)
	return l, c, won, err
}

// follow makes a list of the one before and what has changed since; nil if nothing has. won
// is false where another node overtook it. more: there are more changes than one list follows.
func (p *lists) follow(ctx context.Context, name listName, before *signedList) (l *countersign.CRL, won, more bool, err error) {
	done, serials, err := p.changes(ctx, name)
	if err != nil || len(done) == 0 {
		return nil, false, false, err
	}
	a, l, err := p.begin(ctx, name)
	if err != nil {
		return nil, false, false, err
	}
	chunks, err := p.changed(ctx, l, before.content.chunks, serials)
	if err != nil {
		return nil, false, false, err
	}
	c, err := p.sign(a, l, chunks)
	if err != nil {
		return nil, false, false, err
	}
	won, err = p.record(ctx, &revision{list: l, content: c, before: before.content, follows: true, done: done})
	return l, won, len(done) == changesAtOnce, err
}

// begin takes the number of a new list and dates it. The number is taken before certificates
// are read, so that two nodes never sign the same one; and after the changes that the list
// removes are read, so that one made anew with a higher number, which may take its place,
// shows these too.
func (p *lists) begin(ctx context.Context, name listName) (*authority, *countersign.CRL, error) {
	a, err := p.authority(name.issuer)
	if err != nil {
		return nil, nil, err
	}
	l := &countersign.CRL{Issuer: name.issuer, Shard: name.shard}
	if err := p.takeNumber(ctx, l); err != nil {
		return nil, nil, fmt.Errorf("number CRL %s/%d: %w", l.Issuer, l.Shard, err)
	}
	validity := p.CRLValidity
	if a.Kind == countersign.RootAuthority {
		validity = rootCRLValidity
	}
	now := p.Now().UTC().Truncate(time.Second)
	l.ThisUpdate, l.NextUpdate = a.backdated(now), now.Add(validity)
	return a, l, nil
}

// sign signs a list around its entries.
func (p *lists) sign(a *authority, l *countersign.CRL, chunks []*chunk) (*content, error) {
	signer, err := p.signerOf(a)
	if err != nil {
		return nil, err
	}
	c, err := signCRL(a, signer, l, chunks)
	if err != nil {
		return nil, fmt.Errorf("sign CRL %s/%d: %w", l.Issuer, l.Shard, err)
	}
	return c, nil
}

// changes reads the certificates whose revocation has changed: the rows, and the serial
// numbers in them.
func (p *lists) changes(ctx context.Context, name listName) (ids []int64, serials []countersign.Serial, err error) {
	type change struct {
		id     int64
		serial countersign.Serial
	}
	for c, err := range store.Rows(ctx, p.DB, func(row store.Row) (c change, err error) {
		err = row.Scan(&c.id, &c.serial)
		return c, err
	}, `SELECT id, serial FROM crl_change WHERE issuer = $1 AND shard = $2 ORDER BY id LIMIT $3`, name.issuer, name.shard, changesAtOnce) {
		if err != nil {
			return nil, nil, fmt.Errorf("read what CRL %s/%d is to show: %w", name.issuer, name.shard, err)
		}
		ids, serials = append(ids, c.id), append(serials, c.serial)
	}
	slices.Sort(serials)
	return ids, slices.Compact(serials), nil
}

// changed returns the entries of a list with those of the serials as they are now.
func (p *lists) changed(ctx context.Context, l *countersign.CRL, before []*chunk, serials []countersign.Serial) ([]*chunk, error) {
	set := make(map[string]bool, len(serials))
	for _, s := range serials {
		octets, err := octetsOf(string(s))
		if err != nil {
			return nil, err
		}
		set[string(octets)] = true
	}
	var add []byte
	for e, err := range store.RowsIn(ctx, p.DB, scanWithdrawn, `SELECT issuer, shard, state, not_after, serial, reason, revoked_at FROM certificate WHERE serial IN`, serials) {
		if err != nil {
			return nil, fmt.Errorf("read changed certificates: %w", err)
		}
		if e.issuer != l.Issuer || e.shard != l.Shard || !withdrawn(e.state) || e.notAfter.Before(leavesBefore(l)) {
			continue
		}
		if add, err = e.appendTo(add, l); err != nil {
			return nil, err
		}
	}
	var c chunker
	for i, k := range before {
		c.without(k, set, len(add) > 0 && i == len(before)-1 && len(k.der) < chunkOctets)
	}
	for entry := range entriesOf(add) {
		c.add(entry)
	}
	return c.chunks, nil
}

// withdrawnRow is what a list has to know of a changed certificate.
type withdrawnRow struct {
	listed
	issuer   string
	shard    int
	state    countersign.CertState
	notAfter time.Time
}

func scanWithdrawn(row store.Row) (w withdrawnRow, err error) {
	var notAfter int64
	err = row.Scan(&w.issuer, &w.shard, &w.state, &notAfter, &w.serial, &w.reason, &w.at)
	w.notAfter = store.Time(notAfter)
	return w, err
}

// noteChange has the next list show a certificate as it is, in the transaction that changed it.
// A registered authority has no list here.
func noteChange(ctx context.Context, tx *store.Tx, cert *countersign.Certificate) error {
	_, err := tx.Exec(ctx, `INSERT INTO crl_change (issuer, shard, serial) SELECT issuer, shard, $3 FROM crl WHERE issuer = $1 AND shard = $2`, cert.Issuer, cert.Shard, string(cert.Serial))
	if err != nil {
		return fmt.Errorf("note certificate %s for the revocation list: %w", cert.Serial, err)
	}
	return nil
}

// revision is a new list that is to be recorded.
type revision struct {
	list    *countersign.CRL
	content *content
	before  *content // whose chunks it shares; nil: none
	follows bool     // it is right only if before is still the list on record
	done    []int64  // changes that it shows
}

// errOvertaken ends the transaction of a list that another node has overtaken.
var errOvertaken = errors.New("another node has published a newer list")

// record records a list, and false if another node overtook it. What it no longer needs is
// removed afterwards, a little at once.
func (p *lists) record(ctx context.Context, rev *revision) (won bool, err error) {
	l := rev.list
	fresh, gone := rev.content.fresh(rev.before)
	size := len(rev.content.head) + len(rev.content.tail)
	for _, k := range fresh {
		size += len(k.der)
	}
	writing := ctx
	if int64(size) <= p.DB.Reserve().Left/reserveShare {
		writing = store.Emergency(ctx)
	}
	var early []int64               // written before the list that names them
	for len(fresh) > chunksAtOnce { // a chunk that no list names is nothing yet
		if err = p.DB.Write(writing, func(ctx context.Context, tx *store.Tx) error { return insertChunks(ctx, tx, l, fresh[:chunksAtOnce]) }); err != nil {
			break
		}
		for _, k := range fresh[:chunksAtOnce] {
			early = append(early, k.id)
		}
		fresh = fresh[chunksAtOnce:]
	}
	if err == nil {
		err = p.DB.Write(writing, func(ctx context.Context, tx *store.Tx) error {
			if err := insertChunks(ctx, tx, l, fresh); err != nil {
				return err
			}
			return rev.save(ctx, tx)
		})
	}
	if err != nil && !store.Unconfirmed(err) { // else they may be those of the list on record
		_ = p.removeRows(writing, "crl_chunk", early, chunksAtOnce) // or the next list made anew does
	}
	if errors.Is(err, errOvertaken) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("record CRL %s/%d: %w", l.Issuer, l.Shard, err)
	}
	p.copies.follow(l, rev.content)
	if err := p.check(listName{l.Issuer, l.Shard}, lastList{}, l); err != nil {
		return true, err
	}
	if err := p.clear(writing, rev, gone); err != nil && ctx.Err() == nil { // the next list does it
		p.Log.WarnContext(ctx, "rows of an earlier revocation list not removed", "authority", l.Issuer, "error", err)
	}
	return true, nil
}

func insertChunks(ctx context.Context, tx *store.Tx, l *countersign.CRL, chunks []*chunk) error {
	for _, k := range chunks {
		_, err := tx.Exec(ctx, `INSERT INTO crl_chunk (id, issuer, shard, number, n, der) VALUES ($1, $2, $3, $4, $5, $6)`, k.id, l.Issuer, l.Shard, l.Number, k.n, k.der)
		if err != nil {
			return fmt.Errorf("record a chunk of CRL %s/%d: %w", l.Issuer, l.Shard, err)
		}
	}
	return nil
}

// save makes the list the one on record.
func (rev *revision) save(ctx context.Context, tx *store.Tx) error {
	l, c := rev.list, rev.content
	q := `UPDATE crl SET published = $3, this_update = $4, next_update = $5, entries = $6, size = $7, head = $8, tail = $9, chunks = $10
		WHERE issuer = $1 AND shard = $2 AND published < $3`
	args := []any{l.Issuer, l.Shard, l.Number, store.Micros(l.ThisUpdate), store.Micros(l.NextUpdate), l.Entries, l.Size, c.head, c.tail, c.manifest()}
	if rev.follows {
		q, args = q+` AND tail = $11`, append(args, rev.before.tail) // its signature names the list before
	}
	rows, err := tx.Exec(ctx, q, args...)
	if err == nil && rows == 0 {
		return errOvertaken
	}
	return err
}

// clear removes the changes that a list shows and the chunks that no list needs: those of
// the list before, and those of lists that were overtaken.
func (p *lists) clear(ctx context.Context, rev *revision, gone []int64) error {
	if !rev.follows {
		var err error
		if gone, err = p.strayChunks(ctx, rev); err != nil {
			return err
		}
	}
	if err := p.removeRows(ctx, "crl_change", rev.done, rowsAtOnce); err != nil {
		return err
	}
	return p.removeRows(ctx, "crl_chunk", gone, chunksAtOnce)
}

// strayChunks returns the chunks of earlier lists that a list made anew does not have.
func (p *lists) strayChunks(ctx context.Context, rev *revision) (stray []int64, err error) {
	for id, err := range store.Rows(ctx, p.DB, store.Scan[int64], `SELECT id FROM crl_chunk WHERE issuer = $1 AND shard = $2 AND number < $3`, rev.list.Issuer, rev.list.Shard, rev.list.Number) {
		if err != nil {
			return nil, err
		}
		stray = append(stray, id)
	}
	return stray, nil
}

// removeRows removes rows by their ids, a few in each transaction.
func (p *lists) removeRows(ctx context.Context, table string, ids []int64, atOnce int) error {
	for part := range slices.Chunk(ids, atOnce) {
		err := p.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
			var q store.Query
			places := make([]string, len(part))
			for i, id := range part {
				places[i] = q.Arg(id)
			}
			_, err := tx.Exec(ctx, `DELETE FROM `+table+` WHERE id IN (`+strings.Join(places, ", ")+`)`, q.Args...)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
