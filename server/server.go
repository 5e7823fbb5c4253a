// Package server wires the authority together: one database, the keepers, the
// desk, the doors and their listeners. New reads as the table of contents; it
// holds no rule of its own.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/enroll"
	"github.com/countersign-iot/countersign/est"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/hold"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/mqtt"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/respond"
	"github.com/countersign-iot/countersign/rest"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/tunnel"
	"github.com/countersign-iot/countersign/weakkey"
)

// Options are what the program, and not its configuration, brings.
type Options struct {
	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: no log
	// Founding has a database without authorities founded. nil: such a one is refused.
	Founding *ca.Plan
	// Dev is for trying out: it founds, and only in a folder that it made.
	Dev bool
	// Ready is called once all listeners accept. nil: nothing is.
	Ready func()
	// By is who accepts what AcceptRestored and ReplaceSealingKey are for.
	By countersign.Actor
}

// Server is the whole authority in one process.
type Server struct {
	cfg  config.Config
	opts Options
	log  *slog.Logger

	db     *store.DB
	ca     *ca.CA
	keys   *keystore.Store
	sealer *keystore.Sealer
	made   bool // the authorities were made by this start
	mark   mark
	// markFailing is set while the last state cannot be written down.
	markFailing atomic.Bool
	// setBack is what a database lost that was set back while this node ran.
	setBack   atomic.Pointer[string]
	reserve   chan store.Reserve // of the database, when its use changes
	events    *event.Log
	registry  *registry.Registry
	operators *operator.Accounts
	gate      *operator.Gate
	ledger    *lockout.Ledger
	desk      *ra.Authority
	crls      *ca.Publisher
	primes    *ca.PrimeCheck
	alerts    *respond.Responder
	watch     *detect.Watch
	auditor   *audit.Auditor
	identity  *identity
	index     *edge.Index
	guard     *edge.Guard
	intake    intake
	broker    *broker.Broker // nil with a broker of others
	gateway   *mqtt.Server
	tunnels   []*tunnel.Server
	metrics   *metrics
	listeners *listeners
	hooks     hooks
	rechecks  rechecks
	http      []*httpDoor

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
			s.openStore, s.openListeners, s.openKeepers, s.found, s.openKeys, s.openMark, s.voidOld, s.openLedger, s.openDesk, s.openPolicies, s.openIdentity,
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
	s = &Server{cfg: cfg, opts: opts, log: opts.Log, reserve: make(chan store.Reserve, 1)}
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

func (s *Server) openStore(ctx context.Context) error {
	url, err := databaseURL(s.cfg)
	if err != nil {
		return fmt.Errorf("read the database's URL: %w", err)
	}
	s.db, err = store.Open(ctx, store.Options{
		URL: url, Now: s.opts.Now, Log: s.log, MaxBytes: int64(s.cfg.StorageLimit), Reserve: int64(s.cfg.Reserve),
		Existing: s.opts.Founding == nil && !s.opts.Dev, OnReserve: s.reserveChanged,
	})
	if errors.Is(err, store.ErrEmpty) {
		return s.errNotFounded()
	}
	if err != nil {
		return err
	}
	s.onClose("store", s.db.Close)
	return nil
}

func (s *Server) openListeners(context.Context) error {
	// The old file must not tell a waiting script that this server is up.
	if err := os.Remove(s.cfg.Path(endpointsName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var err error
	if s.listeners, err = bind(s.cfg); err != nil {
		return err
	}
	s.onClose("listeners", s.listeners.close)
	return nil
}

func (s *Server) openKeepers(ctx context.Context) error {
	s.events = &event.Log{DB: s.db, Now: s.opts.Now, Log: s.log, Node: nodeName(), Erase: broker.Erase}
	if err := s.events.Mark(ctx); err != nil { // before what the events are about is read
		return err
	}
	s.identity = &identity{now: s.opts.Now}
	s.identity.names.Store(&s.cfg.Names)
	s.registry = &registry.Registry{DB: s.db, Now: s.opts.Now, Reserved: s.reservedNames()}
	s.operators = &operator.Accounts{DB: s.db, Now: s.opts.Now, Log: s.log}
	var passphrase func() ([]byte, error)
	if s.cfg.RootPassphrase != "" {
		passphrase = func() ([]byte, error) {
			p, err := s.cfg.RootPassphrase.Resolve()
			return []byte(p), err
		}
	}
	weak, err := readWeakKeys(s.cfg.WeakKeys)
	if err != nil {
		return err
	}
	s.ca, err = ca.Open(ctx, ca.Options{
		DB: s.db, Keys: s.keys, Now: s.opts.Now, Log: s.log,
		StatusURL: s.statusURL(), CRLValidity: s.cfg.CRLValidity, Passphrase: passphrase, Cacheable: s.events.Live, WeakKeys: weak,
	})
	return err
}

// voidOld voids the serials of earlier processes before this one opens a block of its
// own. That is housekeeping: a database that cannot be written now is served all the
// same, and they are voided later.
func (s *Server) voidOld(ctx context.Context) error {
	if s.made {
		return nil // the only block is this process's
	}
	if err := s.voidSerials(ctx, !s.db.Postgres()); err != nil {
		s.log.ErrorContext(ctx, "serials of earlier processes not voided", "error", err, "retry_in", tendEvery)
	}
	return nil
}

func (s *Server) voidSerials(ctx context.Context, all bool) error {
	voided, err := s.ca.VoidSerials(ctx, all)
	if voided > 0 {
		s.events.Later(countersign.Event{
			Type: countersign.SerialsVoided, Actor: countersign.System, Reason: "an earlier process ended without spending them",
			Data: map[string]string{"count": strconv.Itoa(voided)},
		})
	}
	return err
}

func (s *Server) openLedger(ctx context.Context) error {
	s.ledger = &lockout.Ledger{DB: s.db, Now: s.opts.Now, Log: s.log, Allow: s.cfg.Limits.Allowed(), Append: s.events.Append}
	s.gate = &operator.Gate{Accounts: s.operators, Ledger: s.ledger, Later: s.events.Later, Now: s.opts.Now}
	return s.ledger.Load(ctx)
}

func (s *Server) openDesk(context.Context) error {
	s.crls = ca.NewPublisher(s.ca, s.events, s.log)
	s.primes = ca.NewPrimeCheck(s.ca, s.events, s.log)
	s.index = edge.NewIndex(s.opts.Now)
	s.events.Cut = s.index.Cut
	s.openGuard()
	decider, err := access.New(s.events, s.ca, s.registry, s.sealer)
	if err != nil {
		return err
	}
	s.desk = &ra.Authority{
		DB: s.db, CA: s.ca, Registry: s.registry, Access: decider, Ledger: s.ledger,
		Events: s.events, CRLs: s.crls, Now: s.opts.Now, Log: s.log,
		Sealer: s.sealer, Secret: func(ref string) ([]byte, error) {
			v, err := config.Secret(ref).Resolve()
			return []byte(v), err
		},
	}
	if s.desk.Holds, err = hold.Open(s.cfg.Path(holdsName), s.opts.Now); err != nil {
		return err
	}
	s.metrics = newMetrics()
	s.desk.Observe = s.metrics.observe
	s.events.SubscribeRecorded(s.metrics.recorded)
	s.events.Subscribe(s.heard)
	return nil
}

func (s *Server) openIdentity(ctx context.Context) error {
	s.identity.ca = s.ca
	err := s.identity.renew(ctx)
	if countersign.CodeOf(err) == countersign.Unavailable { // what needs no TLS is served: status, and the operators' socket
		s.log.ErrorContext(ctx, "no server certificate: the TLS listeners refuse handshakes", "error", err, "retry_in", identityRetry)
		err = nil
	}
	if err != nil {
		return err
	}
	if err := s.writeRoots(ctx); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return nil
}

// openDoors makes a handler for each HTTP listener.
func (s *Server) openDoors(context.Context) error {
	s.metrics.watch(s.index.Len, s.db.Lost, s.gateway)
	s.metrics.watchHolds(s.desk.Holds.Len)
	s.metrics.registry.MustRegister(refused{s.guard})
	s.metrics.watchSpace(s.db.Reserve)
	s.serveHTTP("enroll", s.listeners.enroll, s.enrollment(s.desk, s.desk), s.identity.tlsConfig())
	s.serveHTTP("recovery", s.listeners.recovery, s.enrollment(ra.Recovery{RA: s.desk}, nil), s.identity.tlsConfig())
	s.serveStatus()
	provisioner := &provision.Provisioner{
		DB: s.db, CA: s.ca, Registry: s.registry, Operators: s.operators, Events: s.events, Sealer: s.desk.Sealer, Tokens: s.desk.Access.Tokens, Rules: s.checkRules,
	}
	if err := s.openSignIn(provisioner); err != nil {
		return err
	}
	if s.broker != nil {
		provisioner.Messages = s.broker
		s.metrics.watchBroker(s.broker)
	}
	operators := func(local bool) http.Handler {
		doors := &rest.Server{
			CA: s.ca, Registry: s.registry, Events: s.events, RA: s.desk, Operators: s.operators, Gate: s.gate, Provisioner: provisioner,
			Alerts: s.alerts, Auditor: s.auditor, Sessions: s.index.Sessions, Checks: s.checks, Offline: s.cfg.OfflineSessions, Local: local, Now: s.opts.Now, Log: s.log,
		}
		mux := http.NewServeMux()
		mux.Handle("/", doors.Handler())
		mux.Handle("GET /metrics", doors.Protect(operator.Read, s.metrics.handler()))
		return mux
	}
	apiTLS := s.identity.tlsConfig()
	apiTLS.ClientAuth = 0 // a browser that is asked for a certificate shows a dialog
	if s.cfg.Listeners.PlainAPI() {
		apiTLS = nil
	}
	s.serveHTTP("api", s.listeners.api, operators(false), apiTLS)
	s.serveHTTP("socket", peerNamed(s.listeners.socket), operators(true), nil)
	return nil
}

// enrollment is the handler of a listener where devices get certificates; desk is
// nil where they can do nothing else.
func (s *Server) enrollment(by countersign.Enroller, desk *ra.Authority) http.Handler {
	mux := http.NewServeMux()
	anchors := &trust{s.ca, s.registry}
	door := &est.Server{
		Enroller: by, Trust: anchors, Keys: anchors, Log: s.log, Now: s.opts.Now,
		KeySigner: func() (*tls.Certificate, error) { return s.identity.get(nil) },
	}
	for _, prefix := range []string{"", "/{label}"} { // strongSwan puts the label first
		mux.Handle(prefix+"/.well-known/est", door)
		mux.Handle(prefix+"/.well-known/est/", door)
	}
	devices := &enroll.Server{Enroller: by, Log: s.log, Now: s.opts.Now}
	if desk != nil {
		devices.Devices = &deviceAnswers{desk}
	}
	devices.OpenAPI = rest.DescribeDevices(devices.Routes())
	mux.Handle(api.Base+"/", devices)
	return evenPaths(mux)
}

// Run serves until ctx ends, then stops in order: no new connections, the live
// ones told, what they said written down, the database closed.
func (s *Server) Run(ctx context.Context) error {
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	background, _ := errgroup.WithContext(work)
	for _, run := range []func(context.Context) error{s.events.Run, s.keepMark, s.watchReserve, s.awaitIdentity, s.ledger.Run, s.guard.Run, s.desk.Run, s.crls.Run, s.primes.Run, s.alerts.Run, s.watch.Run, s.auditor.Run, s.tend, s.watchDatabase, s.runHooks, s.runPolicies} {
		background.Go(func() error { return run(work) })
	}
	doors, failed := errgroup.WithContext(ctx)
	for _, d := range s.http {
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
	_ = os.Remove(s.cfg.Path(endpointsName)) // best effort: nobody serves there now
	s.events.Later(countersign.Event{Type: countersign.ServerStopped, Actor: countersign.System, Data: map[string]string{"node": s.events.Node}})
	stopWork()
	err = errors.Join(err, background.Wait())
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := s.sealAll(last); err != nil {
		s.log.WarnContext(ctx, "last events not sealed", "error", err)
	}
	s.updateMark(last) // with what was written by now
	return errors.Join(err, s.Close())
}

// loadWeakKeys reads the lists of weak keys and puts them in force, all or none.
func (s *Server) loadWeakKeys(paths []string) error {
	list, err := readWeakKeys(paths)
	if err != nil {
		return err
	}
	s.ca.WeakKeys.Replace(list)
	return nil
}

// readWeakKeys reads the lists of keys that are known to be weak.
func readWeakKeys(paths []string) (*weakkey.Blocklist, error) {
	list := &weakkey.Blocklist{}
	for _, path := range paths {
		f, err := os.Open(path) //nolint:gosec // the operator names it
		if err == nil {
			err = errors.Join(list.Read(f), f.Close())
		}
		if err != nil {
			return nil, fmt.Errorf("read weak_keys %s: %w", path, err)
		}
	}
	return list, nil
}

// identityRetry is the pause between attempts to get a certificate where there is none.
const identityRetry = 5 * time.Second

// awaitIdentity gets the server its certificate where the start could not.
func (s *Server) awaitIdentity(ctx context.Context) error {
	for s.identity.current.Load() == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(identityRetry):
		}
		if err := s.identity.renew(ctx); err != nil && ctx.Err() == nil {
			s.log.ErrorContext(ctx, "no server certificate: the TLS listeners refuse handshakes", "error", err, "retry_in", identityRetry)
		}
	}
	return nil
}

// tendEvery is how often the server looks after itself.
const tendEvery = 10 * time.Minute

// tend renews the server's certificate and voids the serials of dead nodes.
func (s *Server) tend(ctx context.Context) error {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if s.identity.due() {
			if err := s.identity.renew(ctx); err != nil {
				s.log.ErrorContext(ctx, "server certificate not renewed", "error", err)
			}
		}
		if err := s.voidSerials(ctx, false); err != nil {
			s.log.ErrorContext(ctx, "serials not voided", "error", err)
		}
		if err := (&access.BrokerSessions{DB: s.db, Now: s.opts.Now}).Prune(ctx); err != nil {
			s.log.ErrorContext(ctx, "could not forget old sessions at brokers", "error", err)
		}
		if err := s.desk.Access.Tokens.Prune(ctx); err != nil {
			s.log.ErrorContext(ctx, "old access tokens not forgotten", "error", err)
		}
	}
}

// Close releases everything. Run calls it; whoever does not Run calls it.
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
