package event

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// CaughtUp bounds the time from when the database can be reached again until a node has
// acted on the events that it missed: package store listens again within a second, then
// the log is read and the live sessions are compared with the record.
const CaughtUp = 2 * time.Second

const (
	// followEvery is how often the log is read for events without a notice. If notices do
	// not arrive, a revocation is late by this time.
	followEvery = time.Second
	// followRetry is the pause after a failed read or comparison.
	followRetry = 100 * time.Millisecond
	// followWait bounds one read of the log.
	followWait = 5 * time.Second
	// reconcileWait bounds one comparison of all live sessions with the record.
	reconcileWait = time.Minute
	// missedPage is how many events are read at once to find those missed.
	missedPage = 500
	// maxKnown bounds the ids that are remembered so that no event is acted on twice.
	maxKnown = 16_384
)

// missed finds urgent events for which no notice arrived. It uses the dense sequence
// numbers of sealed events and the ids of the others, never a clock.
type missed struct {
	changed chan struct{} // wakes follow

	// Only Mark, and then follow, use these.
	marked bool
	seq    int64 // sealed events up to here have been acted on

	mu     sync.Mutex
	known  map[int64]state // by id
	order  []int64         // of known, the oldest first
	stream bool            // notices arrive
	doubt  string          // why live sessions must be compared with the record; empty if they need not be
	doubts uint64          // number of calls of Doubt
}

// state is the state of an event on this node.
type state int

const (
	acted   state = iota // it was acted on
	pending              // its transaction, of this node, has not returned yet
	overdue              // the same, but catchUp has found it on record once
)

// note remembers the state of an event.
func (m *missed) note(id int64, how state) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(id, how)
}

func (m *missed) set(id int64, how state) {
	if m.known == nil {
		m.known = map[int64]state{}
	}
	if _, ok := m.known[id]; !ok {
		if len(m.order) == maxKnown {
			delete(m.known, m.order[0])
			m.order = append(m.order[:0], m.order[1:]...)
		}
		m.order = append(m.order, id)
	}
	m.known[id] = how
}

// claim reports whether the event with this id was not known before, and sets it to acted.
func (m *missed) claim(id int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.known[id]; ok && id != 0 {
		return false
	}
	m.set(id, acted)
	return true
}

// due reports whether the caller must act now on an event that it found on record. If the
// transaction of the event still runs on this node, due leaves the event to it the first
// time and returns again, which means that the event must be checked again: the answer to
// its COMMIT may be lost.
func (m *missed) due(id int64) (act, again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch how, ok := m.known[id]; {
	case !ok, how == overdue:
		m.set(id, acted)
		return true, false
	case how == pending:
		m.set(id, overdue)
		return false, true
	}
	return false, false
}

// Doubt makes Run compare the live sessions of this node with the record, because events
// may have been missed. Until that is done, Live reports false.
func (l *Log) Doubt(why string) {
	l.init()
	l.missed.mu.Lock()
	l.missed.doubt = why
	l.missed.doubts++
	l.up.Store(false)
	l.missed.mu.Unlock()
	l.wakeFollower()
}

func (l *Log) wakeFollower() {
	select {
	case l.missed.changed <- struct{}{}:
	default: // it has been woken already
	}
}

// streaming records that a stream of notices began or ended.
func (l *Log) streaming(up bool) {
	l.missed.mu.Lock()
	l.missed.stream = up
	l.missed.mu.Unlock()
	l.Doubt("notices of other nodes may have been lost")
}

// follow reads the log for events without a notice, until ctx ends.
func (l *Log) follow(ctx context.Context) {
	for {
		pause := followEvery
		if err := l.catchUp(ctx); err != nil && ctx.Err() == nil {
			if _, lost := l.DB.Lost(); !lost { // else store has logged the loss
				l.Log.WarnContext(ctx, "missed events not read", "error", err, "retry_in", followRetry)
			}
			pause = followRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-l.missed.changed:
		case <-time.After(pause):
		}
	}
}

// catchUp acts on the events that were missed and, after a call of Doubt, compares the live
// sessions with the record. Live reports true again once both are done.
func (l *Log) catchUp(ctx context.Context) error {
	l.missed.mu.Lock()
	doubt, doubts := l.missed.doubt, l.missed.doubts
	l.missed.mu.Unlock()
	if err := l.readMissed(ctx); err != nil {
		return err
	}
	if doubt != "" && l.Reconcile != nil {
		comparing, cancel := context.WithTimeout(ctx, reconcileWait)
		defer cancel()
		if err := l.Reconcile(comparing, doubt); err != nil {
			return fmt.Errorf("compare the sessions with the record: %w", err)
		}
	}
	l.missed.mu.Lock()
	defer l.missed.mu.Unlock()
	if doubts == l.missed.doubts { // else Doubt was called meanwhile
		l.missed.doubt = ""
		l.up.Store(l.missed.stream || !l.DB.Postgres())
	}
	return nil
}

// Mark makes this node act on all events that are recorded from now on. Without it, that
// begins with Run. Call it before data that the events change is read into memory.
func (l *Log) Mark(ctx context.Context) error {
	l.init()
	if !l.DB.Postgres() {
		return nil
	}
	err := l.eachUnsealed(ctx, func(e *row) bool {
		l.missed.note(e.id, acted)
		return false
	})
	if err != nil {
		return err
	}
	last, err := newestRow(ctx, l.DB)
	if err == nil {
		l.missed.marked, l.missed.seq = true, last.seq
	}
	return err
}

// readMissed acts on the urgent events that were not acted on. It reads the unsealed events
// first, so that it also finds those that are sealed in between.
func (l *Log) readMissed(ctx context.Context) error {
	if !l.DB.Postgres() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, followWait)
	defer cancel()
	if !l.missed.marked {
		return l.Mark(ctx)
	}
	do := func(e *row) (again bool) {
		act, again := l.missed.due(e.id)
		if act {
			l.received(e.Event)
		}
		return again
	}
	if err := l.eachUnsealed(ctx, do); err != nil {
		return err
	}
	return l.eachSealed(ctx, do)
}

// eachUnsealed calls do for each urgent event that is not sealed yet.
func (l *Log) eachUnsealed(ctx context.Context, do func(*row) (again bool)) error {
	for after := int64(0); ; {
		var q store.Query
		q.And("seq IS NULL AND id > ?", after)
		page, err := urgent(ctx, l.DB, &q, "id")
		if err != nil {
			return err
		}
		for i := range page {
			after = page[i].id
			_ = do(&page[i]) // the next read returns it in any case
		}
		if len(page) < missedPage {
			return nil
		}
	}
}

// eachSealed calls do for each urgent event that was sealed since the last call.
func (l *Log) eachSealed(ctx context.Context, do func(*row) (again bool)) error {
	m := &l.missed
	last, err := newestRow(ctx, l.DB)
	if err != nil || last.seq == m.seq {
		return err
	}
	if last.seq < m.seq { // an older state of the database was restored
		m.seq = last.seq
		l.Doubt("the log ends before an event that was in it")
		return nil
	}
	reached := last.seq
	for after := m.seq; ; {
		var q store.Query
		q.And("seq > ? AND seq <= ?", after, last.seq)
		page, err := urgent(ctx, l.DB, &q, "seq")
		if err != nil {
			return err
		}
		for i := range page {
			if after = page[i].Seq; do(&page[i]) {
				reached = min(reached, after-1)
			}
		}
		if len(page) < missedPage {
			m.seq = reached
			return nil
		}
	}
}

// urgent returns the first missedPage urgent events that match q, in the order of a column.
func urgent(ctx context.Context, r store.Reader, q *store.Query, order string) ([]row, error) {
	var types []countersign.EventType
	for t, k := range countersign.Kinds() {
		if k.Urgent {
			types = append(types, t)
		}
	}
	q.And("type IN " + store.In(q, types))
	return read(ctx, r, `SELECT `+columns+` FROM event`+q.Where()+` ORDER BY `+order+` LIMIT `+q.Arg(missedPage), q.Args...)
}
