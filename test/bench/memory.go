package main

import (
	"context"
	"errors"
)

// memory measures what idle sessions take, without and with a subscription of QoS 1: of
// our server, of the peer, and of a TLS connection that a Go process does nothing with.
func (b *bench) memory(ctx context.Context) error {
	devices, err := b.connected(ctx, b.opts.size.idle)
	if err != nil {
		return err
	}
	if err := b.server.restart(ctx); err != nil {
		return err
	}
	err = b.beside(ctx, peers()[:1], func(ctx context.Context, t target) error {
		return b.held(ctx, t, "session_memory", "subscribed_memory", devices)
	})
	if err != nil {
		return err
	}
	bare, err := startBaseline(ctx, b.dir, b.opts.size.quiet) // a new process, which has served nothing
	if err != nil {
		return err
	}
	t := target{process: bare.process, addr: bare.TLS}
	return errors.Join(b.held(ctx, t, "limit_memory", "", devices), bare.stop())
}

// held measures a server with a session for each device, then with a subscription each,
// if that has a name.
func (b *bench) held(ctx context.Context, t target, session, subscribed string, devices []*enrollee) error {
	empty, err := t.process.rested(ctx, b.opts.size.rest)
	if err != nil {
		return err
	}
	live, err := b.joinAll(ctx, t.addr, devices, false)
	defer leaveAll(live)
	if err != nil {
		return err
	}
	full, err := t.process.rested(ctx, b.opts.size.rest)
	if err := b.keep(perSession(t.prefix+session, empty, full, len(devices)), err); err != nil || subscribed == "" {
		return err
	}
	_, err = drive(ctx, connectWorkers, len(devices), func(_ context.Context, _, i int) error {
		return live[i].Subscribe("devices/"+devices[i].id+"/down/#", 1)
	})
	if err != nil {
		return err
	}
	full, err = t.process.rested(ctx, b.opts.size.rest)
	return b.keep(perSession(t.prefix+subscribed, empty, full, len(devices)), err)
}
