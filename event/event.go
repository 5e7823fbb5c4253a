// Package event records events in a log. An event is appended in the transaction that it
// describes. A sealer then assigns dense sequence numbers and a hash chain, so that Verify
// detects an event that was changed or removed later. The log is also a message bus:
// subscribers receive an event as soon as it is durable, on every node.
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

// maxText bounds each free text of an event, in octets, because a peer chooses some of them.
const maxText = 512

// Log is the event log. Set the fields, call Subscribe, then Run.
type Log struct {
	DB  *store.DB
	Now func() time.Time
	Log *slog.Logger
	// Node is the name of this process, for people.
	Node string
	// Cut ends the live sessions of this node that an event names, and returns their
	// number after the last socket is closed. Nil: there are no sessions. It is a function
	// because the index of sessions belongs to the gateways, which this package may not
	// import.
	Cut func(countersign.Cut) int
	// Erase deletes the messages that are stored for a device, in the transaction of an
	// event whose kind purges. Nil: no messages are stored. It is a function because the
	// messages belong to the broker core, which this package may not import.
	Erase func(ctx context.Context, tx *store.Tx, device string) error
	// Reconcile compares the live sessions of this node with the record and ends those
	// that are no longer allowed. It is called, with the reason, when events may have been
	// missed; Live reports false until it has succeeded. Nil: there are no sessions. It is
	// a function for the same reason as Cut.
	Reconcile func(ctx context.Context, why string) error

	self        string // distinguishes this process's notices from those of others
	subscribers []func(countersign.Event)
	recorded    []func(countersign.Event)
	later       later
	sealed      chan struct{}
	up          atomic.Bool  // notices of other nodes arrive, and missed.doubt is empty
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

// Subscribe adds a function that is called for each event after it is durable, in no
// particular order and perhaps twice. The function must not block. Call Subscribe before
// Run.
func (l *Log) Subscribe(fn func(countersign.Event)) { l.subscribers = append(l.subscribers, fn) }

// SubscribeRecorded adds a function that is called once for each event that this
// node has recorded itself, so that a count over all nodes counts each event once.
// The function must not block. Call SubscribeRecorded before Run.
func (l *Log) SubscribeRecorded(fn func(countersign.Event)) { l.recorded = append(l.recorded, fn) }

// Live reports whether the events of other nodes arrive at once and none was missed. Only
// then may this process rely on what it has read from the database before.
func (l *Log) Live() bool { return !l.DB.Postgres() || l.up.Load() }

// Append writes events in the caller's transaction. After the commit, in the caller's
// goroutine, it cuts the live sessions of this node that the events end, and calls the
// subscribers. Other nodes do the same when the notice arrives.
func (l *Log) Append(ctx context.Context, tx *store.Tx, events ...countersign.Event) error {
	return l.AppendAct(ctx, tx, &countersign.Revocation{}, events...)
}

// AppendAct is Append for an act whose answer has the number of sessions that it cut on
// this node: after the commit it adds their number to done.Sessions, and the time that the
// cuts took to done.CutIn.
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
			l.publish(e)
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

// insert writes the row and returns its id. On PostgreSQL the row also proves that the
// transaction was committed, if the answer to COMMIT is lost.
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
	// The id alone is no proof: a database that lost the transaction in a crash may assign
	// the id to another event.
	tx.Proof(`SELECT 1 FROM event WHERE id = $1 AND at = $2 AND type = $3 AND actor = $4 AND device = $5 AND serial = $6 AND reason = $7`,
		id, args[0], args[1], args[2], args[3], args[6], args[10])
	return id, nil
}

// cut ends the sessions that the events of one act name.
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

// Announce acts on an event on this node only, as if it had been recorded, and returns the
// number of live sessions that it ended. Use it for an act that cannot be recorded now.
func (l *Log) Announce(e countersign.Event) (sessions int) {
	if e.At.IsZero() {
		e.At = l.Now()
	}
	clean(&e)
	var done countersign.Revocation
	l.cut(&done, []countersign.Event{e})
	l.publish(e)
	return done.Sessions
}

// received acts on an event of another node.
func (l *Log) received(e countersign.Event) {
	l.cut(&countersign.Revocation{}, []countersign.Event{e})
	l.publish(e)
}

func (l *Log) publish(e countersign.Event) {
	for _, fn := range l.subscribers {
		fn(e)
	}
}

// Run writes the events of Later, seals the log and receives the events of other nodes,
// until ctx ends. The events that Later has accepted by then are still written.
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

// clean bounds the texts of an event. It copies the map, because the caller may share it.
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
