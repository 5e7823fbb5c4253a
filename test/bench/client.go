package main

import (
	"context"

	"github.com/countersign-iot/countersign/simulate/device"
)

// payloadSize is that of a small report.
const payloadSize = 100

// join opens a session that receives: one with clean session, or the kept one of the device.
func (b *bench) join(ctx context.Context, addr string, d *enrollee, kept bool) (*device.Wire, error) {
	c, err := b.dialer.dialTLS(ctx, addr, clientTLS(b.roots, &d.identity))
	if err != nil {
		return nil, err
	}
	return device.Join(c, d.id, kept)
}

// leaveAll ends sessions; those that receive end too.
func leaveAll(clients []*device.Wire) {
	for _, c := range clients {
		if c != nil {
			device.Disconnect(c)
		}
	}
}
