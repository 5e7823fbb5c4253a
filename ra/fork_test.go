package ra_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestReactivationAfterAForkBringsBackOneHolder goes through the forks: who holds which
// certificate, and what each holder can do after an operator has reactivated the device.
func TestReactivationAfterAForkBringsBackOneHolder(t *testing.T) {
	// holders has a device fork and returns the certificate in use and the others.
	type holders func(t *testing.T, w *world) (used *x509.Certificate, others map[string]*x509.Certificate)
	for name, fork := range map[string]holders{
		"a copy renews after the device did": func(t *testing.T, w *world) (*x509.Certificate, map[string]*x509.Certificate) {
			old := w.active(t, "pump-1")
			used := w.renew(t, old, kit.Key(t))
			w.use(t, used)
			pending := w.renew(t, used, kit.Key(t))
			_, err := w.Reenroll(t.Context(), renewal(t, old, kit.Key(t)))
			kit.WantCode(t, err, countersign.ForkDetected)
			return used, map[string]*x509.Certificate{"superseded": old, "pending": pending}
		},
		"a copy renews before the device did": func(t *testing.T, w *world) (*x509.Certificate, map[string]*x509.Certificate) {
			used := w.active(t, "pump-1")
			given := w.renew(t, used, kit.Key(t))
			instead := w.renew(t, used, kit.Key(t))
			if v := w.connect(t, given); v.Allow || v.Code != countersign.ForkDetected {
				t.Fatalf("the replaced certificate: got %+v, want a fork", v)
			}
			return used, map[string]*x509.Certificate{"replaced": given, "pending": instead}
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				used, others := fork(t, w)
				w.clock.Advance(time.Second)
				out, err := w.Reactivate(t.Context(), ra.Act{Device: "pump-1", Actor: boss.Actor})
				if err != nil {
					t.Fatal(err)
				}
				if len(out.Certificates) != 1 || out.Certificates[0] != w.ref(t, used) {
					t.Errorf("the operator is told that %v came back, want %v alone", out.Certificates, w.ref(t, used))
				}
				w.use(t, used)
				for state, cert := range others {
					if state == "replaced" {
						continue // below: it is a fork again
					}
					if v := w.connect(t, cert); v.Allow || v.Code != countersign.CertIsRevoked {
						t.Errorf("%s: connects: got %+v, want certificate_revoked", state, v)
					}
				}
				refused := w.events(t, event.Filter{Device: "pump-1", Type: countersign.ConnectRefused})
				for _, e := range refused { // what the detector of revoked certificates looks for
					if e.Code == countersign.CertIsRevoked && e.Data["ended_at"] == "" {
						t.Errorf("the refusal %+v does not say when the certificate ended", e)
					}
				}
				before := len(w.events(t, event.Filter{Device: "pump-1", Type: countersign.FindingFork}))
				_, err = w.Reenroll(t.Context(), renewal(t, others["pending"], kit.Key(t)))
				kit.WantCode(t, err, countersign.CertIsRevoked) // it was never used, and so proves no second holder
				for _, state := range []string{"superseded", "replaced"} {
					if cert := others[state]; cert != nil {
						_, err := w.Reenroll(t.Context(), renewal(t, cert, kit.Key(t)))
						kit.WantCode(t, err, countersign.ForkDetected)
					}
				}
				if after := len(w.events(t, event.Filter{Device: "pump-1", Type: countersign.FindingFork})); after != before+1 {
					t.Errorf("the other holder renewed: got %d findings of a fork, want another one beside %d", after, before)
				}
				if v := w.connect(t, used); v.Code != countersign.DeviceOnHold {
					t.Errorf("after the second fork: got %+v, want the device suspended", v)
				}
			})
		})
	}
}
