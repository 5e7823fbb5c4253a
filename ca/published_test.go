package ca_test

import (
	"context"
	"io"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// failOver sets the list on record back to an earlier one, as a failover to a standby
// that was behind does. Certificates are kept: they are revoked after it.
func (h *house) failOver(t *testing.T, l *countersign.CRL) {
	t.Helper()
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE crl SET number = $1, published = $1, this_update = $2, next_update = $3, entries = $4, size = $6, head = $5, tail = NULL, chunks = NULL WHERE issuer = 'issuing'`,
			l.Number, store.Micros(l.ThisUpdate), store.Micros(l.NextUpdate), l.Entries, l.DER, len(l.DER))
		return err
	})
}

// opened returns the list that a relying party gets; its number is 0 where it gets none.
func opened(t *testing.T, c *ca.CA) (number int64, code countersign.Code) {
	t.Helper()
	record, err := c.CRLRecord(t.Context(), ca.IssuingID, 0)
	if err != nil {
		return 0, countersign.CodeOf(err)
	}
	l, r, err := c.OpenCRL(t.Context(), ca.IssuingID, 0)
	if err != nil {
		return 0, countersign.CodeOf(err)
	}
	defer r.Close()
	der, err := io.ReadAll(r)
	if err != nil || int64(len(der)) != l.Size || l.Number != record.Number {
		t.Fatalf("list %d: got %d octets, %v, want %d and number %d", l.Number, len(der), err, l.Size, record.Number)
	}
	return l.Number, ""
}

func (h *house) isDue(t *testing.T, c *ca.CA) bool {
	t.Helper()
	due, err := c.Due(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range due {
		if l.Issuer == ca.IssuingID {
			return true
		}
	}
	return false
}

// TestNoListFollowsOneWithAHigherNumber: after a failover no node serves the older list of
// the database, and the next one has a number above all that were published before.
func TestNoListFollowsOneWithAHigherNumber(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		reader, knows := h.process(t), h.process(t)
		first, _ := h.publish(t)
		for range 3 {
			h.publish(t)
		}
		lost, _ := h.publish(t)
		for name, c := range map[string]*ca.CA{"publisher": h.CA, "reader": reader} {
			if got, code := opened(t, c); got != lost.Number {
				t.Fatalf("%s before: got %d, %s", name, got, code)
			}
		}
		if _, err := knows.CRLRecord(t.Context(), ca.IssuingID, 0); err != nil { // and has no copy
			t.Fatal(err)
		}
		h.failOver(t, first)
		for name, c := range map[string]*ca.CA{"publisher": h.CA, "reader": reader} {
			if got, code := opened(t, c); got != lost.Number {
				t.Errorf("%s after: got %d, %s, want the list of before, %d", name, got, code, lost.Number)
			}
			if _, err := c.CRL(t.Context(), ca.IssuingID, 0); countersign.CodeOf(err) != countersign.Unavailable {
				t.Errorf("%s after: the list on record: got %v, want unavailable", name, err)
			}
		}
		if got, code := opened(t, knows); code != countersign.Unavailable {
			t.Errorf("a node without a copy: got %d, %s, want unavailable", got, code)
		}
		cert := h.issue(t, ca.ProfileDevice, "pump-1")
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			return h.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
		})
		for name, c := range map[string]*ca.CA{"publisher": h.CA, "reader": reader, "without a copy": knows} {
			if !h.isDue(t, c) {
				t.Errorf("%s: the list is not due", name)
			}
		}
		next, err := reader.Publish(t.Context(), ca.IssuingID, 0)
		if err != nil || next.Number <= lost.Number || next.Entries != 1 {
			t.Fatalf("the next list: got %+v, %v, want a number above %d and one entry", next, err, lost.Number)
		}
		for name, c := range map[string]*ca.CA{"publisher": h.CA, "reader": reader, "without a copy": knows} {
			if got, code := opened(t, c); got != next.Number {
				t.Errorf("%s, then: got %d, %s, want %d", name, got, code, next.Number)
			}
			if h.isDue(t, c) {
				t.Errorf("%s, then: the list is due still", name)
			}
		}
	})
}

// TestAnotherListOfTheSameNumberIsDue: a node that knew nothing of the failover had the
// numbers catch up.
func TestAnotherListOfTheSameNumberIsDue(t *testing.T) {
	h := found(t, storetest.Open(t))
	h.publish(t)
	lost, _ := h.publish(t)
	opened(t, h.CA)
	other := *lost
	other.ThisUpdate, other.NextUpdate = lost.ThisUpdate.Add(1e9), lost.NextUpdate.Add(1e9)
	h.failOver(t, &other)
	if record, err := h.CRLRecord(t.Context(), ca.IssuingID, 0); err != nil || !record.ThisUpdate.Equal(lost.ThisUpdate) || !h.isDue(t, h.CA) {
		t.Errorf("got %+v, %v, due %t, want the list of before, and due", record, err, h.isDue(t, h.CA))
	}
	next, _ := h.publish(t)
	if got, code := opened(t, h.CA); got != next.Number || next.Number <= lost.Number || h.isDue(t, h.CA) {
		t.Errorf("then: got %d, %s, want %d above %d, not due", got, code, next.Number, lost.Number)
	}
}

// TestKeepNumbersAboveHasAllListsPublished holds what a node does with the numbers of its
// watermark: those that were given out may be higher than those that were published.
func TestKeepNumbersAboveHasAllListsPublished(t *testing.T) {
	h := found(t, storetest.Open(t))
	l, _ := h.publish(t)
	for _, above := range []int64{l.Number, l.Number + 40} {
		if h.isDue(t, h.CA) {
			t.Error("due before")
		}
		h.KeepNumbersAbove(map[string]int64{"issuing/0": above})
		if !h.isDue(t, h.CA) {
			t.Errorf("above %d: not due", above)
		}
		if next, _ := h.publish(t); next.Number <= above {
			t.Errorf("above %d: got %d", above, next.Number)
		}
	}
}
