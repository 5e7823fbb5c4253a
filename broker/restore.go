package broker

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign-iot/countersign/store"
)

// restored is what is read of the record when a core is opened.
type restored struct {
	b     *Broker
	byID  map[int64]*session
	stale []int64 // sessions in whose place another one is
}

// restore reads what the node had on record when it stopped. The connections of then are
// gone: their sessions are kept from now on for as long as they were to be.
func (b *Broker) restore(ctx context.Context) error {
	if err := b.journal.takeOver(ctx); err != nil {
		return fmt.Errorf("take over the sessions of the message broker: %w", err)
	}
	b.dropOrphans(ctx)
	r := &restored{b: b, byID: map[int64]*session{}}
	for _, step := range []struct {
		what string
		read func(context.Context) error
	}{
		{"sessions", r.sessions},
		{"subscriptions", r.subscriptions},
		{"queues", r.queues},
		{"messages of QoS 2", r.inbound},
		{"retained messages", r.retained},
	} {
		if err := step.read(ctx); err != nil {
			return fmt.Errorf("read the %s of the message broker: %w", step.what, err)
		}
	}
	for _, id := range r.stale {
		b.journal.add(op{kind: opWipe, s: &session{id: id}})
	}
	now := b.o.Now()
	for _, s := range r.byID {
		s.mu.Lock()
		if s.left.Load() == 0 {
			s.left.Store(now.UnixMicro())
			s.sent = s.seq // all of it may have been sent
			b.journal.add(op{kind: opChange, s: s, row: s.row()})
		}
		s.sent = min(s.sent, s.seq) // what was sent is acknowledged, if it is not there
		s.seq = max(s.seq, s.reserved)
		s.schedule(now)
		s.mu.Unlock()
	}
	return nil
}

// sessionTables are the tables of what belongs to a session.
var sessionTables = []string{"mqtt_subscription", "mqtt_queue", "mqtt_mark", "mqtt_inbound"}

// dropOrphans removes rows whose session was erased before they were written: the process
// ended before it could remove them. Where the database takes no write they stay.
func (b *Broker) dropOrphans(ctx context.Context) {
	err := b.o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		for _, table := range sessionTables {
			if _, err := tx.Exec(ctx, "DELETE FROM "+table+" WHERE NOT EXISTS (SELECT 1 FROM mqtt_session s WHERE s.id = "+table+".session)"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.o.Log.Warn("rows of erased MQTT sessions not removed", "error", err)
	}
}

// each calls read for every row of a query.
func (b *Broker) each(ctx context.Context, read func(*sql.Rows) error, q string, args ...any) (err error) {
	rows, err := b.o.DB.Query(ctx, q, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := read(rows); err != nil {
			return err
		}
	}
	return store.Wrap(rows.Err())
}

func (r *restored) sessions(ctx context.Context) error {
	return r.b.each(ctx, func(rows *sql.Rows) error {
		s := &session{b: r.b, kept: true}
		var device string
		var expiry, left, sent, willAt, place int64
		var will []byte
		if err := rows.Scan(&s.id, &s.client, &device, &expiry, &left, &sent, &will, &willAt, &place); err != nil {
			return err
		}
		if old := r.b.sessions[s.client]; old != nil { // its end was not recorded any more
			r.stale = append(r.stale, old.id)
			delete(r.byID, old.id)
			delete(old.a.sessions, old)
		}
		s.expiry = min(time.Duration(expiry)*time.Second, r.b.o.Limits.Expiry)
		s.left.Store(left)
		s.sent, s.reserved = uint64(sent), uint64(place) //nolint:gosec // counts
		if len(will) > 0 {
			s.will = &Will{}
			if err := json.Unmarshal(will, s.will); err != nil {
				return fmt.Errorf("the will of %s: %w", s.client, err)
			}
			s.willAt = time.UnixMicro(willAt)
		}
		r.byID[s.id] = s
		r.b.enter(s, device)
		r.b.ids.Store(max(r.b.ids.Load(), s.id))
		return nil
	}, `SELECT id, client, device, expiry, left_at, sent, will, will_at, place FROM mqtt_session WHERE node = $1 ORDER BY id`, r.b.o.Node)
}

func (r *restored) subscriptions(ctx context.Context) error {
	return r.b.each(ctx, func(rows *sql.Rows) error {
		var id, options, subID int64
		sub := &subscription{}
		if err := rows.Scan(&id, &sub.n, &sub.Filter, &options, &subID); err != nil {
			return err
		}
		s := r.byID[id]
		if s == nil {
			return nil
		}
		sub.s, sub.ID = s, uint32(subID) //nolint:gosec // written from one
		sub.setOptions(byte(options))    //nolint:gosec // written from one
		s.lastSub = max(s.lastSub, sub.n)
		if old := s.subscription(sub.Filter); old != nil { // its end was not recorded any more
			s.subs[slices.Index(s.subs, old)] = sub
			r.b.tree.replace(old, sub)
			r.b.journal.add(op{kind: opUnsubscribe, s: s, sub: old, old: true})
			return nil
		}
		s.subs = append(s.subs, sub)
		s.a.subs++
		r.b.tree.add(sub)
		return nil
	}, `SELECT u.session, u.n, u.filter, u.options, u.sub_id FROM mqtt_subscription u JOIN mqtt_session s ON s.id = u.session WHERE s.node = $1 ORDER BY u.session, u.n`, r.b.o.Node)
}

// queues reads how long the queues are. Of the messages it reads those pages of
// which a part has ended.
func (r *restored) queues(ctx context.Context) error {
	count := func(id int64, last uint64, n, octets int) {
		if s := r.byID[id]; s != nil {
			s.seq = max(s.seq, last)
			s.stored, s.more = s.seq, true
			s.count(n, octets)
			s.a.queued += n
			s.a.waiting += octets
			r.b.queued.Add(int64(n))
			r.b.queuedOctets.Add(int64(octets))
		}
	}
	err := r.b.each(ctx, func(rows *sql.Rows) error {
		var id, last int64
		var n, octets int
		if err := rows.Scan(&id, &last, &n, &octets); err != nil {
			return err
		}
		count(id, uint64(last), n, octets) //nolint:gosec // a count
		return nil
	}, `SELECT q.session, max(q.upto), CAST(sum(q.n) AS BIGINT), CAST(sum(q.octets) AS BIGINT)
		FROM mqtt_queue q JOIN mqtt_session s ON s.id = q.session WHERE s.node = $1 GROUP BY q.session`, r.b.o.Node)
	if err != nil {
		return err
	}
	marks := map[int64][]mark{}
	err = r.b.each(ctx, func(rows *sql.Rows) error {
		id, k, err := scanMark(rows)
		if s := r.byID[id]; s != nil {
			marks[id] = append(marks[id], k)
			s.passed, s.marked = true, max(s.marked, k.upto)
			s.seq = max(s.seq, k.upto) // what has a place up to it would be taken for ended
		}
		return err
	}, `SELECT `+markColumns+` FROM mqtt_mark k JOIN mqtt_session s ON s.id = k.session WHERE s.node = $1`, r.b.o.Node)
	if err != nil {
		return err
	}
	return r.b.each(ctx, func(rows *sql.Rows) error {
		id, pg, err := scanPage(rows)
		if errors.Is(err, errPage) {
			r.b.o.Log.Warn("queue not counted", "session", id, "error", err)
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range pg.apply(marks[id]) {
			count(id, 0, -1, -e.m.cost())
		}
		return nil
	}, `SELECT `+pageColumns+` FROM mqtt_queue q JOIN mqtt_session s ON s.id = q.session WHERE s.node = $1
		AND EXISTS (SELECT 1 FROM mqtt_mark k WHERE k.session = q.session AND k.gone = 1 AND k.seq <= q.upto AND k.upto >= q.seq)`, r.b.o.Node)
}

func (r *restored) inbound(ctx context.Context) error {
	return r.b.each(ctx, func(rows *sql.Rows) error {
		var id int64
		var packet uint16
		if err := rows.Scan(&id, &packet); err != nil {
			return err
		}
		if s := r.byID[id]; s != nil {
			_, _, err := s.receive(packet, nil)
			if err != nil { // one more than it may have: it is answered as a new one
				r.b.o.Log.Warn("message of QoS 2 not restored", "client", s.client, "error", err)
			}
		}
		return nil
	}, `SELECT i.session, i.packet FROM mqtt_inbound i JOIN mqtt_session s ON s.id = i.session WHERE s.node = $1`, r.b.o.Node)
}

func (r *restored) retained(ctx context.Context) error {
	return r.b.each(ctx, func(rows *sql.Rows) error {
		m := &Message{Retain: true}
		var expires int64
		if err := rows.Scan(&m.Topic, &m.Device, &m.QoS, &expires, &m.Props, &m.Payload); err != nil {
			return err
		}
		if len(m.Payload) == 0 {
			return nil // none is written
		}
		m.Expires = expiresTime(expires)
		a := r.b.accountLocked(m.Device)
		a.reserved++
		a.octets += m.cost()
		r.b.retainedOctets.Add(int64(m.cost()))
		r.b.retain(a, m)
		return nil
	}, `SELECT topic, device, qos, expires, props, payload FROM mqtt_retained WHERE node = $1`, r.b.o.Node)
}

// fill reads the next page of a session's queue for the connection c.
func (b *Broker) fill(s *session, c *Conn) {
	b.fills <- struct{}{}
	defer func() { <-b.fills }()
	ctx, cancel := context.WithTimeout(context.Background(), commitTime)
	defer cancel()
	s.mu.Lock()
	after, until := s.loaded, s.stored
	s.mu.Unlock()
	pages, whole, err := b.readQueue(ctx, s, after)
	if err != nil {
		b.o.Log.Warn("queue not read", "client", s.client, "error", err)
		c.client.Lost(Unspecified, "the queue could not be read")
		return
	}
	s.filled(c, pages, whole, after, until)
	c.client.Flush()
}

// filled takes pages of the queue, what is behind after, that were read for the
// connection c. whole: there was no more then. until is what was on record before.
func (s *session) filled(c *Conn, pages []*page, whole bool, after, until uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != c || s.dead {
		return
	}
	s.load = false
	if s.loaded != after { // the queue was purged meanwhile
		pages = nil
	}
	for _, pg := range pages {
		s.loaded = pg.last
		own := pg
		if n := len(s.queue); n > 0 && s.queue[n-1].page.first == pg.first { // some of it are in flight
			own = s.queue[n-1].page
		}
		for _, e := range pg.entries {
			e.page = own
			s.push(e)
		}
		if own.held == 0 { // all of it have ended
			s.b.journal.add(op{kind: opDelete, s: s, from: pg.first, to: pg.last})
		}
		pg.entries = nil
	}
	if whole { // what is not there up to until is gone; what came since has to be read
		s.loaded = max(s.loaded, until)
	}
	s.more = !whole || s.stored > s.loaded
	early := s.early
	s.early = nil
	for _, id := range early {
		switch i := s.find(id); {
		case i >= 0:
			s.pubrec(c, s.queue[i])
		case s.whole():
			c.client.Acknowledge(Pubrel, id, NotFound)
		default:
			s.early = append(s.early, id)
		}
	}
	s.pump(nil)
}
