package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/watermark"
)

// markEvery is the pace at which the last state that was seen is written down: what
// was committed within it before a node died is not missed after a restore.
const markEvery = 5 * time.Second

// ErrRestored means that the database is older than the last state that this node saw.
var ErrRestored = errors.New("the database is older than what was seen")

// mark keeps what a node remembers of the database, beside the database.
type mark struct {
	*core
	ca   *ca.CA
	crls *ca.Publisher // of a server that runs

	key     []byte
	written watermark.State
	seen    watermark.Node // this node on record, as far as known
	note    string         // what was odd about it at the start; empty: nothing
	// failing is set while the last state cannot be written down.
	failing atomic.Bool
	// setBack is what a database lost that was set back while this node ran.
	setBack atomic.Pointer[string]
}

// node names this node among those that keep a watermark: a process has another
// name each time.
func (m *mark) node() string {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	dir, err := filepath.Abs(m.cfg.Dir)
	if err != nil {
		dir = m.cfg.Dir
	}
	return host + ":" + dir
}

// state reads how far the database has come.
func (m *mark) state(ctx context.Context) (st watermark.State, err error) {
	for _, a := range m.ca.Authorities() { // roots first
		if a.KeyURI != "" {
			st.Database = Fingerprint(a.Certificate.Raw)
			break
		}
	}
	if st.Seq, st.Hash, err = m.events.Head(ctx); err != nil {
		return st, err
	}
	if st.Lists, err = ca.ListNumbers(ctx, m.ca.DB); err != nil {
		return st, err
	}
	st.At = m.now()
	return st, nil
}

// loss compares what was seen with the database.
func (m *mark) loss(ctx context.Context, seen, now watermark.State) (*watermark.Loss, error) {
	hash, err := event.HashAt(ctx, m.db, seen.Seq)
	if err != nil {
		return nil, err
	}
	return watermark.Compare(seen, now, hash), nil
}

// open refuses a database that is older than the last state that this node saw,
// and begins to keep that state.
func (m *mark) open(ctx context.Context, sealer *keystore.Sealer) (err error) {
	if m.key, err = sealer.Derive(watermark.Purpose); err != nil {
		return err
	}
	now, err := m.state(ctx)
	if err != nil {
		return err
	}
	seen, err := watermark.Read(m.cfg.Dir, m.key)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := m.missing(ctx); err != nil {
			return err
		}
	case err != nil:
		return countersign.Errorf(countersign.Conflict, "the last state of the database that this node saw, %s, cannot be used: %v", m.cfg.Path(watermark.Name), err).
			WithNext("find out who changed it; to go on without it, move it away")
	case seen.Database != now.Database:
		return m.errOtherDatabase()
	default:
		l, err := m.loss(ctx, seen, now)
		if err == nil && l != nil && sealAll(ctx, m.events) == nil { // what waits for its seal is not lost
			if now, err = m.state(ctx); err == nil {
				l, err = m.loss(ctx, seen, now)
			}
		}
		if err != nil {
			return err
		}
		if l != nil {
			return countersign.Errorf(countersign.Conflict, "the database is older than the last state that this node saw (%s): %s. What was recorded in between is lost, revocations too",
				seen.At.Format(time.RFC3339), l).
				WithNext("restore a newer state of the database; if there is none, accept the loss").WithCause(ErrRestored)
		}
	}
	return m.announce(ctx, now)
}

func (m *mark) errOtherDatabase() error {
	return countersign.Errorf(countersign.Conflict, "this data folder belongs to another database: %s has another root authority", m.cfg.Path(watermark.Name)).
		WithNext("name the right data folder and database; if the change is meant, move the file away")
}

// missing notes it where a node should have a watermark and has none: a folder that was
// restored or moved without it. Nothing can be compared then.
func (m *mark) missing(ctx context.Context) error {
	nodes, err := watermark.Nodes(ctx, m.db)
	if err != nil {
		return err
	}
	own := slices.ContainsFunc(nodes, m.isThis)
	if len(nodes) == 0 || !own && m.db.Postgres() { // a new one, or a further node
		return nil
	}
	m.note = "this node kept the last state that it saw, and the file is gone"
	if !own {
		m.note = "the database comes from another machine or folder"
	}
	m.log.WarnContext(ctx, "watermark is missing: nothing shows whether the database is as new as it was", "file", watermark.Name, "why", m.note, "nodes", names(nodes))
	m.events.Later(countersign.Event{
		Type: countersign.WatermarkMissing, Actor: countersign.System, Reason: m.note + ": nothing shows whether the database is as new as it was",
		Data: map[string]string{"node": m.node(), "nodes": names(nodes)},
	})
	return nil
}

// namedNodes is how many nodes a message names.
const namedNodes = 8

// names lists the nodes that were seen last.
func names(nodes []watermark.Node) string {
	var list []string
	for _, n := range nodes[:min(len(nodes), namedNodes)] {
		list = append(list, n.Name)
	}
	if more := len(nodes) - len(list); more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(list, ", ")
}

func (m *mark) isThis(n watermark.Node) bool { return n.Name == m.node() }

// announce writes the watermark and puts on record that there is one. A disk
// without space keeps the one that is there.
func (m *mark) announce(ctx context.Context, now watermark.State) error {
	m.write(ctx, now)
	if m.failing.Load() || !m.seen.Due(m.now()) {
		return nil
	}
	nodes, err := watermark.Nodes(ctx, m.db)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(nodes, m.isThis); i >= 0 {
		if m.seen = nodes[i]; !m.seen.Due(m.now()) {
			return nil
		}
	}
	err = m.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		return watermark.Announce(ctx, tx, m.node(), m.now())
	})
	if countersign.CodeOf(err) == countersign.Unavailable {
		m.log.WarnContext(ctx, "not recorded that this node keeps a watermark", "error", err)
		return nil
	}
	if err == nil {
		m.seen = watermark.Node{Name: m.node(), Seen: m.now()}
	}
	return err
}

// write writes a state that is new. It logs a failure once.
func (m *mark) write(ctx context.Context, now watermark.State) {
	if now.Equal(m.written) {
		return
	}
	err := watermark.Write(m.cfg.Dir, m.key, now)
	if err == nil {
		m.written = now
	} else if !m.failing.Load() {
		m.log.ErrorContext(ctx, "last state of the database not written down", "file", m.cfg.Path(watermark.Name), "error", err, "retry_in", markEvery)
	}
	m.failing.Store(err != nil)
}

// keep writes the watermark at its pace until ctx ends.
func (m *mark) keep(ctx context.Context) error {
	return every(ctx, markEvery, func() { m.update(ctx) })
}

// update writes the present state. While the database cannot be read the old one
// stays, and so it does where the database was set back under a running node, as by a
// failover to a standby that was behind: the mark must not follow it, and the next
// start is refused.
func (m *mark) update(ctx context.Context) {
	now, err := m.state(ctx)
	if err == nil && m.written.Seq > 0 {
		var l *watermark.Loss
		if l, err = m.loss(ctx, m.written, now); l != nil {
			m.wentBack(ctx, l)
			return
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			m.log.WarnContext(ctx, "state of the database not read", "error", err, "retry_in", markEvery)
		}
		return
	}
	if err := m.announce(ctx, now); err != nil && ctx.Err() == nil {
		m.log.WarnContext(ctx, "not recorded that this node keeps a watermark", "error", err, "retry_in", markEvery)
	}
}

// wentBack handles a database that was set back while this node runs: an event raises an
// alert, and each CRL is published anew with a number above those that this node saw. A
// list of before may name certificates that the database takes for good now; the next one
// does not.
func (m *mark) wentBack(ctx context.Context, l *watermark.Loss) {
	text := l.String()
	if m.setBack.Swap(&text) != nil {
		return
	}
	m.log.ErrorContext(ctx, "the database was set back while this node ran", "lost", text)
	data := l.Data()
	data["node"] = m.node()
	m.events.Later(countersign.Event{
		Type: countersign.DatabaseSetBack, Actor: countersign.System, Reason: "the database was set back while this node ran: " + text, Data: data,
	})
	m.ca.KeepNumbersAbove(m.written.Lists)
	m.crls.AskDue(ctx)
}

// accept accepts a database that is older than the last state that this node saw.
func (m *mark) accept(ctx context.Context, sealer *keystore.Sealer, by countersign.Actor) (*watermark.Loss, error) {
	var err error
	if m.key, err = sealer.Derive(watermark.Purpose); err != nil {
		return nil, err
	}
	if err := sealAll(ctx, m.events); err != nil { // what waits for its seal is not lost
		return nil, err
	}
	now, err := m.state(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := watermark.Read(m.cfg.Dir, m.key)
	if err != nil {
		return nil, fmt.Errorf("read the last state that this node saw: %w", err)
	}
	if seen.Database != now.Database {
		return nil, m.errOtherDatabase()
	}
	l, err := m.loss(ctx, seen, now)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, countersign.Errorf(countersign.Conflict, "the database is not older than the last state that this node saw: there is nothing to accept")
	}
	err = m.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := ca.RaiseNumbers(ctx, tx, seen.Lists); err != nil {
			return err
		}
		if l.Events > 0 {
			if err := m.events.GoOnAfter(ctx, tx, seen.Seq, seen.Hash); err != nil {
				return err
			}
		}
		return m.events.Append(ctx, tx, countersign.Event{
			Type: countersign.DatabaseRestored, Actor: by, Via: "cli", Reason: "an older state of the database was accepted: " + l.String(), Data: l.Data(),
		})
	})
	if err != nil {
		return nil, fmt.Errorf("record the restore: %w", err)
	}
	if err := sealAll(ctx, m.events); err != nil { // it is the first behind the gap
		return nil, err
	}
	if now, err = m.state(ctx); err != nil {
		return nil, err
	}
	return l, watermark.Write(m.cfg.Dir, m.key, now)
}

// sealAll seals every event.
func sealAll(ctx context.Context, l *event.Log) error {
	for {
		n, err := l.Seal(ctx)
		if err != nil || n == 0 {
			return err
		}
	}
}
