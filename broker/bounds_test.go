package broker_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// exceededBy opens a core that notes which budgets were exceeded, by device.
func exceededBy(t *testing.T, limits broker.Limits) (b *broker.Broker, db *store.DB, exceeded func(device string) string) {
	t.Helper()
	db = storetest.Open(t)
	var mu sync.Mutex
	all := map[string]string{}
	o := options(db, limits)
	o.Exceeded = func(device, budget string, _ int64) {
		mu.Lock()
		defer mu.Unlock()
		all[device] = budget
	}
	b, err := broker.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(t.Context()) })
	return b, db, func(device string) string {
		mu.Lock()
		defer mu.Unlock()
		return all[device]
	}
}

// TestBounds has one device, "bad", take all that it can of one thing. The others go on,
// and nothing of it is left after it was purged.
func TestBounds(t *testing.T) {
	retain := func(c *client, device, topic string, size int) {
		m := &broker.Message{Topic: topic, Payload: []byte(strings.Repeat("x", size)), QoS: 1, Retain: true, Device: device}
		if err := c.conn.Publish(m, 1); err != nil {
			c.t.Fatal(err)
		}
	}
	queue := func(size int) func(b *broker.Broker, bad *client) {
		return func(b *broker.Broker, bad *client) {
			bad.subscribe(filter("bad", 1))
			bad.conn.Close(false, nil)
			p := connect(bad.t, b, clean("p"))
			for i := range 20 {
				p.publish("bad", strings.Repeat("x", size), 1, uint16(i)+1)
			}
			p.until("acknowledgments", func() bool { return len(p.acks) == 20 })
			p.conn.Close(false, nil)
			if b.Stats().Dropped == 0 {
				bad.t.Error("messages dropped: got none")
			}
		}
	}
	for name, tc := range map[string]struct {
		limits broker.Limits
		budget string
		fill   func(b *broker.Broker, bad *client)
	}{
		"subscriptions": {broker.Limits{Subscriptions: 5}, countersign.BudgetSubscriptions, func(_ *broker.Broker, bad *client) {
			for i := range 10 {
				want := map[bool]byte{true: 1, false: broker.QuotaExceeded}[i < 5]
				if got := bad.conn.Subscribe(bad.t.Context(), []broker.Subscription{filter(fmt.Sprint("f/", i), 1)})[0]; got != want {
					bad.t.Errorf("subscription %d: got reason code %#x, want %#x", i, got, want)
				}
			}
			bad.subscribe(filter("f/1", 0)) // in place of another
		}},
		"number of retained messages": {broker.Limits{Retained: 5}, countersign.BudgetRetained, func(_ *broker.Broker, bad *client) {
			for i := range 10 {
				retain(bad, "bad", fmt.Sprint("r/", i), 1)
			}
			bad.until("answers", func() bool { return len(bad.acks) == 10 })
			retain(bad, "bad", "r/1", 1) // in place of others, two at once
			retain(bad, "bad", "r/2", 1)
			retain(bad, "bad", "r/2", 1)
			bad.answered(append(append(slicesOf("4 1 0x0", 5), slicesOf("4 1 0x97", 5)...), slicesOf("4 1 0x0", 3)...)...)
		}},
		"octets of retained messages": {broker.Limits{RetainedOctets: 10 << 10}, countersign.BudgetRetained, func(_ *broker.Broker, bad *client) {
			for i := range 10 {
				retain(bad, "bad", fmt.Sprint("r/", i), 2<<10)
			}
			bad.answered(append(slicesOf("4 1 0x0", 4), slicesOf("4 1 0x97", 6)...)...)
		}},
		"number of queued messages": {broker.Limits{Queued: 5}, countersign.BudgetQueued, queue(1)},
		"octets of queued messages": {broker.Limits{QueuedOctets: 10 << 10}, countersign.BudgetQueued, queue(2 << 10)},
		"deep topics": {broker.Limits{}, countersign.BudgetRetained, func(_ *broker.Broker, bad *client) {
			if got := bad.conn.Subscribe(bad.t.Context(), []broker.Subscription{filter(strings.Repeat("/", 1000), 1)})[0]; got != broker.QuotaExceeded {
				bad.t.Errorf("got reason code %#x", got)
			}
			retain(bad, "bad", strings.Repeat("/", 1000), 1)
			bad.answered("4 1 0x97")
		}},
		"messages of QoS 2 without PUBREL": {broker.Limits{}, "", func(_ *broker.Broker, bad *client) {
			for i := range 2000 {
				err := bad.conn.Publish(&broker.Message{Topic: "x", QoS: 2, Device: "bad"}, uint16(i)+1)
				if (err == nil) != (i < 1024) {
					bad.t.Fatalf("message %d: got error %v", i, err)
				}
				if err != nil {
					break
				}
			}
		}},
		"kept sessions": {broker.Limits{}, "", func(b *broker.Broker, bad *client) {
			for i := range 10 {
				h := kept(fmt.Sprint("bad-", i))
				h.Device, h.Kept = "bad", 3
				connect(bad.t, b, h).conn.Close(false, nil)
			}
			if got := usage(bad.t, b, "bad").Kept; got != 3 {
				bad.t.Errorf("stored sessions: got %d, want 3", got)
			}
			h := kept("bad-9")
			h.Device = "bad"
			if !connect(bad.t, b, h).present {
				bad.t.Error("the newest session: got it dropped")
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b, db, exceeded := exceededBy(t, tc.limits)
			bad := connect(t, b, kept("bad"))
			tc.fill(b, bad)
			if got := exceeded("bad"); got != tc.budget {
				t.Errorf("budget that was exceeded: got %q, want %q", got, tc.budget)
			}
			good := connect(t, b, kept("good"))
			good.subscribe(filter("good/#", 1), filter("good", 1))
			retain(good, "good", "good/r", 100)
			good.publish("good", "m", 1, 9)
			good.until("its own messages", func() bool { return len(good.got) == 2 && len(good.acks) == 2 })
			if got := exceeded("good"); got != "" {
				t.Errorf("budget that another device exceeded: got %q", got)
			}
			for _, device := range []string{"bad", "good", "publisher"} {
				purge(t, b, db, device)
			}
			empty(t, b, db)
		})
	}
}

func slicesOf(s string, n int) (all []string) {
	for range n {
		all = append(all, s)
	}
	return all
}

// The store of the node is full: what would fill it is refused, and taken again once
// there is room.
func TestAFullStoreRefusesWhatFillsIt(t *testing.T) {
	b, db, _ := exceededBy(t, broker.Limits{Store: 20 << 10})
	s := connect(t, b, kept("s"))
	s.subscribe(filter("kept", 1))
	s.conn.Close(false, nil)
	live := connect(t, b, clean("live"))
	live.subscribe(filter("live", 0))
	p := connect(t, b, clean("p"))
	for i := range 20 {
		p.publish("kept", strings.Repeat("x", 2<<10), 1, uint16(i)+1)
	}
	p.until("acknowledgments", func() bool { return len(p.acks) == 20 })
	if got := queued(t, b); got != 7 {
		t.Errorf("messages in three quarters of the store: got %d, want 7", got)
	}
	retain := func(id uint16) {
		m := &broker.Message{Topic: fmt.Sprint("r", id), Payload: []byte(strings.Repeat("x", 3<<10)), QoS: 1, Retain: true, Device: "p"}
		if err := p.conn.Publish(m, id); err != nil {
			t.Fatal(err)
		}
	}
	retain(30) // a full queue leaves retained messages their quarter
	retain(31)
	p.publish("live", "1", 1, 32)
	p.until("answers", func() bool { return strings.Join(p.acks[20:], ",") == "4 30 0x0,4 31 0x97,4 32 0x0" })
	live.receives("1")
	s = connect(t, b, kept("s"))
	s.until("an empty queue", func() bool { return queued(t, b) == 0 })
	p.publish("kept", "again", 1, 40)
	s.until("a message more", func() bool { return len(s.got) == 8 })
	for _, device := range []string{"s", "live", "p"} {
		purge(t, b, db, device)
	}
	empty(t, b, db)
}

// A stored session makes room for a subscription of one that is there, and its will is
// published to that, too.
func TestAStoredSessionMakesRoom(t *testing.T) {
	b, db := onSQLite(t, broker.Limits{Subscriptions: 2})
	session := func(id string) *client {
		h := kept(id)
		h.Device = "d"
		h.Will = &broker.Will{Message: broker.Message{Topic: "will", Payload: []byte(id), QoS: 1, Device: "d"}, Delay: time.Hour}
		return connect(t, b, h)
	}
	for _, id := range []string{"first", "second"} {
		old := session(id)
		old.subscribe(filter(id, 1))
		old.conn.Close(true, nil)
	}
	s := session("new")
	s.subscribe(filter("will", 1)) // in the room of the first
	s.subscribe(filter("b", 1))
	s.receives("second")
	if u := usage(t, b, "d"); u.Kept != 0 || u.Subscriptions != 2 {
		t.Errorf("got %+v, want no stored session and two subscriptions", u)
	}
	s.until("an empty queue", func() bool { return queued(t, b) == 0 })
	s.conn.Close(false, new(time.Duration))
	empty(t, b, db)
}
