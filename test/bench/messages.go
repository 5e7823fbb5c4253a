package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign/simulate/device"
	"golang.org/x/sync/errgroup"
)

const (
	// publishers is how many devices publish at once.
	publishers = 100
	// keptSessions is how many kept sessions take turns to receive what they publish: few,
	// so that the handshakes of those that come back count for little.
	keptSessions = 10
	// credits is how many messages may be on their way at once: half of what either
	// broker queues for a session.
	credits = 500
	// stuckAfter without a message is a loss.
	stuckAfter = 10 * time.Second
)

// flow is a stream of small messages from many publishers to few subscribers.
type flow struct {
	name        string
	subscribers int
	messages    int
	qos         byte
	kept        bool // the sessions of the subscribers
	away        bool // they are not connected while the messages are published
}

// messages measures what a message costs a broker, from the PUBLISH packet of a device to
// the PUBACK of the receiver.
func (b *bench) messages(ctx context.Context) ([]sample, error) {
	n := b.opts.size.messages
	devices, err := b.loaders(ctx, publishers+keptSessions)
	if err != nil {
		return nil, err
	}
	run := func(flows ...flow) func(context.Context, target) ([]sample, error) {
		return func(ctx context.Context, t target) (all []sample, err error) {
			for _, f := range flows {
				s, err := b.stream(ctx, t, f, devices)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", t.prefix+f.name, err)
				}
				all = append(all, s)
			}
			return all, nil
		}
	}
	plain := []flow{
		{name: "fanin_0", subscribers: 1, messages: n},
		{name: "fanin_1", subscribers: 1, messages: n, qos: 1},
	}
	kept := []flow{
		{name: "kept_live", subscribers: keptSessions, messages: n / 2, qos: 1, kept: true},
		// As much as fits into the queues, which have room for 1,000 messages each.
		{name: "kept_away", subscribers: keptSessions, messages: min(n/2, 900*keptSessions), qos: 1, kept: true, away: true},
	}
	samples, err := b.beside(ctx, []peer{plainPeer()}, run(append(plain, kept...)...))
	if err != nil || !hasMosquitto() {
		return samples, err
	}
	for _, p := range savingPeers() {
		m, addr, err := b.startMosquitto(ctx, p.keep)
		if err != nil {
			return nil, err
		}
		more, err := run(append(plain[1:], kept...)...)(ctx, target{p.prefix, m, addr})
		if err := errors.Join(err, m.stop()); err != nil {
			return nil, err
		}
		samples = append(samples, more...)
	}
	return samples, nil
}

// flowing is a flow that runs.
type flowing struct {
	flow
	credits chan struct{}
	got     atomic.Int64
	acked   atomic.Int64
	broken  chan error // a connection ended; room for all
	subs    []*device.Wire
	pubs    []*device.Wire
}

// stream runs a flow and reads the broker's CPU around it. With a kept session whose
// client is away its coming back counts too.
func (b *bench) stream(ctx context.Context, t target, f flow, devices []*enrollee) (s sample, err error) {
	r := &flowing{flow: f, credits: make(chan struct{}, credits), broken: make(chan error, 2*len(devices))}
	receivers, senders := devices[:f.subscribers], devices[keptSessions:]
	defer func() {
		leaveAll(append(r.subs, r.pubs...))
		if f.kept {
			err = errors.Join(err, b.dropKept(ctx, t, receivers))
		}
	}()
	if r.subs, err = b.joinAll(ctx, t.addr, receivers, f.kept); err != nil {
		return s, err
	}
	for i, c := range r.subs {
		if err := c.Subscribe(r.topic(i), f.qos); err != nil {
			return s, err
		}
	}
	if r.pubs, err = b.joinAll(ctx, t.addr, senders, false); err != nil {
		return s, err
	}
	for _, c := range r.pubs {
		go func() { r.broken <- c.Receive(nil, r.onAck) }()
	}
	if f.away {
		leaveAll(r.subs)
		r.subs = nil
	} else {
		r.listen()
	}
	before, err := t.process.idle(ctx)
	if err != nil {
		return s, err
	}
	begin := now()
	if err := r.publish(ctx); err != nil {
		return s, err
	}
	if f.away {
		if r.subs, err = b.joinAll(ctx, t.addr, receivers, true); err != nil {
			return s, err
		}
		r.listen()
	}
	if err := r.wait(ctx, &r.got); err != nil {
		return s, err
	}
	wall := time.Since(begin)
	after, err := t.process.idle(ctx)
	return sample{name: t.prefix + f.name, ops: f.messages, wall: wall, cpu: after - before}, err
}

func (r *flowing) topic(subscriber int) string {
	return "bench/" + r.name + "/" + strconv.Itoa(subscriber)
}

// joinAll opens the sessions of devices.
func (b *bench) joinAll(ctx context.Context, addr string, devices []*enrollee, kept bool) ([]*device.Wire, error) {
	all := make([]*device.Wire, len(devices))
	_, _, err := drive(ctx, connectWorkers, len(devices), func(ctx context.Context, _, i int) (err error) {
		all[i], err = b.join(ctx, addr, devices[i], kept)
		return err
	})
	return all, err
}

// dropKept ends kept sessions by clean ones.
func (b *bench) dropKept(ctx context.Context, t target, devices []*enrollee) error {
	clean, err := b.joinAll(ctx, t.addr, devices, false)
	leaveAll(clean)
	return err
}

func (r *flowing) listen() {
	for _, c := range r.subs {
		go func() { r.broken <- c.Receive(r.onMessage, nil) }()
	}
}

func (r *flowing) onMessage([]byte) {
	r.got.Add(1)
	if !r.away {
		<-r.credits
	}
}

func (r *flowing) onAck() {
	r.acked.Add(1)
	if r.away {
		<-r.credits
	}
}

// publish sends the messages, each by itself, and waits for the PUBACKs.
func (r *flowing) publish(ctx context.Context) error {
	var next atomic.Int64
	group, sending := errgroup.WithContext(ctx)
	payload := make([]byte, payloadSize)
	for _, c := range r.pubs {
		group.Go(func() error {
			for id := uint16(1); ; id = id%60_000 + 1 {
				select {
				case r.credits <- struct{}{}:
				case <-sending.Done():
					return sending.Err()
				case <-time.After(stuckAfter):
					return fmt.Errorf("%d of %d messages arrived", r.got.Load(), r.messages)
				}
				i := int(next.Add(1)) - 1
				if i >= r.messages {
					<-r.credits
					return nil
				}
				if _, err := c.Write(device.PublishPacket(r.topic(i%r.subscribers), r.qos, id, payload)); err != nil {
					return err
				}
			}
		})
	}
	if err := group.Wait(); err != nil || r.qos == 0 {
		return err
	}
	return r.wait(ctx, &r.acked)
}

// wait waits until n counts all messages.
func (r *flowing) wait(ctx context.Context, n *atomic.Int64) error {
	last, since := n.Load(), now()
	for last < int64(r.messages) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-r.broken:
			return fmt.Errorf("a session ended after %d of %d messages: %w", last, r.messages, err)
		case <-time.After(time.Millisecond):
		}
		if have := n.Load(); have > last {
			last, since = have, now()
		} else if time.Since(since) > stuckAfter {
			return fmt.Errorf("%d of %d messages arrived", last, r.messages)
		}
	}
	return nil
}
