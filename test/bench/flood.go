package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/simulate/device"
)

const (
	// messageEvery is how often each honest device publishes.
	messageEvery = 2 * time.Second
	// reconnectEvery is how often one of the honest devices connects anew.
	reconnectEvery = 50 * time.Millisecond
	// spares is how many devices take turns with that.
	spares = 20
	// settle is how much longer a phase runs than it is long: the server learns in that time
	// which addresses flood it, and the worst second is often there.
	settle = 2 * time.Second
)

// phase is one part of the flood.
type phase struct {
	name      string
	addresses int // the attacker comes from; 0: there is none
}

func phases() []phase { return []phase{{"calm", 0}, {"one", 1}, {"many", hostileAddresses}} }

// honest are the devices that must notice nothing.
type honest struct {
	lost atomic.Int64

	mu       sync.Mutex
	begin    time.Time // of the phase
	messages []asked   // of the phase
	connects []asked
}

// flood measures what 1,000 hostile connections a second, first from one address,
// then from 200, change for devices that publish and for those that reconnect.
func (b *bench) flood(ctx context.Context) error {
	n := b.opts.size.sessions
	devices, err := b.connected(ctx, n+spares+1)
	if err != nil {
		return err
	}
	stolen := devices[n+spares]
	if _, err := b.server.admin.Revoke(ctx, stolen.id, api.Revoke{Reason: "keyCompromise"}); err != nil {
		return err
	}
	b.lost(stolen)

	h := &honest{}
	live, err := b.joinAll(ctx, b.mqtt().addr, devices[:n], false)
	defer leaveAll(live)
	if err != nil {
		return err
	}
	work, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i, c := range live {
		wg.Go(func() { h.publish(work, c, devices[i].id, time.Duration(i)*messageEvery/time.Duration(n)) })
	}
	wg.Go(func() { h.reconnect(work, b, devices[n:n+spares]) })
	defer wg.Wait()
	defer stop()
	for i, p := range phases() {
		if err := b.phase(ctx, h, p, stolen, byte(i)); err != nil {
			return err
		}
	}
	b.report.add(sample{name: "flood_lost", ops: n, bytes: float64(h.lost.Load())})
	return nil
}

// phase runs one part.
func (b *bench) phase(ctx context.Context, h *honest, p phase, stolen *enrollee, net byte) error {
	var enemy *helper
	if p.addresses > 0 {
		chain, key, err := pemOf(stolen.identity)
		if err != nil {
			return err
		}
		enemy, err = startHelper(ctx, hostileCommand, idleFor, attack{
			Addr: b.mqtt().addr, Rate: b.opts.size.hostile, Addresses: p.addresses, Net: net, Target: stolen.id, Chain: chain, Key: key,
		})
		if err != nil {
			return err
		}
	}
	h.take()
	before, err := b.server.cpu()
	if err != nil {
		return err
	}
	begin := now()
	if err := pause(ctx, min(settle, b.opts.size.flood)+b.opts.size.flood); err != nil {
		return err
	}
	wall := time.Since(begin)
	after, cpuErr := b.server.cpu()
	rss, rssErr := b.server.rss()
	messages, connects := h.take()
	name := "flood_" + p.name
	b.report.add(
		answers(name+"_message", messages), answers(name+"_connect", connects),
		sample{name: name + "_memory", bytes: float64(rss)},
		sample{name: name + "_server", ops: max(1, int(wall.Seconds())), cpu: after - before},
	)
	if err := errors.Join(cpuErr, rssErr); err != nil || enemy == nil {
		return err
	}
	var d damage
	if err := errors.Join(enemy.in.Close(), enemy.finish(&d)); err != nil {
		return fmt.Errorf("the attacker: %w", err)
	}
	b.report.note("flood from %d: %d attempts, of them %d refused before the end of the handshake, %d after it; %d not attempted",
		p.addresses, d.Attempts, d.Refused, d.Handshakes, d.Dropped)
	if d.Admitted > 0 {
		return fmt.Errorf("the server admitted %d hostile connections", d.Admitted)
	}
	return nil
}

// add notes when something began and that it is done.
func (h *honest) add(to *[]asked, began time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*to = append(*to, asked{max(0, began.Sub(h.begin)), time.Since(began)})
}

// take returns the figures since the last time and begins a phase.
func (h *honest) take() (messages, connects []asked) {
	h.mu.Lock()
	defer h.mu.Unlock()
	messages, connects = h.messages, h.connects
	h.begin, h.messages, h.connects = now(), nil, nil
	return messages, connects
}

// publish sends a message at QoS 1 now and then, and waits for its PUBACK, which
// comes from the engine behind the gateway.
func (h *honest) publish(ctx context.Context, c *device.Wire, id string, first time.Duration) {
	packet, answer := device.PublishPacket("devices/"+id+"/up/t", 1, 7, make([]byte, 32)), device.PubackPacket(7)
	wait := first
	for pause(ctx, wait) == nil {
		t := now()
		if err := errors.Join(c.SetDeadline(t.Add(opTimeout)), device.Exchange(c, packet, answer)); err != nil {
			h.lost.Add(1)
			return
		}
		h.add(&h.messages, t)
		wait = messageEvery
	}
}

// reconnect has devices connect anew, from the addresses that all devices use. One
// that is turned away tries again at once; the time is until it is in.
func (h *honest) reconnect(ctx context.Context, b *bench, devices []*enrollee) {
	var wg sync.WaitGroup
	defer wg.Wait()
	idle := make(chan *enrollee, len(devices))
	for _, d := range devices {
		idle <- d
	}
	for pause(ctx, reconnectEvery) == nil {
		var d *enrollee
		select {
		case d = <-idle:
		default: // all are at it: the figures show that
			continue
		}
		wg.Go(func() {
			defer func() { idle <- d }()
			t := now()
			for time.Since(t) < opTimeout && ctx.Err() == nil {
				if c, err := b.join(ctx, b.mqtt().addr, d, false); err == nil {
					device.Disconnect(c)
					break
				}
			}
			h.add(&h.connects, t)
		})
	}
}
