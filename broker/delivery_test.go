package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/broker"
)

// TestSubscriptionOptions holds MQTT 5, 3.8.3.1 and 3.3.4.
func TestSubscriptionOptions(t *testing.T) {
	plain := func(f string, qos byte, change func(*broker.Subscription)) broker.Subscription {
		s := filter(f, qos)
		if change != nil {
			change(&s)
		}
		return s
	}
	for name, tc := range map[string]struct {
		subs   []broker.Subscription
		own    bool // the subscriber publishes
		retain bool
		want   []string
	}{
		"overlapping": {subs: []broker.Subscription{
			plain("a/b", 0, func(s *broker.Subscription) { s.ID = 1 }), plain("a/+", 2, func(s *broker.Subscription) { s.ID = 2 }),
			plain("#", 1, func(s *broker.Subscription) { s.ID = 3 }), plain("+/b", 1, nil), plain("x", 2, func(s *broker.Subscription) { s.ID = 9 }),
		}, want: []string{"m qos=2 retain=false ids=[1 2 3]"}},
		"the later filter of one SUBSCRIBE": {subs: []broker.Subscription{plain("a/b", 2, nil), plain("a/b", 0, nil)}, want: []string{"m qos=0 retain=false ids=[]"}},
		"no local":                          {subs: []broker.Subscription{plain("a/b", 1, func(s *broker.Subscription) { s.NoLocal = true })}, own: true},
		"no local of another":               {subs: []broker.Subscription{plain("a/b", 1, func(s *broker.Subscription) { s.NoLocal = true })}, want: []string{"m qos=1 retain=false ids=[]"}},
		"no local and another filter": {subs: []broker.Subscription{
			plain("a/b", 2, func(s *broker.Subscription) { s.NoLocal, s.ID = true, 1 }), plain("a/#", 0, func(s *broker.Subscription) { s.ID = 2 }),
		}, own: true, want: []string{"m qos=0 retain=false ids=[2]"}},
		"retain as published":     {subs: []broker.Subscription{plain("a/b", 1, func(s *broker.Subscription) { s.AsPublished = true })}, retain: true, want: []string{"m qos=1 retain=true ids=[]"}},
		"retain not as published": {subs: []broker.Subscription{plain("a/b", 1, nil)}, retain: true, want: []string{"m qos=1 retain=false ids=[]"}},
		"shared and not":          {subs: []broker.Subscription{plain("$share/g/a/b", 1, func(s *broker.Subscription) { s.ID = 1 }), plain("a/b", 0, func(s *broker.Subscription) { s.ID = 2 })}, want: []string{"m qos=0 retain=false ids=[2]", "m qos=1 retain=false ids=[1]"}},
		"$ and wildcards":         {subs: []broker.Subscription{plain("+/b", 1, nil), plain("a/b/#", 0, nil)}, want: []string{"m qos=1 retain=false ids=[]"}},
	} {
		for _, h := range []broker.Hello{clean("s"), kept("s")} {
			t.Run(fmt.Sprintf("%s kept %t", name, !h.Clean), func(t *testing.T) {
				b, _ := onSQLite(t, broker.Limits{})
				s := connect(t, b, h)
				s.subscribe(tc.subs...)
				p := connect(t, b, clean("p"))
				if tc.own {
					p = s
				}
				m := &broker.Message{Topic: "a/b", Payload: []byte("m"), QoS: 2, Retain: tc.retain, Device: "p"}
				if err := p.conn.Publish(m, 1); err != nil {
					t.Fatal(err)
				}
				p.conn.Flush()
				p.until("PUBREC", func() bool { return slices.Contains(p.acks, "5 1 0x0") })
				s.until("the messages", func() bool { return len(s.got) == len(tc.want) })
				var got []string
				for _, d := range s.got {
					got = append(got, delivered(string(d.Payload), d.QoS, d.Retain, d.SubIDs))
				}
				if slices.Sort(got); !slices.Equal(got, tc.want) {
					t.Errorf("got %q, want %q", got, tc.want)
				}
			})
		}
	}
}

// TestSharedSubscriptions holds MQTT 5, 4.8.2.
func TestSharedSubscriptions(t *testing.T) {
	b, _ := onSQLite(t, broker.Limits{})
	join := func(h broker.Hello) *client {
		c := connect(t, b, h)
		c.subscribe(filter("$share/g/x/+", 1))
		return c
	}
	members := []*client{join(kept("1")), join(clean("2")), join(kept("3"))}
	other := connect(t, b, clean("other"))
	other.subscribe(filter("$share/h/x/+", 1))
	p := connect(t, b, clean("p"))
	sent := uint16(0)
	publish := func(n int) {
		for range n {
			sent++
			p.publish("x/y", fmt.Sprint(sent), 1, sent)
		}
		p.until("acknowledgments", func() bool { return len(p.acks) == int(sent) })
	}
	counts := func() (all []int) {
		for _, m := range members {
			all = append(all, len(m.all()))
		}
		return all
	}
	publish(30)
	p.until("a third for each", func() bool { return slices.Equal(counts(), []int{10, 10, 10}) })
	acknowledged := func() { p.until("acknowledgments of the members", func() bool { return queued(t, b) == 0 }) }
	acknowledged()
	members[0].conn.Close(false, nil)
	publish(10)
	p.until("a half for those that are there", func() bool { return slices.Equal(counts(), []int{10, 15, 15}) })
	acknowledged()
	members[1].conn.Close(false, nil)
	members[2].conn.Close(false, nil)
	publish(10) // for the kept members, whose clients are away
	members[0], members[2] = connect(t, b, kept("1")), connect(t, b, kept("3"))
	p.until("what waited", func() bool { return slices.Equal(counts(), []int{5, 15, 5}) })
	members[0].conn.Unsubscribe(t.Context(), []string{"$share/g/x/+"})
	publish(4)
	p.until("all for the last one", func() bool { return slices.Equal(counts(), []int{5, 15, 9}) })
	other.until("all of them, in the other group", func() bool { return len(other.got) == int(sent) })
	for i, text := range other.texts() {
		if text != fmt.Sprint(i+1) {
			t.Fatalf("message %d: got %s", i+1, text)
		}
	}
}

// Acknowledgments come in the order of the publishes, [MQTT-4.6.0-2], although some wait
// for the record.
func TestAcknowledgmentsKeepTheirOrder(t *testing.T) {
	b, db := onSQLite(t, broker.Limits{})
	s := connect(t, b, kept("s"))
	s.subscribe(filter("kept/#", 2))
	p := connect(t, b, clean("p"))
	release := stall(t, db)
	var want []string
	for i := range uint16(60) {
		topic, qos := "else", byte(i%2)+1
		if i%5 == 3 { // the gateway drops it
			p.conn.Refuse(broker.Acknowledgment(3+qos), i+1, 0x87)
			want = append(want, fmt.Sprintf("%d %d 0x87", 3+qos, i+1))
			continue
		}
		if i%3 == 1 {
			topic = "kept/x"
		}
		p.publish(topic, "m", qos, i+1)
		want = append(want, fmt.Sprintf("%d %d 0x0", 3+qos, i+1))
	}
	p.answered(want[:1]...) // the second waits for the record, and so do all behind it
	release()
	p.answered(want...)
}

// A sequence is longer than the identifiers there are, and one client does not
// acknowledge its first message for all of it.
func TestPacketIdentifiersAreNotUsedTwice(t *testing.T) {
	b, _ := onSQLite(t, broker.Limits{Queued: 100_000, QueuedOctets: 64 << 20})
	for name, hold := range map[string]bool{"all": false, "but the first": true} {
		s := &numbered{used: map[uint16]bool{}, work: make(chan broker.Delivery, 256)}
		conn, _, err := b.Connect(t.Context(), clean(name), s)
		if err != nil {
			t.Fatal(err)
		}
		conn.Start()
		conn.Subscribe(t.Context(), []broker.Subscription{filter(name, 1)})
		p := connect(t, b, clean("p"))
		const most = 70_000
		first := uint16(0)
		got := 0
		for i := range most {
			m := &broker.Message{Topic: name, QoS: 1, Device: "p"}
			if err := p.conn.Publish(m, 1); err != nil {
				t.Fatal(err)
			}
			p.acks = nil
			for len(s.work) > 0 {
				d := <-s.work
				if got++; first == 0 {
					if first = d.ID; hold {
						continue
					}
				}
				s.done(d.ID)
				conn.Acknowledge(broker.Puback, d.ID, broker.Success)
			}
			if hold && i == most-100 { // now the window may move on
				s.done(first)
				conn.Acknowledge(broker.Puback, first, broker.Success)
			}
		}
		for len(s.work) > 0 {
			d := <-s.work
			got++
			s.done(d.ID)
			conn.Acknowledge(broker.Puback, d.ID, broker.Success)
		}
		if s.twice > 0 {
			t.Errorf("%s: identifiers in use twice: got %d", name, s.twice)
		}
		if st := b.Stats(); got+int(st.Dropped) != most {
			t.Errorf("%s: got %d messages, %d dropped, want %d", name, got, st.Dropped, most)
		}
		if !hold && got != most {
			t.Errorf("%s: got %d messages, want %d", name, got, most)
		}
		conn.Close(false, nil)
	}
}

// numbered notes which identifiers are in use.
type numbered struct {
	used  map[uint16]bool
	twice int
	work  chan broker.Delivery
}

func (c *numbered) Deliver(d broker.Delivery) broker.Outcome {
	if c.used[d.ID] || d.ID == 0 {
		c.twice++
	}
	c.used[d.ID] = true
	c.work <- d
	return broker.Sent
}
func (c *numbered) done(id uint16)                                  { delete(c.used, id) }
func (c *numbered) Acknowledge(broker.Acknowledgment, uint16, byte) {}
func (c *numbered) Flush()                                          {}
func (c *numbered) Receives(string) bool                            { return true }
func (c *numbered) Lost(byte, string)                               {}

// A client takes what its Receive Maximum allows, whatever waits and in whatever order it
// acknowledges, over several pages of its queue.
func TestReceiveMaximumOverPages(t *testing.T) {
	for _, most := range []uint16{1, 2, 7, 100} {
		for _, h := range []broker.Hello{clean("s"), kept("s")} {
			b, db := onSQLite(t, broker.Limits{})
			h.ReceiveMax = most
			s := connectAs(t, b, h, &client{hold: true})
			s.subscribe(filter("x", 2))
			p := connect(t, b, clean("p"))
			const all = 200
			for i := range all {
				p.publish("x", fmt.Sprint(i), byte(i%2)+1, uint16(i)+1)
			}
			p.until("acknowledgments", func() bool { return len(p.acks) == all })
			for n := 0; n < all; {
				want := min(n+int(most), all)
				s.until("a full window", func() bool { return len(s.got) >= want })
				if len(s.got) > want {
					t.Fatalf("Receive Maximum %d: got %d messages at once", most, len(s.got)-n)
				}
				for i := want - 1; i >= n; i-- { // the last first
					d := s.got[i]
					if string(d.Payload) != fmt.Sprint(i) {
						t.Fatalf("Receive Maximum %d: message %d: got %s", most, i, d.Payload)
					}
					if d.QoS == 1 {
						s.conn.Acknowledge(broker.Puback, d.ID, broker.Success)
						continue
					}
					before := len(s.acks)
					s.conn.Acknowledge(broker.Pubrec, d.ID, broker.Success)
					s.until("PUBREL", func() bool { return len(s.acks) > before })
					s.conn.Acknowledge(broker.Pubcomp, d.ID, broker.Success)
				}
				n = want
				// What a window of several frees while it is acknowledged is sent at once.
				if most > 1 {
					s.until("the rest", func() bool { return len(s.got) >= min(n+1, all) })
					for n < len(s.got) {
						d := s.got[n]
						kind := broker.Puback
						if n++; d.QoS == 2 {
							before := len(s.acks)
							s.conn.Acknowledge(broker.Pubrec, d.ID, broker.Success)
							s.until("PUBREL", func() bool { return len(s.acks) > before })
							kind = broker.Pubcomp
						}
						s.conn.Acknowledge(kind, d.ID, broker.Success)
					}
				}
			}
			s.until("an empty queue", func() bool { return queued(t, b) == 0 && messages(t, db) == 0 })
		}
	}
}

// A client that reads slowly asks for all retained messages: it gets each, and the
// others of its messages are not refused for them.
func TestRetainedMessagesForASlowReader(t *testing.T) {
	const all = 5000
	b, _ := onSQLite(t, broker.Limits{Retained: 2 * all, RetainedOctets: 1 << 30})
	p := connect(t, b, clean("p"))
	for i := range all {
		m := &broker.Message{Topic: fmt.Sprint("r/", i), Payload: fmt.Append(nil, i), QoS: 1, Retain: true, Device: "p"}
		if err := p.conn.Publish(m, uint16(i)+1); err != nil {
			t.Fatal(err)
		}
	}
	p.until("acknowledgments", func() bool { return len(p.acks) == all })
	for _, qos := range []byte{0, 1} {
		for _, h := range []broker.Hello{clean("s"), kept("s")} {
			s := connectAs(t, b, h, &client{room: 10})
			s.subscribe(filter("#", qos))
			s.until("what there is room for", func() bool { return len(s.got) == 10 })
			// One is replaced, and one ended, before they find room.
			seen := map[string]bool{}
			for _, d := range s.got {
				seen[d.Topic] = true
			}
			var topics []string
			for i := range all {
				if topic := fmt.Sprint("r/", i); !seen[topic] && len(topics) < 200 {
					topics = append(topics, topic)
				}
			}
			for i, topic := range topics {
				m := &broker.Message{Topic: topic, Payload: []byte("new"), QoS: qos, Retain: true, Device: "p"}
				if i%2 == 1 {
					m.Payload = nil
				}
				if err := p.conn.Publish(m, uint16(i)+1); err != nil {
					t.Fatal(err)
				}
			}
			p.conn.Flush()
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Microsecond) {
				s.mu.Lock()
				s.room = 20
				n := len(s.got)
				s.mu.Unlock()
				s.conn.Wake()
				if n >= all-100*int(1-qos) && s.quiet(n) { // of QoS 0 those that ended come not at all
					break
				}
			}
			last := map[string]string{}
			for _, d := range s.got {
				last[d.Topic] = string(d.Payload)
			}
			for i, topic := range topics {
				want := map[bool]string{true: "new"}[i%2 == 0]
				if got, ok := last[topic]; ok && got != want || !ok && i%2 == 0 {
					t.Fatalf("QoS %d kept %t: the last of %s: got %q, want %q", qos, !h.Clean, topic, got, want)
				}
			}
			if n := len(last); n < all-100 {
				t.Errorf("QoS %d kept %t: got %d topics, want %d", qos, !h.Clean, n, all)
			}
			if st := b.Stats(); st.Dropped > 0 {
				t.Errorf("QoS %d kept %t: got %d messages dropped", qos, !h.Clean, st.Dropped)
			}
			s.conn.Close(false, new(time.Duration))
			for i, topic := range topics { // as before
				m := &broker.Message{Topic: topic, Payload: []byte("x"), QoS: 1, Retain: true, Device: "p"}
				if err := p.conn.Publish(m, uint16(i)+1); err != nil {
					t.Fatal(err)
				}
			}
			p.until("acknowledgments", func() bool {
				return strings.HasPrefix(p.acks[len(p.acks)-1], "4 200 ") && b.Stats().CommitFailed == 0 && usage(t, b, "p").Retained == all
			})
		}
	}
}

// quiet reports that nothing has come since n messages were there.
func (c *client) quiet(n int) bool {
	time.Sleep(20 * time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got) == n
}
