package main

import (
	"context"
	"errors"

	"github.com/countersign-iot/countersign/simulate/device"
)

// memory measures what idle sessions take, without and with a subscription of QoS 1: of
// our server, of the peer, and of a TLS connection that a Go process does nothing with.
func (b *bench) memory(ctx context.Context) ([]sample, error) {
	devices, err := b.connected(ctx, b.opts.size.idle)
	if err != nil {
		return nil, err
	}
	if err := b.restart(ctx); err != nil {
		return nil, err
	}
	samples, err := b.beside(ctx, []peer{plainPeer()}, func(ctx context.Context, t target) ([]sample, error) {
		return b.held(ctx, t, devices)
	})
	if err != nil {
		return nil, err
	}
	bare, err := startBaseline(b.dir, b.opts.size.quiet) // a new process, which has served nothing
	if err != nil {
		return nil, err
	}
	empty, err := bare.rested(ctx, b.opts.size.rest)
	if err != nil {
		return nil, errors.Join(err, bare.stop())
	}
	live, err := b.hold(ctx, bare.TLS, devices)
	full, restErr := bare.rested(ctx, b.opts.size.rest)
	for _, c := range live {
		device.Disconnect(c)
	}
	return append(samples, perSession("limit_memory", empty, full, len(devices))), errors.Join(err, restErr, bare.stop())
}

// held measures a broker with a session for each device, then with a subscription each.
func (b *bench) held(ctx context.Context, t target, devices []*enrollee) ([]sample, error) {
	empty, err := t.process.rested(ctx, b.opts.size.rest)
	if err != nil {
		return nil, err
	}
	live := make([]*device.Wire, len(devices))
	defer func() { leaveAll(live) }()
	_, _, err = drive(ctx, connectWorkers, len(devices), func(ctx context.Context, _, i int) (err error) {
		live[i], err = b.join(ctx, t.addr, devices[i], false)
		return err
	})
	if err != nil {
		return nil, err
	}
	idle, err := t.process.rested(ctx, b.opts.size.rest)
	if err != nil {
		return nil, err
	}
	_, _, err = drive(ctx, connectWorkers, len(devices), func(_ context.Context, _, i int) error {
		return live[i].Subscribe("devices/"+devices[i].id+"/down/#", 1)
	})
	if err != nil {
		return nil, err
	}
	subscribed, err := t.process.rested(ctx, b.opts.size.rest)
	return []sample{
		perSession(t.prefix+"session_memory", empty, idle, len(devices)),
		perSession(t.prefix+"subscribed_memory", empty, subscribed, len(devices)),
	}, err
}

func perSession(name string, empty, full int64, n int) sample {
	return sample{name: name, ops: n, bytes: float64(full-empty) / float64(n)}
}
