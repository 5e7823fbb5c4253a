package broker_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	countersign "github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/broker"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// The SQLSTATE of a refusal: of a server that has no room for more, so that the change is
// tried again, and of a statement that it cannot execute.
const (
	noResources = "53000"
	cannotDo    = "P0001"
)

// onPostgres is a core over PostgreSQL that can refuse single statements.
func onPostgres(t *testing.T) (*broker.Broker, *store.DB) {
	db := storetest.OpenURL(t, storetest.PostgresURL(t))
	b := open(t, db, broker.Limits{})
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b, db
}

// refuse has PostgreSQL refuse a statement, such as DELETE ON mqtt_queue, until heal is called.
// when is the condition, such as OLD.seq = 1; empty: always.
func refuse(t *testing.T, db *store.DB, statement, code, when string) (heal func()) {
	t.Helper()
	run := func(queries ...string) {
		err := db.Write(context.Background(), func(ctx context.Context, tx *store.Tx) error {
			for _, q := range queries {
				if _, err := tx.Exec(ctx, q); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if when != "" {
		when = "WHEN (" + when + ")"
	}
	run(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '`+code+`'; END $$`,
		`CREATE TRIGGER refuse BEFORE `+statement+` FOR EACH ROW `+when+` EXECUTE FUNCTION refuse()`)
	return func() { run(`DROP FUNCTION refuse CASCADE`) }
}

// failures waits until one more transaction has failed than when it was called.
func failures(b *broker.Broker, c *client) (wait func()) {
	before := b.Stats().CommitFailed
	return func() {
		c.t.Helper()
		c.until("a failed transaction", func() bool { return b.Stats().CommitFailed > before })
	}
}

// A transaction that the database lost and that is written again reserves the places of
// its queue again: after a crash no identifier comes twice.
func TestPlacesAreReservedByTheTransactionThatIsOnRecord(t *testing.T) {
	b, db, proxy := proxied(t)
	s := connect(t, b, kept("s"))
	s.subscribe(filter("x", 2))
	p := connect(t, b, clean("p"))
	mark := strings.Repeat("mark", 8)
	proxy.DropCommit(mark)
	p.publish("x", mark, 1, 1)
	p.answered("4 1 0x0")
	s.receives(mark)
	s.until("an empty queue on record", func() bool { return messages(t, db) == 0 })
	// Without Close it is as after kill -9.
	b = open(t, db, broker.Limits{})
	again := connect(t, b, kept("s"))
	p = connect(t, b, clean("p"))
	p.publish("x", "new", 1, 1)
	again.receives("new")
	if got := again.got[0].ID; got == s.got[0].ID {
		t.Errorf("identifier %d comes again for another message", got)
	}
	_ = b.Close(context.Background())
}

// A message of QoS 2 that the record did not take, and that its publisher sends again,
// comes once to a session that is not kept, too.
func TestARefusedMessageOfQoS2ComesOnce(t *testing.T) {
	b, db := onPostgres(t)
	live := connect(t, b, clean("live"))
	live.subscribe(filter("x", 2))
	p := connect(t, b, kept("p"))
	heal := refuse(t, db, "INSERT ON mqtt_inbound", noResources, "")
	p.publish("x", "once", 2, 7)
	p.answered("5 7 0x80")
	heal()
	p = connect(t, b, kept("p"))
	p.publish("x", "once", 2, 7)
	p.answered("5 7 0x0")
	p.conn.Release(7)
	p.answered("5 7 0x0", "7 7 0x0")
	p.publish("x", "last", 2, 8)
	live.receives("once", "last")
}

// A retained message that a client asked for comes although the record did not take it
// at first; and not if a newer one came meanwhile.
func TestARetainedMessageThatWasAskedForComesAfterARefusal(t *testing.T) {
	b, db := onPostgres(t)
	p := connect(t, b, clean("p"))
	retain := func(payload string, id uint16) {
		m := &broker.Message{Topic: "r", Payload: []byte(payload), QoS: 1, Retain: true, Device: "p"}
		if err := p.conn.Publish(m, id); err != nil {
			t.Fatal(err)
		}
	}
	retain("old", 1)
	p.answered("4 1 0x0")
	for _, newer := range []bool{false, true} {
		name := fmt.Sprint("s", newer)
		s := connect(t, b, kept(name))
		failed := failures(b, s)
		heal := refuse(t, db, "INSERT ON mqtt_queue", noResources, "")
		s.subscribe(filter("r", 1))
		failed()
		heal()
		want := []string{"old"}
		if newer {
			retain("new", 2)
			want = []string{"new"}
		}
		s.receives(want...)
		time.Sleep(1500 * time.Millisecond) // more than the pause before it is asked for again
		s.receives(want...)
		s.until("an empty queue", func() bool { return usage(t, b, name).Queued == 0 })
	}
}

// What a publisher sent behind a message that was refused is refused too where its
// protocol has no answer but the end of the connection: it sends all again, in its order.
func TestNothingOvertakesARefusedMessage(t *testing.T) {
	b, db, proxy := proxied(t)
	s := connect(t, b, kept("s"))
	s.subscribe(filter("x", 1))
	h := clean("p")
	h.Resends = true
	p := connect(t, b, h)
	defer refuse(t, db, "INSERT ON mqtt_queue", noResources, `NEW.payload = '\x31'`)()
	proxy.Hang()
	p.publish("x", "1", 1, 1)
	time.Sleep(100 * time.Millisecond) // it is on its way alone
	p.publish("x", "2", 1, 2)
	p.publish("x", "3", 1, 3)
	proxy.Heal()
	p.answered("4 1 0x80", "4 2 0x80", "4 3 0x80")
	if got := s.all(); len(got) > 0 {
		t.Errorf("got %q, want nothing before the first", got)
	}
}

// An unsubscription ends the subscription of its filter that is in force then, also where
// another connection of the session has put a newer one in its place.
func TestAnUnsubscriptionEndsANewerSubscription(t *testing.T) {
	b, db := onSQLite(t, broker.Limits{})
	older := connect(t, b, kept("s"))
	older.subscribe(filter("x", 0))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	release := stall(t, db)
	older.conn.Subscribe(gone, []broker.Subscription{filter("x", 1)}) // its client has gone
	s := connect(t, b, kept("s"))
	done := make(chan []byte, 1)
	go func() { done <- s.conn.Unsubscribe(t.Context(), []string{"x"}) }()
	time.Sleep(50 * time.Millisecond)
	release()
	if codes := <-done; codes[0] != broker.Success {
		t.Fatalf("got reason code %#x", codes[0])
	}
	if got := s.conn.Filters(); len(got) > 0 || usage(t, b, "s").Subscriptions != 0 {
		t.Errorf("subscriptions after the unsubscription: got %q, and %d that count", got, usage(t, b, "s").Subscriptions)
	}
}

// The row of a subscription that another one of the same filter replaced goes although
// the database did not remove it at first: else it is in force again after a restart.
func TestTheRowOfAReplacedSubscriptionGoes(t *testing.T) {
	b, db := onPostgres(t)
	older := connect(t, b, kept("s"))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	heal := refuse(t, db, "DELETE ON mqtt_subscription", noResources, "")
	failed := failures(b, older)
	lock := lockTable(t, db, "mqtt_session")
	older.conn.Subscribe(gone, []broker.Subscription{filter("x", 1)})
	s := connect(t, b, kept("s"))
	s.conn.Subscribe(gone, []broker.Subscription{filter("x", 1)})
	lock()
	failed()
	heal()
	s.until("one row", func() bool { return count(t, db, "mqtt_subscription") == 1 })
	if got := s.conn.Filters(); !slices.Equal(got, []string{"x"}) {
		t.Errorf("filters: got %q", got)
	}
}

// lockTable has all that writes into a table wait until unlock is called.
func lockTable(t *testing.T, db *store.DB, table string) (unlock func()) {
	t.Helper()
	began, end, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = db.Write(context.Background(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `LOCK TABLE `+table+` IN EXCLUSIVE MODE`)
			close(began)
			<-end
			return err
		})
	}()
	<-began
	return func() { close(end); <-done }
}

// What a purge could not take off the record is purged later, or by the next purge: it
// does not come back with a restart.
func TestARefusedPurgeIsNotHalfDone(t *testing.T) {
	for _, table := range []string{"mqtt_retained", "mqtt_queue"} {
		t.Run(table, func(t *testing.T) {
			b, db := onPostgres(t)
			s := connect(t, b, kept("s"))
			s.subscribe(filter("x", 1))
			s.conn.Close(false, nil)
			for _, topic := range []string{"x", "r"} {
				m := &broker.Message{Topic: topic, Payload: []byte("m"), QoS: 1, Retain: topic == "r", Device: "s"}
				if err := b.Publish(t.Context(), m); err != nil {
					t.Fatal(err)
				}
			}
			heal := refuse(t, db, "DELETE ON "+table, noResources, "")
			what := countersign.Stored{Retained: true, Queued: true}
			if _, err := b.Purge(t.Context(), "s", what); err == nil {
				t.Error("got no error")
			}
			heal()
			if _, err := b.Purge(t.Context(), "s", what); err != nil {
				t.Error(err)
			}
			s.until("an empty record", func() bool { return count(t, db, "mqtt_retained") == 0 && messages(t, db) == 0 })
			if u := usage(t, b, "s"); u.Queued != 0 || u.Retained != 0 {
				t.Errorf("got %+v, want nothing that counts", u)
			}
		})
	}
}

// A change of QoS 2 that the database cannot execute, and not for want of resources,
// leaves no identifier that is never answered.
func TestAnImpossibleChangeLeavesNoIdentifierBehind(t *testing.T) {
	t.Run("PUBREC", func(t *testing.T) {
		b, db := onPostgres(t)
		s := connectAs(t, b, kept("s"), &client{hold: true})
		s.subscribe(filter("x", 2))
		p := connect(t, b, clean("p"))
		p.publish("x", "1", 2, 1)
		s.receives("1")
		heal := refuse(t, db, "INSERT ON mqtt_mark", cannotDo, "")
		failed := failures(b, s)
		s.conn.Acknowledge(broker.Pubrec, s.got[0].ID, broker.Success)
		failed()
		heal()
		s = connect(t, b, kept("s"))
		s.until("an empty queue", func() bool { return queued(t, b) == 0 && messages(t, db) == 0 })
	})
	t.Run("PUBREL", func(t *testing.T) {
		b, db := onPostgres(t)
		p := connect(t, b, kept("p"))
		p.publish("x", "1", 2, 7)
		p.answered("5 7 0x0")
		heal := refuse(t, db, "DELETE ON mqtt_inbound", cannotDo, "")
		failed := failures(b, p)
		p.conn.Release(7)
		failed()
		heal()
		p = connect(t, b, kept("p"))
		p.conn.Release(7)
		p.answered("7 7 0x0")
	})
}

// A client that comes back while its will is being published has its session connected on
// record, whichever is written first: what it is sent then is sent again as a duplicate
// after a crash.
func TestAWillThatIsDueLeavesTheSessionConnected(t *testing.T) {
	db := storetest.Open(t)
	o := options(db, broker.Limits{})
	var b *broker.Broker
	var left, back atomic.Int32
	hello := kept("s")
	s := make(chan *client, 1)
	o.Now = func() time.Time {
		// The second question of due is for the expiry of the will.
		if left.Load() == 1 && back.Add(1) == 2 {
			s <- connect(t, b, kept("s"))
		}
		return time.Now()
	}
	b, err := broker.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close(context.Background()) }()
	hello.Will = &broker.Will{Message: broker.Message{Topic: "w", Payload: []byte("will"), QoS: 1, Device: "s"}, Delay: 50 * time.Millisecond, Life: time.Hour}
	first := connect(t, b, hello)
	other := connect(t, b, kept("other"))
	other.subscribe(filter("w", 1))
	first.conn.Close(true, nil)
	left.Store(1)
	again := <-s
	other.receives("will")
	again.subscribe(filter("y", 1)) // on record behind the will
	if at := leftAt(t, db); at != 0 {
		t.Errorf("the record has the session without a connection since %d; want 0: it has one", at)
	}
}

// A message of QoS 0 that could not be retained is not sent again, and so hinders none
// behind it.
func TestARefusedMessageOfQoS0HindersNoOther(t *testing.T) {
	b, db := onPostgres(t)
	h := clean("p")
	h.Resends = true
	p := connect(t, b, h)
	heal := refuse(t, db, "INSERT ON mqtt_retained", noResources, "")
	failed := failures(b, p)
	retain := func(qos byte, id uint16) {
		m := &broker.Message{Topic: "r", Payload: []byte("m"), QoS: qos, Retain: true, Device: "p"}
		if err := p.conn.Publish(m, id); err != nil {
			t.Fatal(err)
		}
	}
	retain(0, 0)
	failed()
	heal()
	retain(1, 1)
	p.answered("4 1 0x0")
}

// Of what is tried again, one change that the database cannot make takes no other with it.
func TestAnImpossibleChangeTakesNoOtherWithIt(t *testing.T) {
	b, db, proxy := proxied(t)
	s := connectAs(t, b, kept("s"), &client{hold: true})
	s.subscribe(filter("x", 2))
	p := connect(t, b, clean("p"))
	p.publish("x", "1", 2, 1)
	s.receives("1")
	refuse(t, db, "INSERT ON mqtt_mark", cannotDo, "")
	failed := failures(b, s)
	proxy.RefuseWrites()
	s.conn.Acknowledge(broker.Pubrec, s.got[0].ID, broker.Success)
	s.conn.Close(false, nil)
	failed()
	proxy.Heal()
	s.until("the end of its connection on record", func() bool { return leftAt(t, db) > 0 })
}

// A will that the record did not take at once is published when it does, to kept sessions
// and as a retained message: no publisher sends it again. If its client has come back by
// then, or its topic has a newer message, it is not.
func TestAWillIsPublishedAfterARefusal(t *testing.T) {
	for _, delay := range []time.Duration{0, 50 * time.Millisecond} {
		for _, expiry := range []time.Duration{0, time.Hour} {
			for _, then := range []string{"", "client", "retained"} {
				t.Run(fmt.Sprintf("delay %v expiry %v then %s", delay, expiry, then), func(t *testing.T) {
					t.Parallel()
					b, db := onPostgres(t)
					w := connect(t, b, kept("w"))
					w.subscribe(filter("w", 1))
					h := broker.Hello{ClientID: "s", Device: "s", Expiry: expiry, Kept: 4}
					will := broker.Message{Topic: "w", Payload: []byte("off"), QoS: 1, Retain: true, Device: "s"}
					h.Will = &broker.Will{Message: will, Delay: delay}
					s := connect(t, b, h)
					failed := failures(b, w)
					heal := refuse(t, db, "INSERT ON mqtt_queue", noResources, "")
					s.conn.Close(true, nil)
					failed()
					heal()
					want := "off"
					if then != "" {
						want = "on"
						m := &broker.Message{Topic: "w", Payload: []byte(want), QoS: 1, Retain: true, Device: "s"}
						if then == "client" {
							h.Will = nil
							s = connect(t, b, h)
							if err := s.conn.Publish(m, 1); err != nil {
								t.Fatal(err)
							}
						} else if err := b.Publish(t.Context(), m); err != nil {
							t.Fatal(err)
						}
						w.until("the newer message", func() bool { return len(w.got) > 0 })
						time.Sleep(1200 * time.Millisecond) // more than the pause before the will is written again
					}
					if then == "retained" { // another publisher's: no order among both
						w.until("both messages", func() bool { return len(w.got) == 2 })
					} else {
						w.receives(want)
					}
					w.until("an empty queue", func() bool { return usage(t, b, "w").Queued == 0 })
					var got string
					w.until("a retained message", func() bool {
						return db.QueryRow(t.Context(), `SELECT convert_from(payload, 'UTF8') FROM mqtt_retained`).Scan(&got) == nil
					})
					if got != want {
						t.Errorf("retained on record: got %q, want %q", got, want)
					}
				})
			}
		}
	}
}
