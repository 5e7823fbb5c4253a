package ca_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
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

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// acts are all that can be done to a certificate, with what each is allowed on.
var acts = map[string]struct {
	from []countersign.CertState
	do   func(h *house, ctx context.Context, tx *store.Tx, c *countersign.Certificate) error
}{
	"activate": {
		[]countersign.CertState{countersign.CertPending},
		func(h *house, ctx context.Context, tx *store.Tx, c *countersign.Certificate) error {
			return h.Activate(ctx, tx, c)
		},
	},
	"supersede": {
		[]countersign.CertState{countersign.CertActive},
		func(h *house, ctx context.Context, tx *store.Tx, c *countersign.Certificate) error {
			return h.Supersede(ctx, tx, c, h.clock.Now().Add(24*time.Hour))
		},
	},
	"hold": {
		[]countersign.CertState{countersign.CertPending, countersign.CertActive, countersign.CertSuperseded},
		func(h *house, ctx context.Context, tx *store.Tx, c *countersign.Certificate) error {
			return h.Hold(ctx, tx, c)
		},
	},
	"release": {
		[]countersign.CertState{countersign.CertHeld},
		func(h *house, ctx context.Context, tx *store.Tx, c *countersign.Certificate) error {
			return h.Release(ctx, tx, c)
		},
	},
	"replace": {
		[]countersign.CertState{countersign.CertPending},
		func(h *house, ctx context.Context, tx *store.Tx, c *countersign.Certificate) error {
			return h.Replace(ctx, tx, c)
		},
	},
	"revoke": {
		[]countersign.CertState{countersign.CertPending, countersign.CertActive, countersign.CertSuperseded, countersign.CertHeld},
		func(h *house, ctx context.Context, tx *store.Tx, c *countersign.Certificate) error {
			return h.Revoke(ctx, tx, c, countersign.KeyCompromise)
		},
	},
}

// model is what the certificate must look like after an act.
func model(h *house, c countersign.Certificate, act string) countersign.Certificate {
	now := h.clock.Now()
	switch act {
	case "activate":
		c.State, c.UsedAt = countersign.CertActive, now
	case "supersede":
		c.State, c.AcceptUntil = countersign.CertSuperseded, now.Add(24*time.Hour)
		if c.AcceptUntil.After(c.NotAfter) {
			c.AcceptUntil = c.NotAfter
		}
	case "hold":
		c.HeldFrom, c.State, c.Reason, c.RevokedAt = c.State, countersign.CertHeld, countersign.CertificateHold, now
	case "release":
		c.State, c.HeldFrom, c.Reason, c.RevokedAt = c.HeldFrom, "", 0, time.Time{}
	case "replace":
		c.State, c.Reason, c.RevokedAt, c.Replaced = countersign.CertRevoked, countersign.Superseded, now, true
	case "revoke":
		c.State, c.HeldFrom, c.Reason, c.RevokedAt = countersign.CertRevoked, "", countersign.KeyCompromise, now
	}
	return c
}

// TestCertificateLife does random acts. Each that the table allows leaves the row as
// the model says, each other is a Conflict that changes nothing, and from revoked
// nothing leads away.
func TestCertificateLife(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		names := make([]string, 0, len(acts))
		for name := range acts {
			names = append(names, name)
		}
		slices.Sort(names)
		n := 0
		rapid.Check(t, func(t *rapid.T) {
			n++
			cert := h.issue(t, ca.ProfileDevice, fmt.Sprintf("device-%d", n))
			for range rapid.IntRange(1, 12).Draw(t, "acts") {
				h.clock.Advance(time.Duration(rapid.IntRange(1, 1000).Draw(t, "minutes")) * time.Minute)
				name := rapid.SampledFrom(names).Draw(t, "act")
				allowed := slices.Contains(acts[name].from, cert.State)
				want, before := cert, cert
				if allowed {
					want = model(h, cert, name)
				}
				err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					got := before
					if err := acts[name].do(h, ctx, tx, &got); err != nil {
						return err
					}
					cert = got
					return nil
				})
				if allowed && err != nil || !allowed && countersign.CodeOf(err) != countersign.Conflict {
					t.Fatalf("%s of a %s certificate: got %v, want allowed %v", name, before.State, err, allowed)
				}
				row, err := ca.Certificate(t.Context(), db, cert.Ref())
				if err != nil {
					t.Fatalf("Certificate: %v", err)
				}
				if d := cmp.Diff(want, cert); d != "" {
					t.Fatalf("%s: returned (-want +got):\n%s", name, d)
				}
				if d := cmp.Diff(want, row); d != "" {
					t.Fatalf("%s: on record (-want +got):\n%s", name, d)
				}
			}
		})
	})
}

// TestMoveRefusesStaleView wants a move to rest on the row, not on what was read before.
func TestMoveRefusesStaleView(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		cert := h.issue(t, ca.ProfileDevice, "pump-1")
		stale := cert
		h.write(t, func(ctx context.Context, tx *store.Tx) error {
			return h.Revoke(ctx, tx, &cert, countersign.KeyCompromise)
		})
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.Activate(ctx, tx, &stale) })
		kit.WantCode(t, err, countersign.Conflict)
		if stale.State != countersign.CertPending {
			t.Errorf("a refused move changed the caller's view to %s", stale.State)
		}
	})
}

func TestRevokeWantsReasonThatRevokes(t *testing.T) {
	h := found(t, storetest.Open(t))
	for reason := countersign.ReasonCode(-1); reason <= 11; reason++ {
		cert := h.issue(t, ca.ProfileDevice, fmt.Sprintf("device-%d", reason+1))
		err := h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.Revoke(ctx, tx, &cert, reason) })
		bad := slices.Contains([]countersign.ReasonCode{-1, 6, 7, 8, 11}, reason)
		if bad && countersign.CodeOf(err) != countersign.BadRequest || !bad && err != nil {
			t.Errorf("reason %d: got %v, want refused %v", reason, err, bad)
		}
	}
}

func TestOverlapEndsWithTheCertificate(t *testing.T) {
	h := found(t, storetest.Open(t))
	cert := h.issue(t, ca.ProfileDevice, "pump-1")
	h.write(t, func(ctx context.Context, tx *store.Tx) error {
		if err := h.Activate(ctx, tx, &cert); err != nil {
			return err
		}
		return h.Supersede(ctx, tx, &cert, cert.NotAfter.Add(time.Hour))
	})
	if !cert.AcceptUntil.Equal(cert.NotAfter) {
		t.Errorf("AcceptUntil: got %v, want NotAfter %v", cert.AcceptUntil, cert.NotAfter)
	}
	if list, err := ca.Overdue(t.Context(), h.db, h.clock.Now(), 10); err != nil || len(list) != 0 {
		t.Errorf("Overdue within the overlap: got %v, %v", list, err)
	}
	h.clock.Advance(cert.NotAfter.Sub(start) + time.Second)
	if list, err := ca.Overdue(t.Context(), h.db, h.clock.Now(), 10); err != nil || len(list) != 1 || list[0].Serial != cert.Serial {
		t.Errorf("Overdue after it: got %v, %v, want the certificate", list, err)
	}
}

func TestCertificatesPageAndFilter(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		want := map[countersign.Serial]bool{}
		for i := range 7 {
			c := h.issue(t, ca.ProfileDevice, fmt.Sprintf("device-%d", i%2))
			if i%2 == 0 {
				want[c.Serial] = true
			}
		}
		got := map[countersign.Serial]bool{}
		f := ca.Filter{Device: "device-0", State: countersign.CertPending, ExpiresBefore: start.Add(31 * 24 * time.Hour), Limit: 3}
		for pages := 1; ; pages++ {
			list, next, err := ca.Certificates(t.Context(), h.db, f)
			if err != nil || len(list) > 3 {
				t.Fatalf("Certificates: got %d, %v, want at most 3", len(list), err)
			}
			for _, c := range list {
				got[c.Serial] = true
				if len(c.DER) > 0 {
					t.Error("a list carries DER")
				}
			}
			if next.IsZero() {
				if pages != 2 {
					t.Errorf("got %d pages for 4 certificates, want 2", pages)
				}
				break
			}
			f.After = next
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("serials (-want +got):\n%s", d)
		}
		for _, none := range []ca.Filter{
			{Device: "device-9"}, {State: countersign.CertHeld}, {ExpiresBefore: start},
		} {
			if list, _, err := ca.Certificates(t.Context(), h.db, none); err != nil || len(list) != 0 {
				t.Errorf("%+v: got %d, %v, want none", none, len(list), err)
			}
		}
		if list, _, err := ca.Certificates(t.Context(), h.db, ca.Filter{Limit: -1}); err != nil || len(list) != 9 {
			t.Errorf("without a limit: got %d, %v, want 7 and the two authorities'", len(list), err)
		}
		list, err := ca.DeviceCertificates(t.Context(), db, "device-1")
		if err != nil || len(list) != 3 || len(list[0].DER) == 0 {
			t.Errorf("DeviceCertificates: got %d, %v, want 3 with DER", len(list), err)
		}
	})
}
