package broker_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// purge does what revocation does with a device.
func purge(t *testing.T, b *broker.Broker, db *store.DB, device string) {
	t.Helper()
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return broker.Erase(ctx, tx, device) })
	if err != nil {
		t.Fatal(err)
	}
	b.Forget(device)
}

// What is on its way to a session that ends leaves nothing behind.
func TestASessionThatEndsLeavesNothing(t *testing.T) {
	b, db := onSQLite(t, broker.Limits{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 3 {
		p := connect(t, b, clean(fmt.Sprint("p", n)))
		wg.Go(func() {
			for id := uint16(1); ; id = id%60000 + 1 {
				select {
				case <-stop:
					p.conn.Close(false, nil)
					return
				default:
				}
				p.publish("x", "m", 1, id)
			}
		})
	}
	for range 60 {
		s := connect(t, b, kept("s"))
		s.subscribe(filter("#", 1))
		s.conn.Close(false, new(time.Duration))
	}
	close(stop)
	wg.Wait()
	empty(t, b, db)
}

// A device that is enrolled again at once has nothing of its former life, and keeps what
// it stores then.
func TestANewLifeKeepsItsOwnRows(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := open(t, db, broker.Limits{})
		defer func() { _ = b.Close(context.Background()) }()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for n := range 2 { // publishes of the former life go on, and those of others
			p := connect(t, b, clean(fmt.Sprint("p", n)))
			wg.Go(func() {
				for id := uint16(1); ; id = id%60000 + 1 {
					select {
					case <-stop:
						p.conn.Close(false, nil)
						return
					default:
					}
					m := &broker.Message{Topic: fmt.Sprint("r/", id%8), Payload: []byte("r"), QoS: 1, Retain: true, Device: []string{"s", "other"}[n]}
					_ = p.conn.Publish(m, id)
				}
			})
		}
		var s *client
		for i := range 30 {
			done := make(chan struct{})
			go func() { defer close(done); purge(t, b, db, "s") }()
			for s = nil; s == nil || s.gone(); { // as soon as it may
				s = connect(t, b, kept("s"))
			}
			<-done
			if s.gone() {
				continue
			}
			s.subscribe(filter("own/#", 1))
			s.conn.Close(false, nil)
			if err := b.Publish(t.Context(), &broker.Message{Topic: "own/x", Payload: fmt.Append(nil, i), QoS: 1}); err != nil {
				t.Fatal(err)
			}
			if n := messages(t, db); n != 1 {
				t.Fatalf("life %d: messages on record: got %d, want 1", i, n)
			}
		}
		close(stop)
		wg.Wait()
		purge(t, b, db, "other")
		purge(t, b, db, "s")
		empty(t, b, db)
	})
}

func (c *client) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost != ""
}

// leftAt is when the connection of session s ended, as the record has it: 0 if it has
// one, and -1 where it cannot be read.
func leftAt(t *testing.T, db *store.DB) (at int64) {
	if err := db.QueryRow(t.Context(), `SELECT left_at FROM mqtt_session WHERE client = 's'`).Scan(&at); err != nil {
		return -1
	}
	return at
}

func count(t *testing.T, db *store.DB, table string) (n int) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// messages counts those of the queues on record that have not ended.
func messages(t *testing.T, db *store.DB) (n int) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `SELECT CAST(coalesce(sum(q.n), 0) - coalesce(sum((SELECT sum(
		CASE WHEN k.upto < q.upto THEN k.upto ELSE q.upto END - CASE WHEN k.seq > q.seq THEN k.seq ELSE q.seq END + 1)
		FROM mqtt_mark k WHERE k.session = q.session AND k.gone = 1 AND k.seq <= q.upto AND k.upto >= q.seq)), 0) AS BIGINT) FROM mqtt_queue q`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
