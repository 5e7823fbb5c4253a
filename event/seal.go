package event

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// sealBatch is the most events sealed in one transaction.
	sealBatch = 500
	// sealEvery is how long an event may wait for its seal when nothing wakes the
	// sealer, as on a node whose neighbor appended it.
	sealEvery = time.Second
	// sealPause lets events gather, so that sealing costs a commit per batch.
	sealPause = 100 * time.Millisecond
)

func (l *Log) wakeSealer() {
	select {
	case l.sealed <- struct{}{}:
	default:
	}
}

func (l *Log) seal(ctx context.Context) {
	tick := time.NewTicker(sealEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if l.DB.Postgres() { // other nodes append too
				l.look(ctx)
			}
		case <-l.sealed:
			select {
			case <-ctx.Done():
				return
			case <-time.After(sealPause):
			}
		}
		for {
			n, err := l.Seal(ctx)
			if _, lost := l.DB.Lost(); err != nil && ctx.Err() == nil && !lost { // else it is known
				l.Log.ErrorContext(ctx, "events not sealed", "error", err)
			}
			if n < sealBatch {
				break
			}
		}
	}
}

// Seal assigns the unsealed events, at most a batch, their sequence and hash, records
// the new end of the log beside it, and returns how many there were. One sealer
// works at a time over all nodes.
func (l *Log) Seal(ctx context.Context) (n int, err error) {
	oldest, err := OldestUnsealed(ctx, l.DB)
	if err != nil || oldest.IsZero() {
		return 0, err
	}
	err = l.DB.Write(store.Emergency(ctx), func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Lock(ctx, "event.seal"); err != nil {
			return err
		}
		last, err := sealAfter(ctx, tx)
		if err != nil {
			return err
		}
		batch, err := read(ctx, tx, `SELECT `+columns+` FROM event WHERE seq IS NULL ORDER BY id LIMIT $1`, sealBatch)
		if err != nil {
			return err
		}
		for i := range batch {
			e := &batch[i]
			e.Seq = last.seq + 1
			last = head{e.Seq, chain(last.hash, e), e.id}
			if _, err := tx.Exec(ctx, `UPDATE event SET seq = $2, hash = $3 WHERE id = $1`, last.id, last.seq, last.hash); err != nil {
				return err
			}
		}
		if n = len(batch); n == 0 {
			return nil
		}
		return last.save(ctx, tx)
	})
	if err != nil {
		return 0, fmt.Errorf("seal events: %w", err)
	}
	return n, nil
}

// OldestUnsealed returns when the oldest event that waits for its seal happened; the
// zero time if none waits.
func OldestUnsealed(ctx context.Context, r store.Reader) (time.Time, error) {
	var at int64
	err := r.QueryRow(ctx, `SELECT at FROM event WHERE seq IS NULL ORDER BY id LIMIT 1`).Scan(&at)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, fmt.Errorf("look for unsealed events: %w", store.Wrap(err))
	}
	return store.Time(at), nil
}

// Next returns the seal of e behind the event whose hash is prev, as Seal computes it. data
// is e.Data as it is on record. It is for a program that writes a whole log at once.
func Next(prev []byte, e countersign.Event, data string) (hash []byte) {
	return chain(prev, &row{Event: e, data: data})
}

// chain is the hash of an event over the hash before it: SHA-256 of the previous
// hash, then each field with its length in front, so that no two events encode alike.
func chain(prev []byte, e *row) []byte {
	h := sha256.New()
	h.Write(prev)
	num := func(n int64) {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(n)) //nolint:gosec // the bits, not the value
		h.Write(b[:])
	}
	num(e.Seq)
	num(store.Micros(e.At))
	for _, s := range []string{
		string(e.Type), string(e.Actor), e.Device, e.Fleet, e.Cert.Issuer, string(e.Cert.Serial),
		e.Remote, e.Via, string(e.Code), e.Reason, e.data,
	} {
		num(int64(len(s)))
		h.Write([]byte(s))
	}
	return h.Sum(nil)
}

// Report is the outcome of Verify.
type Report struct {
	Events   int64  // sealed and checked, and Lost
	Lost     int64  // of them, those that a restored backup had lost, as the log says itself
	Unsealed int64  // not yet sealed
	Head     []byte // hash of the last good event
	BrokenAt int64  // sequence of the first event that is missing or bad; 0 if none
	Problem  string // what is wrong there
}

// Verify walks the whole chain and compares its end with what the sealer recorded
// and with how far the log was read. What it cannot see is a log whose end, record
// and readers were all set back, as by a restored backup: compare Events and Head
// with those of an earlier report, kept elsewhere, for that.
func (l *Log) Verify(ctx context.Context) (Report, error) {
	var rep Report
	end, err := l.readEnds(ctx)
	if err != nil {
		return rep, err
	}
	after := int64(math.MinInt64) // a line before the first is found too
	for {
		batch, err := read(ctx, l.DB, `SELECT `+columns+` FROM event WHERE seq > $1 ORDER BY seq LIMIT $2`, after, sealBatch)
		if err != nil {
			return rep, err
		}
		for i := range batch {
			e := &batch[i]
			if e.Seq != rep.Events+1 && !rep.restored(e) {
				rep.BrokenAt, rep.Problem = rep.Events+1, fmt.Sprintf("event %d is missing, %d stands in its place", rep.Events+1, e.Seq)
				return rep, nil
			}
			if want := chain(rep.Head, e); string(want) != string(e.Hash) {
				rep.BrokenAt, rep.Problem = e.Seq, fmt.Sprintf("event %d does not match its hash: it, or one before it, was changed", e.Seq)
				return rep, nil
			}
			if end.differs(e) {
				rep.BrokenAt, rep.Problem = e.Seq, fmt.Sprintf("event %d is not the one that was sealed: the log was written anew", e.Seq)
				return rep, nil
			}
			rep.Head, rep.Events, after = e.Hash, e.Seq, e.Seq
		}
		if len(batch) < sealBatch {
			break
		}
	}
	if rep.Problem, err = l.endProblem(ctx, end, rep.Events); err != nil {
		return rep, err
	}
	if rep.Problem != "" {
		rep.BrokenAt = rep.Events + 1
	}
	err = l.DB.QueryRow(ctx, `SELECT count(*) FROM event WHERE seq IS NULL`).Scan(&rep.Unsealed)
	if err != nil {
		return rep, fmt.Errorf("count unsealed events: %w", err)
	}
	return rep, nil
}
