// Package server wires the authority together: one database, the keepers, the
// decisions, the doors and their listeners. Read this file first: New is the table of
// contents, and Run what goes on. The package holds no rule of its own.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/mqtt"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/respond"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/tunnel"
)

// Options are what the program, and not its configuration, brings.
type Options struct {
	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: no log
	// Founding is what to found in a database without authorities. nil: such a database is refused.
	Founding *ca.Plan
	// Dev is for trying out: it founds, and only in a folder that it made.
	Dev bool
	// Ready is called once all listeners accept; nil: none. It is a function because the
	// program notifies its supervisor then.
	Ready func()
	// By is the operator in the events of AcceptRestored and ReplaceSealingKey.
	By countersign.Actor
	// OnStatement is store.Options.OnStatement; nil: nothing observes the database. A
	// function, since it is passed on.
	OnStatement func(store.Statement)
}

// core is what nearly every part of a server needs.
type core struct {
	cfg    config.Config
	opts   Options
	log    *slog.Logger
	db     *store.DB
	events *event.Log
}

func (c *core) now() time.Time { return c.opts.Now() }

// Server is the whole authority in one process. It has more fields than other types
// because it is the one place that knows each part; its methods open them in order and
// run them, and what a part does is methods of its own type.
type Server struct {
	core
	reserves  reserves
	keys      *keystore.Store
	sealer    *keystore.Sealer
	made      bool // the authorities were made by this start
	mark      mark
	ca        *ca.CA
	crls      *ca.Publisher
	primes    *ca.PrimeCheck
	registry  *registry.Registry
	gate      *operator.Gate
	ledger    *lockout.Ledger
	authority *ra.Authority
	alerts    *respond.Responder
	watch     *detect.Watch
	auditor   *audit.Auditor
	metrics   *metrics
	identity  *identity
	listeners *listeners
	doors     doors
	index     *edge.Index
	broker    *broker.Broker // nil with a broker of others
	gateway   *mqtt.Server
	tunnels   []*tunnel.Server
	hooks     hooks
	rechecks  rechecks

	closers []closer // run last in, first out
	once    sync.Once
}

type closer struct {
	name string
	fn   func() error
}

// New opens everything and accepts nothing yet. The caller runs Run, or Close. It
// refuses a database that was not founded, with ErrNotFounded, and keys that are not
// those of the database, with ErrKeys.
func New(ctx context.Context, cfg config.Config, opts Options) (*Server, error) {
	return open(ctx, cfg, opts, func(s *Server) []step {
		return []step{
			s.openStore, s.openListeners, s.openKeepers, s.found, s.openKeys, s.openMark, s.voidOld, s.openLedger, s.openAuthority, s.openPolicies, s.openIdentity,
			s.openGateway, s.openTunnels, s.openHooks, s.openWatch, s.openAuditor, s.openDoors,
		}
	})
}

// step opens one part of a server.
type step func(context.Context) error

// open takes the steps of a server; when one fails, what is open is closed again.
func open(ctx context.Context, cfg config.Config, opts Options, steps func(*Server) []step) (s *Server, err error) {
	cfg = cfg.WithDefaults()
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s = &Server{core: core{cfg: cfg, opts: opts, log: opts.Log}}
	s.reserves = reserves{core: &s.core, changes: make(chan store.Reserve, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if problems := cfg.Check(); len(problems) > 0 {
		return s, fmt.Errorf("the configuration has %d problems, the first: %w", len(problems), problems[0])
	}
	if err := s.openPlace(); err != nil {
		return s, err
	}
	s.keys = &keystore.Store{Dir: cfg.Dir}
	for _, step := range steps(s) {
		if err := step(ctx); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *Server) onClose(name string, fn func() error) {
	s.closers = append(s.closers, closer{name, fn})
}

// Run serves until ctx ends, then stops in order: no new connections, the live
// ones ended, their last events recorded, the database closed.
func (s *Server) Run(ctx context.Context) error {
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	background, _ := errgroup.WithContext(work)
	keep := &upkeep{&s.core, s.identity, s.ca, s.authority.Access.Tokens}
	database := &outages{core: &s.core, index: s.index}
	for _, run := range []func(context.Context) error{
		s.events.Run, s.mark.keep, s.reserves.watch, keep.awaitIdentity, s.ledger.Run, s.doors.guard.Run, s.authority.Run, s.crls.Run, s.primes.Run, s.alerts.Run,
		s.watch.Run, s.auditor.Run, keep.run, database.watch, s.hooks.run, s.rechecks.run,
	} {
		background.Go(func() error { return run(work) })
	}
	doors, failed := errgroup.WithContext(ctx)
	for _, d := range s.doors.list {
		doors.Go(func() error { return d.run(failed) })
	}
	if s.gateway != nil {
		doors.Go(func() error { return s.serveMQTT(failed) })
	}
	if len(s.tunnels) > 0 {
		doors.Go(func() error { return s.serveTunnels(failed) })
	}
	s.events.Later(countersign.Event{Type: countersign.ServerStarted, Actor: countersign.System, Data: map[string]string{"node": s.events.Node}})
	err := s.writeEndpoints()
	if errors.Is(err, syscall.ENOSPC) {
		s.log.ErrorContext(ctx, "endpoints not written: the disk is full", "file", s.cfg.Path(endpointsName))
		err = nil
	}
	if err == nil && s.opts.Ready != nil {
		s.opts.Ready()
	}
	if err == nil {
		err = doors.Wait()
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	_ = os.Remove(s.cfg.Path(endpointsName)) // best effort: nothing is served there now
	s.events.Later(countersign.Event{Type: countersign.ServerStopped, Actor: countersign.System, Data: map[string]string{"node": s.events.Node}})
	stopWork()
	err = errors.Join(err, background.Wait())
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := sealAll(last, s.events); err != nil {
		s.log.WarnContext(ctx, "last events not sealed", "error", err)
	}
	s.mark.update(last) // with what was written by now
	return errors.Join(err, s.Close())
}

// Close releases everything. Run calls it; a program that does not Run calls it itself.
func (s *Server) Close() error {
	var errs []error
	s.once.Do(func() {
		for _, c := range slices.Backward(s.closers) {
			if err := c.fn(); err != nil {
				errs = append(errs, fmt.Errorf("close %s: %w", c.name, err))
			}
		}
	})
	return errors.Join(errs...)
}

// Authorities lists the authorities, for what a program prints at its start.
func (s *Server) Authorities() []countersign.Authority { return s.ca.Authorities() }

// Sessions lists the live sessions of this node.
func (s *Server) Sessions() []countersign.Session { return s.index.Sessions() }

// Init makes the data folder, the database, the keys and the first authorities as
// opts.Founding has them, and serves nothing. made is false where the database has
// authorities already: then nothing is changed.
func Init(ctx context.Context, cfg config.Config, opts Options) (list []countersign.Authority, made bool, err error) {
	s, err := open(ctx, cfg, opts, func(s *Server) []step {
		// The listeners are opened for their ports, which are in the certificates.
		return []step{s.openStore, s.openListeners, s.openKeepers, s.found, s.openKeys, s.writeRoots}
	})
	if err != nil {
		return nil, false, err
	}
	return s.Authorities(), s.made, s.Close()
}
