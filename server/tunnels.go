package server

import (
	"context"
	"errors"
	"net"

	"golang.org/x/sync/errgroup"

	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/tunnel"
)

// openTunnels makes the tunnels of the configuration.
func (s *Server) openTunnels(context.Context) error {
	for _, t := range s.cfg.Tunnels {
		s.tunnels = append(s.tunnels, &tunnel.Server{
			Gatekeeper: s.desk, Index: s.index, TLS: edge.TLSConfig(s.identity.get),
			Name: t.Name, To: t.To, Plain: t.Plain, Fleets: t.Fleets,
			Caps: edge.Limits{
				Connections: s.cfg.Limits.MaxConnections, PerAddress: s.cfg.Limits.PerAddress,
				PreAuth: s.cfg.Limits.Handshakes, Handshake: s.cfg.Limits.ConnectTimeout,
			},
			Guard: s.doors.guard, Log: s.log, Now: s.opts.Now,
		})
	}
	return nil
}

// serveTunnels serves until ctx ends, then ends the sessions.
func (s *Server) serveTunnels(ctx context.Context) error {
	all, ctx := errgroup.WithContext(ctx)
	for i, t := range s.tunnels {
		all.Go(func() error { return serveTunnel(ctx, t, s.listeners.tunnels[i]) })
	}
	return all.Wait()
}

func serveTunnel(ctx context.Context, t *tunnel.Server, l net.Listener) error {
	err := t.Serve(ctx, l)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), gatewayStop)
	defer cancel()
	return errors.Join(err, t.Close(stop))
}
