package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"github.com/countersign-iot/countersign/simulate/device"
)

// connect opens an MQTT session with full mutual TLS.
func (b *bench) connect(ctx context.Context, addr string, d *enrollee) (net.Conn, error) {
	return b.dialer.open(ctx, addr, clientTLS(b.roots, &d.identity), d.id)
}

// open connects with clean session.
func (d *dialer) open(ctx context.Context, addr string, config *tls.Config, clientID string) (net.Conn, error) {
	c, err := d.dialTLS(ctx, addr, config)
	if err != nil {
		return nil, err
	}
	err = device.Exchange(c, device.ConnectPacket(clientID), device.Accepted())
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect %s: %w", clientID, err)
	}
	return c, nil
}

// connects measures new MQTT connections of devices, each until its CONNACK.
func (b *bench) connects(ctx context.Context, p *process, name, addr string, devices []*enrollee) (sample, error) {
	return p.load(ctx, name, connectWorkers, len(devices), func(ctx context.Context, _, i int) error {
		c, err := b.connect(ctx, addr, devices[i])
		if err == nil {
			device.Disconnect(c)
		}
		return err
	})
}
