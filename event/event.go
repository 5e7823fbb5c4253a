// Package event keeps the log of what happened. Events are appended in the
// transaction that they describe; a sealer then assigns them a dense sequence and
// a hash chain, so that a line changed or taken out later shows. The log is also
// the bus: subscribers receive an event as soon as it is durable, on every node.
package event

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// maxText bounds each free text of an event: a peer chooses some of them.
const maxText = 512

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
	later       later
	sealed      chan struct{}
	up          atomic.Bool  // other nodes' notices reach us, and nothing is in doubt
	position    atomic.Int64 // id of the newest event that is known to be durable
	missed      missed
	once        sync.Once
}

func (l *Log) init() {
	l.once.Do(func() {
		l.self = rand.Text()
		l.later = later{log: l, queue: make(chan waiting, laterQueue)}
		l.sealed = make(chan struct{}, 1)
		l.missed.changed = make(chan struct{}, 1)
	})
}

// Subscribe adds a function that is called with each event once it is durable, in no
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

// Run writes what Later took, seals the log and listens to other nodes, until ctx ends.
// What Later took by then is still written.
func (l *Log) Run(ctx context.Context) error {
	l.init()
	var wg sync.WaitGroup
	wg.Go(func() { l.later.run(ctx) })
	wg.Go(func() { l.seal(ctx) })
	wg.Go(func() { l.follow(ctx) })
	if l.DB.Postgres() {
		wg.Go(func() { l.listen(ctx) })
	}
	wg.Wait()
	return nil
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
