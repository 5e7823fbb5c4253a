package broker_test

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
)

// client is the far end of a session: it has what a PUBLISH, an acknowledgment and a
// DISCONNECT would carry.
type client struct {
	t    testing.TB
	b    *broker.Broker
	hold bool // acknowledges nothing

	mu      sync.Mutex
	conn    *broker.Conn
	got     []broker.Delivery
	acks    []string // "puback 1 0"
	lost    string
	room    int // deliveries it takes; negative: any number
	present bool
	forbid  string
	flushed int
	changed chan struct{}
}

func (c *client) Deliver(d broker.Delivery) broker.Outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.room == 0 {
		if d.QoS == 0 && !d.Patient {
			return broker.Dropped
		}
		return broker.Full
	}
	if c.room > 0 {
		c.room--
	}
	c.got = append(c.got, d)
	c.signal()
	if d.QoS > 0 && !c.hold {
		conn, id := c.conn, d.ID
		kind := broker.Puback
		if d.QoS == 2 {
			kind = broker.Pubrec
		}
		go conn.Acknowledge(kind, id, broker.Success) // as its reader would, later
	}
	return broker.Sent
}

func (c *client) Acknowledge(kind broker.Acknowledgment, id uint16, code byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acks = append(c.acks, fmt.Sprintf("%d %d %#x", kind, id, code))
	if kind == broker.Pubrel && !c.hold {
		go c.conn.Acknowledge(broker.Pubcomp, id, broker.Success)
	}
	c.signal()
}

func (c *client) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flushed++
}

func (c *client) Receives(topic string) bool { return topic != c.forbid }

func (c *client) Lost(code byte, _ string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = fmt.Sprintf("%#x", code)
	c.signal()
}

func (c *client) signal() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// until waits until ok holds; it is looked at whenever something came.
func (c *client) until(what string, ok func() bool) {
	c.t.Helper()
	limit := time.After(10 * time.Second)
	for {
		c.mu.Lock()
		done := ok()
		got, acks := c.texts(), slices.Clone(c.acks)
		c.mu.Unlock()
		if done {
			return
		}
		select {
		case <-c.changed:
		case <-time.After(5 * time.Millisecond):
		case <-limit:
			c.t.Fatalf("%s: did not come; got %q, acknowledgments %q", what, got, acks)
		}
	}
}

func (c *client) texts() (all []string) {
	for _, d := range c.got {
		all = append(all, string(d.Payload))
	}
	return all
}

// receives waits for messages with these payloads, in this order, and no others.
func (c *client) receives(want ...string) {
	c.t.Helper()
	c.until(fmt.Sprintf("messages %q", want), func() bool { return slices.Equal(c.texts(), want) })
}

func (c *client) answered(want ...string) {
	c.t.Helper()
	c.until(fmt.Sprintf("acknowledgments %q", want), func() bool { return slices.Equal(c.acks, want) })
}

func (c *client) subscribe(subs ...broker.Subscription) {
	c.t.Helper()
	for i, code := range c.conn.Subscribe(c.t.Context(), subs) {
		if code != subs[i].QoS {
			c.t.Fatalf("subscribing to %q: got reason code %#x, want the QoS %d", subs[i].Filter, code, subs[i].QoS)
		}
	}
	c.conn.Retained()
	c.conn.Flush()
}

func (c *client) publish(topic, payload string, qos byte, id uint16) {
	c.t.Helper()
	m := &broker.Message{Topic: topic, Payload: []byte(payload), QoS: qos, Device: "publisher"}
	if err := c.conn.Publish(m, id); err != nil {
		c.t.Fatalf("publish to %s: %v", topic, err)
	}
	c.conn.Flush()
}

func options(db *store.DB, limits broker.Limits) broker.Options {
	return broker.Options{DB: db, Node: "one", Limits: limits, Log: slog.New(slog.DiscardHandler), Now: time.Now}
}

func open(t testing.TB, db *store.DB, limits broker.Limits) *broker.Broker {
	t.Helper()
	b, err := broker.Open(t.Context(), options(db, limits))
	if err != nil {
		t.Fatalf("open the broker: %v", err)
	}
	return b
}

// kept is a session of one hour.
func kept(id string) broker.Hello {
	return broker.Hello{ClientID: id, Device: id, Expiry: time.Hour, Kept: 16}
}

func clean(id string) broker.Hello {
	return broker.Hello{ClientID: id, Device: id, Clean: true, Kept: 16}
}

func connect(t testing.TB, b *broker.Broker, h broker.Hello) *client {
	t.Helper()
	return connectAs(t, b, h, &client{})
}

func connectAs(t testing.TB, b *broker.Broker, h broker.Hello, c *client) *client {
	t.Helper()
	if c.room == 0 {
		c.room = -1
	}
	c.t, c.b, c.changed = t, b, make(chan struct{}, 1)
	conn, present, err := b.Connect(t.Context(), h, c)
	if err != nil {
		t.Fatalf("connect %s: %v", h.ClientID, err)
	}
	c.mu.Lock()
	c.conn, c.present = conn, present
	c.mu.Unlock()
	conn.Start()
	return c
}

func filter(f string, qos byte) broker.Subscription { return broker.Subscription{Filter: f, QoS: qos} }

// usage is what a device has of the node.
func usage(t testing.TB, b *broker.Broker, device string) countersign.Usage {
	t.Helper()
	list, err := b.Usage(t.Context(), countersign.UsageFilter{Device: device, Limit: 1})
	if err != nil || len(list) > 1 {
		t.Fatalf("usage of %s: got %v, %v", device, list, err)
	}
	if len(list) == 0 {
		return countersign.Usage{}
	}
	return list[0]
}

// queued is how many messages wait for anyone.
func queued(t testing.TB, b *broker.Broker) int {
	t.Helper()
	sum, err := b.TotalUsage(t.Context())
	if err != nil {
		t.Fatalf("usage: %v", err)
	}
	return sum.Queued
}
