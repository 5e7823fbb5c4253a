package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// lister is a CA that is not ours and publishes lists.
type lister struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newLister(t *testing.T, name string, above *lister) *lister {
	t.Helper()
	l := &lister{key: kit.Key(t)}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: start.Add(-time.Hour), NotAfter: start.Add(9999 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte(name),
	}
	parent, signer := tmpl, l.key
	if above != nil {
		parent, signer = above.cert, above.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &l.key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	l.cert = parse(t, der)
	return l
}

// list signs a list with a number that was issued so long after start.
func (l *lister) list(t *testing.T, number int64, after time.Duration, revoked ...int64) []byte {
	t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: start.Add(after), NextUpdate: start.Add(after + 24*time.Hour)}
	for _, serial := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: start})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, l.cert, l.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (h *house) setLists(ctx context.Context, id string, l ca.Lists) (changed bool, err error) {
	p, err := h.PlanCRLs(ctx, id, l)
	if err != nil || !p.Changed {
		return false, err
	}
	return true, h.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error { return ca.SetCRLs(ctx, tx, p) })
}

// TestListsAreDecidedOutsideOfTheirTransaction: thousands of certificates may have to be
// parsed for it. What was decided for another state of the authority is not recorded.
func TestListsAreDecidedOutsideOfTheirTransaction(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		maker := newLister(t, "Maker", nil)
		var plans []*ca.ListsPlan
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			_, err := h.Register(ctx, tx, ca.Registration{ID: "maker", Certificate: maker.cert.Raw, CRLs: [][]byte{maker.list(t, 5, 0)}, Override: true})
			return err
		})
		h.write(t, func(context.Context, *store.Tx) error { // while another one writes
			for _, number := range []int64{7, 6} {
				p, err := h.PlanCRLs(t.Context(), "maker", ca.Lists{CRLs: [][]byte{maker.list(t, number, time.Hour)}})
				if err != nil || !p.Changed {
					t.Fatalf("PlanCRLs of %d: got %+v, %v", number, p, err)
				}
				plans = append(plans, p)
			}
			return nil
		})
		for i, want := range []error{nil, ca.ErrListsMoved} {
			err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return ca.SetCRLs(ctx, tx, plans[i]) })
			if !errors.Is(err, want) {
				t.Errorf("plan %d: got %v, want %v", i, err, want)
			}
		}
		if _, err := h.setLists(t.Context(), "maker", ca.Lists{CRLs: [][]byte{maker.list(t, 6, time.Hour)}}); countersign.CodeOf(err) != countersign.Conflict {
			t.Errorf("the older one, planned again: got %v, want conflict", err)
		}
	})
}

// TestListsFollowEachOther goes through what may take the place of a list on record, number
// 5 of one minute after start with one entry (RFC 5280, 5.2.3).
func TestListsFollowEachOther(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		maker := newLister(t, "Maker", nil)
		line, unknown := newLister(t, "Line", maker), newLister(t, "Unknown line", maker)
		namesake, stranger := newLister(t, "Maker", nil), newLister(t, "Stranger", nil)
		present := maker.list(t, 5, time.Minute, 7)
		tampered := append([]byte{}, maker.list(t, 9, time.Hour)...)
		tampered[len(tampered)-1] ^= 1
		broken := maker.list(t, 10, time.Hour)[:40]
		for i, c := range []struct {
			name    string
			lists   ca.Lists
			code    countersign.Code
			changed bool
			numbers map[string]int64 // by issuer, afterwards
		}{
			{"a newer one", ca.Lists{CRLs: [][]byte{maker.list(t, 6, time.Hour, 7, 8)}}, "", true, map[string]int64{"CN=Maker": 6}},
			{"a newer one without entries", ca.Lists{CRLs: [][]byte{maker.list(t, 6, time.Hour)}}, "", true, map[string]int64{"CN=Maker": 6}},
			{"the same again", ca.Lists{CRLs: [][]byte{present}}, "", false, map[string]int64{"CN=Maker": 5}},
			{"an older number", ca.Lists{CRLs: [][]byte{maker.list(t, 4, time.Hour)}}, countersign.Conflict, false, nil},
			{"the same number", ca.Lists{CRLs: [][]byte{maker.list(t, 5, time.Hour)}}, countersign.Conflict, false, nil},
			{"an older thisUpdate", ca.Lists{CRLs: [][]byte{maker.list(t, 6, 0)}}, countersign.Conflict, false, nil},
			{"two, in any order", ca.Lists{CRLs: [][]byte{maker.list(t, 7, time.Hour), maker.list(t, 6, time.Hour)}}, "", true, map[string]int64{"CN=Maker": 7}},
			{"none", ca.Lists{}, countersign.BadRequest, false, nil},
			{"a stranger's", ca.Lists{CRLs: [][]byte{stranger.list(t, 9, time.Hour)}}, countersign.BadRequest, false, nil},
			{"a namesake's", ca.Lists{CRLs: [][]byte{namesake.list(t, 9, time.Hour)}}, countersign.BadRequest, false, nil},
			{"one with another signature", ca.Lists{CRLs: [][]byte{tampered}}, countersign.BadRequest, false, nil},
			{"a part of one", ca.Lists{CRLs: [][]byte{broken}}, countersign.BadRequest, false, nil},
			{"that of a CA below, which is known", ca.Lists{CRLs: [][]byte{line.list(t, 1, 0)}}, "", true, map[string]int64{"CN=Maker": 5, "CN=Line": 1}},
			{"that of a CA below, which is not known", ca.Lists{CRLs: [][]byte{unknown.list(t, 1, 0)}}, countersign.BadRequest, false, nil},
			{"that of a CA below, which comes with it", ca.Lists{CRLs: [][]byte{unknown.list(t, 1, 0)}, Intermediates: [][]byte{unknown.cert.Raw}}, "", true, map[string]int64{"CN=Maker": 5, "CN=Unknown line": 1}},
			{"an older one, on the operator's word", ca.Lists{CRLs: [][]byte{maker.list(t, 1, 0)}, Override: true}, "", true, map[string]int64{"CN=Maker": 1}},
			{"none, on the operator's word", ca.Lists{Override: true}, "", true, map[string]int64{}},
			{"a stranger's, on the operator's word", ca.Lists{CRLs: [][]byte{stranger.list(t, 9, time.Hour)}, Override: true}, countersign.BadRequest, false, nil},
		} {
			id := "maker-" + string(rune('a'+i))
			h.write(t, func(ctx context.Context, tx *store.Tx) error {
				_, err := h.Register(ctx, tx, ca.Registration{
					ID: id, Certificate: maker.cert.Raw, Intermediates: [][]byte{line.cert.Raw}, CRLs: [][]byte{present}, Override: true,
				})
				return err
			})
			other := h.process(t) // has read the authority before its lists change
			changed, err := h.setLists(t.Context(), id, c.lists)
			if countersign.CodeOf(err) != c.code || changed != c.changed {
				t.Errorf("%s: got changed %v, %v, want %v, %q", c.name, changed, err, c.changed, c.code)
			}
			if c.code != "" {
				c.numbers = map[string]int64{"CN=Maker": 5}
			}
			anchors, _, err := other.Anchors(t.Context(), db, []string{id})
			if err != nil || len(anchors) != 1 {
				t.Fatalf("Anchors: got %d, %v", len(anchors), err)
			}
			for _, l := range anchors[0].CRLs {
				if c.numbers[l.IssuerName()] != l.Number().Int64() {
					t.Errorf("%s: the other node has list %d of %s, want %v", c.name, l.Number(), l.IssuerName(), c.numbers)
				}
			}
			if len(anchors[0].CRLs) != len(c.numbers) {
				t.Errorf("%s: the other node has %d lists, want %v", c.name, len(anchors[0].CRLs), c.numbers)
			}
		}
	})
}

func TestRegisterRefusesAListOfAnotherCA(t *testing.T) {
	h := found(t, storetest.Open(t))
	maker, stranger := newLister(t, "Maker", nil), newLister(t, "Stranger", nil)
	err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := h.Register(ctx, tx, ca.Registration{ID: "maker", Certificate: maker.cert.Raw, CRLs: [][]byte{stranger.list(t, 1, 0)}, Override: true})
		return err
	})
	kit.WantCode(t, err, countersign.BadRequest)
}
