package ca_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// refresh has a process bring the list up to date and returns what is on it as another
// process reads it.
func (h *house) refresh(t failer, c, reader *ca.CA) (l *countersign.CRL, fresh bool, entries map[countersign.Serial]entry) {
	t.Helper()
	_, fresh, err := c.Refresh(t.Context(), ca.IssuingID, 0)
	if err != nil {
		t.Fatalf("Refresh: %v", err)
	}
	if l, err = reader.CRL(t.Context(), ca.IssuingID, 0); err != nil {
		t.Fatalf("CRL: %v", err)
	}
	list, err := x509.ParseRevocationList(l.DER)
	if err != nil {
		t.Fatalf("ParseRevocationList: %v", err)
	}
	if err := list.CheckSignatureFrom(h.certificateOf(t, ca.IssuingID)); err != nil {
		t.Fatalf("CheckSignatureFrom: %v", err)
	}
	entries = entriesOf(list)
	if l.Entries != len(entries) || len(list.RevokedCertificateEntries) != len(entries) || l.Size != int64(len(l.DER)) || list.Number.Int64() != l.Number {
		t.Fatalf("got the record %d/%d octets/%d entries, want number %v, %d, %d", l.Number, l.Size, l.Entries, list.Number, len(l.DER), len(entries))
	}
	return l, fresh, entries
}

// TestListsFollowChanges has one of several processes refresh the list after some random
// acts, and compares what is on it, read by one of them, with the record and with a list
// that is made anew.
func TestListsFollowChanges(t *testing.T) {
	for name, tt := range map[string]struct {
		url    func(testing.TB) string
		rounds int // a commit takes longer on PostgreSQL
	}{"sqlite": {storetest.SQLiteURL, 60}, "postgres": {storetest.PostgresURL, 15}} {
		t.Run(name, func(t *testing.T) {
			db := storetest.OpenURL(t, tt.url(t))
			h := found(t, db)
			processes := []*ca.CA{h.CA, h.process(t), h.process(t)}
			one := func() *ca.CA { return processes[rand.IntN(len(processes))] }
			var certs []*countersign.Certificate
			for i := range tt.rounds {
				cert := h.issue(t, ca.ProfileDevice, fmt.Sprint("pump-", i))
				certs = append(certs, &cert)
				before, _, _ := h.refresh(t, one(), one())
				changed := false
				for range rand.IntN(6) {
					changed = h.act(t, certs[rand.IntN(len(certs))]) || changed
				}
				l, published, got := h.refresh(t, one(), one())
				if published != changed || changed && l.Number <= before.Number || !changed && l.Number != before.Number {
					t.Fatalf("changed %t: got a new list %t, number %d after %d", changed, published, l.Number, before.Number)
				}
				want := map[countersign.Serial]entry{}
				for _, c := range certs {
					if c.State == countersign.CertHeld || c.State == countersign.CertRevoked {
						want[c.Serial] = entry{start.Add(-backdate), int(c.Reason)}
					}
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Fatalf("entries (-want +got):\n%s", d)
				}
				if i%5 > 0 {
					continue
				}
				if _, list := h.publish(t); !cmp.Equal(entriesOf(list), got) {
					t.Fatalf("made anew: got %v, want %v", entriesOf(list), got)
				}
			}
			if n := countRows(t, db, "crl_change"); n != 0 {
				t.Errorf("changes left on record: got %d, want none", n)
			}
		})
	}
}

// act changes the revocation of a certificate, if there is a way on from what it is.
func (h *house) act(t *testing.T, cert *countersign.Certificate) (changed bool) {
	h.write(t, func(ctx context.Context, tx *store.Tx) (err error) {
		next, other := *cert, rand.IntN(2) == 0
		switch {
		case next.State == countersign.CertHeld && other:
			err = h.Release(ctx, tx, &next)
		case next.State == countersign.CertHeld:
			err = h.Revoke(ctx, tx, &next, countersign.Unspecified)
		case next.State == countersign.CertRevoked && next.Reason != countersign.KeyCompromise:
			err = h.RaiseReason(ctx, tx, &next, countersign.KeyCompromise)
		case next.State == countersign.CertRevoked:
			return nil
		case other:
			err = h.Hold(ctx, tx, &next)
		default:
			err = h.Revoke(ctx, tx, &next, countersign.Superseded)
		}
		if err == nil {
			*cert, changed = next, true
		}
		return err
	})
	return changed
}

func countRows(t *testing.T, db *store.DB, table string) (n int) {
	t.Helper()
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM `+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// many puts revoked certificates on record, with their changes if the list is to follow.
func (h *house) many(t failer, from, n int, changes bool) {
	t.Helper()
	const atOnce = 500
	for ; n > 0; from, n = from+atOnce, n-atOnce {
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			var certs, noted store.Query
			var rows, notes []string
			for i := from; i < from+min(n, atOnce); i++ {
				serial := fmt.Sprintf("%02x%038x", 1+i%255, i)
				rows = append(rows, `(`+certs.Arg(serial)+`, 'issuing', 'device', '', '', 'revoked', '', 1, FALSE, '', '', '', '', '', 0, `+
					strconv.FormatInt(store.Micros(start.Add(time.Hour)), 10)+`, 0, 0, 0, `+strconv.FormatInt(store.Micros(start), 10)+`, 0, '')`)
				notes = append(notes, `('issuing', 0, `+noted.Arg(serial)+`)`)
			}
			_, err := tx.Exec(ctx, `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence,
				method, key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der) VALUES `+strings.Join(rows, ", "), certs.Args...)
			if err == nil && changes {
				_, err = tx.Exec(ctx, `INSERT INTO crl_change (issuer, shard, serial) VALUES `+strings.Join(notes, ", "), noted.Args...)
			}
			return err
		})
	}
}

// TestARevocationWritesLittleOfALargeList: what follows a change shares the other chunks,
// in the database and in memory, and a process that reads the list reads no more.
func TestARevocationWritesLittleOfALargeList(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		const entries = 30_000
		h.many(t, 0, entries, false)
		h.publish(t)
		reader := h.process(t)
		h.refresh(t, h.CA, reader)
		ids := func() []int64 {
			list, err := store.List(t.Context(), db, store.Scan[int64], `SELECT id FROM crl_chunk ORDER BY id`)
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		first := ids()
		if len(first) < 4 {
			t.Fatalf("got %d chunks of %d entries, want some", len(first), entries)
		}
		cert := h.issue(t, ca.ProfileDevice, "pump")
		kept := func(ids, of []int64) (n int) {
			for _, id := range ids {
				if slices.Contains(of, id) {
					n++
				}
			}
			return n
		}
		for i, act := range []func(context.Context, *store.Tx) error{
			func(ctx context.Context, tx *store.Tx) error { return h.Hold(ctx, tx, &cert) },
			func(ctx context.Context, tx *store.Tx) error { return h.Release(ctx, tx, &cert) },
		} {
			h.write(t, act)
			if _, fresh, got := h.refresh(t, h.CA, reader); !fresh || len(got) != entries+1-i {
				t.Fatalf("act %d: got %d entries", i, len(got))
			}
			if now := ids(); len(now) != len(first) || kept(now, first) != len(first)-1 {
				t.Errorf("act %d: got %d chunks of which %d are of the list before, want %d and one less", i, len(now), kept(now, first), len(first))
			}
		}
		h.many(t, entries, 21_000, true) // more than one list follows at once
		if _, _, got := h.refresh(t, reader, h.CA); len(got) != entries+21_000 {
			t.Errorf("after many changes: got %d entries, want %d", len(got), entries+21_000)
		}
		if n := countRows(t, db, "crl_change"); n != 0 {
			t.Errorf("changes left on record: got %d, want none", n)
		}
		h.publish(t)
		h.refresh(t, h.CA, reader)
	})
}

// TestAListOfAnEarlierVersionIsMadeAnew: it is served as it is until then.
func TestAListOfAnEarlierVersionIsMadeAnew(t *testing.T) {
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileDevice, "pump")
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		return h.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
	})
	old, _ := h.publish(t)
	h.failOver(t, old) // which leaves it as the migration does
	c := h.process(t)
	if l, err := c.CRL(t.Context(), ca.IssuingID, 0); err != nil || string(l.DER) != string(old.DER) {
		t.Errorf("got %+v, %v, want the list of before", l, err)
	}
	if l, fresh, got := h.refresh(t, c, c); !fresh || l.Number <= old.Number || len(got) != 1 {
		t.Errorf("got list %d, fresh %t, with %v, want a new one", l.Number, fresh, got)
	}
}

// TestAListThatWasNotRecordedLeavesItsChanges: the process that was to publish them ended
// between any two transactions of its own.
func TestAListThatWasNotRecordedLeavesItsChanges(t *testing.T) {
	h := found(t, storetest.Open(t))
	h.publish(t)
	cert := h.issue(t, ca.ProfileDevice, "pump")
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		return h.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
	})
	h.refresh(t, h.CA, h.CA)
	h.write(t, func(ctx context.Context, tx *store.Tx) error { // as if it ended before it removed what it had shown
		_, err := tx.Exec(ctx, `INSERT INTO crl_change (issuer, shard, serial) VALUES ('issuing', 0, $1)`, string(cert.Serial))
		if err == nil {
			_, err = tx.Exec(ctx, `INSERT INTO crl_chunk (id, issuer, shard, number, n, der) VALUES (1, 'issuing', 0, 1, 1, $1)`, []byte{1})
		}
		return err
	})
	c := h.process(t)
	if _, fresh, got := h.refresh(t, c, h.CA); !fresh || len(got) != 1 {
		t.Errorf("got fresh %t, entries %v, want the one", fresh, got)
	}
	h.publish(t)
	if n := countRows(t, h.db, "crl_chunk"); n != 1 {
		t.Errorf("chunks on record: got %d, want that of the list", n)
	}
}

// BenchmarkRefresh revokes one certificate and brings a list of a million entries up to
// date. BenchmarkPublish makes one of 100,000 anew.
func BenchmarkRefresh(b *testing.B) {
	h := found(b, storetest.Open(b))
	const entries = 1_000_000
	h.many(b, 0, entries, false)
	began := time.Now()
	if _, _, err := h.Refresh(b.Context(), ca.IssuingID, 0); err != nil {
		b.Fatal(err)
	}
	b.Logf("%d entries made anew in %v", entries, time.Since(began))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		h.many(b, entries+i, 1, true)
		if _, _, err := h.Refresh(b.Context(), ca.IssuingID, 0); err != nil {
			b.Fatal(err)
		}
	}
}
