package broker_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// stall has the one writer of SQLite busy until the returned function is called, which
// returns once it is free.
func stall(t *testing.T, db *store.DB) (release func()) {
	t.Helper()
	began, end, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = db.Write(context.Background(), func(context.Context, *store.Tx) error {
			close(began)
			<-end
			return nil
		})
	}()
	<-began
	release = sync.OnceFunc(func() { close(end); <-done })
	t.Cleanup(release)
	return release
}

// onSQLite runs a test on a core whose database can be stalled.
func onSQLite(t *testing.T, limits broker.Limits) (*broker.Broker, *store.DB) {
	db := storetest.Open(t)
	b := open(t, db, limits)
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b, db
}

// empty waits until no device has anything, and the record of the node is empty.
func empty(t *testing.T, b *broker.Broker, db *store.DB) {
	t.Helper()
	var accounts []countersign.Usage
	var sum countersign.Usage
	var left int
	for range 1000 {
		var err error
		if accounts, err = b.Usage(t.Context(), countersign.UsageFilter{Limit: 10}); err != nil {
			t.Fatal(err)
		}
		sum, left = total(t, b), rows(t, db)
		if len(accounts) == 0 && sum == (countersign.Usage{}) && left == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("got %+v, in all %+v, and %d rows, want nothing", accounts, sum, left)
}

// total is what all devices have.
func total(t testing.TB, b *broker.Broker) countersign.Usage {
	t.Helper()
	sum, err := b.TotalUsage(t.Context())
	if err != nil {
		t.Fatalf("usage: %v", err)
	}
	return sum
}

// rows counts what is on record.
func rows(t *testing.T, db *store.DB) (n int) {
	t.Helper()
	err := db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM mqtt_session) + (SELECT count(*) FROM mqtt_subscription) +
		(SELECT count(*) FROM mqtt_queue) + (SELECT count(*) FROM mqtt_mark) + (SELECT count(*) FROM mqtt_inbound) + (SELECT count(*) FROM mqtt_retained)`).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A client that reconnects twice, and had no time to get what is in flight again, gets
// what it did not acknowledge, and nothing else, also while the record is behind.
func TestAnAcknowledgedMessageIsNotReadAgain(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		b, db := onSQLite(t, broker.Limits{})
		s := connectAs(t, b, kept("s"), &client{hold: true})
		s.subscribe(filter("#", qos))
		p := connect(t, b, clean("p"))
		for i := range 3 {
			p.publish("x", fmt.Sprint(i), qos, uint16(i)+1)
		}
		s.receives("0", "1", "2")
		acknowledge := func(d broker.Delivery) {
			if qos == 1 {
				s.conn.Acknowledge(broker.Puback, d.ID, broker.Success)
				return
			}
			s.conn.Acknowledge(broker.Pubrec, d.ID, broker.Success)
			s.until("PUBREL", func() bool { return len(s.acks) > 0 })
			s.acks = nil
			s.conn.Acknowledge(broker.Pubcomp, d.ID, broker.Success)
		}
		if qos == 2 { // PUBREC of it has to be on record first
			s.conn.Acknowledge(broker.Pubrec, s.got[1].ID, broker.Success)
			s.until("PUBREL", func() bool { return len(s.acks) == 1 })
		}
		release := stall(t, db)
		if qos == 2 {
			s.conn.Acknowledge(broker.Pubcomp, s.got[1].ID, broker.Success)
		} else {
			acknowledge(s.got[1])
		}
		early := &client{hold: true, room: -1, t: t, b: b}
		if _, _, err := b.Connect(t.Context(), kept("s"), early); err != nil { // and is not started
			t.Fatal(err)
		}
		s = connectAs(t, b, kept("s"), &client{hold: true})
		s.receives("0", "2")
		if got := usage(t, b, "s").Queued; got != 2 {
			t.Errorf("QoS %d: messages that wait: got %d, want 2", qos, got)
		}
		release()
		p.publish("x", "3", qos, 9)
		s.receives("0", "2", "3")
		for _, d := range s.got {
			acknowledge(d)
		}
		s.until("an empty queue", func() bool { return usage(t, b, "s").Queued == 0 && usage(t, b, "s").QueuedOctets == 0 })
	}
}

// What is in flight comes again with DUP and its packet identifier, what was not sent
// without, [MQTT-3.3.1-1] and [MQTT-4.4.0-1]; over a restart too.
func TestWhatIsInFlightComesAgainAsDuplicate(t *testing.T) {
	each(t, func(t *testing.T, b *broker.Broker, again func() *broker.Broker) {
		h := kept("s")
		h.ReceiveMax = 2
		s := connectAs(t, b, h, &client{hold: true})
		s.subscribe(filter("x", 2))
		p := connect(t, b, clean("p"))
		for i, text := range []string{"a", "b", "c"} {
			p.publish("x", text, byte(i%2)+1, uint16(i)+1)
		}
		s.receives("a", "b")
		p.until("acknowledgments", func() bool { return len(p.acks) == 3 })
		first := s.got
		for _, restart := range []bool{false, true} {
			s.conn.Close(false, nil)
			if restart {
				b = again()
			}
			s = connectAs(t, b, h, &client{hold: true})
			s.receives("a", "b")
			for i, d := range s.got {
				if !d.Dup || d.ID != first[i].ID || d.QoS != first[i].QoS {
					t.Errorf("restart %t: got %s with DUP %t and identifier %d, want DUP and %d", restart, d.Payload, d.Dup, d.ID, first[i].ID)
				}
			}
		}
		s.conn.Acknowledge(broker.Puback, first[0].ID, broker.Success)
		s.receives("a", "b", "c")
		if s.got[2].Dup {
			t.Error("the message that was not sent before: got DUP")
		}
	})
}
