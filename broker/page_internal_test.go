package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// onePage has messages of one QoS recorded for a session in one transaction.
func onePage(t *testing.T, b *Broker, qos byte, texts ...string) {
	t.Helper()
	p, f := &publication{done: make(chan error, 1)}, &flusher{}
	for _, text := range texts {
		b.route(&Message{Topic: "x", Payload: []byte(text), QoS: qos, Device: "p"}, nil, p, f)
	}
	p.left = len(p.ops)
	b.journal.add(p.ops...)
	if err := <-p.done; err != nil {
		t.Fatal(err)
	}
}

func reopen(t *testing.T, db *store.DB) *Broker {
	t.Helper()
	b, err := Open(t.Context(), Options{DB: db, Node: "one", Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func join(t *testing.T, b *Broker, receiveMax uint16) (*Conn, *silent) {
	t.Helper()
	client := &silent{}
	c, _, err := b.Connect(t.Context(), Hello{ClientID: "s", Device: "s", Expiry: time.Hour, Kept: 1, ReceiveMax: receiveMax}, client)
	if err != nil {
		t.Fatal(err)
	}
	return c, client
}

func (c *silent) receives(t *testing.T, s *session, want ...string) {
	t.Helper()
	kit.Eventually(t, fmt.Sprintf("messages %q", want), func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.Equal(c.got, want)
	})
}

// end acknowledges the messages of these places to their end.
func end(t *testing.T, c *Conn, qos byte, places ...uint16) {
	for _, n := range places {
		if qos == 1 {
			c.Acknowledge(Puback, n+1, Success)
			continue
		}
		c.Acknowledge(Pubrec, n+1, Success)
		kit.Eventually(t, "PUBREL", func() bool { return c.s.state(n) == released })
		c.Acknowledge(Pubcomp, n+1, Success)
	}
}

func (s *session) state(n uint16) byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue[s.find(n+1)].state
}

// TestAMessageOfAPageEndsByItself has some messages of a page acknowledged, in their turn
// and out of it. After a restart the others are left, and counted.
func TestAMessageOfAPageEndsByItself(t *testing.T) {
	for qos := byte(1); qos <= 2; qos++ {
		for _, ended := range [][]uint16{{1}, {1, 2}, {3}, {1, 3}, {3, 1, 2}, {5}, {4, 5}, {2, 3, 4, 5}, {1, 2, 3, 4, 5}, {5, 4, 3, 2, 1}} {
			t.Run(fmt.Sprint("QoS ", qos, " ", ended), func(t *testing.T) {
				db := storetest.Open(t)
				b := reopen(t, db)
				c, client := join(t, b, 0)
				c.Subscribe(t.Context(), []Subscription{{Filter: "x", QoS: 2}})
				c.Start()
				onePage(t, b, qos, "1", "2", "3", "4", "5")
				client.receives(t, c.s, "1", "2", "3", "4", "5")
				end(t, c, qos, ended...)
				if err := b.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				var rows, marks int
				if err := db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM mqtt_queue), (SELECT count(*) FROM mqtt_mark)`).Scan(&rows, &marks); err != nil {
					t.Fatal(err)
				}
				if len(ended) == 5 && rows+marks > 0 {
					t.Errorf("got %d rows and %d marks of a page whose messages have all ended, want none", rows, marks)
				}
				b = reopen(t, db)
				defer func() { _ = b.Close(t.Context()) }()
				if sum, _ := b.TotalUsage(t.Context()); sum.Queued != 5-len(ended) || sum.QueuedOctets != int64(5-len(ended))*(2+messageCost) {
					t.Errorf("after a restart: got %+v, want %d messages that wait", sum, 5-len(ended))
				}
				var left []string
				for n := uint16(1); n <= 5; n++ {
					if !slices.Contains(ended, n) {
						left = append(left, fmt.Sprint(n))
					}
				}
				c, client = join(t, b, 0)
				c.Start()
				onePage(t, b, 1, "6") // its place is behind all that ended
				client.receives(t, c.s, append(left, "6")...)
			})
		}
	}
}

// TestAPageIsReadOnBehindWhatIsInFlight has a client go with a part of a page in flight,
// acknowledge that when it is back, and receive the rest.
func TestAPageIsReadOnBehindWhatIsInFlight(t *testing.T) {
	db := storetest.Open(t)
	b := reopen(t, db)
	defer func() { _ = b.Close(t.Context()) }()
	c, client := join(t, b, 2)
	c.Subscribe(t.Context(), []Subscription{{Filter: "x", QoS: 1}})
	c.Start()
	onePage(t, b, 1, "1", "2", "3", "4", "5")
	client.receives(t, c.s, "1", "2")
	c.Close(false, nil)
	c, client = join(t, b, 2)
	c.Start()
	client.receives(t, c.s, "1", "2")
	end(t, c, 1, 1, 2)
	client.receives(t, c.s, "1", "2", "3", "4")
	end(t, c, 1, 3, 4)
	client.receives(t, c.s, "1", "2", "3", "4", "5")
	end(t, c, 1, 5)
	kit.Eventually(t, "an empty record", func() bool {
		rows := -1
		err := db.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM mqtt_queue) + (SELECT count(*) FROM mqtt_mark)`).Scan(&rows)
		return err == nil && rows == 0
	})
}

// TestAPubrecThatComesBeforeTheQueueIsReadCounts has a client send PUBREC right after a
// restart. It has the message: sent again, that would be another one to a client that does
// not compare identifiers. Of what is not there the end is said.
func TestAPubrecThatComesBeforeTheQueueIsReadCounts(t *testing.T) {
	db := storetest.Open(t)
	b := reopen(t, db)
	c, client := join(t, b, 0)
	c.Subscribe(t.Context(), []Subscription{{Filter: "x", QoS: 2}})
	c.Start()
	onePage(t, b, 2, "1")
	client.receives(t, c.s, "1")
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b = reopen(t, db)
	defer func() { _ = b.Close(t.Context()) }()
	for range maxFills { // the queue is not read for now
		b.fills <- struct{}{}
	}
	c, client = join(t, b, 0)
	c.Start()
	c.Acknowledge(Pubrec, 2, Success)
	c.Acknowledge(Pubrec, 9, Success)
	for range maxFills {
		<-b.fills
	}
	want := []string{fmt.Sprint(Pubrel, 9, NotFound), fmt.Sprint(Pubrel, 2, Success)}
	kit.Eventually(t, "PUBREL for both", func() bool {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		return slices.Equal(client.acks, want)
	})
	c.Acknowledge(Pubcomp, 2, Success)
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if len(client.got) > 0 || c.s.total > 0 {
		t.Errorf("sent again: %q, and %d messages left", client.got, c.s.total)
	}
}

// TestIdentifiersGoOnAfterACrash has a queue of which nothing is left on record when the
// process dies. A client may have kept a message whose end it did not see, and takes the
// next one of its identifier for that.
func TestIdentifiersGoOnAfterACrash(t *testing.T) {
	db := storetest.Open(t)
	used := map[uint16]bool{}
	for range 3 {
		b := reopen(t, db)
		c, client := join(t, b, 0)
		c.Subscribe(t.Context(), []Subscription{{Filter: "x", QoS: 2}})
		c.Start()
		onePage(t, b, 2, "1", "2", "3")
		client.receives(t, c.s, "1", "2", "3")
		c.s.mu.Lock()
		for _, e := range c.s.queue {
			if used[e.id()] {
				t.Errorf("identifier %d comes again", e.id())
			}
			used[e.id()] = true
		}
		ids := []uint16{c.s.queue[0].id(), c.s.queue[1].id(), c.s.queue[2].id()}
		c.s.mu.Unlock()
		for _, id := range ids {
			end(t, c, 2, id-1)
		}
		kit.Eventually(t, "nothing of the queue is on record", func() (none bool) {
			if err := db.QueryRow(t.Context(), `SELECT count(*) = 0 FROM mqtt_queue`).Scan(&none); err != nil {
				t.Fatal(err)
			}
			return none
		})
		// Without Close it is as after kill -9: what the process had in memory is gone.
	}
}

// TestRowsOfAnErasedSessionGo asserts that what was written for a session behind its end
// is removed by the next start.
func TestRowsOfAnErasedSessionGo(t *testing.T) {
	db := storetest.Open(t)
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
		for _, q := range []string{
			`INSERT INTO mqtt_subscription (session, n, filter, options, sub_id) VALUES (7, 1, 'x', 1, 0)`,
			`INSERT INTO mqtt_queue (session, seq, upto, n, octets, qos, retain, expires, topic, props, payload, sub_ids) VALUES (7, 1, 1, 1, 130, 1, 0, 0, 'x', '', '', '')`,
			`INSERT INTO mqtt_mark (session, seq, upto, gone) VALUES (7, 1, 1, 0)`,
			`INSERT INTO mqtt_inbound (session, packet) VALUES (7, 1)`,
		} {
			_, failed := tx.Exec(ctx, q)
			err = errors.Join(err, failed)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func(b *Broker) { _ = b.Close(t.Context()) }(reopen(t, db))
	for _, table := range sessionTables {
		var n int
		if err := db.QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil || n != 0 {
			t.Errorf("%s: got %d rows, %v, want none", table, n, err)
		}
	}
}

// FuzzPage reads the entries behind the first of a page: what is read is written the
// same again, and what is no page is refused.
func FuzzPage(f *testing.F) {
	first := &entry{m: &Message{Topic: "a/b", Props: []byte{1}, QoS: 1}, seq: 7, qos: 1}
	second := &entry{m: &Message{Topic: "a/b", Props: []byte{1}, Payload: []byte("p"), QoS: 2, Expires: time.UnixMicro(5)}, seq: 8, qos: 2, retain: true, ids: []uint32{3, 4}}
	third := &entry{m: &Message{Topic: "c", Props: []byte{}, Payload: []byte{}, QoS: 1}, seq: 300, qos: 1}
	f.Add(third.encode(second.encode(nil, first), second))
	f.Add([]byte{1, 1, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeMore(first, b)
		if err != nil {
			return
		}
		var again []byte
		for i, e := range list {
			before := first
			if i > 0 {
				before = list[i-1]
			}
			again = e.encode(again, before)
		}
		twice, err := decodeMore(first, again)
		if err != nil || !reflect.DeepEqual(list, twice) {
			t.Errorf("got %v, %v after another turn, want %v", twice, err, list)
		}
	})
}
