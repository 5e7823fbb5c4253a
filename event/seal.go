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
	// sealBatch bounds the events that are sealed in one transaction.
	sealBatch = 500
	// sealEvery is how long an event may wait until it is sealed if nothing wakes the
	// sealer, because another node appended it.
	sealEvery = time.Second
	// sealPause is how long events are collected, so that sealing costs one commit for each
	// batch.
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
			if _, lost := l.DB.Lost(); err != nil && ctx.Err() == nil && !lost { // store logs the loss itself
				l.Log.ErrorContext(ctx, "events not sealed", "error", err)
			}
			if n < sealBatch {
				break
			}
		}
	}
}

// Seal assigns sequence numbers and hashes to the unsealed events, at most sealBatch,
// records the new end of the log, and returns how many events it sealed. A lock ensures
// that only one node seals at a time.
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
		times := blockTimes{}
		for i := range batch {
			e := &batch[i]
			times.add(e)
			e.Seq = last.seq + 1
			last = head{e.Seq, chain(last.hash, e), e.id}
			if _, err := tx.Exec(ctx, `UPDATE event SET seq = $2, hash = $3 WHERE id = $1`, last.id, last.seq, last.hash); err != nil {
				return err
			}
		}
		if n = len(batch); n == 0 {
			return nil
		}
		if err := times.save(ctx, tx); err != nil {
			return err
		}
		return last.save(ctx, tx)
	})
	if err != nil {
		return 0, fmt.Errorf("seal events: %w", err)
	}
	return n, nil
}

// OldestUnsealed returns the time of the oldest event that is not sealed; the zero time if
// there is none.
func OldestUnsealed(ctx context.Context, r store.Reader) (time.Time, error) {
	var at int64
	err := r.QueryRow(ctx, `SELECT at FROM event WHERE seq IS NULL ORDER BY id LIMIT 1`).Scan(&at)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, fmt.Errorf("look for unsealed events: %w", store.Wrap(err))
	}
	return store.Time(at), nil
}

// Next returns the hash of e, whose previous event has the hash prev, as Seal computes it.
// data is e.Data as it is on record. Only a program that writes a whole log at once needs it.
func Next(prev []byte, e countersign.Event, data string) (hash []byte) {
	return chain(prev, &row{Event: e, data: data})
}

// chain returns the hash of an event: SHA-256 over the previous hash, the numbers, and each
// text preceded by its length, so that no two events have the same encoding.
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
	Events   int64  // sealed and checked, including Lost
	Lost     int64  // of these, the events that a restored backup had lost, by the log's own record
	Unsealed int64  // not yet sealed
	Head     []byte // hash of the last valid event
	BrokenAt int64  // sequence of the first event that is missing or bad; 0 if none
	Problem  string // what is wrong there
}

// Verify checks the whole chain and compares its end with the record of the sealer and the
// positions of the readers. It cannot detect that the log, the record and the readers were
// all set back together, as by a restored backup. For that, compare Events and Head with
// those of an earlier report that is stored elsewhere.
func (l *Log) Verify(ctx context.Context) (Report, error) {
	var rep Report
	end, err := l.readEnds(ctx)
	if err != nil {
		return rep, err
	}
	after := int64(math.MinInt64) // so that a row before the first event is found too
	for {
		batch, err := read(ctx, l.DB, `SELECT `+columns+` FROM event WHERE seq > $1 ORDER BY seq LIMIT $2`, after, sealBatch)
		if err != nil {
			return rep, err
		}
		for i := range batch {
			e := &batch[i]
			if e.Seq != rep.Events+1 && !rep.restored(e) {
				rep.BrokenAt, rep.Problem = rep.Events+1, fmt.Sprintf("event %d is missing, and event %d follows in its place", rep.Events+1, e.Seq)
				return rep, nil
			}
			if want := chain(rep.Head, e); string(want) != string(e.Hash) {
				rep.BrokenAt, rep.Problem = e.Seq, fmt.Sprintf("event %d does not match its hash: it, or one before it, was changed", e.Seq)
				return rep, nil
			}
			if end.differs(e) {
				rep.BrokenAt, rep.Problem = e.Seq, fmt.Sprintf("event %d is not the one that was sealed: the log was rewritten", e.Seq)
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
