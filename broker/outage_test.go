package broker_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

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

// refuse has PostgreSQL refuse one kind of statement on a table, until heal is called.
// when is the condition, such as OLD.seq = 1; empty: always.
func refuse(t *testing.T, db *store.DB, statement, table, code, when string) (heal func()) {
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
		`CREATE TRIGGER refuse BEFORE `+statement+` ON `+table+` FOR EACH ROW `+when+` EXECUTE FUNCTION refuse()`)
	return func() { run(`DROP FUNCTION refuse CASCADE`) }
}

// failures waits until n transactions more have failed than when it was called.
func failures(b *broker.Broker, c *client, n uint64) (wait func()) {
	before := b.Stats().CommitFailed
	return func() {
		c.t.Helper()
		c.until("a failed transaction", func() bool { return b.Stats().CommitFailed >= before+n })
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
	heal := refuse(t, db, "INSERT", "mqtt_inbound", noResources, "")
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
		failed := failures(b, s, 1)
		heal := refuse(t, db, "INSERT", "mqtt_queue", noResources, "")
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
	defer refuse(t, db, "INSERT", "mqtt_queue", noResources, `NEW.payload = '\x31'`)()
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
