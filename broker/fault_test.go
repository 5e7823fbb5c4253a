package broker_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// proxied is a core over PostgreSQL behind a proxy that has faults.
func proxied(t *testing.T) (b *broker.Broker, db *store.DB, proxy *storetest.Proxy) {
	proxy = storetest.NewProxy(t, storetest.PostgresURL(t))
	db = storetest.OpenURL(t, proxy.URL())
	b = open(t, db, broker.Limits{})
	t.Cleanup(func() {
		proxy.Heal()
		_ = b.Close(context.Background())
	})
	return b, db, proxy
}

// The answer of COMMIT is lost, and the database gone for a while: what the publisher is
// answered is what the record has, and is delivered once.
func TestAnUnansweredCommitIsFoundOut(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		for name, lose := range map[string]func(*storetest.Proxy, string) <-chan struct{}{
			"recorded": (*storetest.Proxy).LoseCommit, "not recorded": (*storetest.Proxy).DropCommit,
		} {
			for _, gone := range []bool{false, true} {
				t.Run(fmt.Sprintf("QoS %d %s gone %t", qos, name, gone), func(t *testing.T) {
					b, db, proxy := proxied(t)
					s := connectAs(t, b, kept("s"), &client{hold: true})
					s.subscribe(filter("x", qos))
					p := connect(t, b, kept("p"))
					mark := strings.Repeat("mark", 8)
					lost := lose(proxy, mark)
					if gone {
						go func() { <-lost; proxy.Cut(); time.Sleep(1500 * time.Millisecond); proxy.Heal() }()
					}
					p.publish("x", mark, qos, 7)
					p.until("the answer", func() bool { return len(p.acks) == 1 })
					recorded := strings.HasSuffix(p.acks[0], " 0x0")
					if must := name == "recorded"; must && !recorded || !must && gone && recorded { // without a pause it is written again
						t.Errorf("got the answer %q", p.acks[0])
					}
					want := map[bool]int{true: 1}[recorded]
					if got := messages(t, db); got != want {
						t.Errorf("messages on record: got %d, want %d", got, want)
					}
					if got := usage(t, b, "s").Queued; got != want {
						t.Errorf("messages that count: got %d, want %d", got, want)
					}
					if qos == 2 && count(t, db, "mqtt_inbound") != want {
						t.Errorf("identifiers on record: got %d, want %d", count(t, db, "mqtt_inbound"), want)
					}
					p.publish("x", mark, qos, 7) // a publisher that was refused, or does not know
					p.until("the next answer", func() bool { return len(p.acks) == 2 })
					if qos == 1 {
						want++
					} else {
						want = 1
					}
					s.until("the messages", func() bool { return len(s.got) == want })
					if got := messages(t, db); got != want {
						t.Errorf("messages on record at the end: got %d, want %d", got, want)
					}
				})
			}
		}
	}
}

// While the database hangs, messages that it does not concern flow, publishers of the
// others wait, and nothing grows without bound; afterwards all come, once, in order.
func TestAHangingDatabaseHoldsUpWhatItConcerns(t *testing.T) {
	b, db, proxy := proxied(t)
	s := connect(t, b, kept("s"))
	s.subscribe(filter("kept", 1))
	away := connect(t, b, kept("away"))
	away.subscribe(filter("kept", 1))
	away.conn.Close(false, nil)
	live := connect(t, b, clean("live"))
	live.subscribe(filter("live", 1))
	p, other := connect(t, b, clean("p")), connect(t, b, clean("other"))
	proxy.Hang()
	var sent atomic.Int64
	const most = 600
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range most {
			p.publish("kept", fmt.Sprint(i), 1, uint16(i)+1)
			sent.Add(1)
		}
	}()
	s.until("a full window", func() bool { return sent.Load() >= 256 })
	for i := range 50 {
		other.publish("live", fmt.Sprint(i), byte(i%2), uint16(i)+1)
	}
	live.until("the messages of the others", func() bool { return len(live.got) == 50 })
	other.until("their acknowledgments", func() bool { return len(other.acks) == 25 })
	for range 2000 {
		m := &broker.Message{Topic: "gone", QoS: 0, Retain: true, Device: "other"} // ends what is not there
		_ = other.conn.Publish(m, 0)
	}
	if n := sent.Load(); n > 260 {
		t.Errorf("publishes that wait: got %d, want about 256", n)
	}
	if len(p.acks) != 0 {
		t.Errorf("acknowledgments while the database hangs: got %q", p.acks)
	}
	proxy.Heal()
	<-done
	p.until("all acknowledgments", func() bool { return len(p.acks) == most })
	s.until("all messages", func() bool { return len(s.got) == most })
	away = connect(t, b, kept("away"))
	away.until("all messages", func() bool { return len(away.got) == most })
	for _, c := range []*client{s, away} {
		for i, text := range c.texts() {
			if text != fmt.Sprint(i) {
				t.Fatalf("message %d: got %s", i, text)
			}
		}
	}
	s.until("an empty queue", func() bool { return queued(t, b) == 0 && messages(t, db) == 0 })
}

// While the database is away publishers are refused, and what was acknowledged by
// receivers is ended later.
func TestWhatIsLazyIsWrittenWhenTheDatabaseIsBack(t *testing.T) {
	b, db, proxy := proxied(t)
	s := connectAs(t, b, kept("s"), &client{hold: true})
	s.subscribe(filter("#", 2))
	p := connect(t, b, kept("p"))
	for i := range 10 {
		p.publish("x", fmt.Sprint(i), byte(i%2)+1, uint16(i)+1)
	}
	s.until("ten messages", func() bool { return len(s.got) == 10 })
	proxy.Cut()
	p.publish("x", "refused", 1, 20)
	p.until("the refusal", func() bool { return p.acks[len(p.acks)-1] == "4 20 0x80" })
	p.conn.Release(2) // PUBREL of the second message: its PUBCOMP waits for the record
	for _, d := range s.got {
		kind := broker.Puback
		if d.QoS == 2 {
			kind = broker.Pubrec
		}
		s.conn.Acknowledge(kind, d.ID, broker.Success)
	}
	gone := connect(t, b, clean("gone"))
	gone.conn.Close(false, nil)
	b.Forget("gone")
	time.Sleep(1200 * time.Millisecond) // one more try fails
	proxy.Heal()
	s.until("PUBREL of the others", func() bool { return len(s.acks) == 5 })
	for _, d := range s.got {
		s.conn.Acknowledge(broker.Pubcomp, d.ID, broker.Success)
	}
	s.until("an empty queue", func() bool { return queued(t, b) == 0 && messages(t, db) == 0 })
	p.until("PUBCOMP", func() bool { return p.acks[len(p.acks)-1] == "7 2 0x0" })
	p = connect(t, b, kept("p"))
	p.publish("x", "new", 2, 2)
	s.until("the new message", func() bool { return len(s.got) == 11 })
}

// A database without space refuses what fills it: other messages pass, and what ends
// makes room.
func TestAFullDatabaseRefusesWhatFillsIt(t *testing.T) {
	db, err := store.Open(t.Context(), store.Options{
		URL: storetest.SQLiteURL(t), Now: time.Now, Log: slog.New(slog.DiscardHandler), MaxBytes: 3 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	b := open(t, db, broker.Limits{QueuedOctets: 1 << 30})
	defer func() { _ = b.Close(context.Background()) }()
	s := connect(t, b, kept("s"))
	s.subscribe(filter("kept", 1))
	s.conn.Close(false, nil)
	live := connect(t, b, clean("live"))
	live.subscribe(filter("live", 1))
	p := connect(t, b, clean("p"))
	large := strings.Repeat("x", 32<<10)
	stored := 0
	for i := range 200 {
		p.publish("kept", large, 1, uint16(i)+1)
		p.until("the answer", func() bool { return len(p.acks) == i+1 })
		if strings.HasSuffix(p.acks[i], " 0x80") {
			break
		}
		stored++
	}
	if stored == 0 || stored == 200 {
		t.Fatalf("messages that fit: got %d", stored)
	}
	if got := usage(t, b, "s").Queued; got != stored {
		t.Errorf("messages that count: got %d, want %d", got, stored)
	}
	p.acks = nil
	p.publish("live", "1", 1, 1000)
	live.receives("1")
	p.answered("4 1000 0x0")
	s = connect(t, b, kept("s"))
	s.until("what was stored", func() bool { return len(s.got) == stored })
	s.until("an empty queue", func() bool { return queued(t, b) == 0 && messages(t, db) == 0 })
	s.conn.Close(false, nil)
	p.acks = nil
	p.publish("kept", large, 1, 2000)
	p.answered("4 2000 0x0")
}
