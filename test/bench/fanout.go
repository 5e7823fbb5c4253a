package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign/simulate/device"
)

const (
	// fanoutTopic is where all sessions listen, someTopic where a tenth of them does too.
	fanoutTopic, someTopic = "bench/fanout/all", "bench/fanout/some"
	// fanoutSome is that tenth.
	fanoutSome = 10
	// fanoutTimes is how often a message goes to all; to the tenth goes ten times as many.
	fanoutTimes = 10
	// fanoutEvery is the pause between messages to all while others are asked: bursts, as
	// of commands to a fleet, and not one lasting flood.
	fanoutEvery = time.Second
)

// crowd is sessions that listen to the same topics, and one that publishes.
type crowd struct {
	live []*device.Wire
	from *device.Wire
	got  atomic.Int64
	id   uint16
}

// fanout measures what one message costs for each of the sessions that receive it, and
// how long others wait for an answer meanwhile.
func (b *bench) fanout(ctx context.Context) error {
	devices, err := b.loaders(ctx, b.opts.size.fan+3)
	if err != nil {
		return err
	}
	beside := peers()[:2]
	for i := range beside {
		beside[i].keep += withoutDelay
	}
	return b.beside(ctx, beside, func(ctx context.Context, t target) error { return b.fanoutOf(ctx, t, devices) })
}

func (b *bench) fanoutOf(ctx context.Context, t target, devices []*enrollee) (err error) {
	pair, rest := devices[:2], devices[2:]
	c := &crowd{}
	defer func() { leaveAll(append(c.live, c.from)) }()
	if err := c.lead(ctx, b, t, rest[0]); err != nil {
		return err
	}
	if c.live, err = b.joinAll(ctx, t.addr, rest[1:], false); err != nil {
		return err
	}
	some := max(1, len(c.live)/fanoutSome)
	_, err = drive(ctx, connectWorkers, len(c.live), func(_ context.Context, _, i int) error {
		err := c.live[i].Subscribe(fanoutTopic, 1)
		if i < some {
			err = errors.Join(err, c.live[i].Subscribe(someTopic, 1))
		}
		go func() { _ = c.live[i].Receive(func([]byte) { c.got.Add(1) }, nil) }() // a loss shows in the count
		return err
	})
	if err != nil {
		return err
	}
	for _, one := range []spray{
		{"fanout_some_0", someTopic, 0, some, fanoutTimes * fanoutSome},
		{"fanout_some_1", someTopic, 1, some, fanoutTimes * fanoutSome},
		{"fanout_all_0", fanoutTopic, 0, len(c.live), fanoutTimes},
		{"fanout_all_1", fanoutTopic, 1, len(c.live), fanoutTimes},
	} {
		if err := b.keep(c.measure(ctx, t, one)); err != nil {
			return err
		}
	}
	if err := b.keep(b.ask(ctx, t, "answer_calm", pair)); err != nil {
		return err
	}
	stop := c.repeat(ctx)
	return errors.Join(b.keep(b.ask(ctx, t, "answer_fanout", pair)), stop())
}

// lead opens the session that publishes.
func (c *crowd) lead(ctx context.Context, b *bench, t target, d *enrollee) (err error) {
	if c.from, err = b.join(ctx, t.addr, d, false); err != nil {
		return err
	}
	go func() { _ = c.from.Receive(nil, nil) }() // until it leaves; a loss shows in the count
	return nil
}

// spray is how often a message goes to n sessions.
type spray struct {
	name, topic string
	qos         byte
	n, times    int
}

// measure publishes one message after another, each once all have the one before.
func (c *crowd) measure(ctx context.Context, t target, s spray) (sample, error) {
	return t.process.around(ctx, t.prefix+s.name, s.n*s.times, func() (took []time.Duration, err error) {
		for range s.times {
			once := now()
			if err := c.send(ctx, s.topic, s.qos, s.n); err != nil {
				return nil, err
			}
			took = append(took, time.Since(once))
		}
		return took, nil
	})
}

// send publishes a message and waits until n sessions have it.
func (c *crowd) send(ctx context.Context, topic string, qos byte, n int) error {
	want := c.got.Load() + int64(n)
	c.id++
	if _, err := c.from.Write(device.PublishPacket(topic, qos, c.id, make([]byte, payloadSize))); err != nil {
		return err
	}
	for begin := now(); c.got.Load() < want; {
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
		if time.Since(begin) > opTimeout {
			return fmt.Errorf("%d of %d sessions did not get a message", want-c.got.Load(), n)
		}
	}
	return nil
}

// repeat publishes to all now and then, until stop is called.
func (c *crowd) repeat(ctx context.Context) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		for {
			begin := now()
			err := c.send(ctx, fanoutTopic, 1, len(c.live))
			if err == nil {
				err = pause(ctx, max(0, fanoutEvery-time.Since(begin)))
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	return func() error {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
}
