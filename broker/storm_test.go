package broker_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

const stormTime = 5 * time.Second

// stormy does what devices may do, in no order, on one of a few client identifiers.
type stormy struct {
	b     *broker.Broker
	until time.Time
	unit  time.Duration // of what their sessions are kept for
}

func (s stormy) run(t *testing.T, r *rand.Rand, n int) {
	b, until, unit := s.b, s.until, s.unit
	id := fmt.Sprint("c", n%30) // some take over from one another
	device := fmt.Sprint("d", n%20)
	topic := func() string { return fmt.Sprintf("t/%d/%d", r.IntN(3), r.IntN(3)) }
	for time.Now().Before(until) {
		h := broker.Hello{ClientID: id, Device: device, Clean: r.IntN(4) == 0, Kept: r.IntN(3), ReceiveMax: uint16(r.IntN(8))}
		if r.IntN(2) == 0 {
			h.Expiry = time.Duration(r.IntN(3)) * unit
		}
		if r.IntN(2) == 0 {
			h.Will = &broker.Will{
				Message: broker.Message{Topic: topic(), Payload: []byte("w"), QoS: byte(r.IntN(3)), Retain: r.IntN(2) == 0, Device: device},
				Delay:   time.Duration(r.IntN(2)) * time.Second,
			}
		}
		c := &client{t: t, b: b, room: -1, changed: make(chan struct{}, 1), hold: true}
		conn, _, err := b.Connect(t.Context(), h, c)
		if countersign.CodeOf(err) == countersign.Unavailable { // the database is away
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			t.Error(err)
			return
		}
		c.mu.Lock()
		c.conn = conn
		c.mu.Unlock()
		conn.Start()
		for range r.IntN(60) {
			stormyStep(r, c, device, topic())
		}
		conn.Flush()
		var expiry *time.Duration
		if r.IntN(3) == 0 {
			expiry = new(time.Duration(r.IntN(2)) * unit)
		}
		conn.Close(r.IntN(2) == 0, expiry)
		if r.IntN(10) == 0 {
			b.Forget(device)
		}
	}
}

func stormyStep(r *rand.Rand, c *client, device, topic string) {
	filters := []string{"#", "t/+/1", "t/1/#", "t/2/2", "$share/g/t/#", "$share/g/t/+/1"}
	id := uint16(r.IntN(50)) + 1
	switch r.IntN(10) {
	case 0:
		c.conn.Subscribe(c.t.Context(), []broker.Subscription{
			{Filter: filters[r.IntN(len(filters))], QoS: byte(r.IntN(3)), ID: uint32(r.IntN(3))},
			{Filter: filters[r.IntN(4)], QoS: byte(r.IntN(3)), NoLocal: r.IntN(2) == 0, AsPublished: r.IntN(2) == 0, Handling: byte(r.IntN(3))},
		})
		c.conn.Retained()
	case 1:
		c.conn.Unsubscribe(c.t.Context(), []string{filters[r.IntN(len(filters))]})
	case 2:
		c.conn.Release(id)
	case 3:
		c.mu.Lock()
		if c.room = r.IntN(3); c.room == 0 {
			c.room = -1
		}
		c.mu.Unlock()
		c.conn.Wake()
	case 4, 5:
		c.mu.Lock()
		got := c.got
		c.got = nil
		c.mu.Unlock()
		for _, d := range got {
			kind := broker.Puback
			if d.QoS == 2 {
				kind = broker.Pubrec
			}
			if d.QoS > 0 {
				c.conn.Acknowledge(kind, d.ID, broker.Success)
				c.conn.Acknowledge(broker.Pubcomp, d.ID, broker.Success)
			}
		}
	default:
		m := &broker.Message{Topic: topic, Payload: make([]byte, r.IntN(200)), QoS: byte(r.IntN(3)), Retain: r.IntN(3) == 0, Device: device}
		if r.IntN(4) == 0 {
			m.Expires = time.Now().Add(time.Duration(r.IntN(1000)) * time.Millisecond)
		}
		_ = c.conn.Publish(m, id) // of QoS 2 there may be too many
		c.conn.Flush()
	}
}

// TestStorm has fifty clients do what they may, at once, with small bounds. Afterwards
// nothing is left of their devices: not a count, a row or a goroutine.
func TestStorm(t *testing.T) {
	db := storetest.Open(t)
	before := runtime.NumGoroutine()
	b := open(t, db, broker.Limits{Subscriptions: 5, Retained: 4, Queued: 60, QueuedOctets: 20 << 10})
	var wg sync.WaitGroup
	all := stormy{b, time.Now().Add(stormTime), time.Second}
	for n := range 50 {
		wg.Go(func() { all.run(t, rand.New(rand.NewPCG(1, uint64(n))), n) })
	}
	wg.Wait()
	for n := range 20 {
		purge(t, b, db, fmt.Sprint("d", n))
	}
	empty(t, b, db)
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("goroutines: got %d, want %d", runtime.NumGoroutine(), before)
		}
	}
}

// TestStormOverOutages has the database refuse what clients do again and again. Afterwards
// the record has what the core has, and both lose it with its devices.
func TestStormOverOutages(t *testing.T) {
	b, db, proxy := proxied(t)
	var wg sync.WaitGroup
	const outages = 4
	all := stormy{b, time.Now().Add(outages * time.Second), time.Hour}
	for n := range 30 {
		wg.Go(func() { all.run(t, rand.New(rand.NewPCG(rand.Uint64(), uint64(n))), n) })
	}
	for n := range outages {
		time.Sleep(300 * time.Millisecond)
		proxy.LoseCommit("t/1/1")
		proxy.DropCommit("t/2/2")
		if n%2 == 0 {
			proxy.LoseCommitAndCut("t/0/0")
		}
		time.Sleep(100 * time.Millisecond)
		[]func(){proxy.RefuseWrites, proxy.Cut, proxy.Hang}[n%3]()
		ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
		_, _ = b.Purge(ctx, fmt.Sprint("d", n), countersign.Stored{Queued: true, Retained: true})
		<-ctx.Done()
		cancel()
		proxy.Heal()
	}
	wg.Wait()
	time.Sleep(4 * time.Second) // wills, and what is tried again
	want := total(t, b)
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	again := open(t, db, broker.Limits{})
	defer func() { _ = again.Close(context.Background()) }()
	if got := total(t, again); got != want {
		t.Errorf("on record:\n got %+v\nwant %+v, what the core had", got, want)
	}
	if want.Kept == 0 || want.Queued == 0 || want.Retained == 0 {
		t.Errorf("got %+v, which shows nothing", want)
	}
	for n := range 20 {
		purge(t, again, db, fmt.Sprint("d", n))
	}
	empty(t, again, db)
}

// history is a publisher that publishes a message again, under the same identifier,
// until it is acknowledged, as a client does over connections and crashes of its broker.
type history struct {
	acked [3]atomic.Int64 // the newest message, by QoS
}

func (p *history) run(ctx context.Context, b *broker.Broker, qos byte, t *testing.T) {
	id := fmt.Sprint("p", qos)
	c := &client{t: t, room: -1, changed: make(chan struct{}, 1)}
	conn, _, err := b.Connect(ctx, kept(id), c)
	if err != nil {
		return
	}
	conn.Start()
	for n := p.acked[qos].Load() + 1; ctx.Err() == nil; n++ {
		packet := uint16(n%60000) + 1
		m := &broker.Message{Topic: fmt.Sprint("x/", qos), Payload: fmt.Append(nil, n), QoS: qos, Device: id}
		if err := conn.Publish(m, packet); err != nil {
			t.Error(err)
			return
		}
		if !c.answer(ctx, fmt.Sprintf("%d %d 0x0", 3+qos, packet)) {
			return
		}
		p.acked[qos].Store(n)
		if qos == 2 {
			conn.Release(packet)
			if !c.answer(ctx, fmt.Sprintf("7 %d 0x0", packet)) {
				// What the client does not know it asks again; the identifiers of its
				// next messages are others.
				return
			}
		}
	}
}

// answer waits for one acknowledgment.
func (c *client) answer(ctx context.Context, want string) bool {
	for {
		c.mu.Lock()
		n := len(c.acks)
		got := ""
		if n > 0 {
			got, c.acks = c.acks[0], c.acks[1:]
		}
		c.mu.Unlock()
		if n > 0 {
			return got == want
		}
		select {
		case <-c.changed:
		case <-ctx.Done():
			return false
		}
	}
}

// TestACrashLosesNothingAcknowledged stops all writing at some moment and goes on with
// what the record has: again and again. What was acknowledged arrives in order; of QoS 2
// once, whatever comes again; and what comes again says so.
func TestACrashLosesNothingAcknowledged(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		crashes(t, storetest.SQLiteURL(t), 12, func(l *life) {
			time.Sleep(time.Duration(50+rand.IntN(100)) * time.Millisecond)
			l.crash()
		})
	})
	// The database takes nothing for a while before. The subscriber comes back to a queue
	// that can be read then.
	t.Run("postgres", func(t *testing.T) {
		proxy := storetest.NewProxy(t, storetest.PostgresURL(t))
		crashes(t, proxy.URL(), 8, func(l *life) {
			pause := func(most int) { time.Sleep(time.Duration(rand.IntN(most)) * time.Millisecond) }
			pause(200)
			if rand.IntN(4) > 0 {
				l.leave()
				pause(200)
				proxy.RefuseWrites()
				pause(50)
				l.come()
			} else {
				proxy.Cut()
			}
			pause(1000)
			if rand.IntN(2) == 0 {
				proxy.Heal()
				pause(1500) // what failed is tried again after a second
			}
			l.crash()
			proxy.Heal()
		})
	})
}

// life is that of a core and its subscriber until a crash.
type life struct {
	leave, come func() // the subscriber's
	crash       func() // nothing is written from then on
}

// crashes opens a core again and again, each time for a life that ends with disturb.
func crashes(t *testing.T, url string, lives int, disturb func(l *life)) {
	p := &history{}
	all := receiver{got: map[byte][]string{}, known: map[uint16]string{}, seen: map[string]bool{}}
	for n := range lives {
		db, err := store.Open(t.Context(), store.Options{URL: url, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		b := open(t, db, broker.Limits{Queued: 1 << 20, QueuedOctets: 1 << 30})
		ctx, cancel := context.WithCancel(t.Context())
		var s *receiver
		connect := func() {
			s = &receiver{t: t, got: all.got, known: all.known, seen: all.seen}
			conn, _, err := b.Connect(ctx, kept("s"), s)
			if err != nil {
				t.Fatal(err)
			}
			s.start(conn)
		}
		connect()
		if n == 0 {
			s.conn.Subscribe(ctx, []broker.Subscription{filter("x/+", 2)})
		}
		s.conn.Start()
		var wg sync.WaitGroup
		if n < lives-1 {
			for _, qos := range []byte{1, 2} {
				wg.Go(func() {
					for ctx.Err() == nil {
						p.run(ctx, b, qos, t)
					}
				})
			}
			disturb(&life{
				leave: func() { s.conn.Close(false, nil); s.stop() },
				come:  func() { connect(); s.conn.Start() },
				crash: func() { s.stop(); _ = db.Close() },
			})
		} else {
			(&client{t: t, changed: make(chan struct{}, 1)}).until("an empty queue", func() bool { return queued(t, b) == 0 })
		}
		s.stop() // what is sent from now on is sent by no process
		_ = db.Close()
		cancel()
		wg.Wait()
		if err := b.Close(t.Context()); err == nil && n == 0 {
			t.Log("nothing was on its way")
		}
	}
	for _, qos := range []byte{1, 2} {
		next := 1
		for _, text := range all.got[qos] {
			var n int
			if _, err := fmt.Sscan(text, &n); err != nil {
				t.Fatal(err)
			}
			if n > next || n < next && qos == 2 {
				t.Fatalf("QoS %d: got message %d, want %d", qos, n, next)
			}
			if n == next {
				next++
			}
		}
		if acked := p.acked[qos].Load(); int64(next) <= acked || acked < 10 {
			t.Errorf("QoS %d: got %d messages, %d were acknowledged", qos, next-1, acked)
		}
	}
}

// receiver is a client that remembers the identifiers of QoS 2 over its connections.
type receiver struct {
	t     *testing.T
	got   map[byte][]string
	known map[uint16]string
	seen  map[string]bool // each message with its identifier
	work  chan func()
	stop  func()
	quit  chan struct{}
	conn  *broker.Conn
}

func (s *receiver) start(conn *broker.Conn) {
	s.conn, s.work, s.quit = conn, make(chan func(), 1<<16), make(chan struct{})
	done := make(chan struct{})
	s.stop = sync.OnceFunc(func() { close(s.quit); <-done })
	go func() {
		defer close(done)
		for {
			select {
			case <-s.quit:
				return
			case f := <-s.work:
				f()
			}
		}
	}()
}

func (s *receiver) Deliver(d broker.Delivery) broker.Outcome {
	s.work <- func() {
		one := fmt.Sprint(d.ID, d.Topic, string(d.Payload))
		if s.seen[one] && !d.Dup {
			s.t.Errorf("message %s of %s came again under the identifier %d without DUP", d.Payload, d.Topic, d.ID)
		}
		s.seen[one] = true
		if _, twice := s.known[d.ID]; d.QoS == 1 || !twice {
			s.got[d.QoS] = append(s.got[d.QoS], string(d.Payload))
		}
		if d.QoS == 1 {
			s.conn.Acknowledge(broker.Puback, d.ID, broker.Success)
			return
		}
		s.known[d.ID] = string(d.Payload)
		s.conn.Acknowledge(broker.Pubrec, d.ID, broker.Success)
	}
	return broker.Sent
}

func (s *receiver) Acknowledge(kind broker.Acknowledgment, id uint16, _ byte) {
	s.work <- func() {
		if kind == broker.Pubrel {
			delete(s.known, id)
			s.conn.Acknowledge(broker.Pubcomp, id, broker.Success)
		}
	}
}
func (s *receiver) Flush()               {}
func (s *receiver) Receives(string) bool { return true }
func (s *receiver) Lost(byte, string)    {}
