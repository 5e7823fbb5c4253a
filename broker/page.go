package broker

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/countersign-iot/countersign/store"
)

const (
	// pageMessages bounds the messages of one row: beyond it the row costs less than they do.
	pageMessages = 64
	// pageOctets bounds them too, with what they cost. One message may be larger. The rest
	// of a page stays on record with its last message: a client that acknowledges all but
	// one of each can have as many of them as it has messages in flight.
	pageOctets = 16 << 10
)

// page is the messages of one session that became one row of its queue. The lock of the
// session owns held.
type page struct {
	first, last uint64
	octets      int
	held        int      // of its entries in the queue in memory
	entries     []*entry // until they are delivered to the session
}

// prepare assigns the new messages among ops their places, and each a page. Trims are as
// far as they are now.
func prepare(ops []op) {
	open := map[*session]*page{}
	for i := range ops {
		o := &ops[i]
		if o.kind == opTrim {
			o.to, o.part = o.s.takeTrim()
		}
		if o.kind != opInsert {
			continue
		}
		e, pg := o.e, open[o.s]
		if e.seq == 0 {
			o.s.mu.Lock()
			e.seq = o.s.number()
			o.s.mu.Unlock()
		}
		cost := e.m.cost()
		if pg == nil || len(pg.entries) == pageMessages || pg.octets+cost > pageOctets {
			pg = &page{first: e.seq}
			open[o.s] = pg
		}
		pg.last, pg.octets, pg.entries = e.seq, pg.octets+cost, append(pg.entries, e)
		e.page = pg
	}
}

// insertPage records a page of a session.
func insertPage(ctx context.Context, tx *store.Tx, session int64, pg *page) error {
	e, more := pg.entries[0], make([]byte, 0, pg.octets)
	for i, next := range pg.entries[1:] {
		more = next.encode(more, pg.entries[i])
	}
	_, err := tx.Exec(ctx, `INSERT INTO mqtt_queue (session, seq, upto, n, octets, qos, retain, expires, topic, props, payload, sub_ids, more)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		session, int64(pg.first), int64(pg.last), int64(len(pg.entries)), int64(pg.octets), int64(e.qos), number(e.retain), //nolint:gosec // counts
		expiresMicros(e.m), e.m.Topic, some(e.m.Props), some(e.m.Payload), encodeIDs(e.ids), more)
	return err
}

// reservedPlaces is how many places are put on record as used at once: one statement for so
// many messages, and so many identifiers that a restart leaves out.
const reservedPlaces = 4096

// reservePlace has the places of a session's queue go on behind to after a restart, also
// where nothing of the queue is left on record. Packet identifiers follow from them, and a
// client may have kept one whose end it did not see: it would take another message of
// that identifier for the one it has.
func (j *journal) reservePlace(ctx context.Context, tx *store.Tx, s *session, to uint64) error {
	if to <= s.reserved {
		return nil
	}
	to += reservedPlaces
	j.recordedThen(func() { s.reserved = to })
	_, err := tx.Exec(ctx, `UPDATE mqtt_session SET place = $1 WHERE id = $2`, int64(to), s.id) //nolint:gosec // a count
	return err
}

// The flags of an entry behind the first of a page: its QoS, and these.
const (
	entryRetain    = 1 << 2
	entrySameTopic = 1 << 3 // as the one before
	entrySameProps = 1 << 4
)

// encode appends the entry, which is behind before in its page.
func (e *entry) encode(b []byte, before *entry) []byte {
	flags := e.qos
	if e.retain {
		flags |= entryRetain
	}
	if e.m.Topic == before.m.Topic {
		flags |= entrySameTopic
	}
	if slices.Equal(e.m.Props, before.m.Props) {
		flags |= entrySameProps
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, e.seq-before.seq)
	b = binary.AppendVarint(b, expiresMicros(e.m))
	if flags&entrySameTopic == 0 {
		b = append(binary.AppendUvarint(b, uint64(len(e.m.Topic))), e.m.Topic...)
	}
	if flags&entrySameProps == 0 {
		b = appendBlock(b, e.m.Props)
	}
	return appendBlock(appendBlock(b, encodeIDs(e.ids)), e.m.Payload)
}

func appendBlock(b, block []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(block))), block...)
}

var errPage = errors.New("a page of the queue is damaged")

// pageReader reads what encode wrote. After a failure all it returns is zero.
type pageReader struct {
	b   []byte
	bad bool
}

func (r *pageReader) fail() { r.b, r.bad = nil, true }

func (r *pageReader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *pageReader) signed() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *pageReader) block() []byte {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	block := r.b[:n:n]
	r.b = r.b[n:]
	return block
}

// decodeMore reads the entries behind first.
func decodeMore(first *entry, b []byte) (list []*entry, err error) {
	r := pageReader{b: b}
	for before := first; len(r.b) > 0; {
		flags := r.b[0]
		r.b = r.b[1:]
		m := &Message{QoS: flags & 3, Topic: before.m.Topic, Props: before.m.Props}
		e := &entry{m: m, seq: before.seq + r.number(), qos: m.QoS, retain: flags&entryRetain != 0}
		m.Expires = expiresTime(r.signed())
		if flags&entrySameTopic == 0 {
			m.Topic = string(r.block())
		}
		if flags&entrySameProps == 0 {
			m.Props = r.block()
		}
		e.ids = decodeIDs(r.block())
		m.Payload = r.block()
		if r.bad || e.qos < 1 || e.qos > 2 || e.seq <= before.seq {
			return nil, errPage
		}
		list, before = append(list, e), e
	}
	return list, nil
}

// pageColumns are what scanPage reads.
const pageColumns = `q.session, q.seq, q.upto, q.octets, q.qos, q.retain, q.expires, q.topic, q.props, q.payload, q.sub_ids, q.more`

func scanPage(rows *sql.Rows) (session int64, pg *page, err error) {
	m := &Message{}
	e := &entry{m: m}
	pg = &page{}
	var retain, expires int64
	var ids, more []byte
	err = rows.Scan(&session, &pg.first, &pg.last, &pg.octets, &e.qos, &retain, &expires, &m.Topic, &m.Props, &m.Payload, &ids, &more)
	if err != nil {
		return 0, nil, err
	}
	e.seq, m.QoS, m.Expires, e.retain, e.ids = pg.first, e.qos, expiresTime(expires), retain == 1, decodeIDs(ids)
	rest, err := decodeMore(e, more)
	if pg.entries = append([]*entry{e}, rest...); err == nil && pg.entries[len(rest)].seq != pg.last {
		err = errPage
	}
	for _, e := range pg.entries {
		e.page = pg
	}
	return session, pg, err
}

// mark is what has happened to messages of a session, see the table mqtt_mark.
type mark struct {
	seq, upto uint64
	gone      bool
}

const markColumns = `k.session, k.seq, k.upto, k.gone`

func scanMark(rows *sql.Rows) (session int64, k mark, err error) {
	var gone int64
	err = rows.Scan(&session, &k.seq, &k.upto, &gone)
	k.gone = gone == 1
	return session, k, err
}

// apply takes those out of the page that have ended, and returns them.
func (pg *page) apply(marks []mark) (gone []*entry) {
	pg.entries = slices.DeleteFunc(pg.entries, func(e *entry) bool {
		for _, k := range marks {
			if e.seq < k.seq || e.seq > k.upto {
				continue
			}
			if k.gone {
				gone = append(gone, e)
				return true
			}
			e.state = released
		}
		return false
	})
	return gone
}

// markOne records what has happened to messages of a session. The marks of one that was
// removed would stay.
func markOne(ctx context.Context, tx *store.Tx, s *session, k mark) error {
	if s.over() {
		return nil
	}
	if k.seq == 0 {
		s.passed = true
	} else {
		s.marked = max(s.marked, k.upto)
	}
	_, err := tx.Exec(ctx, `INSERT INTO mqtt_mark (session, seq, upto, gone) VALUES ($1, $2, $3, $4)
		ON CONFLICT (session, seq) DO UPDATE SET upto = excluded.upto, gone = excluded.gone`,
		s.id, int64(k.seq), int64(k.upto), number(k.gone)) //nolint:gosec // counts
	return err
}

// trimQueues removes what was acknowledged in its turn: each session's at once.
func (j *journal) trimQueues(ctx context.Context, tx *store.Tx, ops []op) error {
	last := map[*session]op{}
	for _, o := range ops {
		if o.kind == opTrim && o.to >= last[o.s].to {
			last[o.s] = o
		}
	}
	for s, o := range last {
		to := int64(o.to) //nolint:gosec // a count
		if _, err := tx.Exec(ctx, `DELETE FROM mqtt_queue WHERE session = $1 AND seq <= $2 AND upto <= $2`, s.id, to); err != nil {
			return err
		}
		if o.part || s.passed || s.marked > 0 {
			if err := j.trimMarks(ctx, tx, s, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// trimMarks ends the marks of what o trims. If that is a part of a page, a mark says so.
func (j *journal) trimMarks(ctx context.Context, tx *store.Tx, s *session, o op) error {
	if s.passed && !o.part || s.marked > 0 {
		if _, err := tx.Exec(ctx, `DELETE FROM mqtt_mark WHERE session = $1 AND upto <= $2`, s.id, int64(o.to)); err != nil { //nolint:gosec // a count
			return err
		}
		j.recordedThen(func() {
			s.passed = o.part
			if o.to >= s.marked {
				s.marked = 0
			}
		})
	}
	if !o.part {
		return nil
	}
	return markOne(ctx, tx, s, mark{upto: o.to, gone: true})
}

// drainQueue removes what waits in a queue. Of the page of the last message in flight the
// row stays.
func drainQueue(ctx context.Context, tx *store.Tx, o op) error {
	if _, err := tx.Exec(ctx, `DELETE FROM mqtt_queue WHERE session = $1 AND seq > $2 AND upto <= $3`, o.s.id, int64(o.from), int64(o.to)); err != nil { //nolint:gosec // counts
		return err
	}
	if o.e == nil || o.e.page.last <= o.from {
		return nil
	}
	return markOne(ctx, tx, o.s, mark{seq: o.from + 1, upto: o.e.page.last, gone: true})
}

// errEnough ends a query whose other rows are not wanted now.
var errEnough = errors.New("enough rows")

// readQueue reads the pages of a session that have messages behind after: about
// fillMessages of them, fillOctets at most. whole reports that there are no more.
func (b *Broker) readQueue(ctx context.Context, s *session, after uint64) (pages []*page, whole bool, err error) {
	var marks []mark
	err = b.each(ctx, func(rows *sql.Rows) error {
		_, k, err := scanMark(rows)
		marks = append(marks, k)
		return err
	}, `SELECT `+markColumns+` FROM mqtt_mark k WHERE k.session = $1 AND k.upto > $2`, s.id, int64(after)) //nolint:gosec // a count
	if err != nil {
		return nil, false, err
	}
	marks = append(marks, mark{upto: after, gone: true})
	octets, n := 0, 0
	err = b.each(ctx, func(rows *sql.Rows) error {
		if n >= fillMessages || octets > fillOctets {
			return errEnough
		}
		_, pg, err := scanPage(rows)
		if err != nil {
			return err
		}
		pg.apply(marks)
		n, octets = n+len(pg.entries), octets+pg.octets
		pages = append(pages, pg)
		return nil
	}, `SELECT `+pageColumns+` FROM mqtt_queue q WHERE q.session = $1 AND q.upto > $2 ORDER BY q.seq LIMIT $3`, s.id, int64(after), fillMessages) //nolint:gosec // a count
	if errors.Is(err, errEnough) {
		return pages, false, nil
	}
	return pages, len(pages) < fillMessages, err
}
