package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// put writes a certificate row as it is, for what no issuing would bring about.
func (h *house) put(t failer, c countersign.Certificate) {
	t.Helper()
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence,
				method, key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
			VALUES ($1, $2, 'device', '', '', $3, '', $4, FALSE, '', '', '', '', '', 0, $5, 0, 0, 0, $6, $7, $8)`,
			string(c.Serial), c.Issuer, string(c.State), int(c.Reason), store.Micros(c.NotAfter), store.Micros(c.RevokedAt), c.Shard, []byte{})
		return err
	})
}

func (h *house) publish(t failer) (*countersign.CRL, *x509.RevocationList) {
	t.Helper()
	l, err := h.Publish(t.Context(), ca.IssuingID, 0)
	if err != nil {
		t.Fatalf("Publish: %v", err)
	}
	list, err := x509.ParseRevocationList(l.DER)
	if err != nil {
		t.Fatalf("ParseRevocationList: %v", err)
	}
	if err := list.CheckSignatureFrom(h.certificateOf(t, ca.IssuingID)); err != nil {
		t.Fatalf("CheckSignatureFrom: %v", err)
	}
	return l, list
}

type entry struct {
	At     time.Time
	Reason int
}

func entriesOf(list *x509.RevocationList) map[countersign.Serial]entry {
	got := map[countersign.Serial]entry{}
	for _, e := range list.RevokedCertificateEntries {
		got[countersign.SerialOf(e.SerialNumber)] = entry{e.RevocationTime, e.ReasonCode}
	}
	return got
}

// backdate is how far the times of lists and answers are before their signature.
const backdate = 5 * time.Minute

// TestListsAndAnswersAreDatedBack: a relying party whose clock is a little slow
// accepts the list and the answer that follow a revocation, and no list or answer
// speaks of a revocation that is to come.
func TestListsAndAnswersAreDatedBack(t *testing.T) {
	for name, sinceRevocation := range map[string]time.Duration{"at once": 0, "soon": 2 * time.Minute, "later": time.Hour} {
		t.Run(name, func(t *testing.T) {
			h := found(t, storetest.Open(t))
			h.clock.Advance(24 * time.Hour)
			cert := h.issue(t, ca.ProfileDevice, "pump-1")
			h.write(t, func(ctx context.Context, tx *store.Tx) error {
				return h.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
			})
			revoked := h.clock.Now()
			h.clock.Advance(sinceRevocation)
			now, issuing := h.clock.Now(), h.certificateOf(t, ca.IssuingID)
			shown := revoked
			if this := now.Add(-backdate); shown.After(this) {
				shown = this
			}
			first, _ := h.publish(t)
			l, list := h.publish(t) // in the same second
			e := entriesOf(list)[cert.Serial]
			if !list.ThisUpdate.Equal(now.Add(-backdate)) || !list.NextUpdate.Equal(now.Add(ca.DefaultCRLValidity)) || !e.At.Equal(shown) {
				t.Errorf("list: got from %v to %v with a revocation at %v, now is %v", list.ThisUpdate, list.NextUpdate, e.At, now)
			}
			if l.Number <= first.Number || list.Number.Int64() != l.Number {
				t.Errorf("lists of one second: got numbers %d and %d, want them to grow", first.Number, l.Number)
			}
			res := h.ask(t, &cert)
			if !res.ThisUpdate.Equal(now.Add(-backdate)) || !res.ProducedAt.Equal(res.ThisUpdate) || !res.NextUpdate.Equal(now.Add(time.Hour)) || !res.RevokedAt.Equal(shown) {
				t.Errorf("answer: got from %v, produced at %v, to %v, revoked at %v, now is %v", res.ThisUpdate, res.ProducedAt, res.NextUpdate, res.RevokedAt, now)
			}
			if res.ProducedAt.Before(res.Certificate.NotBefore) || list.ThisUpdate.Before(issuing.NotBefore) {
				t.Error("dated back beyond the signer's notBefore")
			}
		})
	}
}

// TestNothingIsDatedBackBeyondItsSigner: right after the founding.
func TestNothingIsDatedBackBeyondItsSigner(t *testing.T) {
	h := found(t, storetest.Open(t))
	h.clock.Advance(-time.Minute)
	cert := h.issue(t, ca.ProfileDevice, "pump-1")
	_, list := h.publish(t)
	res := h.ask(t, &cert)
	for name, at := range map[string]time.Time{"list": list.ThisUpdate, "answer": res.ThisUpdate, "produced": res.ProducedAt, "signer": res.Certificate.NotBefore} {
		if from := h.certificateOf(t, ca.IssuingID).NotBefore; at.Before(from) {
			t.Errorf("%s: got %v, before the authority's %v", name, at, from)
		}
	}
}

// TestCRLHoldsExactlyTheWithdrawn draws a registry at random and compares the list
// with it: every certificate that is revoked or held and not expired, with time and
// reason, for one CRL beyond its end, and no other.
func TestCRLHoldsExactlyTheWithdrawn(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		states := []countersign.CertState{
			countersign.CertPending, countersign.CertActive, countersign.CertSuperseded, countersign.CertHeld, countersign.CertRevoked,
		}
		rapid.Check(t, func(t *rapid.T) {
			h.write(t, func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Exec(ctx, `DELETE FROM certificate WHERE device <> ''`)
				return err
			})
			want := map[countersign.Serial]entry{}
			octets := rapid.SliceOfN(rapid.Byte(), 1, 20).Filter(func(b []byte) bool { return b[0] != 0 })
			serials := rapid.SliceOfNDistinct(octets, 0, 12, func(b []byte) string { return string(b) }).Draw(t, "serials")
			for _, s := range serials {
				c := countersign.Certificate{
					Serial: countersign.Serial(hex.EncodeToString(s)), State: rapid.SampledFrom(states).Draw(t, "state"),
					Issuer:   rapid.SampledFrom([]string{ca.IssuingID, ca.IssuingID, ca.RootID}).Draw(t, "issuer"),
					NotAfter: start.Add(time.Duration(rapid.IntRange(-40, 40).Draw(t, "hours")) * time.Hour),
					Shard:    rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "shard"),
				}
				if c.State == countersign.CertHeld {
					c.Reason = countersign.CertificateHold
				}
				if c.State == countersign.CertRevoked {
					c.Reason = rapid.SampledFrom([]countersign.ReasonCode{0, 1, 2, 3, 4, 5, 9, 10}).Draw(t, "reason")
				}
				listed := c.State == countersign.CertHeld || c.State == countersign.CertRevoked
				if listed {
					c.RevokedAt = start.Add(-time.Duration(rapid.IntRange(0, 1e6).Draw(t, "ago")) * time.Second)
				}
				if listed && c.Issuer == ca.IssuingID && c.Shard == 0 && !c.NotAfter.Before(start.Add(-ca.DefaultCRLValidity)) {
					at := c.RevokedAt
					if this := start.Add(-backdate); at.After(this) {
						at = this
					}
					want[c.Serial] = entry{at, int(c.Reason)}
				}
				h.put(t, c)
			}
			l, list := h.publish(t)
			if d := cmp.Diff(want, entriesOf(list)); d != "" {
				t.Fatalf("entries (-want +got):\n%s", d)
			}
			if l.Entries != len(want) || len(list.RevokedCertificateEntries) != len(want) {
				t.Fatalf("got %d entries and a count of %d, want %d", len(list.RevokedCertificateEntries), l.Entries, len(want))
			}
		})
	})
}

// TestCRLEncoding compares octets with those that crypto/x509 makes of the same
// list. Serials with the high bit set, the years to 2050 and after, and each reason
// go through our own encoder.
func TestCRLEncoding(t *testing.T) {
	h := found(t, storetest.Open(t))
	h.clock.Advance(28 * 366 * 24 * time.Hour) // after the last of the revocations
	now := h.clock.Now()
	var entries []x509.RevocationListEntry
	for i, s := range []string{"01", "7f", "80", "ff", "0100", "8000", strings.Repeat("7f", 20), "80" + strings.Repeat("00", 18)} {
		c := countersign.Certificate{
			Issuer: ca.IssuingID, Serial: countersign.Serial(s), State: countersign.CertRevoked, NotAfter: now.Add(time.Hour),
			Reason:    []countersign.ReasonCode{0, 1, 2, 3, 4, 5, 9, 10}[i],
			RevokedAt: time.Date(2046+i, 12, 31, 23, 59, 59, 999_000_000, time.UTC),
		}
		h.put(t, c)
		entries = append(entries, x509.RevocationListEntry{SerialNumber: c.Serial.Int(), RevocationTime: c.RevokedAt, ReasonCode: int(c.Reason)})
	}
	l, list := h.publish(t)
	slices.SortFunc(entries, func(a, b x509.RevocationListEntry) int { // in the order of ours, which has none
		index := func(e x509.RevocationListEntry) int {
			return slices.IndexFunc(list.RevokedCertificateEntries, func(o x509.RevocationListEntry) bool { return o.SerialNumber.Cmp(e.SerialNumber) == 0 })
		}
		return index(a) - index(b)
	})
	issuing := h.certificateOf(t, ca.IssuingID)
	signer := kit.Key(t)
	twin := *issuing
	twin.PublicKey = &signer.PublicKey
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(l.Number), ThisUpdate: l.ThisUpdate, NextUpdate: l.NextUpdate, RevokedCertificateEntries: entries,
	}, &twin, signer)
	if err != nil {
		t.Fatal(err)
	}
	want, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := hexOf(list.RawTBSRevocationList), hexOf(want.RawTBSRevocationList); got != want {
		t.Errorf("tbsCertList:\ngot  %s\nwant %s", got, want)
	}
}

// TestTimesFrom2050AreGeneralized wants the dates of the list itself in the form of
// RFC 5280, 4.1.2.5 on both sides of the turn.
func TestTimesFrom2050AreGeneralized(t *testing.T) {
	h := found(t, storetest.Open(t))
	h.clock.Advance(time.Date(2049, 12, 31, 12, 0, 0, 0, time.UTC).Sub(start))
	l, _ := h.publish(t)
	for _, want := range []string{"\x17\x0d491231115500Z", "\x18\x0f20500101120000Z"} {
		if !strings.Contains(string(l.DER), want) {
			t.Errorf("%q is not in the list", want)
		}
	}
}

func TestEmptyCRLHasNoEntryField(t *testing.T) {
	h := found(t, storetest.Open(t))
	l, list := h.publish(t)
	if l.Entries != 0 || list.RevokedCertificateEntries != nil {
		t.Errorf("got %d entries, want none", l.Entries)
	}
	text := writePEM(t, "crl.pem", "X509 CRL", l.DER)
	out, err := openssl(t, "crl", "-in", text, "-noout", "-text")
	if err != nil || !strings.Contains(out, "No Revoked Certificates") {
		t.Errorf("openssl crl: %v\n%s", err, out)
	}
}

func TestOpenSSLVerifiesCRL(t *testing.T) {
	h := found(t, storetest.Open(t))
	gone, good := h.issue(t, ca.ProfileDevice, "gone"), h.issue(t, ca.ProfileDevice, "good")
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		return h.Revoke(ctx, tx, &gone, countersign.KeyCompromise)
	})
	l, _ := h.publish(t)
	root, err := h.Publish(t.Context(), ca.RootID, 0)
	if err != nil {
		t.Fatal(err)
	}
	issuing := writePEM(t, "issuing.pem", "CERTIFICATE", h.certificateOf(t, ca.IssuingID).Raw)
	lists := writePEM(t, "crl.pem", "X509 CRL", l.DER, root.DER)
	out, err := openssl(t, "crl", "-in", lists, "-noout", "-CAfile", issuing, "-verify")
	if err != nil || !strings.Contains(out, "verify OK") {
		t.Errorf("openssl crl -verify: %v\n%s", err, out)
	}
	for _, tt := range []struct {
		cert countersign.Certificate
		good bool
	}{{gone, false}, {good, true}} {
		out, err := openssl(t, "verify", "-x509_strict", "-crl_check_all", "-attime", fmt.Sprint(start.Unix()+1), "-CRLfile", lists,
			"-CAfile", writePEM(t, "root.pem", "CERTIFICATE", h.certificateOf(t, ca.RootID).Raw), "-untrusted", issuing,
			writePEM(t, "leaf.pem", "CERTIFICATE", tt.cert.DER))
		if (err == nil) != tt.good || !tt.good && !strings.Contains(out, "certificate revoked") {
			t.Errorf("openssl verify -crl_check of %s: %v\n%s", tt.cert.Device, err, out)
		}
	}
}

func TestReleasedHoldLeavesTheCRL(t *testing.T) {
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileDevice, "pump-1")
	h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.Hold(ctx, tx, &cert) })
	if _, list := h.publish(t); entriesOf(list)[cert.Serial].Reason != int(countersign.CertificateHold) {
		t.Errorf("held: got %v, want certificateHold", entriesOf(list))
	}
	h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.Release(ctx, tx, &cert) })
	if _, list := h.publish(t); len(entriesOf(list)) != 0 {
		t.Errorf("released: got %v, want nothing", entriesOf(list))
	}
}

// TestCRLNumbersGrow publishes from several processes at once. No number comes
// twice, what is served is never older than before, and the last one stays.
func TestCRLNumbersGrow(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		_, err := h.CRL(t.Context(), ca.IssuingID, 0)
		kit.WantCode(t, err, countersign.NotFound)
		const processes, each = 4, 10
		var mu sync.Mutex
		numbers := map[int64]bool{}
		var wg sync.WaitGroup
		for range processes {
			c := h.process(t)
			wg.Go(func() {
				for range each {
					l, err := c.Publish(t.Context(), ca.IssuingID, 0)
					if err != nil {
						t.Errorf("Publish: %v", err)
						return
					}
					served, err := c.CRL(t.Context(), ca.IssuingID, 0)
					if err != nil || served.Number < l.Number {
						t.Errorf("after list %d: got list %d, %v", l.Number, served.Number, err)
						return
					}
					mu.Lock()
					if numbers[l.Number] {
						t.Errorf("number %d was signed twice", l.Number)
					}
					numbers[l.Number] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		last, err := h.CRL(t.Context(), ca.IssuingID, 0)
		if err != nil || last.Number != processes*each {
			t.Fatalf("CRL: got number %d, %v, want %d", last.Number, err, processes*each)
		}
		if list, err := x509.ParseRevocationList(last.DER); err != nil || list.Number.Int64() != last.Number {
			t.Errorf("the list that is served has number %v (%v), want %d", list.Number, err, last.Number)
		}
	})
}

func TestCRLIsDueAtHalfItsLife(t *testing.T) {
	h := found(t, storetest.Open(t))
	due := func() (ids []string) {
		t.Helper()
		list, err := h.Due(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			ids = append(ids, l.Issuer)
		}
		slices.Sort(ids)
		return ids
	}
	if got := due(); !slices.Equal(got, []string{ca.IssuingID, ca.RootID}) {
		t.Errorf("at first: got %v, want both", got)
	}
	for _, id := range due() {
		if _, err := h.Publish(t.Context(), id, 0); err != nil {
			t.Fatal(err)
		}
	}
	h.clock.Advance(12*time.Hour - time.Second)
	if got := due(); len(got) != 0 {
		t.Errorf("before half of a day: got %v, want none", got)
	}
	h.clock.Advance(time.Second)
	if got := due(); !slices.Equal(got, []string{ca.IssuingID}) {
		t.Errorf("at half of a day: got %v, want issuing", got)
	}
}

// BenchmarkPublish signs a list of 100,000 entries; BenchmarkCreateRevocationList is
// what crypto/x509 takes for the encoding alone.
func BenchmarkPublish(b *testing.B) {
	h := found(b, storetest.Open(b))
	h.many(b, 0, 100_000, false)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Publish(b.Context(), ca.IssuingID, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreateRevocationList(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	issuer := &x509.Certificate{SubjectKeyId: []byte{1}, KeyUsage: x509.KeyUsageCRLSign, PublicKey: &key.PublicKey}
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: start, NextUpdate: start.Add(time.Hour)}
	for i := range int64(100_000) {
		n := new(big.Int).Lsh(big.NewInt(1), 158)
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n.Add(n, big.NewInt(i)), RevocationTime: start, ReasonCode: 1})
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := x509.CreateRevocationList(rand.Reader, list, issuer, key); err != nil {
			b.Fatal(err)
		}
	}
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
