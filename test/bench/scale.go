package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/countersign-iot/countersign/simulate/device"
	"golang.org/x/time/rate"
)

const (
	// ownFiles is what server and bench have open beside the sessions.
	ownFiles = 256
	// scalePace is how many connect in a second at most: a fleet that comes back within a
	// minute.
	scalePace = 500
)

// throng is a crowd of which one half listens to its own commands, the other to a topic in
// common: one subscription of QoS 1 for each session.
type throng struct {
	crowd
	report   *report
	failed   atomic.Int64
	why      sync.Once   // notes the first failure
	over     atomic.Bool // sessions end because we end them
	commands chan int    // by session: it got one
}

// scale measures as many sessions as the product promises on one node: their memory, how
// fast they connect, commands to single ones, and a message to half of them. Devices
// connect with certificates in use, each from an address of its own.
func (b *bench) scale(ctx context.Context) error {
	n, err := b.fitting(b.opts.size.scale)
	if err != nil {
		return err
	}
	devices, err := b.loaders(ctx, n)
	if err != nil {
		return err
	}
	if err := b.server.restart(ctx); err != nil {
		return err
	}
	empty, err := b.server.rested(ctx, b.opts.size.rest)
	if err != nil {
		return err
	}
	b.dialer.wide.Store(true)
	defer b.dialer.wide.Store(false)
	t := b.mqtt()
	c := &throng{commands: make(chan int, n), report: b.report}
	defer func() {
		c.over.Store(true)
		leaveAll(append(c.live, c.from))
	}()
	if err := c.lead(ctx, b, t, devices[0]); err != nil {
		return err
	}
	if err := b.keep(c.fill(ctx, b, t, devices[1:])); err != nil {
		return err
	}
	full, err := b.server.rested(ctx, b.opts.size.rest)
	if err := b.keep(perSession("scale_memory", empty, full, n), err); err != nil {
		return err
	}
	if err := b.keep(c.command(ctx, t, devices[1:], b.opts.size.commands)); err != nil {
		return err
	}
	err = b.keep(c.measure(ctx, t, spray{"scale_fanout", fanoutTopic, 1, c.listeners(), fanoutTimes}))
	return b.keep(sample{name: "scale_failed", ops: n, bytes: float64(c.failed.Load())}, err)
}

// fitting is how many of n sessions a process may have sockets for here.
func (b *bench) fitting(n int) (int, error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0, err
	}
	if most := int(min(l.Max, 1<<30)) - ownFiles; most < n {
		b.report.note("scale: %d sessions, because a process may not have more than %d files open here", most, l.Max)
		n = most
	}
	return n, nil
}

// fill opens the sessions at the pace and subscribes each. One that fails is counted.
func (c *throng) fill(ctx context.Context, b *bench, t target, devices []*enrollee) (sample, error) {
	c.live = make([]*device.Wire, len(devices))
	pace := rate.NewLimiter(scalePace, connectWorkers)
	return t.process.load(ctx, "scale_connect", connectWorkers, len(devices), func(ctx context.Context, _, i int) error {
		if err := pace.Wait(ctx); err != nil {
			return err
		}
		one, err := b.join(ctx, t.addr, devices[i], false)
		if err == nil {
			filter := "devices/" + devices[i].id + "/down/#"
			if c.listens(i) {
				filter = fanoutTopic
			}
			c.live[i] = one
			err = one.Subscribe(filter, 1)
		}
		if err != nil {
			c.fail(err)
			return nil
		}
		go func() {
			err := one.Receive(func([]byte) {
				if c.listens(i) {
					c.got.Add(1)
				} else {
					c.commands <- i
				}
			}, nil)
			if !c.over.Load() {
				c.fail(err)
			}
		}()
		return nil
	})
}

// fail counts a session that did not open, or ended.
func (c *throng) fail(err error) {
	c.failed.Add(1)
	c.why.Do(func() { c.report.note("scale: the first session that failed: %v", err) })
}

// listens reports whether a session listens to the topic in common: each second one does.
func (c *throng) listens(i int) bool { return i%2 == 1 }

func (c *throng) listeners() int { return len(c.live) / 2 }

// command sends a command of QoS 1 to each of n random sessions, one after the other, and
// measures until the session has it.
func (c *throng) command(ctx context.Context, t target, devices []*enrollee, n int) (sample, error) {
	var took []time.Duration
	s, err := t.process.around(ctx, "scale_command", n, func() ([]time.Duration, error) {
		for range n {
			i := rand.IntN((len(devices)+1)/2) * 2 //nolint:gosec // a sample
			c.id++
			begin := now()
			packet := device.PublishPacket("devices/"+devices[i].id+"/down/do", 1, c.id, make([]byte, payloadSize))
			if _, err := c.from.Write(packet); err != nil {
				return nil, err
			}
			select {
			case got := <-c.commands:
				if got != i {
					return nil, fmt.Errorf("the command to session %d came to session %d", i, got)
				}
			case <-time.After(opTimeout):
				return nil, errors.New("a command did not arrive")
			}
			took = append(took, time.Since(begin))
		}
		return took, nil
	})
	one := alone("scale_command", took)
	one.cpu = s.cpu
	return one, err
}
