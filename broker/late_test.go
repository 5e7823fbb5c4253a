package broker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// A publisher that lost its connection before PUBREC came sends its message of QoS 2
// again on the next one: it is answered as the first is, and no sooner.
func TestAMessageThatComesAgainIsAnsweredAsTheFirst(t *testing.T) {
	for name, cut := range map[string]bool{"recorded": false, "not recorded": true} {
		t.Run(name, func(t *testing.T) {
			b, _, proxy := proxied(t)
			s := connect(t, b, kept("s"))
			s.subscribe(filter("x", 2))
			connect(t, b, kept("p"))
			p := connect(t, b, kept("p"))
			proxy.Hang()
			p.publish("x", "once", 2, 7)
			p = connect(t, b, kept("p"))
			p.publish("x", "once", 2, 7)
			if len(p.acks) > 0 {
				t.Fatalf("before the record: got %q", p.acks)
			}
			if cut {
				proxy.Cut()
				p.answered("5 7 0x80")
				proxy.Heal()
				p.acks = nil
				p.publish("x", "once", 2, 7)
			} else {
				proxy.Heal()
			}
			p.answered("5 7 0x0")
			s.receives("once")
		})
	}
}

// One who subscribes while a retained message is on its way to the record gets it: it
// was routed before.
func TestARetainedMessageOnItsWayIsShown(t *testing.T) {
	b, db := onSQLite(t, broker.Limits{})
	p := connect(t, b, clean("p"))
	retain := func(payload string, id uint16) {
		m := &broker.Message{Topic: "r", Payload: []byte(payload), QoS: 1, Retain: true, Device: "p"}
		if err := p.conn.Publish(m, id); err != nil {
			t.Fatal(err)
		}
	}
	retain("old", 1)
	p.answered("4 1 0x0")
	for i, payload := range []string{"new", ""} {
		release := stall(t, db)
		retain(payload, uint16(i)+2)
		s := connect(t, b, clean("s"))
		s.subscribe(filter("r", 1))
		if payload == "" {
			s.receives()
		} else {
			s.receives(payload)
		}
		if len(p.acks) != i+1 {
			t.Errorf("before the record: got acknowledgments %q", p.acks)
		}
		release()
		p.until("the acknowledgment", func() bool { return len(p.acks) == i+2 })
		s.conn.Close(false, nil)
	}
}

// One who subscribes while a retained message is on its way to the record, and can take
// it only once it turned out not to get there, gets the one that stays.
func TestARetainedMessageThatStaysIsShownAgain(t *testing.T) {
	b, _, proxy := proxied(t)
	p := connect(t, b, clean("p"))
	retain := func(topic, payload string, id uint16) {
		m := &broker.Message{Topic: topic, Payload: []byte(payload), QoS: 1, Retain: true, Device: "p"}
		if err := p.conn.Publish(m, id); err != nil {
			t.Fatal(err)
		}
	}
	retain("first", "first", 1)
	retain("r", "old", 2)
	p.answered("4 1 0x0", "4 2 0x0")
	proxy.Hang()
	retain("r", "new", 3)
	hello := clean("s")
	hello.ReceiveMax = 1
	s := connectAs(t, b, hello, &client{hold: true})
	s.subscribe(filter("first", 1))
	s.subscribe(filter("r", 1))
	s.receives("first")
	proxy.Cut()
	p.until("the refusal", func() bool { return len(p.acks) == 3 && p.acks[2] == "4 3 0x80" })
	s.conn.Acknowledge(broker.Puback, s.got[0].ID, broker.Success)
	s.receives("first", "old")
}

// The purge of a device that the database did not take is written before anything of
// the device's next life.
func TestALatePurgeEndsNoNewLife(t *testing.T) {
	b, db, proxy := proxied(t)
	s := connect(t, b, kept("s"))
	s.subscribe(filter("old", 1))
	proxy.Cut()
	b.Forget("s")
	s.until("the failure", func() bool { return b.Stats().CommitFailed > 0 })
	proxy.Heal()
	s = connect(t, b, kept("s"))
	s.subscribe(filter("new", 1))
	s.conn.Close(false, nil)
	time.Sleep(1500 * time.Millisecond) // more than the pause before it is written again
	if s := count(t, db, "mqtt_session"); s != 1 {
		t.Errorf("sessions on record: got %d, want that of the new life", s)
	}
	if s := count(t, db, "mqtt_subscription"); s != 1 {
		t.Errorf("subscriptions on record: got %d, want that of the new life", s)
	}
}

// A purge that can't be recorded does not hold up the end of the process, and nor does
// what was to be written behind it.
func TestTheEndWaitsForNoPurge(t *testing.T) {
	for _, behind := range []bool{false, true} {
		b, _, proxy := proxied(t)
		s := connect(t, b, kept("s"))
		s.subscribe(filter("x", 1))
		gone := connect(t, b, clean("gone"))
		proxy.Cut()
		b.Forget("s")
		if behind {
			gone.conn.Close(false, nil)
			b.Forget("gone")
		}
		closed := make(chan error, 1)
		go func() { closed <- b.Close(context.Background()) }()
		select {
		case err := <-closed:
			if err == nil {
				t.Error("got no error, want one that says how many changes were not written")
			}
		case <-time.After(kit.Patience):
			t.Fatalf("with more behind it %v: Close did not return", behind)
		}
	}
}

// A database that takes nothing holds up the end of the process for as long as its
// caller waits, and no longer.
func TestTheEndWaitsForAHangingDatabaseAsLongAsItsCaller(t *testing.T) {
	db := storetest.OpenURL(t, storetest.SQLiteURL(t))
	b := open(t, db, broker.Limits{})
	s := connect(t, b, kept("s"))
	release := stall(t, db)
	defer release()
	s.conn.Close(false, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- b.Close(ctx) }()
	select {
	case err := <-closed:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want that what waits was not written", err)
		}
	case <-time.After(kit.Patience):
		t.Fatal("Close did not return")
	}
}

// A purge whose caller has gone, and which is written again, holds up nothing.
func TestAPurgeWithoutItsCallerEnds(t *testing.T) {
	b, db, proxy := proxied(t)
	s := connect(t, b, kept("s"))
	s.subscribe(filter("x", 1))
	s.conn.Close(false, nil)
	proxy.Cut()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Purge(ctx, "s", countersign.Stored{All: true}); err == nil {
		t.Error("got no error")
	}
	s.until("two failures", func() bool { return b.Stats().CommitFailed > 1 })
	proxy.Heal()
	s.until("the purge", func() bool { return total(t, b).Kept == 0 && rows(t, db) == 0 })
	s = connect(t, b, kept("s"))
	s.subscribe(filter("x", 1))
	p := connect(t, b, clean("p"))
	p.publish("x", "1", 1, 1)
	s.receives("1")
}

// What is dropped from the queue of a client that is away is not what it has received:
// that is delivered again, and its identifiers stay in use.
func TestAPurgeSparesWhatIsInFlight(t *testing.T) {
	b, db := onSQLite(t, broker.Limits{})
	h := kept("s")
	h.ReceiveMax = 2
	s := connectAs(t, b, h, &client{hold: true})
	s.subscribe(filter("x", 2))
	p := connect(t, b, clean("p"))
	for i, text := range []string{"a", "b", "c", "d"} {
		p.publish("x", text, 2, uint16(i)+1)
	}
	s.receives("a", "b")
	p.until("acknowledgments", func() bool { return len(p.acks) == 4 })
	s.conn.Close(false, nil)
	if done, err := b.Purge(t.Context(), "s", countersign.Stored{Queued: true}); err != nil || done.Queued != 2 {
		t.Fatalf("purge: got %+v, %v, want two messages dropped", done, err)
	}
	if got := messages(t, db); got != 2 {
		t.Errorf("messages on record: got %d, want 2", got)
	}
	s = connect(t, b, h)
	s.receives("a", "b")
	s.until("an empty queue", func() bool { return queued(t, b) == 0 })
}

// A publisher that does not come to flush what it delivered, because half a packet
// follows, holds up no message of others.
func TestALatePublisherHoldsUpNoOther(t *testing.T) {
	b, _ := onSQLite(t, broker.Limits{})
	s := connect(t, b, clean("s"))
	s.subscribe(filter("x", 1))
	late, p := connect(t, b, clean("late")), connect(t, b, clean("p"))
	flushed := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.flushed
	}
	for qos := range byte(2) {
		if err := late.conn.Publish(&broker.Message{Topic: "x", Payload: []byte("late"), Device: "late"}, 0); err != nil {
			t.Fatal(err)
		}
		before := flushed()
		p.publish("x", "m", qos, 1)
		if flushed() == before {
			t.Errorf("QoS %d: the receiver was not flushed", qos)
		}
	}
	before := flushed()
	late.conn.Flush()
	if flushed() == before {
		t.Error("the receiver was not flushed by the late publisher")
	}
}

// What changed of a session while the database was away is recorded when it is back, and
// so is what is recorded with it.
func TestWhatChangedOfASessionMeanwhileIsRecorded(t *testing.T) {
	b, db, proxy := proxied(t)
	s := connectAs(t, b, kept("s"), &client{hold: true})
	s.subscribe(filter("x", 1))
	p := connect(t, b, clean("p"))
	p.publish("x", "1", 1, 1)
	s.until("the message", func() bool { return len(s.got) == 1 })
	proxy.Cut()
	s.conn.Acknowledge(broker.Puback, s.got[0].ID, broker.Success)
	s.conn.Close(false, nil)
	s.until("two failures", func() bool { return b.Stats().CommitFailed > 1 })
	proxy.Heal()
	s.until("the end of its message and of its connection on record", func() bool { return leftAt(t, db) > 0 && messages(t, db) == 0 })
}

// Nothing that waits goes to a client for the first time before the record has its session
// connected, though the queue can be read: after a crash it would be sent as if for the
// first time again, or dropped as expired.
func TestWhatWaitsIsSentOnceTheSessionIsConnectedOnRecord(t *testing.T) {
	for name, hinder := range map[string]func(t *testing.T) (b *broker.Broker, begin func() (end func())){
		"a busy writer": func(t *testing.T) (*broker.Broker, func() func()) {
			b, db := onSQLite(t, broker.Limits{})
			return b, func() func() { return stall(t, db) }
		},
		"a refused change": func(t *testing.T) (*broker.Broker, func() func()) {
			b, _, proxy := proxied(t)
			return b, func() func() { proxy.RefuseWrites(); return proxy.Heal }
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, begin := hinder(t)
			s := connect(t, b, kept("s"))
			s.subscribe(filter("x", 1))
			s.conn.Close(false, nil)
			p := connect(t, b, clean("p"))
			p.publish("x", "1", 1, 1)
			p.answered("4 1 0x0")
			end := begin()
			s = connect(t, b, kept("s"))
			if name == "a refused change" {
				s.until("a failure", func() bool { return b.Stats().CommitFailed > 0 })
			}
			time.Sleep(200 * time.Millisecond)
			if got := s.texts(); len(got) > 0 {
				t.Errorf("before the record had the session connected: got %q, want nothing", got)
			}
			end()
			s.receives("1")
		})
	}
}

// A session that a clean start ended is off the record before CONNACK, so that no crash
// brings it back.
func TestACleanStartIsAnsweredOnceTheOldSessionIsOffTheRecord(t *testing.T) {
	for _, hello := range []broker.Hello{clean("s"), {ClientID: "s", Device: "s", Clean: true, Kept: 16, Expiry: time.Hour}} {
		db := storetest.OpenURL(t, storetest.SQLiteURL(t))
		b := open(t, db, broker.Limits{})
		s := connect(t, b, kept("s"))
		s.subscribe(filter("x", 1))
		s.conn.Close(false, nil)
		release := stall(t, db)
		answered := make(chan error, 1)
		go func() {
			_, _, err := b.Connect(t.Context(), hello, &client{t: t, changed: make(chan struct{}, 1)})
			answered <- err
		}()
		select {
		case err := <-answered:
			answered <- err
			t.Errorf("expiry %v: answered before the old session was off the record", hello.Expiry)
		case <-time.After(200 * time.Millisecond):
		}
		release()
		if err := <-answered; err != nil {
			t.Error(err)
		}
		if n := count(t, db, "mqtt_subscription"); n != 0 {
			t.Errorf("expiry %v: subscriptions on record: got %d, want none", hello.Expiry, n)
		}
		_ = b.Close(context.Background())
	}
}

// A clean start is answered soon although nothing is written before a purge that cannot be
// recorded.
func TestACleanStartWaitsForTheRecordWithinABound(t *testing.T) {
	b, _, proxy := proxied(t)
	s := connect(t, b, kept("s"))
	s.subscribe(filter("x", 1))
	s.conn.Close(false, nil)
	connect(t, b, kept("gone"))
	proxy.Cut()
	b.Forget("gone")
	s.until("the purge to fail", func() bool { return b.Stats().CommitFailed > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, present, err := b.Connect(ctx, clean("s"), &client{t: t, changed: make(chan struct{}, 1)})
	if err != nil || present {
		t.Errorf("got present %v, error %v; want a new session", present, err)
	}
	if ctx.Err() != nil {
		t.Error("it was not answered before its caller gave up")
	}
}
