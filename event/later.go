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
	// laterQueue bounds the events of Later that wait for the disk: what a flood of
	// refusals can hold in memory, about 2 MB.
	laterQueue = 4096
	// laterBatch is the most of them in one transaction.
	laterBatch = 256
	// laterPause lets them gather, so that a busy gateway costs a commit per batch
	// and not one per connection.
	laterPause = 50 * time.Millisecond
	// laterRetry is the pause before a batch is tried again, and laterTries how often it
	// is: long enough for store to know that the database is lost.
	laterRetry = 200 * time.Millisecond
	laterTries = 10
)

// later is the queue of events that no transaction waits for.
type later struct {
	log        *Log
	queue      chan waiting
	suppressed atomic.Int64 // events that there was no room for
}

// waiting is an event that Later accepted or, with done, the mark of a Flush.
type waiting struct {
	event countersign.Event
	done  chan struct{}
}

// Later appends an event soon, without making the caller wait for the disk. It is
// for what a gateway saw: nothing was acknowledged on its strength. When the
// queue is full the event is counted and the count is logged in its place.
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

// Flush waits until every event given to Later so far is written, or counted as
// lost where the database refused it. Run must be running.
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

// run writes what is in the queue, until ctx ends; what was accepted by then is still
// written.
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

// awaitDatabase waits while the database is lost. What Later is given meanwhile waits in
// its queue, and is counted once that is full.
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

// drain writes what is left when the server stops, the count of what was lost too.
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

// drainTime bounds how long a batch may wait for the disk.
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
			Reason: "more happened at the gateways than could be written", Data: map[string]string{"count": strconv.FormatInt(lost, 10)},
		})
	}
	if len(events) == 0 {
		return
	}
	// Not running: what was taken is written although the server is being stopped.
	ctx := context.WithoutCancel(running)
	err := q.write(ctx, events)
	for range laterTries - 1 { // a database that is lost is known to be a moment later
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

// absent reports whether a write failed because the database could not serve it. Else it
// refused what was written.
func absent(err error) bool { return countersign.CodeOf(err) == countersign.Unavailable }

// writeSingly writes each event of a batch that the database refused in a transaction of
// its own, so that one that it never accepts takes no others with it. What is refused
// again is counted; its contents stay out of the server's log, and the error, which may
// quote them, too.
func (q *later) writeSingly(ctx context.Context, events []countersign.Event, lost int64) {
	gone := false // the others would wait for the database one by one
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
