package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/watermark"
)

// markEvery is the pace at which the last state that was seen is written down: what
// was committed within it before a node died is not missed after a restore.
const markEvery = 5 * time.Second

// ErrRestored means that the database is older than the last state that this node saw.
var ErrRestored = errors.New("the database is older than what was seen")

// mark is what a node remembers of the database, beside the database.
type mark struct {
	key     []byte
	written watermark.State
	seen    watermark.Node // this node on record, as far as known
	note    string         // what was odd about it at the start; empty: nothing
}

// markNode names this node among those that keep a watermark: a process has another
// name each time.
func (s *Server) markNode() string {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	dir, err := filepath.Abs(s.cfg.Dir)
	if err != nil {
		dir = s.cfg.Dir
	}
	return host + ":" + dir
}

// dbState reads how far the database has come.
func (s *Server) dbState(ctx context.Context) (st watermark.State, err error) {
	for _, a := range s.ca.Authorities() { // roots first
		if a.KeyURI != "" {
			st.Database = Fingerprint(a.Certificate.Raw)
			break
		}
	}
	if st.Seq, st.Hash, err = s.events.Head(ctx); err != nil {
		return st, err
	}
	if st.Lists, err = s.ca.ListNumbers(ctx); err != nil {
		return st, err
	}
	st.At = s.opts.Now()
	return st, nil
}

// loss compares what was seen with the database.
func (s *Server) loss(ctx context.Context, seen, now watermark.State) (*watermark.Loss, error) {
	hash, err := event.HashAt(ctx, s.db, seen.Seq)
	if err != nil {
		return nil, err
	}
	return watermark.Compare(seen, now, hash), nil
}

// openMark refuses a database that is older than the last state that this node saw,
// and begins to keep that state.
func (s *Server) openMark(ctx context.Context) (err error) {
	if s.mark.key, err = s.sealer.Derive(watermark.Purpose); err != nil {
		return err
	}
	now, err := s.dbState(ctx)
	if err != nil {
		return err
	}
	seen, err := watermark.Read(s.cfg.Dir, s.mark.key)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := s.noMark(ctx); err != nil {
			return err
		}
	case err != nil:
		return countersign.Errorf(countersign.Conflict, "the last state of the database that this node saw, %s, cannot be used: %v", s.cfg.Path(watermark.Name), err).
			WithNext("find out who changed it; to go on without it, move it away")
	case seen.Database != now.Database:
		return s.errOtherDatabase()
	default:
		l, err := s.loss(ctx, seen, now)
		if err == nil && l != nil && s.sealAll(ctx) == nil { // what waits for its seal is not lost
			if now, err = s.dbState(ctx); err == nil {
				l, err = s.loss(ctx, seen, now)
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
	return s.announceMark(ctx, now)
}

func (s *Server) errOtherDatabase() error {
	return countersign.Errorf(countersign.Conflict, "this data folder belongs to another database: %s has another root authority", s.cfg.Path(watermark.Name)).
		WithNext("name the right data folder and database; if the change is meant, move the file away")
}

// noMark says so where a node should have a watermark and has none: a folder that was
// restored or moved without it. Nothing can be compared then.
func (s *Server) noMark(ctx context.Context) error {
	nodes, err := watermark.Nodes(ctx, s.db)
	if err != nil {
		return err
	}
	own := slices.ContainsFunc(nodes, s.isThis)
	if len(nodes) == 0 || !own && s.db.Postgres() { // a new one, or a further node
		return nil
	}
	s.mark.note = "this node kept the last state that it saw, and the file is gone"
	if !own {
		s.mark.note = "the database comes from another machine or folder"
	}
	s.log.WarnContext(ctx, "watermark is missing: nothing shows whether the database is as new as it was", "file", watermark.Name, "why", s.mark.note, "nodes", names(nodes))
	s.events.Later(countersign.Event{
		Type: countersign.WatermarkMissing, Actor: countersign.System, Reason: s.mark.note + ": nothing shows whether the database is as new as it was",
		Data: map[string]string{"node": s.markNode(), "nodes": names(nodes)},
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

func (s *Server) isThis(n watermark.Node) bool { return n.Name == s.markNode() }

// announceMark writes the watermark and puts on record that there is one. A disk
// without space keeps the one that is there.
func (s *Server) announceMark(ctx context.Context, now watermark.State) error {
	s.writeMark(ctx, now)
	if s.markFailing.Load() || !s.mark.seen.Due(s.opts.Now()) {
		return nil
	}
	nodes, err := watermark.Nodes(ctx, s.db)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(nodes, s.isThis); i >= 0 {
		if s.mark.seen = nodes[i]; !s.mark.seen.Due(s.opts.Now()) {
			return nil
		}
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		return watermark.Announce(ctx, tx, s.markNode(), s.opts.Now())
	})
	if countersign.CodeOf(err) == countersign.Unavailable {
		s.log.WarnContext(ctx, "not recorded that this node keeps a watermark", "error", err)
		return nil
	}
	if err == nil {
		s.mark.seen = watermark.Node{Name: s.markNode(), Seen: s.opts.Now()}
	}
	return err
}

// writeMark writes a state that is new. It logs a failure once.
func (s *Server) writeMark(ctx context.Context, now watermark.State) {
	if now.Equal(s.mark.written) {
		return
	}
	err := watermark.Write(s.cfg.Dir, s.mark.key, now)
	if err == nil {
		s.mark.written = now
	} else if !s.markFailing.Load() {
		s.log.ErrorContext(ctx, "last state of the database not written down", "file", s.cfg.Path(watermark.Name), "error", err, "retry_in", markEvery)
	}
	s.markFailing.Store(err != nil)
}

// keepMark writes the watermark at its pace until ctx ends.
func (s *Server) keepMark(ctx context.Context) error {
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.updateMark(ctx)
		}
	}
}

// updateMark writes the present state. While the database cannot be read the old one
// stays, and so it does where the database was set back under a running node, as by a
// failover to a standby that was behind: the mark must not follow it, and the next
// start is refused.
func (s *Server) updateMark(ctx context.Context) {
	now, err := s.dbState(ctx)
	if err == nil && s.mark.written.Seq > 0 {
		var l *watermark.Loss
		if l, err = s.loss(ctx, s.mark.written, now); l != nil {
			s.wentBack(ctx, l)
			return
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			s.log.WarnContext(ctx, "state of the database not read", "error", err, "retry_in", markEvery)
		}
		return
	}
	if err := s.announceMark(ctx, now); err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "not recorded that this node keeps a watermark", "error", err, "retry_in", markEvery)
	}
}

// wentBack handles a database that was set back while this node runs: an event raises an
// alert, and each CRL is published anew with a number above those that this node saw. A
// list of before may name certificates that the database takes for good now; the next one
// does not.
func (s *Server) wentBack(ctx context.Context, l *watermark.Loss) {
	text := l.String()
	if s.setBack.Swap(&text) != nil {
		return
	}
	s.log.ErrorContext(ctx, "the database was set back while this node ran", "lost", text)
	data := l.Data()
	data["node"] = s.markNode()
	s.events.Later(countersign.Event{
		Type: countersign.DatabaseSetBack, Actor: countersign.System, Reason: "the database was set back while this node ran: " + text, Data: data,
	})
	s.ca.KeepNumbersAbove(s.mark.written.Lists)
	s.crls.AskDue(ctx)
}

// AcceptRestored accepts a database that is older than the last state that this node
// saw: the numbers of its CRLs are raised above those that were published, the log goes
// on behind what it lost, and an event says what that is. The server must not run. It
// returns what is lost, and Conflict where nothing is.
func AcceptRestored(ctx context.Context, cfg config.Config, opts Options) (lost *watermark.Loss, err error) {
	opts.Founding, opts.Dev = nil, false
	s, err := open(ctx, cfg, opts, func(s *Server) []step {
		return []step{s.openStore, s.openKeepers, s.found, s.openKeys, func(ctx context.Context) (err error) {
			lost, err = s.acceptRestored(ctx)
			return err
		}}
	})
	if err != nil {
		return nil, err
	}
	return lost, s.Close()
}

func (s *Server) acceptRestored(ctx context.Context) (*watermark.Loss, error) {
	var err error
	if s.mark.key, err = s.sealer.Derive(watermark.Purpose); err != nil {
		return nil, err
	}
	if err := s.sealAll(ctx); err != nil { // what waits for its seal is not lost
		return nil, err
	}
	now, err := s.dbState(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := watermark.Read(s.cfg.Dir, s.mark.key)
	if err != nil {
		return nil, fmt.Errorf("read the last state that this node saw: %w", err)
	}
	if seen.Database != now.Database {
		return nil, s.errOtherDatabase()
	}
	l, err := s.loss(ctx, seen, now)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return nil, countersign.Errorf(countersign.Conflict, "the database is not older than the last state that this node saw: there is nothing to accept")
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := s.ca.RaiseNumbers(ctx, tx, seen.Lists); err != nil {
			return err
		}
		if l.Events > 0 {
			if err := s.events.GoOnAfter(ctx, tx, seen.Seq, seen.Hash); err != nil {
				return err
			}
		}
		return s.events.Append(ctx, tx, countersign.Event{
			Type: countersign.DatabaseRestored, Actor: s.opts.By, Via: "cli", Reason: "an older state of the database was accepted: " + l.String(), Data: l.Data(),
		})
	})
	if err != nil {
		return nil, fmt.Errorf("record the restore: %w", err)
	}
	if err := s.sealAll(ctx); err != nil { // it is the first behind the gap
		return nil, err
	}
	if now, err = s.dbState(ctx); err != nil {
		return nil, err
	}
	return l, watermark.Write(s.cfg.Dir, s.mark.key, now)
}

// sealAll seals every event.
func (s *Server) sealAll(ctx context.Context) error {
	for {
		n, err := s.events.Seal(ctx)
		if err != nil || n == 0 {
			return err
		}
	}
}
