package broker_test

import (
	"fmt"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// each runs a test on a core over each database. again closes the core and opens it
// anew; kill opens it anew without closing.
func each(t *testing.T, run func(t *testing.T, b *broker.Broker, again func() *broker.Broker)) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := open(t, db, broker.Limits{})
		defer func() { _ = b.Close(t.Context()) }()
		run(t, b, func() *broker.Broker {
			if err := b.Close(t.Context()); err != nil {
				t.Fatalf("close the broker: %v", err)
			}
			b = open(t, db, broker.Limits{})
			return b
		})
	})
}

func TestMessagesReachTheirSubscribers(t *testing.T) {
	each(t, func(t *testing.T, b *broker.Broker, _ func() *broker.Broker) {
		p := connect(t, b, clean("p"))
		for qos := range byte(3) {
			for _, h := range []broker.Hello{clean(fmt.Sprintf("clean-%d", qos)), kept(fmt.Sprintf("kept-%d", qos))} {
				s := connect(t, b, h)
				s.subscribe(filter("a/+/c", qos))
				for pub := range byte(3) {
					p.publish("a/b/c", fmt.Sprintf("%d-%d", qos, pub), pub, uint16(pub)+1)
					if pub == 2 {
						p.conn.Release(3)
					}
				}
				s.until("three messages", func() bool { return len(s.got) == 3 })
				for pub, d := range s.got {
					if want := min(qos, byte(pub)); d.QoS != want {
						t.Errorf("%s: message of QoS %d: got QoS %d, want %d", h.ClientID, pub, d.QoS, want)
					}
				}
				s.conn.Close(false, nil)
			}
		}
	})
}

func TestAKeptSessionMissesNothing(t *testing.T) {
	each(t, func(t *testing.T, b *broker.Broker, again func() *broker.Broker) {
		s := connect(t, b, kept("s"))
		s.subscribe(filter("#", 1))
		p := connect(t, b, clean("p"))
		p.publish("x", "live", 1, 1)
		s.receives("live")
		s.until("its acknowledgment", func() bool { return queued(t, b) == 0 })
		s.conn.Close(true, nil)
		var want []string
		for i := range 200 { // more than a page and more than is in flight at once
			p.publish("x", fmt.Sprint(i), 1, uint16(i)+2)
			want = append(want, fmt.Sprint(i))
		}
		p.until("every acknowledgment", func() bool { return len(p.acks) == 201 })

		b = again()
		s = connect(t, b, kept("s"))
		if !s.present {
			t.Error("after a restart: got no session, want the one that was kept")
		}
		p = connect(t, b, clean("p"))
		p.publish("x", "new", 1, 1)
		s.receives(append(want, "new")...)
		s.until("an empty queue", func() bool { return queued(t, b) == 0 })
	})
}

func TestQoS2ComesOnce(t *testing.T) {
	each(t, func(t *testing.T, b *broker.Broker, again func() *broker.Broker) {
		s := connect(t, b, kept("s"))
		s.subscribe(filter("#", 2))
		s.conn.Close(false, nil)
		p := connect(t, b, kept("p"))
		p.publish("x", "once", 2, 7)
		p.answered("5 7 0x0")
		b = again() // the publisher does not know whether PUBREC came
		p = connect(t, b, kept("p"))
		p.publish("x", "once", 2, 7)
		p.answered("5 7 0x0")
		p.conn.Release(7)
		p.answered("5 7 0x0", "7 7 0x0")

		s = connectAs(t, b, kept("s"), &client{hold: true})
		s.receives("once")
		id := s.got[0].ID
		s.conn.Acknowledge(broker.Pubrec, id, broker.Success)
		s.answered(fmt.Sprintf("6 %d 0x0", id))
		b = again() // the subscriber has it, and waits for PUBREL
		s = connectAs(t, b, kept("s"), &client{hold: true})
		s.answered(fmt.Sprintf("6 %d 0x0", id))
		s.conn.Acknowledge(broker.Pubcomp, id, broker.Success)
		s.until("an empty queue", func() bool { return queued(t, b) == 0 })
		s.receives()
	})
}

func TestRetainedMessagesStay(t *testing.T) {
	each(t, func(t *testing.T, b *broker.Broker, again func() *broker.Broker) {
		p := connect(t, b, clean("p"))
		for i, topic := range []string{"a/b", "a", "a/c", "$x/b"} {
			m := &broker.Message{Topic: topic, Payload: []byte(topic), QoS: 1, Retain: true, Device: "p"}
			if err := p.conn.Publish(m, uint16(i)+1); err != nil {
				t.Fatal(err)
			}
		}
		p.until("acknowledgments", func() bool { return len(p.acks) == 4 })
		gone := &broker.Message{Topic: "a/c", QoS: 1, Retain: true, Device: "p"}
		if err := p.conn.Publish(gone, 9); err != nil {
			t.Fatal(err)
		}
		p.until("acknowledgments", func() bool { return len(p.acks) == 5 })
		for range 2 {
			for f, want := range map[string]int{"#": 2, "a/#": 2, "a/+": 1, "a/b": 1, "+/b": 1, "$x/#": 1, "a/c": 0} {
				for _, h := range []broker.Hello{clean("s"), kept("s")} {
					s := connect(t, b, h)
					s.subscribe(filter(f, 1))
					s.until("retained messages of "+f, func() bool { return len(s.got) == want })
					for _, d := range s.got {
						if !d.Retain {
							t.Errorf("%s: got RETAIN 0, want 1", d.Topic)
						}
					}
					s.until("an empty queue", func() bool { return queued(t, b) == 0 })
					none := time.Duration(0)
					s.conn.Close(false, &none)
				}
			}
			if got := usage(t, b, "p").Retained; got != 3 {
				t.Errorf("retained messages of the device: got %d, want 3", got)
			}
			b = again()
		}
	})
}

// An operator drops what a device has stored; what it has from then on stays.
func TestPurgeDropsWhatWaits(t *testing.T) {
	each(t, func(t *testing.T, b *broker.Broker, again func() *broker.Broker) {
		s := connect(t, b, kept("s"))
		s.subscribe(filter("#", 1))
		s.conn.Close(false, nil)
		p := connect(t, b, clean("p"))
		for i := range 100 {
			p.publish("x", fmt.Sprint(i), 1, uint16(i)+1)
		}
		p.until("acknowledgments", func() bool { return len(p.acks) == 100 })
		done, err := b.Purge(t.Context(), "s", countersign.Stored{Queued: true})
		if err != nil || done.Queued != 100 {
			t.Fatalf("purge: got %+v, %v, want 100 messages dropped", done, err)
		}
		p.publish("x", "new", 1, 200)
		p.until("acknowledgments", func() bool { return len(p.acks) == 101 })
		s = connect(t, b, kept("s"))
		s.receives("new")
		s.until("an empty queue", func() bool { return queued(t, b) == 0 })
		s.conn.Close(false, nil)
		b = again()
		if got := queued(t, b); got != 0 {
			t.Errorf("after a restart: got %d messages that wait, want none", got)
		}
		if done, err := b.Purge(t.Context(), "s", countersign.Stored{Sessions: true}); err != nil || done.Sessions != 1 {
			t.Fatalf("purge: got %+v, %v, want one session dropped", done, err)
		}
		if s = connect(t, b, kept("s")); s.present {
			t.Error("after the purge: got a session, want none")
		}
	})
}

// Two processes with the rows of one node would undo each other's work: the older one
// records nothing any more.
func TestARowHasOneProcess(t *testing.T) {
	db := storetest.OpenURL(t, storetest.PostgresURL(t))
	older := open(t, db, broker.Limits{})
	defer func() { _ = older.Close(t.Context()) }()
	s := connect(t, older, kept("s"))
	s.subscribe(filter("#", 1))
	newer := open(t, db, broker.Limits{})
	defer func() { _ = newer.Close(t.Context()) }()
	p := connect(t, older, clean("p"))
	p.publish("x", "lost", 1, 1)
	p.answered("4 1 0x80")
	if s := connect(t, newer, kept("s")); !s.present {
		t.Error("at the newer process: got no session, want the one that is on record")
	}
}
