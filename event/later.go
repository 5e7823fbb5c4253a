package event

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

const (
	// laterQueue bounds the events of Later that wait for the disk, and so the memory that
	// a flood of refusals can use, about 2 MB.
	laterQueue = 4096
	// laterBatch bounds the events of one transaction.
	laterBatch = 256
	// laterPause is how long a batch is collected, so that a busy gateway causes one commit
	// for each batch and not for each connection.
	laterPause = 50 * time.Millisecond
	// laterRetry is the pause before a batch is tried again, and laterTries the number of
	// tries: together long enough for package store to find that the database is lost.
	laterRetry = 200 * time.Millisecond
	laterTries = 10
)

// later is the queue of events that are written by themselves, in no caller's transaction.
type later struct {
	log        *Log
	queue      chan waiting
	suppressed atomic.Int64 // events that were dropped and not reported yet
}

// waiting is an event that Later accepted or, if done is set, the mark of a Flush.
type waiting struct {
	event countersign.Event
	done  chan struct{}
}

// Later appends an event soon, without making the caller wait for the disk. Use it only for
// observations of a gateway, because a crash may lose them. If the queue is full, the event
// is dropped and counted, and an events.suppressed event records the count.
func (l *Log) Later(e countersign.Event) {
	l.init()
	if e.At.IsZero() {
		e.At = l.Now()
	}
	select {
	case l.later.queue <- waiting{event: e}:
	default:
		l.later.suppressed.Add(1)
	}
}

// Flush waits until every event that was passed to Later before is written, or counted as
// lost because the database refused it. Run must be running.
func (l *Log) Flush(ctx context.Context) error {
	l.init()
	done := make(chan struct{})
	select {
	case l.later.queue <- waiting{done: done}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run writes the events in the queue until ctx ends. Then it writes those that are left.
func (q *later) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			q.drain(ctx)
			return
		case w := <-q.queue:
			if w.done == nil { // no caller waits for this one
				select {
				case <-ctx.Done():
				case <-time.After(laterPause):
				}
			}
			q.awaitDatabase(ctx)
			q.writeBatch(ctx, q.gather(w))
		}
	}
}

// awaitDatabase waits while the database is lost. Meanwhile the events of Later stay in the
// queue; when it is full, they are dropped and counted.
func (q *later) awaitDatabase(ctx context.Context) {
	for {
		if _, lost := q.log.DB.Lost(); !lost {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(laterRetry):
		}
	}
}

// drain writes the events that are left when the server stops, and the count of those that
// were dropped.
func (q *later) drain(ctx context.Context) {
	for {
		select {
		case w := <-q.queue:
			q.writeBatch(ctx, q.gather(w))
		default:
			q.writeBatch(ctx, nil)
			return
		}
	}
}

// drainTime bounds the write of one batch.
const drainTime = 5 * time.Second

func (q *later) gather(first waiting) []waiting {
	batch := []waiting{first}
	for len(batch) < laterBatch {
		select {
		case w := <-q.queue:
			batch = append(batch, w)
		default:
			return batch
		}
	}
	return batch
}

func (q *later) writeBatch(running context.Context, batch []waiting) {
	var events []countersign.Event
	for _, w := range batch {
		if w.done != nil {
			defer close(w.done)
			continue
		}
		events = append(events, w.event)
	}
	taken := int64(len(events))
	lost := q.suppressed.Swap(0)
	if lost > 0 {
		events = append(events, countersign.Event{
			Type: countersign.EventsSuppressed, Actor: countersign.System, At: q.log.Now(),
			Reason: "the gateways reported more events than could be written", Data: map[string]string{"count": strconv.FormatInt(lost, 10)},
		})
	}
	if len(events) == 0 {
		return
	}
	// Without the cancellation of running: accepted events are written although the server stops.
	ctx := context.WithoutCancel(running)
	err := q.write(ctx, events)
	for range laterTries - 1 { // store finds only after a while that the database is lost
		if !absent(err) || running.Err() != nil || !q.log.DB.Postgres() || store.Unconfirmed(err) {
			break
		}
		select {
		case <-running.Done():
		case <-time.After(laterRetry):
		}
		q.awaitDatabase(running)
		err = q.write(ctx, events)
	}
	switch {
	case err == nil:
	case absent(err):
		q.suppressed.Add(lost + taken)
		q.log.Log.ErrorContext(ctx, "events not written", "count", taken, "error", err)
	default:
		q.writeSingly(ctx, events, lost)
	}
}

// absent reports whether a write failed because the database could not be reached. Any
// other error means that it refused what was written.
func absent(err error) bool { return countersign.CodeOf(err) == countersign.Unavailable }

// writeSingly writes each event of a batch that the database refused in a transaction of
// its own, so that one event that it never accepts does not make it refuse the others. An
// event that is refused again is counted. Its contents, and the error, which may quote
// them, are not written to the server's log.
func (q *later) writeSingly(ctx context.Context, events []countersign.Event, lost int64) {
	gone := false // the database is lost: do not wait for it again with each event
	for i := range events {
		if !gone {
			err := q.write(ctx, events[i:i+1])
			if err == nil {
				continue
			}
			gone = absent(err)
			q.log.Log.ErrorContext(ctx, "event not written", "type", string(events[i].Type), "database_absent", gone)
		}
		if events[i].Type == countersign.EventsSuppressed {
			q.suppressed.Add(lost)
		} else {
			q.suppressed.Add(1)
		}
	}
}

func (q *later) write(ctx context.Context, events []countersign.Event) error {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	return q.log.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return q.log.Append(ctx, tx, events...) })
}
