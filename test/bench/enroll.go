package main

import "context"

const (
	// fewKept and manyKept are the kept connections over which certificates are asked for:
	// their number decides how many requests share a commit, and so the ratio to a peer.
	fewKept  = 16
	manyKept = 64
)

// enrollment is a row of the report: first certificates over connections of some kind.
type enrollment struct {
	name string
	kept int // connections; 0: a new one for each, as many at once as fewKept
}

// keptEnrollments are what each authority is measured with, new connections only the
// servers that others are compared with.
func keptEnrollments() []enrollment {
	return []enrollment{{"enroll_16", fewKept}, {"enroll_64", manyKept}}
}

func enrollments() []enrollment {
	return append(keptEnrollments(), enrollment{name: "enroll_new_connection"})
}

// inTurn returns our server and the peer in the order of this round.
func (b *bench) inTurn() []authority {
	all := []authority{b.authority("", b.token)}
	if b.stepCA != nil {
		all = append(all, b.stepCA.authority(stepCAPrefix, &b.client))
	}
	return ordered(b.round, all)
}

// enroll measures first certificates by token, durably recorded: over EST of our server,
// over the API of the peer.
func (b *bench) enroll(ctx context.Context) error {
	for _, e := range enrollments() {
		for _, a := range b.inTurn() {
			devices, err := b.enrollAt(ctx, &a, e)
			if err != nil {
				return err
			}
			if a.prefix == "" {
				b.fresh, b.all = append(b.fresh, devices...), append(b.all, devices...)
			} else {
				b.theirs = append(b.theirs, devices...)
			}
		}
	}
	return nil
}

// enrollAt measures one row at one authority, and its memory after the heaviest.
func (b *bench) enrollAt(ctx context.Context, a *authority, e enrollment) ([]*enrollee, error) {
	n, workers := b.opts.size.enroll, e.kept
	if e.kept == 0 {
		n, workers = b.opts.size.connect, fewKept
	}
	devices, err := a.newDevices(ctx, n)
	if err != nil {
		return nil, err
	}
	op := a.askAnew(devices)
	if e.kept > 0 {
		op = a.askKept(workers, devices)
	}
	if err := b.keep(a.load(ctx, a.prefix+e.name, workers, n, op)); err != nil {
		return nil, err
	}
	if e.kept == manyKept && a.beside == nil { // the memory that processes of PostgreSQL share cannot be summed
		rss, err := a.rss()
		if err := b.keep(sample{name: a.prefix + "memory_under_load", bytes: float64(rss)}, err); err != nil {
			return nil, err
		}
	}
	return devices, forEach(devices, a.take)
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

// renew measures certificates with a new key, asked for over a new connection with the
// current certificate, which was in use: simplereenroll at our server, /rekey at the peer.
// A connection belongs to one device, so there is none to keep.
func (b *bench) renew(ctx context.Context) error {
	for _, a := range b.inTurn() {
		devices, err := b.renewing(ctx, &a)
		if err != nil {
			return err
		}
		if err := forEach(devices, a.again); err != nil {
			return err
		}
		if err := b.keep(a.load(ctx, a.prefix+"renew", fewKept, len(devices), a.askAnew(devices))); err != nil {
			return err
		}
		if err := forEach(devices, a.take); err != nil {
			return err
		}
		if a.prefix == "" { // their new certificates were never used: they are not active any more
			b.active, b.fresh = b.active[len(devices):], append(b.fresh, devices...)
		}
	}
	return nil
}

// renewing returns devices that have a certificate of the authority.
func (b *bench) renewing(ctx context.Context, a *authority) ([]*enrollee, error) {
	n := b.opts.size.connect
	if a.prefix == "" {
		return b.connected(ctx, n)
	}
	if missing := n - len(b.theirs); missing > 0 {
		devices, err := a.newDevices(ctx, missing)
		if err != nil {
			return nil, err
		}
		if _, err := drive(ctx, fewKept, missing, a.askKept(fewKept, devices)); err != nil {
			return nil, err
		}
		if err := forEach(devices, a.take); err != nil {
			return nil, err
		}
		b.theirs = append(b.theirs, devices...)
	}
	return b.theirs[:n:n], nil
}
