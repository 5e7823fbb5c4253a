package broker

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// silent is a client that notes what it gets and acknowledges nothing.
type silent struct {
	got  []string
	acks []string
}

func (c *silent) Deliver(d Delivery) Outcome {
	c.got = append(c.got, string(d.Payload))
	return Sent
}

func (c *silent) Acknowledge(kind Acknowledgment, id uint16, code byte) {
	c.acks = append(c.acks, fmt.Sprint(kind, id, code))
}

func (c *silent) Flush()               {}
func (c *silent) Receives(string) bool { return true }
func (c *silent) Lost(byte, string)    {}

// A page of the queue is read without the session's lock: what is committed between the
// read and its result is to be read by the next one.
func TestAMessageCommittedWhileAPageIsReadIsNotSkipped(t *testing.T) {
	b, err := Open(t.Context(), Options{DB: storetest.Open(t), Node: "one", Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close(t.Context()) }()
	for name, before := range map[string]int{"an empty page": 0, "a page": 2} {
		client := &silent{}
		c, _, err := b.Connect(t.Context(), Hello{ClientID: name, Device: name, Expiry: time.Hour}, client)
		if err != nil {
			t.Fatal(err)
		}
		s := c.s
		c.Subscribe(t.Context(), []Subscription{{Filter: name, QoS: 1}})
		publish := func(n int) {
			m := &Message{Topic: name, Payload: fmt.Append(nil, n), QoS: 1, Device: "p"}
			if err := b.Publish(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
		s.mu.Lock()
		s.more, s.load = true, true // as after a page that was full
		s.mu.Unlock()
		for n := range before {
			publish(n)
		}
		s.mu.Lock()
		after, until := s.loaded, s.stored
		s.mu.Unlock()
		pages, whole, err := b.readQueue(t.Context(), s, after)
		if err != nil || len(pages) != before || !whole {
			t.Fatalf("%s: got %d pages, whole %t, error %v", name, len(pages), whole, err)
		}
		publish(before)
		c.Start()
		s.filled(c, pages, whole, after, until)
		kit.Eventually(t, fmt.Sprintf("%s: %d messages", name, before+1), func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(client.got) == before+1
		})
	}
}

// A message that was read from the record before the session was given it is dropped from
// the record, too, when the queue is purged.
func TestAPurgeDropsWhatWasReadBeforeItWasHandedOver(t *testing.T) {
	db := storetest.Open(t)
	b := reopen(t, db)
	defer func() { _ = b.Close(t.Context()) }()
	c, client := join(t, b, 1)
	c.Subscribe(t.Context(), []Subscription{{Filter: "x", QoS: 1}})
	c.Start()
	onePage(t, b, 1, "1")
	client.receives(t, c.s, "1")
	on := make(chan struct{})
	b.journal.add(op{kind: opNothing, done: func(error, *flusher) { <-on }})
	p := &publication{done: make(chan error, 1)}
	b.submit(&Message{Topic: "x", Payload: []byte("2"), QoS: 1, Device: "p"}, nil, p, &flusher{})
	rows := func() (n int) {
		if err := db.QueryRow(t.Context(), `SELECT count(*) FROM mqtt_queue`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	kit.Eventually(t, "both messages on record", func() bool { return rows() == 2 })
	c.s.mu.Lock()
	c.s.more, c.s.load = true, true // as where one came while more was on record
	c.s.mu.Unlock()
	b.fill(c.s, c)
	purged := make(chan error, 1)
	go func() {
		_, err := b.Purge(t.Context(), "s", countersign.Stored{Queued: true})
		purged <- err
	}()
	kit.Eventually(t, "the purge", func() bool { c.s.mu.Lock(); defer c.s.mu.Unlock(); return c.s.drains > 0 })
	close(on)
	if err := <-purged; err != nil {
		t.Fatal(err)
	}
	if n := rows(); n != 1 {
		t.Errorf("messages on record: got %d, want the one in flight", n)
	}
}
