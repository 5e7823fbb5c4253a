package ca_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// blockSize is how many serials one block holds.
const blockSize = 1024

// recorded returns the serials of all blocks in a state.
func (h *house) recorded(t failer, state string) map[countersign.Serial]bool {
	t.Helper()
	rows, err := h.db.Query(t.Context(), `SELECT serials FROM serial_block WHERE state = $1`, state)
	if err != nil {
		t.Fatalf("Query: %v", err)
	}
	defer func() { _ = rows.Close() }()
	found := map[countersign.Serial]bool{}
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			t.Fatalf("Scan: %v", err)
		}
		for one := range slices.Chunk(b, 20) {
			s, err := countersign.ParseSerial(strings.ToLower(hexOf(one)))
			if err != nil {
				t.Fatalf("serial on record: %v", err)
			}
			found[s] = true
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("rows: %v", err)
	}
	return found
}

// TestSerialsAreOnRecordBeforeUse draws more than two blocks from many goroutines.
func TestSerialsAreOnRecordBeforeUse(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		o := h.order(t, ca.ProfileDevice, "pump-1")
		const workers, each = 16, 160
		drawn := make([][]*ca.Planned, workers)
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for range each {
					p, err := h.Plan(t.Context(), o)
					if err != nil {
						t.Errorf("Plan: %v", err)
						return
					}
					drawn[w] = append(drawn[w], p)
				}
			})
		}
		wg.Wait()
		open := h.recorded(t, "open")
		seen := map[countersign.Serial]bool{}
		for _, p := range slices.Concat(drawn...) {
			issued, err := h.Sign(p)
			if err != nil {
				t.Fatal(err)
			}
			n := issued.Serial.Int()
			if seen[issued.Serial] {
				t.Fatalf("serial %s was drawn twice", issued.Serial)
			}
			seen[issued.Serial] = true
			if !open[issued.Serial] {
				t.Fatalf("serial %s was drawn and is not on record", issued.Serial)
			}
			// 20 octets on the wire, so positive without a zero in front.
			if n.Sign() != 1 || len(n.Bytes()) != 20 || n.BitLen() != 159 {
				t.Fatalf("serial %s: got %d bits, want 159", issued.Serial, n.BitLen())
			}
		}
		if len(seen) != workers*each {
			t.Errorf("got %d serials, want %d", len(seen), workers*each)
		}
	})
}

func TestNextBlockIsFetchedAhead(t *testing.T) {
	h := found(t, storetest.Open(t))
	o := h.order(t, ca.ProfileDevice, "pump-1")
	for range blockSize*3/4 + 8 { // past the low water mark
		if _, err := h.Plan(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	kit.Eventually(t, "a second block is open near the end of the first", func() bool { return len(h.recorded(t, "open")) >= 2*blockSize })
}

func TestDrawReportsAFailedFetch(t *testing.T) {
	h := found(t, storetest.Open(t))
	c := h.process(t)
	o := h.order(t, ca.ProfileDevice, "pump-1")
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `ALTER TABLE serial_block RENAME TO away`)
		return err
	})
	if _, err := c.Plan(t.Context(), o); err == nil {
		t.Fatal("a certificate was planned although no serial could be recorded")
	}
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `ALTER TABLE away RENAME TO serial_block`)
		return err
	})
	if _, err := c.Plan(t.Context(), o); err != nil {
		t.Errorf("after the database came back: %v", err)
	}
}

func TestSerialsOfDeadProcessAreVoided(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		kept := h.issue(t, ca.ProfileDevice, "kept")
		lost := h.sign(t, h.order(t, ca.ProfileDevice, "lost")) // and the process dies before Record

		after := h.process(t)
		// Root, issuing and kept are on record.
		if n, err := after.VoidSerials(t.Context(), true); err != nil || n != blockSize-3 {
			t.Fatalf("VoidSerials: got %d, %v, want %d", n, err, blockSize-3)
		}
		if n, err := after.VoidSerials(t.Context(), true); err != nil || n != 0 {
			t.Errorf("VoidSerials again: got %d, %v, want 0", n, err)
		}
		void := h.recorded(t, "void")
		if !void[lost.Serial] || void[kept.Serial] || len(void) != blockSize-3 {
			t.Errorf("void: got %d, lost one %v, kept one %v; want %d, true, false", len(void), void[lost.Serial], void[kept.Serial], blockSize-3)
		}
		// A certificate over a voided serial never gets on record, so it is never given out.
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.Record(ctx, tx, lost) })
		kit.WantCode(t, err, countersign.Unavailable)
		_, err = ca.Certificate(t.Context(), db, lost.Ref())
		kit.WantCode(t, err, countersign.NotFound)
	})
}

// TestWithoutABlockNothingIsRecorded puts on record a certificate whose serial no block
// has. Only a manufacturer's may be without one, and that goes through RecordExternal.
func TestWithoutABlockNothingIsRecorded(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		rec := h.sign(t, h.order(t, ca.ProfileDevice, "pump-1")).Certificate
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.Record(ctx, tx, &ca.Issued{Certificate: rec}) })
		if !errors.Is(err, ca.ErrBlockClosed) {
			t.Errorf("got %v, want %v", err, ca.ErrBlockClosed)
		}
		_, err = ca.Certificate(t.Context(), db, rec.Ref())
		kit.WantCode(t, err, countersign.NotFound)
	})
}

func TestVoidSerialsLeavesLivingProcessesAlone(t *testing.T) {
	h := found(t, storetest.Open(t))
	issued := h.sign(t, h.order(t, ca.ProfileDevice, "pump-1"))
	h.clock.Advance(50 * time.Minute)
	if n, err := h.process(t).VoidSerials(t.Context(), false); err != nil || n != 0 {
		t.Errorf("VoidSerials of a block in use: got %d, %v, want 0", n, err)
	}
	h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.Record(ctx, tx, issued) })
	h.clock.Advance(20 * time.Minute)
	if n, err := h.process(t).VoidSerials(t.Context(), false); err != nil || n != blockSize-3 {
		t.Errorf("VoidSerials past the block's life: got %d, %v, want %d", n, err, blockSize-3)
	}
}

// TestNobodyDrawsFromBlockNearItsEnd wants a node to stop well before others may void.
func TestNobodyDrawsFromBlockNearItsEnd(t *testing.T) {
	h := found(t, storetest.Open(t))
	first := h.recorded(t, "open")
	h.clock.Advance(44 * time.Minute)
	if s := h.issue(t, ca.ProfileDevice, "pump-1").Serial; !first[s] {
		t.Errorf("serial %s is not of the first block, which is still good", s)
	}
	h.clock.Advance(2 * time.Minute)
	if s := h.issue(t, ca.ProfileDevice, "pump-2").Serial; first[s] {
		t.Errorf("serial %s was drawn from a block that ends in 14 minutes", s)
	}
}

func TestSpentBlockLeavesNothing(t *testing.T) {
	h := found(t, storetest.Open(t))
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE serial_block SET serials = $1`, h.certificateOf(t, ca.RootID).SerialNumber.Bytes())
		return err
	})
	if n, err := h.VoidSerials(t.Context(), true); err != nil || n != 0 {
		t.Errorf("VoidSerials: got %d, %v, want 0", n, err)
	}
	if left := len(h.recorded(t, "void")) + len(h.recorded(t, "open")); left != 0 {
		t.Errorf("%d serials are still kept", left)
	}
}

// TestSerialsAreVoidedOnce has two nodes look after the same dead one, which left
// more blocks behind than are read at once.
func TestSerialsAreVoidedOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			for i := range 100 {
				_, err := tx.Exec(ctx, `INSERT INTO serial_block (id, serials, state, opened_at, expires_at) VALUES ($1, $2, 'open', 0, 1)`,
					fmt.Sprintf("block-%d", i), slices.Repeat([]byte{0x40, byte(i)}, 10))
				if err != nil {
					return err
				}
			}
			return nil
		})
		var total atomic.Int64
		var wg sync.WaitGroup
		for range 3 {
			c := h.process(t)
			wg.Go(func() {
				n, err := c.VoidSerials(t.Context(), false)
				if err != nil {
					t.Errorf("VoidSerials: %v", err)
				}
				total.Add(int64(n))
			})
		}
		wg.Wait()
		if got := total.Load(); got != 100 {
			t.Errorf("got %d serials voided in all, want 100", got)
		}
		if void := h.recorded(t, "void"); len(void) != 100 {
			t.Errorf("got %d void serials on record, want 100", len(void))
		}
	})
}

// TestNodesWithOtherClocksVoidNoLivingBlock: a node whose clock is far ahead must not
// take the serials away that its neighbors are drawing, nor lose its own.
func TestNodesWithOtherClocksVoidNoLivingBlock(t *testing.T) {
	db := storetest.OpenURL(t, storetest.PostgresURL(t))
	h := found(t, db)
	h.clock.Advance(time.Since(h.clock.Now())) // near the clock of the database, which the test cannot turn
	h.issue(t, ca.ProfileDevice, "pump-1")
	for _, ahead := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
		o := h.Options
		o.Now = func() time.Time { return h.clock.Now().Add(ahead) }
		neighbor, err := ca.Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := neighbor.Plan(t.Context(), h.order(t, ca.ProfileDevice, "pump-2")); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]*ca.CA{"the other node": neighbor, "this node": h.CA} {
			if n, err := c.VoidSerials(t.Context(), false); err != nil || n != 0 {
				t.Errorf("clock %v apart, %s: got %d serials voided, %v, want none", ahead, name, n, err)
			}
		}
	}
}

// TestANodeVoidsNoBlockThatItDrawsFrom: the clock that the nodes share may be set
// ahead while a block is open, so that it seems to be over.
func TestANodeVoidsNoBlockThatItDrawsFrom(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		h.issue(t, ca.ProfileDevice, "pump-1")
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE serial_block SET expires_at = 1`)
			return err
		})
		if n, err := h.VoidSerials(t.Context(), false); err != nil || n != 0 {
			t.Errorf("VoidSerials: got %d serials voided, %v, want none", n, err)
		}
		h.issue(t, ca.ProfileDevice, "pump-2")
		h.clock.Advance(2 * time.Hour) // more than a block is used for
		if n, err := h.VoidSerials(t.Context(), false); err != nil || n == 0 {
			t.Errorf("VoidSerials later: got %d serials voided, %v, want those that were left", n, err)
		}
	})
}

// TestServiceCertificateSurvivesAClosedBlock: a block that was closed costs another
// signature and no more.
func TestServiceCertificateSurvivesAClosedBlock(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		for range 3 {
			h.issue(t, ca.ProfileDevice, "pump-1")
			h.write(t, func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Exec(ctx, `UPDATE serial_block SET state = 'void'`)
				return err
			})
			if _, _, err := h.IssueServer(t.Context(), ca.IssuingID, []string{"gw.example.net"}, &kit.Key(t).PublicKey); err != nil {
				t.Errorf("IssueServer with a block that was closed: %v", err)
			}
		}
	})
}

// TestSerialsAreInTimeOrder has nodes, whose own clocks differ where they share one, draw
// one after the other, each from a block of its own.
func TestSerialsAreInTimeOrder(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		var drawn []countersign.Serial
		for i := range 5 {
			o := h.Options
			if h.clock.Advance(time.Second); db.Postgres() {
				o.Now = func() time.Time { return h.clock.Now().Add(-time.Duration(i) * time.Hour) }
			}
			c := kit.Must(ca.Open(t.Context(), o))
			drawn = append(drawn, kit.Must(c.Sign(kit.Must(c.Plan(t.Context(), h.order(t, ca.ProfileDevice, "pump-1"))))).Serial)
		}
		if !slices.IsSorted(drawn) {
			t.Errorf("serials are not in the order in which they were drawn: %v", drawn)
		}
	})
}

// TestSerialsHave96RandomBits looks at blocks of any time: each serial is positive, has 20
// octets, and each of its last 96 bits differs among those of one block.
func TestSerialsHave96RandomBits(t *testing.T) {
	for _, at := range []time.Time{start, time.Unix(0, 0), time.Unix(-1, 0), start.AddDate(200, 0, 0), {}, start.AddDate(5000, 0, 0)} {
		one, two := kit.Must(ca.SerialsAt(at)), kit.Must(ca.SerialsAt(at)) // two nodes, or a clock that was set back
		seen := map[string]bool{}
		var zeros, ones [12]byte
		for s := range slices.Chunk(slices.Concat(one, two), 20) {
			if n := new(big.Int).SetBytes(s); n.BitLen() != 159 || ca.CheckSerial(n) != nil {
				t.Fatalf("at %v: serial %x is not a positive number of 20 octets", at, s)
			}
			seen[string(s[8:])] = true
			for i, b := range s[8:] {
				ones[i] |= b
				zeros[i] |= ^b
			}
		}
		if len(one) != blockSize*20 || len(seen) != 2*blockSize {
			t.Errorf("at %v: got %d serials, %d of them distinct in what is random", at, len(one)/20, len(seen))
		}
		if all := [12]byte(bytes.Repeat([]byte{0xff}, 12)); zeros != all || ones != all {
			t.Errorf("at %v: some bits are the same in all serials: %x, %x", at, zeros, ones)
		}
	}
}
