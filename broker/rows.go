package broker

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/countersign-iot/countersign/store"
)

// sessionRow is what changes of a session's row.
type sessionRow struct {
	expiry, left, sent int64
	will               []byte
	willAt             int64
}

func nodeNumber(node string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	return h.Sum32()
}

func encodeWill(w *Will) []byte {
	b, err := json.Marshal(w)
	if err != nil {
		return nil // of plain fields: it cannot be
	}
	return b
}

// record makes the changes within tx. The order among those of one kind is kept; kinds
// follow one another so that runs of them are one statement.
func (j *journal) record(ctx context.Context, tx *store.Tx, ops []op, number int64) error {
	j.then = nil // of a transaction that is run again
	if err := j.claim(ctx, tx, number); err != nil {
		return err
	}
	for _, o := range ops {
		if o.kind <= opComplete {
			if err := j.recordOne(ctx, tx, o); err != nil {
				return err
			}
		}
	}
	for _, o := range ops {
		if o.kind == opInsert && o.e.page.first == o.e.seq && !o.s.over() {
			if err := insertPage(ctx, tx, o.s.id, o.e.page); err != nil {
				return err
			}
			if err := j.reservePlace(ctx, tx, o.s, o.e.page.last); err != nil {
				return err
			}
		}
	}
	for _, o := range ops {
		if o.kind > opInsert {
			if err := j.recordEnd(ctx, tx, o); err != nil {
				return err
			}
		}
	}
	return j.trimQueues(ctx, tx, ops)
}

// claim notes the number of the transaction, so that one whose COMMIT was not answered
// can be looked up. It fails if another process has taken the rows of this node: two
// nodes with one name. SQLite has one process.
func (j *journal) claim(ctx context.Context, tx *store.Tx, number int64) error {
	if !j.b.o.DB.Postgres() {
		return nil
	}
	if j.b.displaced.Load() {
		return j.b.errDisplaced()
	}
	n, err := tx.Exec(ctx, `UPDATE mqtt_node SET batch = $1 WHERE node = $2 AND started = $3`, number, j.b.o.Node, j.b.started)
	if err == nil && n == 0 {
		j.b.displace()
		return j.b.errDisplaced()
	}
	tx.Proof(`SELECT 1 FROM mqtt_node WHERE node = $1 AND started = $2 AND batch = $3`, j.b.o.Node, j.b.started, number)
	return err
}

// recorded reports whether the transaction of a number is on record, if that is known.
// It waits for the row that the transaction changed, and so for its end.
func (j *journal) recorded(ctx context.Context, number int64) (known, recorded bool) {
	_ = j.b.o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		var newest int64
		err := tx.QueryRow(ctx, `SELECT batch FROM mqtt_node WHERE node = $1 AND started = $2 FOR UPDATE`, j.b.o.Node, j.b.started).Scan(&newest)
		known = err == nil || errors.Is(err, sql.ErrNoRows)
		recorded = err == nil && newest == number
		return err
	})
	return known, recorded
}

// takeOver makes the rows of the node those of this process.
func (j *journal) takeOver(ctx context.Context) error {
	if !j.b.o.DB.Postgres() {
		return nil
	}
	return j.b.o.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO mqtt_node (node, started, batch) VALUES ($1, $2, 0)
			ON CONFLICT (node) DO UPDATE SET started = excluded.started, batch = 0`, j.b.o.Node, j.b.started)
		return err
	})
}

// isGone reports that a device was purged: nothing is recorded for it any more.
func (a *account) isGone() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.gone
}

// over reports that the session was removed, or its device purged: what is recorded for
// it now would stay, since its rows have gone or go before.
func (s *session) over() bool {
	s.mu.Lock()
	dead := s.dead
	s.mu.Unlock()
	return dead || s.a.isGone()
}

func (j *journal) recordOne(ctx context.Context, tx *store.Tx, o op) (err error) {
	if o.s != nil && o.s.over() || o.kind == opRetain && o.a.isGone() {
		return nil
	}
	switch o.kind {
	case opPurge:
		err = erase(ctx, tx, o.a.device, j.b.o.Node)
	case opSession:
		err = j.insertSession(ctx, tx, o.s)
	case opChange:
		err = j.updateSession(ctx, tx, o)
	case opSubscribe:
		_, err = tx.Exec(ctx, `INSERT INTO mqtt_subscription (session, n, filter, options, sub_id) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (session, n) DO UPDATE SET options = excluded.options, sub_id = excluded.sub_id`,
			o.s.id, o.sub.n, o.sub.Filter, int64(o.sub.options()), int64(o.sub.ID))
	case opUnsubscribe:
		_, err = tx.Exec(ctx, `DELETE FROM mqtt_subscription WHERE session = $1 AND n = $2`, o.s.id, o.sub.n)
	case opRetain:
		err = j.recordRetained(ctx, tx, o.m)
	case opReceive:
		_, err = tx.Exec(ctx, `INSERT INTO mqtt_inbound (session, packet) VALUES ($1, $2) ON CONFLICT DO NOTHING`, o.s.id, int64(o.id))
	case opComplete:
		_, err = tx.Exec(ctx, `DELETE FROM mqtt_inbound WHERE session = $1 AND packet = $2`, o.s.id, int64(o.id))
	}
	return err
}

// insertSession records a new session.
func (j *journal) insertSession(ctx context.Context, tx *store.Tx, s *session) error {
	s.mu.Lock()
	r := s.row()
	s.mu.Unlock()
	_, err := tx.Exec(ctx, `INSERT INTO mqtt_session (id, node, client, device, expiry, left_at, sent, will, will_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`, s.id, j.b.o.Node, s.client, s.a.device, r.expiry, r.left, r.sent, r.will, r.willAt)
	return err
}

// updateSession records what has changed of a session. It brings no row back that was
// erased meanwhile.
func (j *journal) updateSession(ctx context.Context, tx *store.Tx, o op) error {
	r := o.row
	if r == nil {
		o.s.mu.Lock()
		r = o.s.row()
		o.s.mu.Unlock()
	}
	_, err := tx.Exec(ctx, `UPDATE mqtt_session SET expiry = $1, left_at = $2, sent = $3, will = $4, will_at = $5 WHERE id = $6`,
		r.expiry, r.left, r.sent, r.will, r.willAt, o.s.id)
	return err
}

func (j *journal) recordRetained(ctx context.Context, tx *store.Tx, m *Message) error {
	hash := sha256.Sum256([]byte(m.Topic))
	if len(m.Payload) == 0 {
		_, err := tx.Exec(ctx, `DELETE FROM mqtt_retained WHERE node = $1 AND hash = $2`, j.b.o.Node, hash[:])
		return err
	}
	_, err := tx.Exec(ctx, `INSERT INTO mqtt_retained (node, hash, topic, device, qos, expires, props, payload)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (node, hash) DO UPDATE SET device = excluded.device,
		qos = excluded.qos, expires = excluded.expires, props = excluded.props, payload = excluded.payload`,
		j.b.o.Node, hash[:], m.Topic, m.Device, int64(m.QoS), expiresMicros(m), some(m.Props), m.Payload)
	return err
}

// recordEnd makes a change that comes after the new messages.
func (j *journal) recordEnd(ctx context.Context, tx *store.Tx, o op) (err error) {
	switch o.kind {
	case opRelease:
		err = markOne(ctx, tx, o.s, mark{seq: o.e.seq, upto: o.e.seq})
	case opGone:
		err = markOne(ctx, tx, o.s, mark{seq: o.from, upto: o.to, gone: true})
	case opDelete:
		_, err = tx.Exec(ctx, `DELETE FROM mqtt_queue WHERE session = $1 AND seq = $2`, o.s.id, int64(o.from)) //nolint:gosec // a count
		if err == nil && o.s.marked >= o.from {
			_, err = tx.Exec(ctx, `DELETE FROM mqtt_mark WHERE session = $1 AND seq >= $2 AND seq <= $3`, o.s.id, int64(o.from), int64(o.to)) //nolint:gosec // counts
		}
	case opDrain:
		err = drainQueue(ctx, tx, o)
	case opExpire:
		hash := sha256.Sum256([]byte(o.m.Topic))
		_, err = tx.Exec(ctx, `DELETE FROM mqtt_retained WHERE node = $1 AND hash = $2 AND expires = $3`, j.b.o.Node, hash[:], expiresMicros(o.m))
	case opWipe:
		_, err = tx.Exec(ctx, `DELETE FROM mqtt_session WHERE id = $1`, o.s.id)
		for _, table := range sessionTables {
			if err == nil {
				_, err = tx.Exec(ctx, "DELETE FROM "+table+" WHERE session = $1", o.s.id)
			}
		}
	}
	return err
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// some is b, or an empty block: NULL is not allowed.
func some(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

func expiresMicros(m *Message) int64 {
	if m.Expires.IsZero() {
		return 0
	}
	return m.Expires.UnixMicro()
}

func expiresTime(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros)
}

func encodeIDs(ids []uint32) []byte {
	b := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		b = binary.BigEndian.AppendUint32(b, id)
	}
	return b
}

func decodeIDs(b []byte) (ids []uint32) {
	for ; len(b) >= 4; b = b[4:] {
		ids = append(ids, binary.BigEndian.Uint32(b))
	}
	return ids
}

// options is the octet of SUBSCRIBE (MQTT 5, 3.8.3.1).
func (s *Subscription) options() byte {
	o := s.QoS | s.Handling<<4
	if s.NoLocal {
		o |= 1 << 2
	}
	if s.AsPublished {
		o |= 1 << 3
	}
	return o
}

func (s *Subscription) setOptions(o byte) {
	s.QoS, s.Handling, s.NoLocal, s.AsPublished = o&3, o>>4&3, o>>2&1 == 1, o>>3&1 == 1
}

// Erase removes all that is stored for a device from the record, within tx: sessions,
// subscriptions, queues, and the retained messages that it published, of all nodes.
// [Broker.Forget] follows it after the commit, on every node.
func Erase(ctx context.Context, tx *store.Tx, device string) error {
	return erase(ctx, tx, device, "")
}

// erase removes what one node has on record of a device, or all nodes if node is empty.
func erase(ctx context.Context, tx *store.Tx, device, node string) error {
	const of = ` WHERE device = $1 AND ($2 = '' OR node = $2)`
	var all []string
	for _, table := range sessionTables {
		all = append(all, "DELETE FROM "+table+" WHERE session IN (SELECT id FROM mqtt_session"+of+")")
	}
	for _, q := range append(all, "DELETE FROM mqtt_session"+of, "DELETE FROM mqtt_retained"+of) {
		if _, err := tx.Exec(ctx, q, device, node); err != nil {
			return fmt.Errorf("drop what is stored for %s: %w", device, err)
		}
	}
	return nil
}
