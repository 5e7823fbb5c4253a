package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/edge"
	"github.com/countersign-iot/countersign/mqtt"
)

// engine carries the messages: of devices, and of the platform.
type engine interface {
	mqtt.Engine
	mqtt.Platform
}

const (
	// retainedShare is the part of the engine's store that the retained messages of one
	// device may have.
	retainedShare = 400
	// minRetained is what a device may have however small the store is.
	minRetained = 64 << 10
)

// openGateway starts the engine and the gateway in front of it.
func (s *Server) openGateway(context.Context) error {
	if s.listeners.mqtt == nil && s.listeners.websocket == nil {
		return nil
	}
	var err error
	if s.cfg.Engine.Kind == config.EngineBroker {
		s.engine, err = s.openBroker()
	} else {
		s.engine, err = mqtt.StartNATS(mqtt.NATSOptions{
			Dir: s.cfg.Path("messages"), MaxStore: int64(s.cfg.Engine.StorageLimit), MaxPacket: int(s.cfg.Limits.Packet),
			Log: s.log.With("part", "engine"), Now: s.opts.Now,
		})
	}
	if err != nil {
		return fmt.Errorf("open the message engine: %w", err)
	}
	s.onClose("engine", s.engine.Close)
	// A hundred devices with as much as they may fill no more than what the engine has for
	// retained messages.
	retained := min(mqtt.DefaultRetainedOctets, max(minRetained, int(s.cfg.Engine.StorageLimit)/retainedShare))
	s.gateway = &mqtt.Server{
		Gatekeeper: s.desk, Index: s.index, Engine: s.engine, TLS: edge.TLSConfig(s.identity.get),
		Caps: edge.Limits{
			Connections: s.cfg.Limits.MaxConnections, PerAddress: s.cfg.Limits.PerAddress,
			PreAuth: s.cfg.Limits.Handshakes, Handshake: s.cfg.Limits.ConnectTimeout,
		},
		Guard: s.guard, Origins: s.cfg.WebSocket.Origins,
		Limits: mqtt.Limits{MaxPacket: int(s.cfg.Limits.Packet), Connect: s.cfg.Limits.ConnectTimeout, RetainedOctets: retained},
		Log:    s.log, Now: s.opts.Now,
	}
	return nil
}

func (s *Server) openBroker() (engine, error) {
	e := s.cfg.Engine
	b := &mqtt.Broker{Addr: e.Addr, Now: s.opts.Now}
	if !e.TLS {
		return b, nil
	}
	host, _, err := net.SplitHostPort(e.Addr)
	if err != nil {
		return nil, err
	}
	b.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if e.ServerName != "" {
		b.TLS.ServerName = e.ServerName
	}
	if e.Roots != "" {
		pem, err := os.ReadFile(e.Roots)
		if err != nil {
			return nil, fmt.Errorf("read the broker's roots: %w", err)
		}
		b.TLS.RootCAs = x509.NewCertPool()
		if !b.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("read the broker's roots: no certificate in " + e.Roots)
		}
	}
	if e.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(e.Certificate, e.Key)
		if err != nil {
			return nil, fmt.Errorf("read the server's certificate for the broker: %w", err)
		}
		b.TLS.Certificates = []tls.Certificate{pair}
	}
	return b, nil
}

// gatewayStop bounds how long sessions may take to hear that the server stops.
const gatewayStop = 5 * time.Second

// serveMQTT serves until ctx ends, then ends the sessions.
func (s *Server) serveMQTT(ctx context.Context) error {
	var doors errgroup.Group
	if l := s.listeners.mqtt; l != nil {
		doors.Go(func() error { return s.gateway.Serve(ctx, l) })
	}
	if l := s.listeners.websocket; l != nil {
		doors.Go(func() error { return s.gateway.ServeWebSocket(ctx, l) })
	}
	err := doors.Wait()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), gatewayStop)
	defer cancel()
	return errors.Join(err, s.gateway.Close(stop))
}

// errNoEngine says that no listener for MQTT is on.
var errNoEngine = errors.New("there is no message engine: the mqtt and websocket listeners are off")

// Publish sends a message to devices through the engine, at QoS 1.
func (s *Server) Publish(ctx context.Context, topic string, payload []byte) error {
	if s.engine == nil {
		return errNoEngine
	}
	return s.engine.Publish(ctx, topic, payload)
}

// Subscribe hears what devices publish, until ctx ends.
func (s *Server) Subscribe(ctx context.Context, filter string, receive func(topic string, payload []byte)) error {
	if s.engine == nil {
		return errNoEngine
	}
	return s.engine.Subscribe(ctx, filter, receive)
}
