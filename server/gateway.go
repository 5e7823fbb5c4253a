package server

import (
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/mqtt"
)

func (s *Server) openGateway(context.Context) error {
	s.gateway = &mqtt.Server{
		Gatekeeper: s.desk, Index: s.index, Engine: s.engine, TLS: edge.TLSConfig(s.identity.get),
		Caps: edge.Limits{
			Connections: s.cfg.Limits.MaxConnections, PerAddress: s.cfg.Limits.PerAddress,
			PreAuth: s.cfg.Limits.Handshakes, Handshake: s.cfg.Limits.ConnectTimeout,
		},
		Limits: mqtt.Limits{MaxPacket: int(s.cfg.Limits.Packet), Connect: s.cfg.Limits.ConnectTimeout},
		Log:    s.log, Now: s.opts.Now,
	}
	return nil
}

// Publish sends a message to devices through the engine.
func (s *Server) Publish(ctx context.Context, topic string, payload []byte) error {
	return s.platform().Publish(ctx, topic, payload)
}

// Subscribe hears what devices publish.
func (s *Server) Subscribe(ctx context.Context, filter string, receive func(topic string, payload []byte)) error {
	return s.platform().Subscribe(ctx, filter, receive)
}

func (s *Server) platform() mqtt.Platform {
	if p, ok := s.engine.(mqtt.Platform); ok {
		return p
	}
	return nil
}

var _ countersign.Gatekeeper = nil
