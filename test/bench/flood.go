package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
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
	// settle is how long a phase runs before its figures count: what is before, while
	// the server learns who floods it, is told apart.
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
	live []net.Conn
	lost atomic.Int64

	mu       sync.Mutex
	messages []time.Duration // of the phase
	connects []time.Duration
}

// flood measures what 1,000 hostile connections a second, first from one address,
// then from 200, change for devices that publish and for those that reconnect.
func (b *bench) flood(ctx context.Context) (samples []sample, err error) {
	n := b.opts.size.sessions
	devices, err := b.connected(ctx, n+spares+1)
	if err != nil {
		return nil, err
	}
	stolen := devices[n+spares]
	if _, err := b.admin.Revoke(ctx, stolen.id, api.Revoke{Reason: "keyCompromise"}); err != nil {
		return nil, err
	}
	b.active = slices.DeleteFunc(b.active, func(d *enrollee) bool { return d == stolen })
	b.all = slices.DeleteFunc(b.all, func(d *enrollee) bool { return d == stolen })

	h := &honest{}
	h.live, err = b.hold(ctx, hostOf(b.endpoints.MQTT), devices[:n])
	defer func() {
		for _, c := range h.live {
			device.Disconnect(c)
		}
	}()
	if err != nil {
		return nil, err
	}
	work, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for i, c := range h.live {
		wg.Go(func() { h.publish(work, c, devices[i].id, time.Duration(i)*messageEvery/time.Duration(n)) })
	}
	wg.Go(func() { h.reconnect(work, b, devices[n:n+spares]) })
	defer wg.Wait()
	defer stop()
	for i, p := range phases() {
		got, err := b.phase(ctx, h, p, stolen, byte(i))
		if err != nil {
			return nil, err
		}
		samples = append(samples, got...)
	}
	return append(samples, sample{name: "flood_lost", ops: n, bytes: float64(h.lost.Load())}), nil
}

// phase runs one part and gives its figures.
func (b *bench) phase(ctx context.Context, h *honest, p phase, stolen *enrollee, net byte) ([]sample, error) {
	var enemy *hostile
	if p.addresses > 0 {
		chain, key, err := pemOf(stolen)
		if err != nil {
			return nil, err
		}
		enemy, err = attackWith(attack{
			Addr: hostOf(b.endpoints.MQTT), Rate: b.opts.size.hostile, Addresses: p.addresses, Net: net, Target: stolen.id, Chain: chain, Key: key,
		})
		if err != nil {
			return nil, err
		}
	}
	h.take()
	if err := pause(ctx, min(settle, b.opts.size.flood)); err != nil {
		return nil, err
	}
	first, _ := h.take()
	before, err := b.server.cpu()
	if err != nil {
		return nil, err
	}
	begin := now()
	if err := pause(ctx, b.opts.size.flood); err != nil {
		return nil, err
	}
	wall := time.Since(begin)
	after, cpuErr := b.server.cpu()
	rss, rssErr := b.server.rss()
	messages, connects := h.take()
	of := func(name string, took []time.Duration) sample {
		slices.Sort(took)
		return sample{name: name, ops: len(took), alone: true, p50: percentile(took, 50), p99: percentile(took, 99), worst: percentile(took, 100)}
	}
	samples := []sample{
		of("flood_"+p.name+"_start", first), of("flood_"+p.name+"_message", messages), of("flood_"+p.name+"_connect", connects),
		{name: "flood_" + p.name + "_memory", bytes: float64(rss)},
		{name: "flood_" + p.name + "_server", ops: max(1, int(wall.Seconds())), cpu: after - before},
	}
	if err := errors.Join(cpuErr, rssErr); err != nil || enemy == nil {
		return samples, err
	}
	d, err := enemy.stop()
	if err == nil && d.Admitted > 0 {
		err = fmt.Errorf("the server admitted %d hostile connections", d.Admitted)
	}
	b.note(fmt.Sprintf("flood from %d: %d attempts, of them %d refused before the end of the handshake, %d after it; %d not attempted",
		p.addresses, d.Attempts, d.Refused, d.Handshakes, d.Dropped))
	return samples, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// take gives the figures since the last time.
func (h *honest) take() (messages, connects []time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	messages, connects = h.messages, h.connects
	h.messages, h.connects = nil, nil
	return messages, connects
}

// publish sends a message at QoS 1 now and then, and waits for its PUBACK, which
// comes from the engine behind the gateway.
func (h *honest) publish(ctx context.Context, c net.Conn, id string, first time.Duration) {
	packet, answer := device.PublishPacket("devices/"+id+"/up/t", 1, 7, make([]byte, 32)), device.PubackPacket(7)
	wait := first
	for pause(ctx, wait) == nil {
		t := now()
		if err := errors.Join(c.SetDeadline(t.Add(opTimeout)), device.Exchange(c, packet, answer)); err != nil {
			h.lost.Add(1)
			return
		}
		took := time.Since(t)
		h.mu.Lock()
		h.messages = append(h.messages, took)
		h.mu.Unlock()
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
		default: // all are at it: the figures tell
			continue
		}
		wg.Go(func() {
			defer func() { idle <- d }()
			t := now()
			for time.Since(t) < opTimeout && ctx.Err() == nil {
				c, err := b.connect(ctx, hostOf(b.endpoints.MQTT), d)
				if err != nil {
					continue
				}
				device.Disconnect(c)
				break
			}
			took := time.Since(t)
			h.mu.Lock()
			h.connects = append(h.connects, took)
			h.mu.Unlock()
		})
	}
}
