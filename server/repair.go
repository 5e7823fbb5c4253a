package server

import (
	"context"
	"fmt"
	"os"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/keycheck"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/watermark"
)

// AcceptRestored accepts a database that is older than the last state that this node
// saw: the numbers of its CRLs are raised above those that were published, the log goes
// on behind what it lost, and an event records what that is. The server must not run. It
// returns what is lost, and Conflict where nothing is.
func AcceptRestored(ctx context.Context, cfg config.Config, opts Options) (lost *watermark.Loss, err error) {
	opts.Founding, opts.Dev = nil, false
	s, err := open(ctx, cfg, opts, func(s *Server) []step {
		return []step{s.openStore, s.openKeepers, s.found, s.openKeys, func(ctx context.Context) (err error) {
			lost, err = s.mark.accept(ctx, s.sealer, s.opts.By)
			return err
		}}
	})
	if err != nil {
		return nil, err
	}
	return lost, s.Close()
}

// ReplaceSealingKey makes a new sealing key for a database whose own one is lost, and
// returns its file. A key that is there is kept beside it. The server must not run. It
// returns Conflict where the key fits.
func ReplaceSealingKey(ctx context.Context, cfg config.Config, opts Options) (path string, err error) {
	opts.Founding, opts.Dev = nil, false
	s, err := open(ctx, cfg, opts, func(s *Server) []step {
		return []step{s.openStore, s.openKeepers, s.found, s.replaceSealer}
	})
	if err != nil {
		return "", err
	}
	return s.keys.Path(sealURI), s.Close()
}

func (s *Server) replaceSealer(ctx context.Context) error {
	old, err := s.keys.OpenSealer(sealURI)
	if err == nil {
		fault, err := s.keyring().fits(ctx, old)
		if err != nil {
			return err
		}
		if fault == nil {
			return countersign.Errorf(countersign.Conflict, "the sealing key is the one of this database: there is nothing to replace")
		}
	}
	path := s.keys.Path(sealURI)
	if exists(s.keys, sealURI) {
		if err := os.Rename(path, path+".replaced-"+s.now().UTC().Format("20060102T150405Z")); err != nil {
			return fmt.Errorf("keep the old sealing key: %w", err)
		}
	}
	sealer, err := s.keys.MakeSealer(sealURI)
	if err != nil {
		return err
	}
	checks, err := keycheck.Of(sealer)
	if err != nil {
		return err
	}
	err = s.db.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := keycheck.Record(ctx, tx, checks, s.opts.Now()); err != nil {
			return err
		}
		return s.events.Append(ctx, tx, countersign.Event{
			Type: countersign.SealingKeyReplaced, Actor: s.opts.By, Via: "cli", Reason: "the old one was lost: what was sealed with it cannot be opened", Data: map[string]string{"node": s.mark.node()},
		})
	})
	if err != nil {
		return fmt.Errorf("record the new sealing key: %w", err)
	}
	// The last state that was seen is authenticated with the old key.
	return ignoreMissing(os.Rename(s.cfg.Path(watermark.Name), s.cfg.Path(watermark.Name)+".replaced"))
}
