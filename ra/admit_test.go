package ra_test

import (
	"context"
	"crypto/x509"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// reenrolled gives a device whose identity was revoked a new one.
func (w *world) reenrolled(t *testing.T, id string) *x509.Certificate {
	t.Helper()
	g, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), id, w.token(t, registry.Credential{Device: id})))
	if err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(time.Second)
	return leaf(t, g)
}

func TestFirstUseActivatesAndSupersedes(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old := w.active(t, "pump-1")
		next := w.renew(t, old, kit.Key(t))
		w.use(t, old) // in use until the new one is
		if c := w.record(t, next); c.State != countersign.CertPending {
			t.Fatalf("got %s before its use, want pending", c.State)
		}
		at := w.clock.Now()
		w.use(t, next)
		w.use(t, next)
		if c := w.record(t, next); c.State != countersign.CertActive || !c.UsedAt.Equal(at) {
			t.Errorf("got %s used at %v, want active at %v", c.State, c.UsedAt, at)
		}
		if c := w.record(t, old); c.State != countersign.CertSuperseded || !c.AcceptUntil.Equal(at.Add(overlap)) {
			t.Errorf("got %s until %v, want superseded until %v", c.State, c.AcceptUntil, at.Add(overlap))
		}
		if n := len(w.events(t, event.Filter{Device: "pump-1", Type: countersign.CertActivated})); n != 2 {
			t.Errorf("got %d activations, want one for each certificate", n)
		}
	})
}

func TestOverlapEndsOnTimeBeforeTheSweep(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old := w.active(t, "pump-1")
		next := w.renew(t, old, kit.Key(t))
		w.use(t, next)
		v := w.connect(t, old)
		end := w.record(t, old).AcceptUntil
		if !v.Allow || !v.NotAfter.Equal(end) {
			t.Errorf("in the overlap: got %v until %v, want to be let in until %v", v.Allow, v.NotAfter, end)
		}
		w.takeCuts()
		if n, err := w.Sweep(t.Context()); err != nil || n != 0 {
			t.Errorf("Sweep in the overlap: got %d, %v, want 0", n, err)
		}
		w.clock.Set(end.Add(time.Microsecond))
		if v := w.connect(t, old); v.Allow || v.Code != countersign.CertIsRevoked {
			t.Errorf("after the overlap: got %+v, want certificate_revoked", v)
		}
		if n, err := w.Sweep(t.Context()); err != nil || n != 1 {
			t.Errorf("Sweep: got %d, %v, want 1", n, err)
		}
		if c := w.record(t, old); c.State != countersign.CertRevoked || c.Reason != countersign.Superseded || c.Replaced {
			t.Errorf("got %s (%s), want revoked (superseded)", c.State, c.Reason)
		}
		want := []countersign.Cut{{Cert: w.refOf(t, old), Code: countersign.CertRevokedEv, Reason: "certificate revoked"}}
		if diff := cmp.Diff(want, w.takeCuts()); diff != "" {
			t.Errorf("cuts (-want +got):\n%s", diff)
		}
		w.use(t, next)
		if dev := w.device(t, "pump-1"); dev.State != countersign.DeviceActive {
			t.Errorf("got device %s: a late old certificate is no fork", dev.State)
		}
	})
}

func (w *world) refOf(t *testing.T, cert *x509.Certificate) countersign.CertRef {
	t.Helper()
	c := w.record(t, cert)
	return c.Ref()
}

// TestActsCutOnceAfterTheCommit looks at the record from within the cut: what is
// cut must be refused already, and the act must not have answered yet.
func TestActsCutOnceAfterTheCommit(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, tt := range []struct {
			name string
			act  func(id string, cert *x509.Certificate) (*countersign.Revocation, error)
			dev  countersign.DeviceState
			cert countersign.CertState
			code countersign.Code
			one  bool // the cut names the certificate
		}{
			{"Suspend", func(id string, _ *x509.Certificate) (*countersign.Revocation, error) {
				return w.Suspend(t.Context(), ra.Act{Device: id})
			}, countersign.DeviceSuspended, countersign.CertHeld, countersign.DeviceOnHold, false},
			{"Retire", func(id string, _ *x509.Certificate) (*countersign.Revocation, error) {
				return w.Retire(t.Context(), ra.Act{Device: id})
			}, countersign.DeviceRetired, countersign.CertRevoked, countersign.DeviceGone, false},
			{"Revoke", func(id string, _ *x509.Certificate) (*countersign.Revocation, error) {
				return w.Revoke(t.Context(), countersign.RevokeRequest{Device: id, Reason: countersign.KeyCompromise})
			}, countersign.DeviceRegistered, countersign.CertRevoked, countersign.CertIsRevoked, false},
			{"Revoke one", func(_ string, cert *x509.Certificate) (*countersign.Revocation, error) {
				return w.Revoke(t.Context(), countersign.RevokeRequest{Cert: w.refOf(t, cert), Reason: countersign.KeyCompromise})
			}, countersign.DeviceActive, countersign.CertRevoked, countersign.CertIsRevoked, true},
		} {
			t.Run(tt.name, func(t *testing.T) {
				id := "pump-" + tt.name[:3] + tt.name[len(tt.name)-3:]
				cert := w.active(t, id)
				w.takeCuts()
				answered := false
				w.onCut = func(countersign.Cut) {
					if c := w.record(t, cert); c.State != tt.cert || answered {
						t.Errorf("at the cut: certificate %s, answered %v, want %s on record and no answer", c.State, answered, tt.cert)
					}
				}
				got, err := tt.act(id, cert)
				answered = true
				w.onCut = nil
				if err != nil || got.Sessions != 1 || len(got.Certificates) != 1 || got.Certificates[0] != w.refOf(t, cert) {
					t.Fatalf("got %+v, %v, want one session and the certificate", got, err)
				}
				cuts := w.takeCuts()
				if len(cuts) != 1 || tt.one != (cuts[0].Cert == w.refOf(t, cert)) || tt.one == (cuts[0].Device == id) {
					t.Errorf("got cuts %+v, want one", cuts)
				}
				if dev := w.device(t, id); dev.State != tt.dev {
					t.Errorf("got device %s, want %s", dev.State, tt.dev)
				}
				if v := w.connect(t, cert); v.Allow || v.Code != tt.code || v.Reason == "" {
					t.Errorf("connect: got %+v, want %s with its reason", v, tt.code)
				}
				e := w.events(t, event.Filter{Device: id, Type: countersign.ConnectRefused})
				if len(e) != 1 || e[0].Code != tt.code || e[0].Reason == "" {
					t.Errorf("got events %+v, want the refusal with its reason", e)
				}
				if at := w.record(t, cert).RevokedAt; at.IsZero() || e[0].Data["ended_at"] != at.Format(time.RFC3339) {
					t.Errorf("got ended_at %q, want %s", e[0].Data["ended_at"], at)
				}
			})
		}
	})
}

func TestReactivateBringsBackWhatWas(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		old := w.active(t, "pump-1")
		active := w.renew(t, old, kit.Key(t))
		w.use(t, active)
		pending := w.renew(t, active, kit.Key(t))
		if _, err := w.Suspend(t.Context(), ra.Act{Device: "pump-1", Note: "looks odd"}); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		for _, cert := range []*x509.Certificate{old, active, pending} {
			if v := w.connect(t, cert); v.Allow || v.Code != countersign.DeviceOnHold {
				t.Errorf("suspended: got %+v, want %s", v, countersign.DeviceOnHold)
			}
		}
		if _, err := w.Reactivate(t.Context(), ra.Act{Device: "pump-1"}); err != nil {
			t.Fatal(err)
		}
		for cert, want := range map[*x509.Certificate]countersign.CertState{
			old: countersign.CertSuperseded, active: countersign.CertActive, pending: countersign.CertPending,
		} {
			if c := w.record(t, cert); c.State != want {
				t.Errorf("got %s, want %s", c.State, want)
			}
		}
		w.use(t, old)
		w.use(t, pending)
		_, err := w.Reactivate(t.Context(), ra.Act{Device: "pump-1"})
		kit.WantCode(t, err, countersign.Conflict)
	})
}

func TestRevokeRefusesReasonsThatAreNone(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	w.active(t, "pump-1")
	for _, reason := range []countersign.ReasonCode{countersign.CertificateHold, countersign.RemoveFromCRL, countersign.CACompromise} {
		_, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-1", Reason: reason})
		kit.WantCode(t, err, countersign.BadRequest)
	}
	_, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-2"})
	kit.WantCode(t, err, countersign.NotFound)
	_, err = w.Revoke(t.Context(), countersign.RevokeRequest{Cert: countersign.CertRef{Serial: "4711"}})
	kit.WantCode(t, err, countersign.NotFound)
	w.registered(t, "pump-3")
	_, err = w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-3"})
	kit.WantCode(t, err, countersign.Conflict) // it never had anything
}

func TestConnectRefusalsAreThinned(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	cert := w.active(t, "pump-1")
	if _, err := w.Suspend(t.Context(), ra.Act{Device: "pump-1"}); err != nil {
		t.Fatal(err)
	}
	knock := func(times int) []countersign.Event {
		t.Helper()
		for range times {
			w.Admit(t.Context(), countersign.Connection{Gateway: "test", Remote: remote, Peer: []*x509.Certificate{cert}})
		}
		return w.events(t, event.Filter{Device: "pump-1", Type: countersign.ConnectRefused})
	}
	if got := knock(100); len(got) != 5 {
		t.Errorf("got %d events of 100 refusals at once, want 5", len(got))
	}
	w.clock.Advance(10 * time.Second)
	got := knock(1)
	if len(got) != 6 || got[5].Data["more_before"] != "95" {
		t.Errorf("got %d events, the last of %v, want a sixth that counts 95 before it", len(got), got[len(got)-1].Data)
	}
}

func TestUnknownPeerIsRefusedAndItsClaimNoted(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	if v := w.Admit(t.Context(), countersign.Connection{Gateway: "test", Remote: remote}); v.Allow || v.Code != countersign.Unauthenticated {
		t.Errorf("without a certificate: got %+v", v)
	}
	cert := *w.active(t, "pump-1")
	cert.Raw = append([]byte{}, cert.Raw...)
	cert.Raw[len(cert.Raw)-1] ^= 1
	if v := w.connect(t, &cert); v.Allow || v.Device != "" {
		t.Errorf("a forged one: got %+v, want a refusal that names no device", v)
	}
	got := w.events(t, event.Filter{Type: countersign.ConnectRefused})
	if len(got) != 2 || got[1].Actor != "unknown" || got[1].Device != "" || got[1].Data["claims_subject"] != "CN=pump-1" {
		t.Errorf("got %+v, want two refusals, the second with its claim as data", got)
	}
}

func TestSessionsAreNotedAndDevicesSeen(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		cert := w.active(t, "pump-1")
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		s := countersign.Session{
			ID: "s1", Device: "pump-1", Fleet: "default", Cert: w.refOf(t, cert), Gateway: "mqtt", Remote: remote, Since: w.clock.Now(),
		}
		w.Opened(s)
		w.Judged(s, countersign.Act{Action: "publish", Topic: "devices/pump-2/up/x"})
		w.clock.Advance(time.Minute)
		w.Closed(s, countersign.Ending{Code: countersign.EndClientLeft, Reason: "client left"})
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if dev := w.device(t, "pump-1"); !dev.LastSeen.Equal(s.Since) || dev.LastAddr != remote.String() {
			t.Errorf("got last seen %v from %s, want %v from %v", dev.LastSeen, dev.LastAddr, s.Since, remote)
		}
		for typ, key := range map[countersign.EventType]string{countersign.SessionOpened: "", countersign.TopicDenied: "topic", countersign.SessionClosed: "lasted"} {
			got := w.events(t, event.Filter{Device: "pump-1", Type: typ})
			if len(got) != 1 || key != "" && got[0].Data[key] == "" {
				t.Errorf("%s: got %+v, want one event with its %s", typ, got, key)
			}
		}
	})
}
