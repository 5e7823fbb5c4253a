package lockout_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// book is the Ledger of one process, on a database.
type book struct {
	*lockout.Ledger
	clock  *kit.Clock
	mu     sync.Mutex
	events []countersign.Event // those that were committed
}

func (b *book) Now() time.Time { return b.clock.Now() }

func open(t *testing.T, db *store.DB, c *kit.Clock) *book {
	t.Helper()
	b := &book{clock: c}
	log := slog.New(slog.DiscardHandler)
	b.Ledger = &lockout.Ledger{DB: db, Now: c.Now, Log: log, Events: &event.Log{DB: db, Now: c.Now, Log: log}}
	b.Events.SubscribeRecorded(func(e countersign.Event) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.events = append(b.events, e)
	})
	if err := b.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *book) list(t *testing.T) []lockout.Block {
	t.Helper()
	var all []lockout.Block
	for after := ""; ; {
		page, next, err := b.Blocks(t.Context(), after, 2)
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, page...); next == "" {
			return all
		}
		after = next
	}
}

func (b *book) block(t *testing.T, network string, ttl time.Duration) (lockout.Block, error) {
	t.Helper()
	return b.Block(t.Context(), lockout.Block{Prefix: netip.MustParsePrefix(network), Until: b.clock.Now().Add(ttl), Reason: "odd"}, "operator:ana", "cli")
}

func rowsOf(t *testing.T, db *store.DB, table string) (n int) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRestartKeepsTheBooks(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		c := kit.NewClock(start)
		first := open(t, db, c)
		o := first.Count(t.Context(), lockout.Failure{})
		for range 10 {
			o = first.Count(t.Context(), lockout.Failure{
				Addr: netip.MustParseAddr("2001:db8::1"), Device: "pump-7", Credential: "tok1", Door: "est", Code: countersign.BadCredential,
			})
		}
		if !o.Blocked {
			t.Fatalf("got %+v, want a block", o)
		}
		failures(t, first.Ledger, "192.0.2.1", 9)
		failures(t, first.Ledger, "192.0.2.2", 1)
		if err := first.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := rowsOf(t, db, "failure_count"); n != 3 {
			t.Errorf("got %d counts on record, want those of an address, a device and a token: one failure is not worth a row", n)
		}

		second := open(t, db, c)
		if !blocked(t, second.Ledger, "2001:db8::2") {
			t.Error("after a restart: not blocked")
		}
		if o := failures(t, second.Ledger, "192.0.2.1", 1); !o.Blocked {
			t.Errorf("after a restart: got %+v, want the tenth failure to block", o)
		}
		o = second.Count(t.Context(), lockout.Failure{Addr: addr(1), Device: "pump-7", Credential: "tok1"})
		if o.DeviceFailures != 11 || o.CredentialFailures != 11 {
			t.Errorf("after a restart: got %+v, want the eleventh failure in the names", o)
		}
		second.Succeed("pump-7")
		if err := second.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.Advance(10 * time.Minute)
		third := open(t, db, c)
		o = third.Count(t.Context(), lockout.Failure{Addr: netip.MustParseAddr("192.0.2.1"), Device: "pump-7", Credential: "tok1"})
		if o.DeviceFailures != 1 || o.CredentialFailures != 12 || o.Failures != 1 {
			t.Errorf("got %+v, want the device's count ended by its success and the address's by its block", o)
		}
		if o := failures(t, third.Ledger, "2001:db8::1", 10); o.Until.Sub(c.Now()) != 20*time.Minute {
			t.Errorf("the second block, after a restart: got %v, want 20m", o.Until.Sub(c.Now()))
		}
	})
}

func TestBlockIsOnRecordWithItsEvent(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := open(t, db, kit.NewClock(start))
		for range 10 {
			b.Count(t.Context(), lockout.Failure{Addr: netip.MustParseAddr("192.0.2.1"), Device: "pump-7", Door: "est", Code: countersign.BadCredential})
		}
		want := []lockout.Block{{
			Prefix: netip.MustParsePrefix("192.0.2.1/32"), Reason: "10 wrong credentials within 10m0s", Failures: 10, Strikes: 1,
			Since: start, Until: start.Add(10 * time.Minute),
		}}
		opts := cmp.Options{cmpopts.IgnoreUnexported(lockout.Block{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
		if diff := cmp.Diff(want, b.list(t), opts); diff != "" {
			t.Errorf("Blocks (-want +got):\n%s", diff)
		}
		events := []countersign.Event{{
			At: start, Type: countersign.AddressBlocked, Actor: countersign.System, Remote: "192.0.2.1", Via: "est", Code: countersign.BadCredential,
			Reason: "10 wrong credentials within 10m0s",
			Data:   map[string]string{"network": "192.0.2.1/32", "until": "2026-06-01T12:10:00Z", "strikes": "1", "claims_device": "pump-7"},
		}}
		if diff := cmp.Diff(events, b.events); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
}

func TestOperatorBlocksAndUnblocks(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		c := kit.NewClock(start)
		b := open(t, db, c)
		made, err := b.block(t, "192.0.2.77/24", time.Hour)
		if err != nil || made.Prefix != netip.MustParsePrefix("192.0.2.0/24") || !made.Manual {
			t.Fatalf("Block: got %+v, %v", made, err)
		}
		if _, err := b.block(t, "2001:db8::1/128", time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, err := b.block(t, "2001:db8:ffff::/48", time.Hour); err != nil {
			t.Fatal(err)
		}
		for a, want := range map[string]bool{
			"192.0.2.1": true, "::ffff:192.0.2.255": true, "192.0.3.1": false, "2001:db8::2": true, "2001:db8:0:1::": false,
			"2001:db8:ffff:1234::1": true, "2001:db8:fffe::": false,
		} {
			if got := blocked(t, b.Ledger, a); got != want {
				t.Errorf("%s: got blocked %v, want %v", a, got, want)
			}
		}
		if b.CheckProven(netip.MustParseAddr("192.0.2.1")) == nil {
			t.Error("an operator's block lets proven devices pass")
		}
		if got := b.list(t); len(got) != 3 || got[0].Prefix != made.Prefix {
			t.Errorf("Blocks: got %v, want three by prefix", got)
		}
		failures(t, b.Ledger, "198.51.100.1", 10)
		for _, p := range []string{"192.0.2.0/24", "2001:db8::/64", "2001:db8:ffff::/48", "198.51.100.1/32"} {
			if _, err := b.Unblock(t.Context(), netip.MustParsePrefix(p), "operator:ana", "cli"); err != nil {
				t.Errorf("Unblock(%s): %v", p, err)
			}
			if blocked(t, b.Ledger, netip.MustParsePrefix(p).Addr().String()) {
				t.Errorf("%s is blocked after Unblock", p)
			}
			_, err := b.Unblock(t.Context(), netip.MustParsePrefix(p), "operator:ana", "cli")
			if countersign.CodeOf(err) != countersign.NotFound {
				t.Errorf("Unblock(%s) again: got %v, want not_found", p, err)
			}
		}
		if o := failures(t, b.Ledger, "198.51.100.1", 10); o.Until.Sub(c.Now()) != 10*time.Minute {
			t.Errorf("a lifted block counts against the address: got %v", o.Until.Sub(c.Now()))
		}
		if blocked(t, open(t, db, c).Ledger, "192.0.2.1") {
			t.Error("blocked again after a restart")
		}
		last := b.events[len(b.events)-2]
		if last.Type != countersign.AddressUnblocked || last.Actor != "operator:ana" || last.Data["network"] != "198.51.100.1/32" {
			t.Errorf("got event %+v, want address.unblocked", last)
		}
	})
}

func TestBlockRefusesWhatIsOutOfBounds(t *testing.T) {
	b := open(t, storetest.Open(t), kit.NewClock(start))
	b.Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, tt := range []struct {
		network string
		ttl     time.Duration
		want    countersign.Code
	}{
		{"0.0.0.0/0", time.Hour, countersign.BadRequest},
		{"::/0", time.Hour, countersign.BadRequest},
		{"2000::/15", time.Hour, countersign.BadRequest},
		{"192.0.2.1/32", 0, countersign.BadRequest},
		{"192.0.2.1/32", -time.Hour, countersign.BadRequest},
		{"192.0.2.1/32", 366 * 24 * time.Hour, countersign.BadRequest},
		{"10.1.0.0/16", time.Hour, countersign.Conflict},
		{"10.0.0.0/8", time.Hour, countersign.Conflict},
	} {
		if _, err := b.block(t, tt.network, tt.ttl); countersign.CodeOf(err) != tt.want {
			t.Errorf("%s for %v: got %v, want %s", tt.network, tt.ttl, err, tt.want)
		}
	}
	if _, err := b.Block(t.Context(), lockout.Block{Until: start.Add(time.Hour)}, "operator:ana", "cli"); countersign.CodeOf(err) != countersign.BadRequest {
		t.Errorf("no network: got %v", err)
	}
	long := lockout.Block{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Until: start.Add(time.Hour), Reason: strings.Repeat("x", 201)}
	if _, err := b.Block(t.Context(), long, "operator:ana", "cli"); countersign.CodeOf(err) != countersign.BadRequest {
		t.Errorf("a long reason: got %v", err)
	}
	if len(b.list(t)) != 0 || len(b.events) != 0 {
		t.Error("a refused block is on record")
	}
}

func TestEventAndBlockAreOne(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		c := kit.NewClock(start)
		b := open(t, db, c)
		rename := func(from, to string) {
			t.Helper()
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Exec(ctx, `ALTER TABLE `+from+` RENAME TO `+to)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		rename("event", "away") // events cannot be written
		if _, err := b.block(t, "192.0.2.0/24", time.Hour); err == nil {
			t.Error("a block without its event was answered")
		}
		if blocked(t, b.Ledger, "192.0.2.1") || len(b.list(t)) != 0 {
			t.Error("a block without its event holds")
		}
		// A block of the ledger is in force nevertheless, and written once events can be.
		failures(t, b.Ledger, "198.51.100.1", 10)
		if !blocked(t, b.Ledger, "198.51.100.1") || len(b.list(t)) != 0 {
			t.Error("want the block to hold in memory alone")
		}
		rename("away", "event")
		if err := b.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(b.list(t)) != 1 || len(b.events) != 1 || !blocked(t, open(t, db, c).Ledger, "198.51.100.1") {
			t.Errorf("after the flush: got %v and %v, want block and event on record", b.list(t), b.events)
		}
	})
}

func TestClientThatHangsUpIsBlocked(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := open(t, db, kit.NewClock(start))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 10 {
			b.Count(ctx, lockout.Failure{Addr: addr(7)})
		}
		if len(b.list(t)) != 1 {
			t.Error("the block is not on record")
		}
	})
}

// TestNodesShareBlocks runs two ledgers on one PostgreSQL.
func TestNodesShareBlocks(t *testing.T) {
	db := storetest.OpenURL(t, storetest.PostgresURL(t))
	c := kit.NewClock(start)
	one, two := open(t, db, c), open(t, db, kit.NewClock(start.Add(30*time.Second))) // the clocks of two nodes differ
	poll := func(b *book) {
		t.Helper()
		if err := b.Poll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	failures(t, one.Ledger, "192.0.2.1", 10)
	if blocked(t, two.Ledger, "192.0.2.1") {
		t.Error("the other node knows before it asked")
	}
	poll(two)
	if !blocked(t, two.Ledger, "192.0.2.1") {
		t.Error("the other node lets the address in")
	}
	if _, err := two.block(t, "203.0.113.0/24", time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := two.Unblock(t.Context(), netip.MustParsePrefix("192.0.2.1/32"), "operator:ana", "cli"); err != nil {
		t.Fatal(err)
	}
	poll(one)
	if blocked(t, one.Ledger, "192.0.2.1") || !blocked(t, one.Ledger, "203.0.113.9") {
		t.Error("the first node did not learn what an operator did on the other")
	}

	// Both block the same address at once: there must be one row, one event and one end.
	before := len(one.events) + len(two.events)
	failures(t, one.Ledger, "198.51.100.1", 10)
	failures(t, two.Ledger, "198.51.100.1", 10)
	if n := len(one.events) + len(two.events) - before; n != 1 {
		t.Errorf("got %d events, want 1", n)
	}
	poll(one)
	poll(two)
	c.Advance(time.Minute)
	if !blocked(t, one.Ledger, "198.51.100.1") || !blocked(t, two.Ledger, "198.51.100.1") {
		t.Error("want it blocked on both")
	}
}

func TestOperatorsBlockOutlivesTheLedgersOwn(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		c := kit.NewClock(start)
		one, two := open(t, db, c), open(t, db, c)
		if _, err := one.block(t, "192.0.2.1/32", time.Hour); err != nil {
			t.Fatal(err)
		}
		failures(t, two.Ledger, "192.0.2.1", 10) // a node that has not read it yet
		if got := one.list(t); len(got) != 1 || !got[0].Manual || !got[0].Until.Equal(start.Add(time.Hour)) {
			t.Errorf("got %+v, want the operator's", got)
		}
		if len(two.events) != 0 {
			t.Errorf("got %v, want no event of a block that was not made", two.events)
		}
	})
}

// TestRecordIsBounded writes too many rows to the record, and sweeps.
func TestRecordIsBounded(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		c := kit.NewClock(start)
		b := open(t, db, c)
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			const many = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) `
			if _, err := tx.Exec(ctx, many+`INSERT INTO failure_count (kind, name, failures, began_at)
				SELECT 'device', 'd' || i, 2, CAST($2 AS BIGINT) + i FROM n`, lockout.MaxTallies+500, store.Micros(start)); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, many+`INSERT INTO address_block (prefix, manual, reason, failures, strikes, began_at, ends_at, changed_at)
				SELECT (i / 65536) || '.' || (i / 256 % 256) || '.' || (i % 256) || '.1/32', FALSE, '', 10, 1, CAST($2 AS BIGINT), CAST($2 AS BIGINT) + 1000000 + i, CAST($2 AS BIGINT) FROM n`,
				lockout.MaxBlocks+500, store.Micros(start))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.block(t, "203.0.113.0/24", time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := b.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := rowsOf(t, db, "failure_count"); n != lockout.MaxTallies+1 {
			t.Errorf("got %d counts on record, want %d", n, lockout.MaxTallies+1)
		}
		if n := rowsOf(t, db, "address_block"); n != lockout.MaxBlocks+2 {
			t.Errorf("got %d blocks on record, want %d and the operator's", n, lockout.MaxBlocks+1)
		}
		again := open(t, db, c)
		if blocks, tallies := again.Held(); blocks != lockout.MaxBlocks || tallies != lockout.MaxTallies || !blocked(t, again.Ledger, "203.0.113.1") {
			t.Errorf("loaded %d blocks and %d counts, want %d and %d, and the operator's", blocks, tallies, lockout.MaxBlocks, lockout.MaxTallies)
		}
		c.Advance(8 * 24 * time.Hour)
		if err := again.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if blocks, tallies := again.Held(); blocks+tallies+rowsOf(t, db, "failure_count")+rowsOf(t, db, "address_block") != 0 {
			t.Errorf("a week after the last: %d blocks and %d counts left in memory", blocks, tallies)
		}
	})
}

// TestRunWritesWhatIsLeft stops a ledger before its first flush.
func TestRunWritesWhatIsLeft(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		b := open(t, db, kit.NewClock(start))
		for i := range 1200 {
			failures(t, b.Ledger, fmt.Sprintf("10.0.%d.%d", i/256, i%256), 2)
		}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if err := b.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if n := rowsOf(t, db, "failure_count"); n != 1200 {
			t.Errorf("got %d counts on record, want 1200", n)
		}
	})
}

// TestDatabaseAwayIsNoWayIn closes the database: blocks must stay in force, and new ones
// must be made.
func TestDatabaseAwayIsNoWayIn(t *testing.T) {
	db, err := store.Open(t.Context(), store.Options{URL: storetest.SQLiteURL(t), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, db, kit.NewClock(start))
	failures(t, b.Ledger, "192.0.2.1", 10)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	failures(t, b.Ledger, "192.0.2.2", 10)
	if !blocked(t, b.Ledger, "192.0.2.1") || !blocked(t, b.Ledger, "192.0.2.2") {
		t.Error("want both blocked")
	}
	failures(t, b.Ledger, "192.0.2.3", 2)
	if err := b.Flush(t.Context()); countersign.CodeOf(err) != countersign.Unavailable {
		t.Errorf("Flush: got %v, want unavailable", err)
	}
}
