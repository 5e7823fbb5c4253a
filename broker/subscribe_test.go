package broker_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// A client subscribes again at each connection, also while messages arrive.
func TestSubscribingAgainNeitherDoublesNorLosesAMessage(t *testing.T) {
	for _, h := range []broker.Hello{clean("s"), kept("s")} {
		b, _ := onSQLite(t, broker.Limits{Queued: 1 << 20})
		s := connect(t, b, h)
		s.subscribe(filter("x", 1))
		const most = 3000
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range most {
				if err := b.Publish(t.Context(), &broker.Message{Topic: "x", Payload: fmt.Append(nil, i), QoS: 1}); err != nil {
					t.Error(err)
				}
				if h.Clean == false && i > 100 {
					return
				}
			}
		})
		stop := make(chan struct{})
		go func() { wg.Wait(); close(stop) }()
		for done := false; !done; {
			s.subscribe(filter("x", 1))
			select {
			case <-stop:
				done = true
			default:
			}
		}
		s.until("an empty queue", func() bool { return queued(t, b) == 0 })
		for i, text := range s.texts() {
			if text != fmt.Sprint(i) {
				t.Fatalf("%s: message %d: got %s", h.ClientID, i, text)
			}
		}
		if n := total(t, b).Subscriptions; n != 1 {
			t.Errorf("subscriptions: got %d, want 1", n)
		}
	}
}

// A SUBSCRIBE whose client did not wait for its end is in force or not, the same in
// memory and on record.
func TestASubscribeWithoutItsClientIsCountedOnce(t *testing.T) {
	for name, remove := range map[string]func(b *broker.Broker, s *client){
		"the session stays":             func(*broker.Broker, *client) {},
		"the session is removed":        func(_ *broker.Broker, s *client) { s.conn.Close(false, new(time.Duration)) },
		"the device is purged":          func(b *broker.Broker, _ *client) { b.Forget("s") },
		"another connection takes over": func(b *broker.Broker, s *client) { connect(t, b, kept("s")) },
	} {
		t.Run(name, func(t *testing.T) {
			b, db := onSQLite(t, broker.Limits{})
			s := connect(t, b, kept("s"))
			s.subscribe(filter("old", 1))
			release := stall(t, db)
			ctx, cancel := context.WithCancel(t.Context())
			got := make(chan []byte)
			go func() { got <- s.conn.Subscribe(ctx, []broker.Subscription{filter("new", 1), filter("old", 0)}) }()
			s.until("the count", func() bool { return usage(t, b, "s").Subscriptions == 2 })
			cancel()
			<-got
			remove(b, s)
			release()
			if total(t, b).Sessions+total(t, b).Kept > 0 {
				s.until("both subscriptions", func() bool { return usage(t, b, "s").Subscriptions == 2 })
				m := connect(t, b, kept("s"))
				m.subscribe(filter("later", 1)) // and so the one before is decided
				p := connect(t, b, clean("p"))
				p.publish("new", "1", 1, 1)
				m.receives("1")
				if codes := m.conn.Unsubscribe(t.Context(), []string{"new", "old", "never", "later"}); codes[0]+codes[1]+codes[3] != 0 || codes[2] != broker.NoSubscription {
					t.Errorf("UNSUBSCRIBE: got reason codes %#x", codes)
				}
				p.conn.Close(false, nil)
				m.conn.Close(false, new(time.Duration))
			}
			empty(t, b, db)
		})
	}
}

// TestASharedSubscriptionGetsNothingRetained holds MQTT 5, 4.8.2: the retained messages
// are not sent to one who joins, whatever its Retain Handling.
func TestASharedSubscriptionGetsNothingRetained(t *testing.T) {
	b, _ := onSQLite(t, broker.Limits{})
	p := connect(t, b, clean("p"))
	m := &broker.Message{Topic: "x", Payload: []byte("retained"), QoS: 1, Retain: true, Device: "p"}
	if err := p.conn.Publish(m, 1); err != nil {
		t.Fatal(err)
	}
	p.answered("4 1 0x0")
	s := connect(t, b, clean("s"))
	s.subscribe(filter("$share/g/x", 1))
	p.publish("x", "live", 1, 2)
	s.receives("live")
	s.subscribe(filter("x", 0)) // not shared
	s.receives("live", "retained")
}

// A member of a shared subscription that may not receive a message any more, because its
// policy has changed, takes no turn: the others have all messages.
func TestASharedMessageIsForAMemberThatMayReceiveIt(t *testing.T) {
	for _, qos := range []byte{0, 1} {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			b, _ := onSQLite(t, broker.Limits{})
			deaf := connectAs(t, b, kept("deaf"), &client{forbid: "x"})
			deaf.subscribe(filter("$share/g/+", qos))
			other := connect(t, b, kept("other"))
			other.subscribe(filter("$share/g/+", qos))
			p := connect(t, b, clean("p"))
			var want []string
			for i := range 6 {
				p.publish("x", fmt.Sprint(i), qos, uint16(i+1))
				want = append(want, fmt.Sprint(i))
			}
			other.receives(want...)
			other.until("the acknowledgments", func() bool { return queued(t, b) == 0 })
			other.conn.Close(false, nil)
			p.publish("x", "away", qos, 7)
			again := connect(t, b, kept("other"))
			if want = nil; qos > 0 {
				want = []string{"away"}
			}
			again.receives(want...)
			if len(deaf.got) > 0 {
				t.Errorf("the member that may not receive got %q", deaf.texts())
			}
		})
	}
}

// Two connections of which one took over may have subscribed to one filter twice. A
// crash before the older subscription's end is on record has it in force once.
func TestAFilterIsInForceOnceAfterARestart(t *testing.T) {
	db := storetest.Open(t)
	b := open(t, db, broker.Limits{})
	s := connect(t, b, kept("s"))
	s.subscribe(filter("x", 0))
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO mqtt_subscription (session, n, filter, options, sub_id) SELECT session, n + 1, filter, 1, sub_id FROM mqtt_subscription`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b = open(t, db, broker.Limits{})
	defer func() { _ = b.Close(context.Background()) }()
	s = connect(t, b, kept("s"))
	s.until("one row", func() bool { return count(t, db, "mqtt_subscription") == 1 })
	p := connect(t, b, clean("p"))
	p.publish("x", "1", 1, 1)
	p.publish("x", "2", 1, 2)
	s.receives("1", "2")
	if got := usage(t, b, "s").Subscriptions; got != 1 {
		t.Errorf("subscriptions that count: got %d, want 1", got)
	}
	if got := s.got[0].QoS; got != 1 {
		t.Errorf("got QoS %d, want that of the newer subscription", got)
	}
}

// shallow takes no message, and notes how deep in calls it is offered one.
type shallow struct {
	client
	depth, n int
}

func (c *shallow) Deliver(broker.Delivery) broker.Outcome {
	c.depth, c.n = max(c.depth, runtime.Callers(0, make([]uintptr, 1000))), c.n+1
	return broker.Dropped
}

// However many retained messages a client asks for that are too large for it, the stack
// does not grow with them.
func TestRetainedMessagesThatAreDroppedCostNoStack(t *testing.T) {
	b, _ := onSQLite(t, broker.Limits{Retained: 1000})
	const messages = 500
	for i := range messages {
		if err := b.Publish(t.Context(), &broker.Message{Topic: fmt.Sprint("r/", i), Payload: []byte("r"), QoS: 1, Retain: true, Device: "p"}); err != nil {
			t.Fatal(err)
		}
	}
	c := &shallow{}
	h := clean("s")
	h.ReceiveMax = 1
	conn, _, err := b.Connect(t.Context(), h, c)
	if err != nil {
		t.Fatal(err)
	}
	conn.Start()
	conn.Subscribe(t.Context(), []broker.Subscription{filter("r/#", 1)})
	conn.Retained()
	if c.n != messages || c.depth > 100 {
		t.Errorf("got %d of %d messages, at most %d calls deep", c.n, messages, c.depth)
	}
}
