package event

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// head is the newest sealed event. The transaction that sealed it also recorded it in a
// table of its own, apart from the rows of the log.
type head struct {
	seq  int64
	hash []byte
	id   int64
}

// Head returns the sequence number and the hash of the newest event that was sealed, as
// the sealer recorded it; 0 and nil before the first. It does not change if rows are
// removed from the end of the log. A caller that stores it elsewhere can therefore check
// later that the log still has these events.
func (l *Log) Head(ctx context.Context) (seq int64, hash []byte, err error) {
	h, err := readHead(ctx, l.DB)
	return h.seq, h.hash, err
}

// HashAt returns the hash of the event with a sequence number. The hash is empty if it was
// removed from the row, and nil if the event is not in the log.
func HashAt(ctx context.Context, r store.Reader, seq int64) (hash []byte, err error) {
	err = r.QueryRow(ctx, `SELECT hash FROM event WHERE seq = $1`, seq).Scan(&hash)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("read event %d: %w", seq, store.Wrap(err))
	}
	if err == nil && hash == nil {
		hash = []byte{}
	}
	return hash, nil
}

// GoOnAfter makes the sealer continue after an event that is no longer in the log, because
// the database was restored from a backup. So no sequence number is used twice. Before the
// call, every event must be sealed. In the same transaction, the caller must append a
// database.restored event that records what is missing: with it, Verify accepts the gap.
func (l *Log) GoOnAfter(ctx context.Context, tx *store.Tx, seq int64, hash []byte) error {
	if err := tx.Lock(ctx, "event.seal"); err != nil {
		return err
	}
	h, err := readHead(ctx, tx)
	if err != nil {
		return err
	}
	if h.seq >= seq {
		return nil
	}
	return head{seq, hash, h.id}.save(ctx, tx)
}

// restored reports whether the gap before an event is the one that the event itself records
// as lost by a restored backup. If so, it sets the report to continue the chain after it.
func (rep *Report) restored(e *row) bool {
	if e.Type != countersign.DatabaseRestored || e.Data["seq"] != strconv.FormatInt(rep.Events, 10) || e.Data["seen_seq"] != strconv.FormatInt(e.Seq-1, 10) {
		return false
	}
	before, err := hex.DecodeString(e.Data["seen_hash"])
	if err != nil || len(before) == 0 {
		return false
	}
	rep.Lost += e.Seq - 1 - rep.Events
	rep.Head = before
	return true
}

func readHead(ctx context.Context, r store.Reader) (h head, err error) {
	err = r.QueryRow(ctx, `SELECT seq, hash, id FROM event_head WHERE name = 'log'`).Scan(&h.seq, &h.hash, &h.id)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return head{}, fmt.Errorf("read the recorded end of the log: %w", store.Wrap(err))
	}
	return h, nil
}

// save records h in the transaction that sealed it.
func (h head) save(ctx context.Context, tx *store.Tx) error {
	_, err := tx.Exec(ctx, `INSERT INTO event_head (name, seq, hash, id) VALUES ('log', $1, $2, $3)
		ON CONFLICT (name) DO UPDATE SET seq = excluded.seq, hash = excluded.hash, id = excluded.id`, h.seq, h.hash, h.id)
	if err != nil {
		return fmt.Errorf("record the end of the log: %w", err)
	}
	return nil
}

// newestRow returns the newest sealed event that is in the log.
func newestRow(ctx context.Context, r store.Reader) (h head, err error) {
	err = r.QueryRow(ctx, `SELECT seq, hash, id FROM event WHERE seq IS NOT NULL ORDER BY seq DESC LIMIT 1`).Scan(&h.seq, &h.hash, &h.id)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return head{}, fmt.Errorf("read the end of the log: %w", store.Wrap(err))
	}
	return h, nil
}

// sealAfter returns the event that the next one is chained to: the newest in the log, the
// recorded end or the position of a reader, whichever has the highest sequence number. So,
// if rows were removed from the end, no sequence number is used twice, no reader skips the
// next events, and Verify finds the gap.
func sealAfter(ctx context.Context, tx *store.Tx) (head, error) {
	last, err := newestRow(ctx, tx)
	if err != nil {
		return head{}, err
	}
	recorded, err := readHead(ctx, tx)
	if err != nil {
		return head{}, err
	}
	if recorded.seq > last.seq {
		last = recorded
	}
	_, seq, err := furthestReader(ctx, tx)
	if err != nil {
		return head{}, err
	}
	last.seq = max(last.seq, seq)
	return last, nil
}

// Cursor returns the sequence number of the last event that a reader of the sealed log has
// read; 0 if it has read none.
func Cursor(ctx context.Context, r store.Reader, reader string) (seq int64, err error) {
	err = r.QueryRow(ctx, `SELECT seq FROM event_cursor WHERE name = $1`, reader).Scan(&seq)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("read the position of %s in the log: %w", reader, store.Wrap(err))
	}
	return seq, nil
}

// MoveCursor records the sequence number of the last event that a reader has read. The
// caller uses the transaction in which it acts on the events.
func MoveCursor(ctx context.Context, tx *store.Tx, reader string, seq int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO event_cursor (name, seq) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET seq = excluded.seq`, reader, seq)
	if err != nil {
		return fmt.Errorf("record the position of %s in the log: %w", reader, err)
	}
	return nil
}

// furthestReader returns the reader that has read the furthest, and its position. Cursors
// with a name that ends in .due have times and not positions.
func furthestReader(ctx context.Context, r store.Reader) (reader string, seq int64, err error) {
	err = r.QueryRow(ctx, `SELECT name, seq FROM event_cursor WHERE name NOT LIKE '%.due' ORDER BY seq DESC, name LIMIT 1`).Scan(&reader, &seq)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", 0, fmt.Errorf("read the positions in the log: %w", store.Wrap(err))
	}
	return reader, seq, nil
}

// ends are the records that the end of the log is compared with.
type ends struct {
	recorded head
	reader   string // the one that has read the furthest
	read     int64
}

func (l *Log) readEnds(ctx context.Context) (e ends, err error) {
	if e.recorded, err = readHead(ctx, l.DB); err != nil {
		return e, err
	}
	e.reader, e.read, err = furthestReader(ctx, l.DB)
	return e, err
}

// endProblem returns what is wrong with the end of a log whose newest sealed event is last;
// empty if nothing is. e must have been read before last, so last may be newer.
func (l *Log) endProblem(ctx context.Context, e ends, last int64) (string, error) {
	if last > 0 && e.recorded.seq == 0 { // the first events may have been sealed in between
		now, err := readHead(ctx, l.DB)
		if err != nil || now.seq > 0 {
			return "", err
		}
	}
	return e.problem(last), nil
}

func (e ends) problem(last int64) string {
	switch {
	case last < e.recorded.seq:
		return fmt.Sprintf("the log ends at event %d, but event %d was sealed: the end of the log was removed", last, e.recorded.seq)
	case last < e.read:
		return fmt.Sprintf("the log ends at event %d, but its reader %s has read event %d: the end of the log was removed", last, e.reader, e.read)
	case last > 0 && e.recorded.seq == 0:
		return fmt.Sprintf("the log ends at event %d, but the record of its end is missing: it was removed", last)
	}
	return ""
}

// differs reports whether a row has the sequence number of the recorded newest event, but
// another hash.
func (e ends) differs(r *row) bool {
	return r.Seq == e.recorded.seq && !bytes.Equal(r.Hash, e.recorded.hash)
}

// endRows is how many of the newest events CheckEnd counts. A gateway at its full rate
// writes them within minutes, and they are counted in a millisecond.
const endRows = 10_000

// CheckEnd returns what is wrong with the end of the log: rows that were removed from it,
// or a gap among the newest endRows events. It returns an empty string if nothing is. It
// does not read the rest of the log; Verify also finds older gaps.
func (l *Log) CheckEnd(ctx context.Context) (problem string, err error) {
	e, err := l.readEnds(ctx)
	if err != nil {
		return "", err
	}
	last, err := newestRow(ctx, l.DB)
	if err != nil {
		return "", err
	}
	if problem, err := l.endProblem(ctx, e, last.seq); err != nil || problem != "" {
		return problem, err
	}
	var n int64
	from := max(0, last.seq-endRows)
	err = l.DB.QueryRow(ctx, `SELECT count(*) FROM event WHERE seq > $1 AND seq <= $2`, from, last.seq).Scan(&n)
	if err != nil {
		return "", fmt.Errorf("count the newest events: %w", store.Wrap(err))
	}
	if gone := last.seq - from - n; gone > 0 {
		return fmt.Sprintf("%d events before event %d are missing: they were removed", gone, last.seq), nil
	}
	return "", nil
}
