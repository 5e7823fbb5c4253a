package broker_test

import (
	"context"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/broker"
)

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
