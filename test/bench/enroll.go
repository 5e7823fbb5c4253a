package main

import "context"

// enroll measures first certificates over EST by token, durably recorded.
func (b *bench) enroll(ctx context.Context) error {
	devices, err := b.newDevices(ctx, b.opts.size.enroll+b.opts.size.connect, b.token)
	if err != nil {
		return err
	}
	one, other := devices[:b.opts.size.enroll], devices[b.opts.size.enroll:]
	if err := b.keep(b.server.load(ctx, "enroll", webWorkers, len(one), b.askKept(one))); err != nil {
		return err
	}
	rss, err := b.server.rss()
	if err := b.keep(sample{name: "memory_under_load", bytes: float64(rss)}, err); err != nil {
		return err
	}
	if err := b.keep(b.server.load(ctx, "enroll_new_connection", webWorkers, len(other), b.askAnew(other))); err != nil {
		return err
	}
	b.fresh, b.all = append(b.fresh, devices...), append(b.all, devices...)
	return b.take(devices)
}

// connectAll measures new MQTT connections: of certificates that were never used,
// which is recorded first; of ones in use; and those to the servers beside ours.
func (b *bench) connectAll(ctx context.Context) error {
	devices, err := b.enrolled(ctx, b.opts.size.connect)
	if err != nil {
		return err
	}
	if err := b.keep(b.connects(ctx, b.mqtt(), "connect_first", devices)); err != nil {
		return err
	}
	b.fresh, b.active = b.fresh[len(devices):], append(b.active, devices...)
	bare := target{process: b.baseline.process, addr: b.baseline.TLS}
	if err := b.keep(b.connects(ctx, bare, "limit_accept", devices)); err != nil {
		return err
	}
	return b.beside(ctx, peers()[:1], func(ctx context.Context, t target) error {
		return b.keep(b.connects(ctx, t, "connect", devices))
	})
}

// renew measures simplereenroll: a new key, over a new connection with the current
// certificate. A connection belongs to one device, so there is none to keep.
func (b *bench) renew(ctx context.Context) error {
	devices, err := b.connected(ctx, b.opts.size.connect)
	if err != nil {
		return err
	}
	for _, d := range devices {
		if err := d.ask(b.server.endpoints.Enroll, "simplereenroll"); err != nil {
			return err
		}
	}
	if err := b.keep(b.server.load(ctx, "renew", webWorkers, len(devices), b.askAnew(devices))); err != nil {
		return err
	}
	// Their new certificates were never used: they are not active any more.
	b.active, b.fresh = b.active[len(devices):], append(b.fresh, devices...)
	return b.take(devices)
}
