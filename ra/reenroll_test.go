package ra_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// wantFork wants a refusal as a fork, the device on hold and a person told.
func (w *world) wantFork(t *testing.T, code countersign.Code, id string) {
	t.Helper()
	if code != countersign.ForkDetected {
		t.Errorf("got %q, want %s", code, countersign.ForkDetected)
	}
	if dev := w.device(t, id); dev.State != countersign.DeviceSuspended {
		t.Errorf("got device %s, want suspended", dev.State)
	}
	if n := w.count(t, "certificate WHERE device = $1 AND state NOT IN ('held', 'revoked')", id); n != 0 {
		t.Errorf("got %d certificates still good, want all held", n)
	}
	found := w.events(t, event.Filter{Device: id, Type: countersign.FindingFork})
	if len(found) != 1 || found[0].Type.Kind().Level != "alert" || found[0].Reason == "" {
		t.Errorf("got findings %+v, want one alert that says why", found)
	}
}

func TestReenrollNeedsACertificateOfOurs(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	cert := w.active(t, "pump-1")
	req := renewal(t, cert, kit.Key(t))
	req.Evidence.Peer = nil
	_, err := w.Reenroll(t.Context(), req)
	kit.WantCode(t, err, countersign.Unauthenticated)

	for name, serial := range map[string]*big.Int{"unknown": big.NewInt(4711), "forged with our serial": cert.SerialNumber} {
		key := kit.Key(t)
		tmpl := &x509.Certificate{
			SerialNumber: serial, Subject: pkix.Name{CommonName: "pump-1"}, URIs: cert.URIs, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		forged, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Reenroll(t.Context(), renewal(t, forged, key))
		kit.WantCode(t, err, countersign.CertUnknown)
		if v := w.connect(t, forged); v.Allow || v.Code != countersign.CertUnknown {
			t.Errorf("%s: connect: got %+v, want certificate_unknown", name, v)
		}
	}
	chain, err := w.CA.Chain("issuing")
	if err != nil {
		t.Fatal(err)
	}
	authority, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Reenroll(t.Context(), renewal(t, authority, kit.Key(t))) // on record, but no device's
	kit.WantCode(t, err, countersign.CertUnknown)
	if w.device(t, "pump-1").State != countersign.DeviceActive {
		t.Error("strangers got the device suspended")
	}
}

func TestReenrollAtAnotherFleetIsRefused(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	req := renewal(t, w.active(t, "pump-1"), kit.Key(t))
	req.Fleet = "other"
	_, err := w.Reenroll(t.Context(), req)
	kit.WantCode(t, err, countersign.NotAllowed)
}

func TestReenrollAgainWithTheSameKeyGivesTheSameCertificate(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old, key := w.active(t, "pump-1"), kit.Key(t)
		next := w.renew(t, old, key)
		again := func(when string) {
			t.Helper()
			g, err := w.Reenroll(t.Context(), renewal(t, old, key))
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			if want := countersign.SerialOf(next.SerialNumber); !g.Again || g.Serial != want {
				t.Errorf("%s: got certificate %s, again %v, want %s again", when, g.Serial, g.Again, want)
			}
			w.clock.Advance(time.Second)
		}
		again("pending")
		w.use(t, next)
		again("used")
		w.clock.Advance(overlap)
		if _, err := w.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		again("after the overlap")
	})
}

func TestReenrollWithAnotherKeyReplacesTheUnusedCertificate(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old := w.active(t, "pump-1")
		lost, next := w.renew(t, old, kit.Key(t)), w.renew(t, old, kit.Key(t))
		if c := w.record(t, lost); !c.Replaced || c.State != countersign.CertRevoked || c.Reason != countersign.Superseded {
			t.Errorf("got %s (%s), replaced %v, want revoked as replaced", c.State, c.Reason, c.Replaced)
		}
		if n := len(w.events(t, event.Filter{Device: "pump-1", Type: countersign.CertReplaced})); n != 1 {
			t.Errorf("got %d events of it, want 1", n)
		}
		w.use(t, old) // still active
		w.use(t, next)
	})
}

func TestReplacedCertificateThatShowsUpIsAFork(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old := w.active(t, "pump-1")
		stolen := w.renew(t, old, kit.Key(t))
		w.renew(t, old, kit.Key(t))
		_, err := w.Reenroll(t.Context(), renewal(t, stolen, kit.Key(t)))
		w.wantFork(t, countersign.CodeOf(err), "pump-1")

		old = w.active(t, "pump-2")
		stolen = w.renew(t, old, kit.Key(t))
		next := w.renew(t, old, kit.Key(t))
		w.takeCuts()
		v := w.connect(t, stolen)
		w.wantFork(t, v.Code, "pump-2")
		if cuts := w.takeCuts(); len(cuts) != 1 || cuts[0].Device != "pump-2" {
			t.Errorf("got cuts %+v, want one of the device", cuts)
		}
		for _, cert := range []*x509.Certificate{old, next, stolen} {
			if v := w.connect(t, cert); v.Allow {
				t.Errorf("certificate %x is let in after the fork", cert.SerialNumber)
			}
		}
	})
}

func TestReplacedCertificateOfAFormerLifeIsNoFork(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	old := w.active(t, "pump-1")
	stolen := w.renew(t, old, kit.Key(t))
	w.renew(t, old, kit.Key(t))
	if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-1", Reason: countersign.Superseded}); err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(time.Second)
	fresh := w.reenrolled(t, "pump-1")
	if v := w.connect(t, stolen); v.Allow || v.Code != countersign.CertIsRevoked {
		t.Errorf("connect: got %+v, want certificate_revoked", v)
	}
	for _, cert := range []*x509.Certificate{stolen, old} {
		_, err := w.Reenroll(t.Context(), renewal(t, cert, kit.Key(t)))
		kit.WantCode(t, err, countersign.CertIsRevoked)
	}
	w.use(t, fresh)
}

func TestReenrollWithAnotherKeyAfterUseIsAFork(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old := w.active(t, "pump-1")
		w.use(t, w.renew(t, old, kit.Key(t)))
		w.takeCuts()
		_, err := w.Reenroll(t.Context(), renewal(t, old, kit.Key(t)))
		w.wantFork(t, countersign.CodeOf(err), "pump-1")
		if cuts := w.takeCuts(); len(cuts) != 1 || cuts[0].Device != "pump-1" {
			t.Errorf("got cuts %+v, want one of the device", cuts)
		}

		old = w.active(t, "pump-2") // and also when the old one has been swept away
		w.use(t, w.renew(t, old, kit.Key(t)))
		w.clock.Advance(overlap)
		if n, err := w.Sweep(t.Context()); err != nil || n != 1 {
			t.Fatalf("Sweep: got %d, %v, want 1", n, err)
		}
		_, err = w.Reenroll(t.Context(), renewal(t, old, kit.Key(t)))
		w.wantFork(t, countersign.CodeOf(err), "pump-2")
	})
}

func TestReenrollWithAPendingCertificateIsItsFirstUse(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		first := w.active(t, "pump-1")
		second := w.renew(t, first, kit.Key(t))
		third := w.renew(t, second, kit.Key(t))
		for cert, want := range map[*x509.Certificate]countersign.CertState{
			first: countersign.CertSuperseded, second: countersign.CertActive, third: countersign.CertPending,
		} {
			if c := w.record(t, cert); c.State != want {
				t.Errorf("got %s, want %s", c.State, want)
			}
		}
		_, err := w.Reenroll(t.Context(), renewal(t, first, kit.Key(t)))
		w.wantFork(t, countersign.CodeOf(err), "pump-1")
	})
}

func TestOvertakenRequestUndoesNothing(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old := w.active(t, "pump-1")
		delayed := renewal(t, old, kit.Key(t))
		delayed.Began = w.clock.Now()
		w.clock.Advance(time.Second)
		next := w.renew(t, old, kit.Key(t))
		for _, when := range []string{"pending", "used", "superseded", "revoked"} {
			_, err := w.Reenroll(t.Context(), delayed)
			kit.WantCode(t, err, countersign.Conflict)
			switch when {
			case "pending", "used":
				w.use(t, next)
				if when == "used" {
					w.use(t, w.renew(t, next, kit.Key(t)))
				}
			case "superseded":
				w.clock.Advance(overlap)
				if _, err := w.Sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if dev := w.device(t, "pump-1"); dev.State != countersign.DeviceActive {
			t.Errorf("got device %s, want active", dev.State)
		}
	})
}

func TestReenrollFollowsTheStandingOfDeviceAndCertificate(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	try := func(cert *x509.Certificate) error {
		t.Helper()
		_, err := w.Reenroll(t.Context(), renewal(t, cert, kit.Key(t)))
		return err
	}
	expired, held, gone, lost, one := w.active(t, "expired"), w.active(t, "held"), w.active(t, "gone"), w.active(t, "lost"), w.active(t, "one")
	if _, err := w.Suspend(t.Context(), ra.Act{Device: "held"}); err != nil {
		t.Fatal(err)
	}
	kit.WantCode(t, try(held), countersign.DeviceOnHold)
	if _, err := w.Retire(t.Context(), ra.Act{Device: "gone"}); err != nil {
		t.Fatal(err)
	}
	kit.WantCode(t, try(gone), countersign.DeviceGone)
	if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "lost", Reason: countersign.KeyCompromise}); err != nil {
		t.Fatal(err)
	}
	kit.WantCode(t, try(lost), countersign.CertIsRevoked)
	if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Cert: w.ref(t, one)}); err != nil {
		t.Fatal(err)
	}
	kit.WantCode(t, try(one), countersign.CertIsRevoked)
	w.clock.Advance(31 * 24 * time.Hour)
	kit.WantCode(t, try(expired), countersign.CertExpired)
}

func TestSuccessorThatAnOperatorRevokedDoesNotCount(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	old := w.active(t, "pump-1")
	next := w.renew(t, old, kit.Key(t))
	revoke := func(cert *x509.Certificate) {
		t.Helper()
		_, err := w.Revoke(t.Context(), countersign.RevokeRequest{Cert: w.ref(t, cert), Reason: countersign.KeyCompromise})
		if err != nil {
			t.Fatal(err)
		}
	}
	revoke(next)
	next = w.renew(t, old, kit.Key(t))
	w.use(t, next)
	revoke(next)
	_, err := w.Reenroll(t.Context(), renewal(t, old, kit.Key(t)))
	kit.WantCode(t, err, countersign.CertIsRevoked) // superseded, and no fork
	if dev := w.device(t, "pump-1"); dev.State != countersign.DeviceActive {
		t.Errorf("got device %s, want active", dev.State)
	}
}

// TestDeviceThatNeverKeepsItsKeyIsServed renews more often than certificates are
// looked at, as a device does that restarts before it can store anything.
func TestDeviceThatNeverKeepsItsKeyIsServed(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	w.budget(t, "default", countersign.Budget{Renewals: 1000})
	old := w.active(t, "pump-1")
	var next *x509.Certificate
	for range 300 {
		next = w.renew(t, old, kit.Key(t))
	}
	w.use(t, next)
	if c := w.record(t, old); c.State != countersign.CertSuperseded {
		t.Errorf("got the old certificate %s, want superseded", c.State)
	}
}

func TestGoodCertificatesOfADeviceAreBounded(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	w.budget(t, "default", countersign.Budget{Renewals: 1000})
	cert := w.active(t, "pump-1")
	var err error
	for n := 1; err == nil; n++ {
		var g *countersign.Grant
		if g, err = w.Reenroll(t.Context(), renewal(t, cert, kit.Key(t))); err == nil {
			cert = leaf(t, g)
		}
		if n > 256 {
			t.Fatal("a device may have any number of certificates that are good")
		}
		w.clock.Advance(time.Second)
	}
	kit.WantCode(t, err, countersign.RateLimited)
	if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-1"}); err != nil {
		t.Fatal(err)
	}
	if n := w.count(t, "certificate WHERE device = $1 AND state <> 'revoked'", "pump-1"); n != 0 {
		t.Errorf("got %d certificates good after the revocation, want 0", n)
	}
}
