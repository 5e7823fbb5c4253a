// Package event keeps the log of what happened. Events are appended in the
// transaction that they describe; a sealer then gives them a dense sequence and
// a hash chain, so that a line changed or taken out later shows. The log is also
// the bus: subscribers hear of an event as soon as it is durable, on every node.
package event

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	// maxText bounds each free text of an event: a peer chooses some of them.
	maxText = 512
)

// Log is the event log. Set the fields, Subscribe, then Run.
type Log struct {
	DB  *store.DB
	Now func() time.Time
	Log *slog.Logger
	// Node names this process to people.
	Node string
	// Cut ends the live sessions of this node that an event names and returns their
	// number; it returns when the last socket is closed. A function, because the index
	// of sessions belongs to the gateways, which no keeper may know. Nil: no sessions.
	Cut func(countersign.Cut) int
	// Erase removes from the record what is stored for a device, in the transaction of an
	// event whose kind purges. A function, because the messages belong to the broker core,
	// which no keeper may know. Nil: nothing is stored.
	Erase func(ctx context.Context, tx *store.Tx, device string) error
	// Reconcile compares the live sessions of this node with the record and ends those
	// that it no longer supports. It is called when something may have been missed, with
	// the reason; Live reports false until it has succeeded. A function, for the same
	// reason as Cut. Nil: no sessions.
	Reconcile func(ctx context.Context, why string) error

	self        string // distinguishes this process's notices from those of others
	subscribers []func(countersign.Event)
	recorded    []func(countersign.Event)
	later       chan waiting
	suppressed  atomic.Int64 // events that Later had no room for
	sealed      chan struct{}
	up          atomic.Bool  // other nodes' notices reach us, and nothing is in doubt
	position    atomic.Int64 // id of the newest event that is known to be durable
	missed      missed
	once        sync.Once
}

// waiting is an event that Later took or, with done, the mark of a Flush.
type waiting struct {
	event countersign.Event
	done  chan struct{}
}

func (l *Log) init() {
	l.once.Do(func() {
		l.self = rand.Text()
		l.later = make(chan waiting, laterQueue)
		l.sealed = make(chan struct{}, 1)
		l.missed.changed = make(chan struct{}, 1)
	})
}

// Subscribe adds a function that hears each event once it is durable, in no
// particular order and perhaps twice. It must not block. Call it before Run.
func (l *Log) Subscribe(fn func(countersign.Event)) { l.subscribers = append(l.subscribers, fn) }

// SubscribeRecorded adds a function that is called once for each event that this
// node has recorded itself, so that a count over all nodes counts each event once.
// It must not block. Call it before Run.
func (l *Log) SubscribeRecorded(fn func(countersign.Event)) { l.recorded = append(l.recorded, fn) }

// Live reports whether this process learns at once of what other nodes do, and has
// missed nothing: only then may it rely on what it has read before.
func (l *Log) Live() bool { return !l.DB.Postgres() || l.up.Load() }

// Append writes events in the caller's transaction. After the commit, in the
// caller's goroutine, the live sessions of this node that the events end are cut
// and the subscribers are called; other nodes do the same when the notice arrives.
func (l *Log) Append(ctx context.Context, tx *store.Tx, events ...countersign.Event) error {
	return l.AppendAct(ctx, tx, &countersign.Revocation{}, events...)
}

// AppendAct is Append for an act whose answer says how many sessions it cut on this
// node: after the commit it adds them to done.Sessions, and the time it took to
// done.CutIn.
func (l *Log) AppendAct(ctx context.Context, tx *store.Tx, done *countersign.Revocation, events ...countersign.Event) error {
	l.init()
	ids := make([]int64, len(events))
	for i := range events {
		var err error
		if ids[i], err = l.append(ctx, tx, &events[i]); err != nil {
			return err
		}
	}
	tx.AfterCommit(func() {
		l.passed(slices.Max(append(ids, 0)))
		l.cut(done, events)
		for i, e := range events {
			if l.DB.Postgres() && e.Type.Kind().Urgent {
				l.missed.note(ids[i], acted)
			}
			for _, fn := range l.recorded {
				fn(e)
			}
			l.tell(e)
		}
		l.wakeSealer()
	})
	return nil
}

// append writes one event and returns its id.
func (l *Log) append(ctx context.Context, tx *store.Tx, e *countersign.Event) (id int64, err error) {
	if e.At.IsZero() {
		e.At = l.Now()
	}
	e.At = store.Time(store.Micros(e.At))
	clean(e)
	data, err := encodeData(e.Data)
	if err != nil {
		return 0, err
	}
	if id, err = l.insert(ctx, tx, e, data); err != nil {
		return 0, fmt.Errorf("append event %s: %w", e.Type, err)
	}
	if l.Erase != nil && e.Type.Kind().Purges {
		if err := l.Erase(ctx, tx, e.Device); err != nil {
			return 0, fmt.Errorf("append event %s: %w", e.Type, err)
		}
	}
	if !l.DB.Postgres() || !e.Type.Kind().Urgent {
		return id, nil
	}
	l.missed.note(id, pending)
	return id, l.notify(ctx, tx, id, *e)
}

// insert writes the row and returns its id. On PostgreSQL it is also the proof that
// the transaction is on record, should the answer of its COMMIT be lost.
func (l *Log) insert(ctx context.Context, tx *store.Tx, e *countersign.Event, data string) (id int64, err error) {
	const row = `INSERT INTO event (at, type, actor, device, fleet, issuer, serial, remote, via, code, reason, data)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING id`
	args := []any{
		store.Micros(e.At), string(e.Type), string(e.Actor), e.Device, e.Fleet, e.Cert.Issuer, string(e.Cert.Serial),
		e.Remote, e.Via, string(e.Code), e.Reason, data,
	}
	if err := tx.QueryRow(ctx, row, args...).Scan(&id); err != nil || !l.DB.Postgres() {
		return id, err
	}
	// An id alone is no proof: a server that lost the transaction in a crash may give
	// the id to another event.
	tx.Proof(`SELECT 1 FROM event WHERE id = $1 AND at = $2 AND type = $3 AND actor = $4 AND device = $5 AND serial = $6 AND reason = $7`,
		id, args[0], args[1], args[2], args[3], args[6], args[10])
	return id, nil
}

// cut ends the sessions that events of one act name.
func (l *Log) cut(done *countersign.Revocation, events []countersign.Event) {
	if l.Cut == nil {
		return
	}
	begin := l.Now()
	for _, c := range countersign.Cuts(events) {
		done.Sessions += l.Cut(c)
	}
	done.CutIn += l.Now().Sub(begin)
}

// Announce acts on an event on this node alone, as if it had been recorded, and returns
// how many live sessions it ended. It is for an act that cannot be recorded now.
func (l *Log) Announce(e countersign.Event) (sessions int) {
	if e.At.IsZero() {
		e.At = l.Now()
	}
	clean(&e)
	var done countersign.Revocation
	l.cut(&done, []countersign.Event{e})
	l.tell(e)
	return done.Sessions
}

// heard acts on an event of another node.
func (l *Log) heard(e countersign.Event) {
	l.cut(&countersign.Revocation{}, []countersign.Event{e})
	l.tell(e)
}

func (l *Log) tell(e countersign.Event) {
	for _, fn := range l.subscribers {
		fn(e)
	}
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
	case l.later <- waiting{event: e}:
	default:
		l.suppressed.Add(1)
	}
}

// Flush waits until every event given to Later so far is written, or counted as
// lost where the database refused it. Run must be running.
func (l *Log) Flush(ctx context.Context) error {
	l.init()
	done := make(chan struct{})
	select {
	case l.later <- waiting{done: done}:
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

// Run writes what Later took, seals the log and listens to other nodes, until ctx ends.
// What Later took by then is still written.
func (l *Log) Run(ctx context.Context) error {
	l.init()
	var wg sync.WaitGroup
	wg.Go(func() { l.writeLater(ctx) })
	wg.Go(func() { l.seal(ctx) })
	wg.Go(func() { l.follow(ctx) })
	if l.DB.Postgres() {
		wg.Go(func() { l.listen(ctx) })
	}
	wg.Wait()
	return nil
}

func (l *Log) writeLater(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			l.drain(ctx)
			return
		case w := <-l.later:
			if w.done == nil { // nobody waits for this one
				select {
				case <-ctx.Done():
				case <-time.After(laterPause):
				}
			}
			l.awaitDatabase(ctx)
			l.writeBatch(ctx, l.gather(w))
		}
	}
}

// awaitDatabase waits while the database is lost. What Later is given meanwhile waits in
// its queue, and is counted once that is full.
func (l *Log) awaitDatabase(ctx context.Context) {
	for {
		if _, lost := l.DB.Lost(); !lost {
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
func (l *Log) drain(ctx context.Context) {
	for {
		select {
		case w := <-l.later:
			l.writeBatch(ctx, l.gather(w))
		default:
			l.writeBatch(ctx, nil)
			return
		}
	}
}

// drainTime bounds how long a batch may wait for the disk.
const drainTime = 5 * time.Second

func (l *Log) gather(first waiting) []waiting {
	batch := []waiting{first}
	for len(batch) < laterBatch {
		select {
		case w := <-l.later:
			batch = append(batch, w)
		default:
			return batch
		}
	}
	return batch
}

func (l *Log) writeBatch(running context.Context, batch []waiting) {
	var events []countersign.Event
	for _, w := range batch {
		if w.done != nil {
			defer close(w.done)
			continue
		}
		events = append(events, w.event)
	}
	taken := int64(len(events))
	lost := l.suppressed.Swap(0)
	if lost > 0 {
		events = append(events, countersign.Event{
			Type: countersign.EventsSuppressed, Actor: countersign.System, At: l.Now(),
			Reason: "more happened at the gateways than could be written", Data: map[string]string{"count": strconv.FormatInt(lost, 10)},
		})
	}
	if len(events) == 0 {
		return
	}
	// Not running: what was taken is written although the server is being stopped.
	ctx := context.WithoutCancel(running)
	err := l.write(ctx, events)
	for range laterTries - 1 { // a database that is lost is known to be a moment later
		if !absent(err) || running.Err() != nil || !l.DB.Postgres() || store.Unconfirmed(err) {
			break
		}
		select {
		case <-running.Done():
		case <-time.After(laterRetry):
		}
		l.awaitDatabase(running)
		err = l.write(ctx, events)
	}
	switch {
	case err == nil:
	case absent(err):
		l.suppressed.Add(lost + taken)
		l.Log.ErrorContext(ctx, "events not written", "count", taken, "error", err)
	default:
		l.writeSingly(ctx, events, lost)
	}
}

// absent reports whether a write failed because the database could not serve it. Else it
// refused what was written.
func absent(err error) bool { return countersign.CodeOf(err) == countersign.Unavailable }

// writeSingly writes each event of a batch that the database refused in a transaction of
// its own, so that one that it never accepts takes no others with it. What is refused
// again is counted; its contents stay out of the server's log, and the error, which may
// quote them, too.
func (l *Log) writeSingly(ctx context.Context, events []countersign.Event, lost int64) {
	gone := false // the others would wait for the database one by one
	for i := range events {
		if !gone {
			err := l.write(ctx, events[i:i+1])
			if err == nil {
				continue
			}
			gone = absent(err)
			l.Log.ErrorContext(ctx, "event not written", "type", string(events[i].Type), "database_absent", gone)
		}
		if events[i].Type == countersign.EventsSuppressed {
			l.suppressed.Add(lost)
		} else {
			l.suppressed.Add(1)
		}
	}
}

func (l *Log) write(ctx context.Context, events []countersign.Event) error {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	return l.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return l.Append(ctx, tx, events...) })
}

// clean bounds the texts of an event. It leaves the caller's map alone: the caller
// may have given it to others too.
func clean(e *countersign.Event) {
	for _, s := range []*string{&e.Device, &e.Fleet, &e.Cert.Issuer, &e.Remote, &e.Via, &e.Reason} {
		*s = clip(*s)
	}
	e.Actor = countersign.Actor(clip(string(e.Actor)))
	e.Cert.Serial = countersign.Serial(clip(string(e.Cert.Serial)))
	if e.Data == nil {
		return
	}
	data := make(map[string]string, len(e.Data))
	for k, v := range e.Data {
		data[clip(k)] = clip(v)
	}
	e.Data = data
}

func encodeData(data map[string]string) (string, error) {
	if len(data) == 0 {
		return "", nil
	}
	b, err := json.Marshal(data) // keys sorted, so that the hash is stable
	if err != nil {
		return "", fmt.Errorf("encode event data: %w", err)
	}
	return string(b), nil
}

// clip bounds a text and keeps it valid UTF-8 without NUL, which PostgreSQL refuses.
func clip(s string) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s[:min(len(s), maxText)], "\x00", "\uFFFD"), "\uFFFD")
	if len(s) > maxText { // each replacement is three octets
		s = strings.ToValidUTF8(s[:maxText], "")
	}
	return s
}
