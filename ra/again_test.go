package ra_test

import (
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
)

// TestAnActIsRepeated asks twice for each act that takes something away, as an operator
// does whose first answer was lost. The second time succeeds, says since when it is in
// force, changes nothing on record but the event, and cuts again.
func TestAnActIsRepeated(t *testing.T) {
	type act func() (countersign.Revocation, error)
	result := func(r *countersign.Revocation, err error) (countersign.Revocation, error) {
		if r == nil {
			r = &countersign.Revocation{}
		}
		return *r, err
	}
	for _, tt := range []struct {
		name  string
		event countersign.EventType
		make  func(t *testing.T, w *world) act
		cut   func(c countersign.Cut) bool
	}{
		{"revoke", countersign.DeviceRevoked, func(t *testing.T, w *world) act {
			w.active(t, "pump-1")
			return func() (countersign.Revocation, error) {
				return result(w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-1", Reason: countersign.KeyCompromise}))
			}
		}, func(c countersign.Cut) bool { return c.Device == "pump-1" }},
		{"revoke one certificate", countersign.CertRevokedEv, func(t *testing.T, w *world) act {
			ref := w.refOf(t, w.active(t, "pump-1"))
			return func() (countersign.Revocation, error) {
				return result(w.Revoke(t.Context(), countersign.RevokeRequest{Cert: ref, Reason: countersign.KeyCompromise}))
			}
		}, func(c countersign.Cut) bool { return !c.Cert.IsZero() }},
		{"suspend", countersign.DeviceSuspendedEv, func(t *testing.T, w *world) act {
			w.active(t, "pump-1")
			return func() (countersign.Revocation, error) {
				return result(w.Suspend(t.Context(), ra.Act{Device: "pump-1"}))
			}
		}, func(c countersign.Cut) bool { return c.Device == "pump-1" }},
		{"retire", countersign.DeviceRetiredEv, func(t *testing.T, w *world) act {
			w.active(t, "pump-1")
			return func() (countersign.Revocation, error) { return result(w.Retire(t.Context(), ra.Act{Device: "pump-1"})) }
		}, func(c countersign.Cut) bool { return c.Device == "pump-1" }},
		{"stop a secret", countersign.SecretStopped, func(t *testing.T, w *world) act {
			w.opens(t)
			w.registered(t, "pump-1")
			s, _ := w.secret(t, access.SecretOrder{Device: "pump-1"})
			return func() (countersign.Revocation, error) {
				_, done, err := w.StopSecret(t.Context(), "pump-1", s.ID, "lost", boss)
				return done, err
			}
		}, func(c countersign.Cut) bool { return c.Credential != "" }},
		{"stop a key", countersign.CredentialStopped, func(t *testing.T, w *world) act {
			c, _, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Fleet: "default", Device: "pump-1"}, provision.SymmetricKeys{}, boss)
			if err != nil {
				t.Fatal(err)
			}
			return func() (countersign.Revocation, error) {
				_, done, err := w.provisioner().StopCredential(t.Context(), c.ID, "lost", boss)
				return done, err
			}
		}, func(c countersign.Cut) bool { return c.Credential != "" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				do := tt.make(t, w)
				w.takeCuts()
				first, err := do()
				if err != nil || first.Already {
					t.Fatalf("first: got %+v, %v", first, err)
				}
				w.takeCuts()
				state := w.count(t, "certificate WHERE state IN ('revoked', 'held')")
				w.clock.Advance(time.Minute)
				second, err := do()
				if err != nil || !second.Already || len(second.Certificates) > 1 {
					t.Errorf("second: got %+v, %v, want that it is in force already", second, err)
				}
				cuts := w.takeCuts()
				if len(cuts) != 1 || !tt.cut(cuts[0]) {
					t.Errorf("cuts of the second: got %+v, want the same again", cuts)
				}
				if now := w.count(t, "certificate WHERE state IN ('revoked', 'held')"); now != state {
					t.Errorf("got %d certificates taken away, then %d", state, now)
				}
				var again []string
				for _, e := range w.events(t, event.Filter{Type: tt.event}) {
					again = append(again, e.Data["again"])
				}
				if len(again) != 2 || again[0] != "" || again[1] != "true" {
					t.Errorf("events: got %q, want one, and one that says it is a repetition", again)
				}
			})
		})
	}
}
