package event

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// CaughtUp bounds how long after the database is reachable again a node acts on what
// it missed: store listens again within a second, then the log is read and the live
// sessions are compared with the record.
const CaughtUp = 2 * time.Second

const (
	// followEvery is how often the log is read for events without a notice: where the
	// notices do not arrive, this is how late a revocation is.
	followEvery = time.Second
	// followRetry is the pause after a failed read, and while something is in doubt.
	followRetry = 100 * time.Millisecond
	// followWait bounds one read of the log.
	followWait = 5 * time.Second
	// reconcileWait bounds one comparison of all live sessions with the record.
	reconcileWait = time.Minute
	// missedPage is how many events are read at once to find those missed.
	missedPage = 500
	// maxKnown bounds the ids that are remembered so that nothing is acted on twice.
	maxKnown = 16_384
)

// missed finds urgent events that no notice brought. It goes by the dense sequence of
// the seal, and by the id of what is not sealed yet, never by a clock.
type missed struct {
	changed chan struct{} // wakes follow

	// Only Mark, and then follow, use these.
	marked bool
	seq    int64 // what is sealed up to here has been acted on

	mu     sync.Mutex
	known  map[int64]state // by id
	order  []int64         // of known, the oldest first
	stream bool            // notices arrive
	doubt  string          // why live sessions are to be compared with the record; empty: they need not be
	doubts uint64          // counts what made either of them change
}

// state is what became of an event.
type state int

const (
	acted   state = iota // it was acted on
	pending              // its transaction, of this node, has not returned yet
	overdue              // so it was a second ago, though it is on record
)

// note remembers what became of an event.
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

// claim reports whether a notice is the first that brings the event with this id.
func (m *missed) claim(id int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.known[id]; ok && id != 0 {
		return false
	}
	m.set(id, acted)
	return true
}

// due reports whether an event that was found on record is to be acted on now. One
// whose transaction still runs here is left to it, once: its commit may have got no
// answer. again: it has to be looked at again.
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

// Doubt has the live sessions of this node compared with the record, because
// something may have been missed. Until that is done, Live reports false.
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
	default: // it is awake
	}
}

// streaming notes that a stream of notices began, or ended.
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
			if _, lost := l.DB.Lost(); !lost { // else it is known
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

// catchUp acts on what was missed and, where something is in doubt, has the live
// sessions compared with the record. Live reports true again once both are done.
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
	if doubts == l.missed.doubts { // else there is more to look for
		l.missed.doubt = ""
		l.up.Store(l.missed.stream || !l.DB.Postgres())
	}
	return nil
}

// Mark has this node act on all that is recorded from now on. Without it, that begins
// with Run; call it before what the events are about is read into memory.
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

// readMissed acts on the urgent events that were not acted on. What is not sealed is
// read first: what is sealed in between is found all the same.
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
			l.heard(e.Event)
		}
		return again
	}
	if err := l.eachUnsealed(ctx, do); err != nil {
		return err
	}
	return l.eachSealed(ctx, do)
}

// eachUnsealed calls do with each urgent event that is not sealed yet.
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
			_ = do(&page[i]) // the next read meets it anyway
		}
		if len(page) < missedPage {
			return nil
		}
	}
}

// eachSealed calls do with each urgent event that was sealed since the last time.
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

// urgent returns the first missedPage events of a condition, in the order of a column,
// that other nodes must know of at once.
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
