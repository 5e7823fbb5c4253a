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
func (b *bench) messages(ctx context.Context) error {
	n := b.opts.size.messages
	devices, err := b.loaders(ctx, publishers+keptSessions)
	if err != nil {
		return err
	}
	flows := []flow{
		{name: "fanin_0", subscribers: 1, messages: n},
		{name: "fanin_1", subscribers: 1, messages: n, qos: 1},
		{name: "kept_live", subscribers: keptSessions, messages: n / 2, qos: 1, kept: true},
		// As much as fits into the queues, which have room for 1,000 messages each.
		{name: "kept_away", subscribers: keptSessions, messages: min(n/2, 900*keptSessions), qos: 1, kept: true, away: true},
	}
	return b.beside(ctx, peers(), func(ctx context.Context, t target) error {
		for _, f := range flows {
			if f.qos == 0 && t.saves() {
				continue // no message of QoS 0 is saved
			}
			if err := b.stream(ctx, t, f, devices); err != nil {
				return fmt.Errorf("%s: %w", t.prefix+f.name, err)
			}
		}
		return nil
	})
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
func (b *bench) stream(ctx context.Context, t target, f flow, devices []*enrollee) (err error) {
	r := &flowing{flow: f, credits: make(chan struct{}, credits), broken: make(chan error, 2*len(devices))}
	receivers, senders := devices[:f.subscribers], devices[keptSessions:]
	defer func() {
		leaveAll(append(r.subs, r.pubs...))
		if f.kept { // a clean session ends a kept one
			clean, dropErr := b.joinAll(ctx, t.addr, receivers, false)
			leaveAll(clean)
			err = errors.Join(err, dropErr)
		}
	}()
	if r.subs, err = b.joinAll(ctx, t.addr, receivers, f.kept); err != nil {
		return err
	}
	for i, c := range r.subs {
		if err := c.Subscribe(r.topic(i), f.qos); err != nil {
			return err
		}
	}
	if r.pubs, err = b.joinAll(ctx, t.addr, senders, false); err != nil {
		return err
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
	s, err := t.process.around(ctx, t.prefix+f.name, f.messages, func() (_ []time.Duration, err error) {
		if err := r.publish(ctx); err != nil {
			return nil, err
		}
		if f.away {
			if r.subs, err = b.joinAll(ctx, t.addr, receivers, true); err != nil {
				return nil, err
			}
			r.listen()
		}
		return nil, r.wait(ctx, &r.got)
	})
	return b.keep(s, err)
}

func (r *flowing) topic(subscriber int) string {
	return "bench/" + r.name + "/" + strconv.Itoa(subscriber)
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
