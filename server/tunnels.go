package server

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/tunnel"
)

// openTunnels makes the tunnels of the configuration.
func (s *Server) openTunnels(context.Context) error {
	for _, t := range s.cfg.Tunnels {
		s.tunnels = append(s.tunnels, &tunnel.Server{
			Gatekeeper: s.authority, Index: s.index, TLS: edge.TLSConfig(s.identity.get),
			Name: t.Name, To: t.To, Plain: t.Plain, Fleets: t.Fleets,
			Caps: caps(s.cfg.Limits), Guard: s.doors.guard, Log: s.log, Now: s.opts.Now,
		})
	}
	return nil
}

// serveTunnels serves until ctx ends, then ends the sessions.
func (s *Server) serveTunnels(ctx context.Context) error {
	all, ctx := errgroup.WithContext(ctx)
	for i, t := range s.tunnels {
		all.Go(func() error {
			return errors.Join(t.Serve(ctx, s.listeners.tunnels[i]), stop(ctx, t.Close))
		})
	}
	return all.Wait()
}
