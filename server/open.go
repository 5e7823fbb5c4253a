package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/hold"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// The steps of New: each opens one part.

func (s *Server) openStore(ctx context.Context) error {
	url, err := databaseURL(s.cfg)
	if err != nil {
		return fmt.Errorf("read the database's URL: %w", err)
	}
	s.db, err = store.Open(ctx, store.Options{
		URL: url, Now: s.opts.Now, Log: s.log, MaxBytes: int64(s.cfg.StorageLimit), Reserve: int64(s.cfg.Reserve),
		Existing: s.opts.Founding == nil && !s.opts.Dev, OnReserve: s.reserves.changed, OnStatement: s.opts.OnStatement,
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
	// A script that waits for the file must not read the old one.
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
	s.registry = &registry.Registry{DB: s.db, Now: s.opts.Now, Reserved: reservedNames(s.cfg.StatusURL, &s.identity.names)}
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
	s.mark.core, s.mark.ca = &s.core, s.ca
	return err
}

// voidOld voids the serials of earlier processes before this one opens a block of its
// own. That is housekeeping: a database that cannot be written now is served all the
// same, and they are voided later.
func (s *Server) voidOld(ctx context.Context) error {
	if s.made {
		return nil // the only block is this process's
	}
	if err := voidSerials(ctx, s.ca, s.events, !s.db.Postgres()); err != nil {
		s.log.ErrorContext(ctx, "serials of earlier processes not voided", "error", err, "retry_in", upkeepEvery)
	}
	return nil
}

func (s *Server) keyring() *keyring {
	return &keyring{core: &s.core, keys: s.keys, ca: s.ca, registry: s.registry}
}

func (s *Server) openKeys(ctx context.Context) (err error) {
	s.sealer, err = s.keyring().open(ctx)
	return err
}

func (s *Server) openMark(ctx context.Context) error { return s.mark.open(ctx, s.sealer) }

func (s *Server) openLedger(ctx context.Context) error {
	s.ledger = &lockout.Ledger{DB: s.db, Now: s.opts.Now, Log: s.log, Allow: s.cfg.Limits.Allowed(), Events: s.events}
	s.gate = &operator.Gate{Accounts: &operator.Accounts{DB: s.db, Now: s.opts.Now, Log: s.log}, Ledger: s.ledger, Later: s.events.Later, Now: s.opts.Now}
	return s.ledger.Load(ctx)
}

func (s *Server) openAuthority(context.Context) error {
	s.crls = ca.NewPublisher(s.ca, s.events, s.log)
	s.mark.crls = s.crls
	s.primes = ca.NewPrimeCheck(s.ca, s.events, s.log)
	s.index = edge.NewIndex(s.opts.Now)
	s.events.Cut = s.index.Cut
	s.openGuard()
	decider, err := access.New(s.events, s.ca, s.registry, s.sealer)
	if err != nil {
		return err
	}
	s.authority = &ra.Authority{
		DB: s.db, CA: s.ca, Registry: s.registry, Access: decider, Ledger: s.ledger,
		Events: s.events, CRLs: s.crls, Now: s.opts.Now, Log: s.log,
		Sealer: s.sealer, Secret: func(ref string) ([]byte, error) {
			v, err := config.Secret(ref).Resolve()
			return []byte(v), err
		},
	}
	if s.authority.Holds, err = hold.Open(s.cfg.Path(holdsName), s.opts.Now); err != nil {
		return err
	}
	s.metrics = newMetrics()
	s.authority.Observe = s.metrics.observe
	s.events.SubscribeRecorded(s.metrics.recorded)
	s.events.Subscribe(s.noticed)
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
