package interop

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/countersign-iot/countersign/store/storetest"
)

const (
	// stormPublishers is how many devices publish, each on a topic of its own for each QoS.
	stormPublishers = 4
	// roundLeast and roundMore bound the time between two ends of the server.
	roundLeast = 300 * time.Millisecond
	roundMore  = 1200 * time.Millisecond
	// stormLeastActs is what a storm must have acknowledged to have shown anything: with
	// one message at a time and a commit for each, a slow machine does many times that.
	stormLeastActs = 200
)

// TestStormLosesNothingAcknowledged has publishers and kept subscribers of many kinds go on
// while the server is killed or stopped at random moments, and holds what all of them
// have seen against what was acknowledged.
func TestStormLosesNothingAcknowledged(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		storm(t, "", func(k *talk, round int) {
			k.restart(round%3 != 2)
		}, 6)
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		db := storetest.NewCluster(t)
		storm(t, "database: "+db.URL(), func(k *talk, round int) {
			switch round {
			case 1:
				db.Kill(t)
				time.Sleep(rand.N(roundMore))
				db.Start(t)
			case 2: // both at once
				db.Kill(t)
				k.end(true)
				db.Start(t)
				k.start()
			default:
				k.restart(round%2 == 0)
			}
		}, 4)
	})
}

func sub(filter string, qos byte) packets.SubOptions {
	return packets.SubOptions{Topic: filter, QoS: qos}
}

// stormSubscribers are the kinds of subscribers.
func stormSubscribers() []*subscriber {
	all := []packets.SubOptions{sub("talk/#", 2)}
	return []*subscriber{
		{client: "two", filters: all},
		{client: "one", filters: []packets.SubOptions{sub("talk/#", 1)}},
		{client: "overlapping", filters: []packets.SubOptions{sub("talk/+/1", 1), sub("talk/#", 1), sub("talk/p0/#", 2), sub("talk/p1/+", 2)}},
		{client: "late", filters: all, late: 60 * time.Millisecond},
		{client: "few", filters: all, most: 3},
		{client: "flapping", filters: all, flap: 500 * time.Millisecond},
		{client: "flapping-late", filters: []packets.SubOptions{sub("talk/+/2", 2), sub("talk/+/1", 1)}, flap: 700 * time.Millisecond, late: 40 * time.Millisecond, most: 8},
		{client: "clean", filters: all, flap: 600 * time.Millisecond, fresh: 3},
	}
}

func storm(t *testing.T, database string, disturb func(k *talk, round int), rounds int) {
	devices := []string{"reader"}
	for i := range stormPublishers {
		devices = append(devices, fmt.Sprintf("p%d", i), fmt.Sprintf("s%d", i))
	}
	subscribers := stormSubscribers()
	for _, s := range subscribers {
		devices = append(devices, s.client)
	}
	k := newTalk(t, generous+"}\n"+database, devices...)
	h := newHistory()
	var stopping, settled atomic.Bool
	publishing, failures := stormPublish(t, k, h, &stopping)
	receiving, leave := context.WithCancel(t.Context())
	defer leave()
	var readers sync.WaitGroup
	for _, s := range subscribers {
		s.k, s.h, s.device, s.settled = k, h, s.client, settled.Load
		readers.Go(func() {
			if err := s.run(receiving); err != nil {
				failures <- err
			}
		})
	}
	for round := range rounds {
		time.Sleep(roundLeast + rand.N(roundMore))
		disturb(k, round)
		k.snapshot(t, h)
	}
	time.Sleep(roundLeast)
	stopping.Store(true)
	publishing.Wait()
	settled.Store(true)
	k.restart(true) // what was acknowledged last is on record too
	eventually(func() bool { return len(h.owed()) == 0 })
	k.snapshot(t, h)
	leave()
	readers.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	faults := h.faults()
	for _, f := range faults[:min(len(faults), 20)] {
		t.Error(f)
	}
	if len(faults) > 20 {
		t.Errorf("and %d more", len(faults)-20)
	}
	if t.Failed() { // of the last start
		t.Logf("server:\n%s", k.out.String())
	}
	ok, no := h.count()
	t.Logf("%d messages were acknowledged, %d refused, in %d sessions", ok, no, len(h.lives))
	if ok < stormLeastActs {
		t.Errorf("%d messages were acknowledged, want %d at least", ok, stormLeastActs)
	}
}

// stormPublish starts the publishers, which go on until stopping is set and all that
// they sent was answered.
func stormPublish(t *testing.T, k *talk, h *history, stopping *atomic.Bool) (*sync.WaitGroup, chan error) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	var running sync.WaitGroup
	failures := make(chan error, 100)
	for i := range stormPublishers {
		numbers := map[string]int{}
		for _, p := range []*publisher{
			{device: fmt.Sprintf("p%d", i), window: 1 + 3*i, pace: 4 * time.Millisecond, next: func(n int) *act {
				qos := byte(1 + n%2)
				topic := fmt.Sprintf("talk/p%d/%d", i, qos)
				numbers[topic]++
				return &act{topic: topic, n: numbers[topic] - 1, qos: qos, payload: fmt.Sprintf("%d %0*d", numbers[topic]-1, rand.N(300), 0)}
			}},
			{device: fmt.Sprintf("s%d", i), window: 1, pace: 8 * time.Millisecond, next: func(n int) *act {
				a := &act{topic: fmt.Sprintf("state/s%d/%d", i, n%3), n: n / 3, qos: byte(1 + n/3%2), retain: true}
				if n%5 != 4 {
					a.payload = fmt.Sprint(n)
				}
				return a
			}},
		} {
			p.k, p.h = k, h
			next := p.next
			p.next = func(n int) *act {
				if stopping.Load() {
					return nil
				}
				return next(n)
			}
			running.Go(func() {
				if err := p.run(ctx); err != nil {
					failures <- err
				}
			})
		}
	}
	return &running, failures
}

// snapshot holds what a new subscriber finds retained against the history.
func (k *talk) snapshot(t *testing.T, h *history) {
	t.Helper()
	var err error
	ok := eventually(func() bool { // the server may have lost its database just now
		found, from := map[string]string{}, time.Now()
		if err = k.look(found); err == nil {
			h.retained(from, time.Now(), found)
		}
		return err == nil
	})
	if !ok {
		t.Errorf("read the retained messages: %v", err)
	}
}

// look subscribes to all retained messages, and has their newest values. A message to
// itself comes after them.
func (k *talk) look(found map[string]string) error {
	c, err := k.dial("reader", &packets.Connect{CleanStart: true, KeepAlive: 60})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if err := c.subscribe(sub("mark/reader", 0), sub("state/#", 1)); err != nil {
		return err
	}
	if err := c.send(&packets.Publish{Topic: "mark/reader", Payload: []byte("0"), Properties: &packets.Properties{}}); err != nil {
		return err
	}
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			return err
		}
		m, ok := p.Content.(*packets.Publish)
		switch {
		case ok && m.Topic == "mark/reader":
			return nil
		case ok: // one without RETAIN came since, in place of the one that was retained
			found[m.Topic] = string(m.Payload)
		}
	}
}
