package mqtt_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/mqtt"
	"github.com/countersign-iot/countersign/test/kit"
)

// usage lists what the first n devices use.
func (g *gateway) usage(t testing.TB, n int) []countersign.Usage {
	t.Helper()
	list, err := g.Broker.Usage(t.Context(), countersign.UsageFilter{Limit: n})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestAPurgeLeavesLiveSessionsAlone purges a device kind by kind while a client of it is
// connected, and pages through what is left.
func TestAPurgeLeavesLiveSessionsAlone(t *testing.T) {
	g := start(t, engine{})
	for i := range 3 {
		d := g.dial(t, "pump")
		d.send(keep(4, fmt.Sprintf("pump/%d", i)))
		d.recv()
		d.send(d.subscribe(1, "devices/pump/down/#"))
		d.recv()
		d.send([]byte{0xE0, 0})
		d.gone("goodbye", 0)
	}
	live := g.dial(t, "pump")
	live.send(keep(4, "pump/0")) // one of them comes again
	live.recv()
	b := live.publish(1, 1, "devices/pump/up/x", "x")
	b[0] |= 1
	live.send(b)
	live.recv()
	other := g.join(t, "other", 4)
	done, err := g.Broker.Purge(t.Context(), "pump", countersign.Stored{Queued: true})
	if err != nil || done != (countersign.Purged{}) {
		t.Errorf("purge of queued messages: got %+v, %v, want nothing dropped: none wait", done, err)
	}
	done, err = g.Broker.Purge(t.Context(), "pump", countersign.Stored{Sessions: true, Queued: true})
	if err != nil || done != (countersign.Purged{Sessions: 2}) {
		t.Errorf("purge of sessions: got %+v, %v, want the two without a client", done, err)
	}
	for _, d := range []*device{live, other} {
		d.send([]byte{0xC0, 0})
		d.expect("a live session", []byte{0xD0, 0})
	}
	var names []string
	for f := (countersign.UsageFilter{Limit: 1}); ; {
		list, err := g.Broker.Usage(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		names = append(names, list[0].Device)
		f.After = countersign.UsagePlace{Octets: list[0].Octets(), Device: list[0].Device}
	}
	if !slices.Equal(names, []string{"pump", "other"}) {
		t.Errorf("pages of usage: got %v, want pump, which retains, then other", names)
	}
	for i, present := range map[int]byte{1: 0, 2: 0} {
		d := g.dial(t, "pump")
		d.send(keep(4, fmt.Sprintf("pump/%d", i)))
		d.expect("a session that was purged", []byte{0x20, 2, present, 0})
	}
}

// knock connects a further client of a device and returns the code of its CONNACK.
func (g *gateway) knock(t testing.TB, id, suffix string, level byte) (*device, byte) {
	t.Helper()
	d := g.dial(t, id)
	d.v5 = level == 5
	d.send(connectPacket(level, id+suffix, 2, 60, nil))
	_, body := d.recv()
	return d, body[1]
}

func TestSessionsOfADeviceAreBounded(t *testing.T) {
	g := start(t, engine{})
	g.guard.budget = countersign.Budget{Sessions: 3}
	var all []*device
	for i := range 3 {
		d, code := g.knock(t, "dev", fmt.Sprint("/", i), 4)
		if code != 0 {
			t.Fatalf("session %d: CONNACK %d", i, code)
		}
		all = append(all, d)
	}
	for level, want := range map[byte]byte{4: 3, 5: 0x97} {
		if _, code := g.knock(t, "dev", "/more", level); code != want {
			t.Errorf("one session too many, level %d: CONNACK %#x, want %#x", level, code, want)
		}
	}
	if limit := g.guard.limitOf("dev", countersign.BudgetSessions); limit != 3 {
		t.Errorf("told of %d sessions, want 3", limit)
	}
	for range 5 { // a client that comes again takes no further place
		if _, code := g.knock(t, "dev", "/0", 4); code != 0 {
			t.Fatalf("the same client again: CONNACK %d", code)
		}
	}
	if _, code := g.knock(t, "other", "", 4); code != 0 {
		t.Errorf("another device: CONNACK %d", code)
	}
	all[1].send([]byte{0xE0, 0})
	all[1].gone("goodbye", 0)
	kit.Eventually(t, "a place", func() bool { return g.Index.Len() == 3 })
	if _, code := g.knock(t, "dev", "/new", 5); code != 0 {
		t.Errorf("once there is a place: CONNACK %#x", code)
	}
}

// TestSubscriptionsOfADeviceAreBounded has a greedy device try to take all with many
// client identifiers, live and stored.
func TestSubscriptionsOfADeviceAreBounded(t *testing.T) {
	g := start(t, coreIn(t, t.TempDir(), broker.Limits{Subscriptions: 20}))
	g.guard.budget = countersign.Budget{Sessions: 4}
	want := func(d *device, what string, from, n int, code byte) {
		t.Helper()
		var filters []string
		for i := range n {
			filters = append(filters, fmt.Sprintf("devices/greedy/down/%d/x", from+i))
		}
		d.send(d.subscribe(1, filters...))
		_, body := d.recv()
		if codes := body[len(body)-n:]; slices.ContainsFunc(codes, func(c byte) bool { return c != code }) {
			t.Errorf("%s: SUBACK % x, want all %#x", what, codes, code)
		}
	}
	one, _ := g.knock(t, "greedy", "/1", 5)
	two, _ := g.knock(t, "greedy", "/2", 4)
	want(one, "the first ones", 0, 15, 1)
	want(one, "the same again", 0, 15, 1)
	want(two, "up to the limit", 100, 5, 1)
	want(two, "beyond it, 3.1.1", 200, 3, 0x80)
	want(one, "beyond it, MQTT 5", 200, 3, 0x97)
	if limit := g.guard.limitOf("greedy", countersign.BudgetSubscriptions); limit != 20 {
		t.Errorf("told of %d subscriptions, want 20", limit)
	}
	other := g.join(t, "other", 5)
	other.send(other.subscribe(1, "devices/other/down/#"))
	other.expect("SUBACK of another device", []byte{0x90, 4, 0, 1, 0, 1})
	two.send([]byte{0xE0, 0})
	two.gone("goodbye", 0)
	kit.Eventually(t, "room", func() bool { return g.usage(t, 1)[0].Subscriptions == 15 })
	want(one, "once there is room", 200, 5, 1)
	one.send([]byte{0xE0, 0})
	one.gone("goodbye", 0)

	// Stored sessions count, and the oldest of them make room for the present one.
	for i := range 8 {
		id := fmt.Sprintf("greedy/stored%d", i)
		d := g.dial(t, "greedy")
		d.send(keep(4, id))
		d.recv()
		want(d, id, 1000*i, 6, 1)
		d.send([]byte{0xE0, 0})
		d.gone("goodbye", 0)
	}
	kit.Eventually(t, "the oldest are dropped", func() bool {
		u := g.usage(t, 1)
		return len(u) == 1 && u[0].Kept == 3 && u[0].Subscriptions == 18
	})
	for i, present := range map[int]byte{7: 1, 0: 0} {
		d := g.dial(t, "greedy")
		d.send(keep(4, fmt.Sprintf("greedy/stored%d", i)))
		d.expect(fmt.Sprintf("Session Present of stored%d", i), []byte{0x20, 2, present, 0})
	}
}

// retained lists what a subscriber gets of a device's retained messages.
func (g *gateway) retained(t testing.TB, topic string) map[string]int {
	t.Helper()
	g.guard.mu.Lock()
	g.guard.perms["reader"] = permissions(nil, []string{"#"})
	g.guard.mu.Unlock()
	d := g.join(t, "reader", 4)
	d.send(pkt(0x82, []byte{0, 1}, str(topic), []byte{0}))
	d.recv()
	found := map[string]int{}
	for {
		_ = d.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		kind, body, err := d.read()
		if err != nil {
			_ = d.Close()
			return found
		}
		if kind&0xF1 == 0x31 {
			n := int(body[0])<<8 | int(body[1])
			found[string(body[2:2+n])] = len(body) - 2 - n
		}
	}
}

func TestRetainedMessagesOfADeviceAreBounded(t *testing.T) {
	dir := t.TempDir()
	bounds := broker.Limits{Retained: 5, RetainedOctets: 20_000}
	up := func(id string, i int) string { return fmt.Sprintf("devices/%s/up/%d", id, i) }
	t.Run("before the restart", func(t *testing.T) {
		g := start(t, coreIn(t, dir, bounds))
		for _, level := range []byte{4, 5} {
			id := fmt.Sprintf("hoard%d", level)
			d := g.join(t, id, level)
			refused, taken := []byte{0x40, 3, 0, 1, 0x97}, []byte{0x40, 2, 0, 1}
			if level == 4 {
				refused = taken // 3.1.1 has no other answer
			}
			retain := func(what string, i int, payload string, want []byte) {
				t.Helper()
				b := d.publish(1, 1, up(id, i), payload)
				b[0] |= 1
				d.send(b)
				d.expect(fmt.Sprintf("level %d, %s", level, what), want)
			}
			for i := range 5 {
				retain("within the number", i, "x", taken)
			}
			retain("beyond the number", 5, "x", refused)
			retain("again", 4, "y", taken)
			retain("taken away", 0, "", taken)
			retain("another for it", 6, "x", taken)
			retain("beyond the octets", 4, strings.Repeat("z", 20_000), refused)
			d.send(d.publish(1, 1, up(id, 7), "not retained"))
			d.expect("not retained", taken)
			if got := g.retained(t, "devices/"+id+"/up/#"); len(got) != 5 || got[up(id, 4)] != 1 {
				t.Errorf("level %d: retained %v, want five", level, got)
			}
			if g.guard.limitOf(id, countersign.BudgetRetained) == 0 {
				t.Errorf("level %d: nobody was told", level)
			}
		}
		// A will that is too much is published all the same.
		d := g.dial(t, "hoard4")
		d.send(connectPacket(4, "hoard4/w", 0x26|0x04, 60, cat(str(up("hoard4", 9)), str("bye"))))
		if _, body := d.recv(); body[1] != 0 {
			t.Errorf("a will over the budget: CONNACK %d", body[1])
		}
		heard := make(chan string, 10)
		listen(t, g, up("hoard4", 9), heard)
		_ = d.raw.SetLinger(0)
		_ = d.raw.Close()
		select {
		case <-heard:
		case <-time.After(5 * time.Second):
			t.Error("the will was not published")
		}
		if got := g.retained(t, up("hoard4", 9)); len(got) != 0 {
			t.Error("the will was retained")
		}
	})
	t.Run("after the restart", func(t *testing.T) {
		g := start(t, coreIn(t, dir, bounds))
		d := g.join(t, "hoard5", 5)
		b := d.publish(1, 1, up("hoard5", 10), "x")
		b[0] |= 1
		d.send(b)
		d.expect("what was retained before counts", []byte{0x40, 3, 0, 1, 0x97})
		u := g.usage(t, 10)
		if len(u) != 2 || u[0].Retained != 5 || u[1].Retained != 5 || u[0].RetainedOctets == 0 {
			t.Errorf("Usage: got %+v, want five messages of each", u)
		}
		done, err := g.Broker.Purge(t.Context(), "hoard4", countersign.Stored{Retained: true})
		if err != nil || done.Retained != 5 || done.RetainedOctets != u[0].RetainedOctets {
			t.Fatalf("Purge: got %+v, %v, want the five messages of %+v", done, err, u)
		}
		if got := g.retained(t, "devices/hoard4/up/#"); len(got) != 0 {
			t.Errorf("after the purge: %v", got)
		}
		if got := g.retained(t, "devices/hoard5/up/#"); len(got) != 5 {
			t.Errorf("of the other device: %v, want five", got)
		}
	})
}

// TestAFullStoreKeepsNobodyOut has so many devices fill the engine's store that their
// shares are too large for it.
func TestAFullStoreKeepsNobodyOut(t *testing.T) {
	dir := t.TempDir()
	for round := range 2 {
		t.Run(fmt.Sprintf("start %d", round), func(t *testing.T) {
			g := start(t, coreIn(t, dir, broker.Limits{Store: 8 << 20}))
			payload := strings.Repeat("x", 60_000)
			for i := range 12 {
				d := g.join(t, fmt.Sprintf("filler%d", i), 4)
				for j := range 16 {
					b := d.publish(1, 1, fmt.Sprintf("devices/filler%d/up/%d", i, j), payload)
					b[0] |= 1
					d.send(b)
					if kind, _ := d.recv(); kind != 0x40 {
						t.Fatalf("got type %#x, want PUBACK", kind)
					}
				}
				for j := range 16 { // of QoS 2, without the PUBREL that would let the engine drop it
					_, _ = d.Write(d.publish(2, uint16(j+1), fmt.Sprintf("devices/filler%d/up/%d", i, j), payload)) // the engine may end it
				}
			}
			for _, level := range []byte{4, 5} {
				id := fmt.Sprintf("honest%d", level)
				d := g.dial(t, id)
				d.v5 = level == 5
				d.send(keep(level, id))
				if _, body := d.recv(); body[1] != 0 {
					t.Fatalf("level %d: CONNACK %d on a full store", level, body[1])
				}
				d.send(d.subscribe(1, "devices/"+id+"/down/#"))
				if _, body := d.recv(); body[len(body)-1] != 1 {
					t.Fatalf("level %d: SUBACK % x on a full store", level, body)
				}
				g.send(t, "devices/"+id+"/down/x", []byte("hello"))
				d.gets("hello")
				d.send(d.publish(1, 9, "devices/"+id+"/up/x", "hello"))
				if kind, _ := d.recv(); kind != 0x40 {
					t.Errorf("level %d: got type %#x, want PUBACK", level, kind)
				}
			}
		})
	}
}

func TestADeviceIsReadNoFasterThanItsBudget(t *testing.T) {
	g := start(t, engine{}, func(s *mqtt.Server) { s.Limits.Flood = 3 * time.Second })
	g.guard.budget = countersign.Budget{Publishes: 50}
	heard := make(chan string, 100_000)
	listen(t, g, "devices/#", heard)
	// Two sessions of one device share its budget.
	one, _ := g.knock(t, "busy", "/1", 5)
	two, _ := g.knock(t, "busy", "/2", 5)
	began := time.Now()
	var wg sync.WaitGroup
	for _, d := range []*device{one, two} {
		wg.Go(func() {
			for range 60 {
				d.send(d.publish(0, 0, "devices/busy/up/x", "x"))
			}
		})
	}
	wg.Wait()
	calm := g.join(t, "calm", 4)
	for i := range 10 {
		sent := time.Now()
		calm.send(calm.publish(1, uint16(i+1), "devices/calm/up/x", "x"))
		calm.recv()
		if took := time.Since(sent); took > 2*time.Second {
			t.Errorf("a message of another device took %v", took)
		}
	}
	busy := 0
	for busy < 120 {
		select {
		case m := <-heard:
			if strings.HasPrefix(m, "devices/busy/") {
				busy++
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of 120 messages came", busy)
		}
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("120 messages took %v, want 50 at once and 50 a second", took)
	}
	// A client that does not stop is ended.
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for ctx.Err() == nil {
			_ = one.SetWriteDeadline(time.Now().Add(5 * time.Second))
			if _, err := one.Write(one.publish(0, 0, "devices/busy/up/x", strings.Repeat("x", 500))); err != nil {
				return
			}
		}
	}()
	one.gone("a flood", 0x96)
	stop()
	kit.Eventually(t, "the report", func() bool { return slices.Contains(g.guard.reasons("busy"), "budget_exceeded") })
	if limit := g.guard.limitOf("busy", countersign.BudgetPublishes); limit != 50 {
		t.Errorf("told of %d messages a second, want 50", limit)
	}
	two.send([]byte{0xC0, 0})
	two.expect("the device's other session", []byte{0xD0, 0})
}

// TestADeviceThatIsHeldBackIsNotSilent has one publish more than its budget by several
// times its keep alive: what it sends in time is read late.
func TestADeviceThatIsHeldBackIsNotSilent(t *testing.T) {
	g := start(t, engine{})
	g.guard.budget = countersign.Budget{Publishes: 6}
	d := g.dial(t, "dev")
	d.send(connectPacket(4, "dev", 2, 1, nil))
	d.recv()
	began := time.Now()
	large := d.publish(0, 0, "devices/dev/up/x", strings.Repeat("x", 200<<10))
	d.send(cat(large, large, []byte{0xC0, 0}))
	d.expect("PINGRESP", []byte{0xD0, 0})
	if held := time.Since(began); held < 1600*time.Millisecond {
		t.Errorf("held back for %v, want more than one and a half keep alives of 1 s", held)
	}
}

// TestClientsThatDoNotReadCostLittle floods 30 sessions whose clients read nothing, at
// each quality of service.
func TestClientsThatDoNotReadCostLittle(t *testing.T) {
	const clients, messages, size = 30, 400, 60_000
	for _, qos := range []byte{0, 1} {
		t.Run(fmt.Sprintf("QoS %d", qos), func(t *testing.T) {
			g := start(t, engine{}, func(s *mqtt.Server) { s.Limits.Stall = 3 * time.Second })
			common := permissions([]string{"#"}, []string{"#"})
			g.guard.common, g.guard.budget = &common, countersign.Budget{Publishes: 100_000, Unread: 256 << 10}
			before := heapNow()
			for i := range clients {
				d := g.join(t, fmt.Sprintf("mute%d", i), 5)
				_ = d.raw.SetReadBuffer(4 << 10)
				d.send(pkt(0x82, []byte{0, 1, 0}, str("news/#"), []byte{qos}))
				d.recv()
			}
			healthy := g.join(t, "healthy", 5)
			healthy.send(healthy.subscribe(1, "devices/healthy/down/#"))
			healthy.recv()
			source := g.join(t, "source", 5)
			payload := strings.Repeat("n", size)
			var worst, most int64
			for i := range messages {
				source.send(source.publish(qos, uint16(i%200+1), "news/x", payload))
				if qos > 0 {
					source.recv()
				}
				if i%40 != 0 {
					continue
				}
				began := time.Now()
				g.send(t, "devices/healthy/down/x", []byte("x"))
				_, body := healthy.recv()
				at := 2 + len("devices/healthy/down/x")
				healthy.send(pkt(0x40, body[at:at+2]))
				worst = max(worst, int64(time.Since(began)))
				most = max(most, heapNow()-before)
			}
			t.Logf("at most %d MiB; the slowest message to a healthy device took %v; %+v", most>>20, time.Duration(worst), g.Stats())
			// Unread for each, and at QoS 1 what the engine may have in flight.
			limit := int64(clients * (4 << 20))
			if qos == 1 {
				limit += clients * 32 * size
			}
			if most > limit {
				t.Errorf("%d clients that do not read cost %d MiB, want at most %d", clients, most>>20, limit>>20)
			}
			if time.Duration(worst) > 5*time.Second {
				t.Errorf("a message to a healthy device took %v", time.Duration(worst))
			}
			if qos == 0 && g.Stats().Unread == 0 {
				t.Error("no message of QoS 0 was counted as dropped")
			}
			for end := time.Now().Add(time.Minute); g.Index.Len() > 2 && time.Now().Before(end); {
				time.Sleep(50 * time.Millisecond)
			}
			for i := range clients {
				id := fmt.Sprintf("mute%d", i)
				if why := g.guard.reasons(id); len(why) != 1 || why[0] != "budget_exceeded" {
					t.Errorf("%s: closed as %q, want budget_exceeded", id, why)
				}
				if g.guard.limitOf(id, countersign.BudgetUnread) == 0 {
					t.Errorf("%s: nobody was told", id)
				}
			}
		})
	}
}

// TestASlowReaderGetsAllOfItsMessages has a client with a slow link come back to more
// than it may have unread.
func TestASlowReaderGetsAllOfItsMessages(t *testing.T) {
	const messages, size = 40, 50_000
	g := start(t, engine{})
	g.guard.budget = countersign.Budget{Unread: 128 << 10}
	d := g.dial(t, "slow")
	d.send(keep(4, "slow"))
	d.recv()
	d.send(d.subscribe(1, "devices/slow/down/#"))
	d.recv()
	d.send([]byte{0xE0, 0})
	d.gone("goodbye", 0)
	for i := range messages {
		g.send(t, "devices/slow/down/x", append(make([]byte, size), byte(i)))
	}
	d = g.dial(t, "slow")
	_ = d.raw.SetReadBuffer(32 << 10)
	d.send(keep(4, "slow"))
	d.expect("CONNACK", []byte{0x20, 2, 1, 0})
	for i := range messages {
		time.Sleep(20 * time.Millisecond)
		kind, body := d.recv()
		if kind&0xF0 != 0x30 || body[len(body)-1] != byte(i) {
			t.Fatalf("message %d: got type %#x, number %d", i, kind, body[len(body)-1])
		}
		at := 2 + len("devices/slow/down/x")
		_ = d.SetWriteDeadline(time.Now().Add(10 * time.Second))
		d.send(pkt(0x40, body[at:at+2]))
	}
	if s := g.Stats(); s.Unread != 0 || g.Index.Len() != 1 {
		t.Errorf("%d messages were dropped, %d sessions", s.Unread, g.Index.Len())
	}
}
