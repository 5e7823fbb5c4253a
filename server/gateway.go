package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/mqtt"
)

const (
	// retainedShare is the part of the engine's store that the retained messages of one
	// device may have.
	retainedShare = 400
	// minRetained is what a device may have however small the store is.
	minRetained = 64 << 10
)

// openGateway opens the broker core, or sets up the relay to another broker, and the
// gateway in front of it.
func (s *Server) openGateway(ctx context.Context) error {
	if s.listeners.mqtt == nil && s.listeners.websocket == nil {
		return nil
	}
	var relay *mqtt.Relay
	var err error
	if s.cfg.Engine.Kind == config.EngineBroker {
		relay, err = relayTo(s.cfg.Engine)
	} else {
		err = s.openBroker(ctx)
	}
	if err != nil {
		return fmt.Errorf("open the message engine: %w", err)
	}
	s.gateway = &mqtt.Server{
		Gatekeeper: s.authority, Index: s.index, Broker: s.broker, Relay: relay, TLS: edge.TLSConfig(s.identity.get),
		Caps: caps(s.cfg.Limits), Guard: s.doors.guard, Origins: s.cfg.WebSocket.Origins,
		Limits: mqtt.Limits{MaxPacket: int(s.cfg.Limits.Packet), Connect: s.cfg.Limits.ConnectTimeout},
		Log:    s.log, Now: s.opts.Now,
	}
	return nil
}

// caps are the limits of a gateway.
func caps(l config.Limits) edge.Limits {
	return edge.Limits{Connections: l.MaxConnections, PerAddress: l.PerAddress, PreAuth: l.Handshakes, Handshake: l.ConnectTimeout}
}

func (s *Server) openBroker(ctx context.Context) (err error) {
	e := s.cfg.Engine
	node, err := messageNode(e.Node, s.cfg.Path(nodeFile))
	if err != nil {
		return err
	}
	s.broker, err = broker.Open(ctx, broker.Options{
		DB: s.db, Node: node,
		Limits: broker.Limits{
			// A hundred devices with as much as they may fill a quarter of the store.
			RetainedOctets: min(broker.DefaultRetainedOctets, max(minRetained, int(e.StorageLimit)/retainedShare)),
			Queued:         e.QueueMessages, QueuedOctets: int(e.QueueSize),
			Store: int64(e.StorageLimit), Expiry: e.SessionExpiry,
		},
		Exceeded: s.exceeded, Log: s.log.With("part", "engine"), Now: s.opts.Now,
	})
	if err != nil {
		return err
	}
	s.onClose("engine", func() error { return stop(context.Background(), s.broker.Close) })
	return nil
}

// exceeded records that a device wanted more of the broker core than it may have. Its
// session, if it has one, shows more about it.
func (s *Server) exceeded(device, budget string, limit int64) {
	info := countersign.Session{Device: device, Gateway: "mqtt"}
	for _, one := range s.index.Sessions() {
		if one.Device == device {
			info = one
			break
		}
	}
	s.authority.Exceeded(info, budget, limit)
}

// relayTo returns the way to the broker of others that the configuration names.
func relayTo(e config.Engine) (*mqtt.Relay, error) {
	b := &mqtt.Relay{Addr: e.Addr}
	if !e.TLS {
		return b, nil
	}
	host, _, err := net.SplitHostPort(e.Addr)
	if err != nil {
		return nil, err
	}
	if b.TLS, err = clientTLS("the broker's roots", e.Roots); err != nil {
		return nil, err
	}
	b.TLS.ServerName = cmp.Or(e.ServerName, host)
	if e.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(e.Certificate, e.Key)
		if err != nil {
			return nil, fmt.Errorf("read the server's certificate for the broker: %w", err)
		}
		b.TLS.Certificates = []tls.Certificate{pair}
	}
	return b, nil
}

// serveMQTT serves until ctx ends, then ends the sessions.
func (s *Server) serveMQTT(ctx context.Context) error {
	var doors errgroup.Group
	if l := s.listeners.mqtt; l != nil {
		doors.Go(func() error { return s.gateway.Serve(ctx, l) })
	}
	if l := s.listeners.websocket; l != nil {
		doors.Go(func() error { return s.gateway.ServeWebSocket(ctx, l) })
	}
	return errors.Join(doors.Wait(), stop(ctx, s.gateway.Close))
}

// noBroker is why the platform can neither publish nor subscribe.
func (s *Server) noBroker() error {
	if s.gateway == nil {
		return countersign.Errorf(countersign.Conflict, "there is no message engine: the mqtt and websocket listeners are off").
			WithNext("turn one of them on in the configuration")
	}
	return countersign.Errorf(countersign.Conflict, "the messages are with another broker, at %s", s.cfg.Engine.Addr).
		WithNext("publish and subscribe there")
}

// Publish sends a message to devices through the broker core, at QoS 1.
func (s *Server) Publish(ctx context.Context, topic string, payload []byte) error {
	if s.broker == nil {
		return s.noBroker()
	}
	if strings.HasPrefix(topic, "$") {
		return countersign.Errorf(countersign.BadRequest, "%.80q is no topic to publish to: those that begin with $ are the server's", topic)
	}
	return s.broker.Publish(ctx, &broker.Message{Topic: topic, Payload: payload, QoS: 1})
}

// Subscribe calls receive for each message that devices publish and that matches filter,
// until ctx ends.
func (s *Server) Subscribe(ctx context.Context, filter string, receive func(topic string, payload []byte)) error {
	if s.broker == nil {
		return s.noBroker()
	}
	return s.broker.Listen(ctx, filter, func(m *broker.Message) { receive(m.Topic, m.Payload) })
}
