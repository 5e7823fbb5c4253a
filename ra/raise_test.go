package ra_test

import (
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/ra"
)

// TestAGraverReasonIsRecorded revokes for keyCompromise what was revoked for another
// reason before: record, CRL and event show it, and sessions are cut again. A reason that
// is not graver than the one on record changes nothing.
func TestAGraverReasonIsRecorded(t *testing.T) {
	const id = "pump-1"
	for name, first := range map[string]struct {
		by    func(t *testing.T, w *world, ref countersign.CertRef) error
		was   countersign.ReasonCode
		state countersign.DeviceState
		next  []string // what is named for keyCompromise then
	}{
		"device revoked": {func(t *testing.T, w *world, _ countersign.CertRef) error {
			_, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: id, Reason: countersign.Superseded})
			return err
		}, countersign.Superseded, countersign.DeviceRegistered, []string{"device", "certificate"}},
		"device retired": {func(t *testing.T, w *world, _ countersign.CertRef) error {
			_, err := w.Retire(t.Context(), ra.Act{Device: id})
			return err
		}, countersign.CessationOfOperation, countersign.DeviceRetired, []string{"device", "certificate"}},
		"certificate revoked": {func(t *testing.T, w *world, ref countersign.CertRef) error {
			_, err := w.Revoke(t.Context(), countersign.RevokeRequest{Cert: ref, Reason: countersign.PrivilegeWithdrawn})
			return err
		}, countersign.PrivilegeWithdrawn, countersign.DeviceActive, []string{"certificate"}},
	} {
		for _, next := range first.next {
			t.Run(name+", then "+next, func(t *testing.T) {
				each(t, func(t *testing.T, w *world) {
					cert := w.active(t, id)
					ref := w.refOf(t, cert)
					if err := first.by(t, w, ref); err != nil {
						t.Fatal(err)
					}
					since := w.record(t, cert).RevokedAt
					ask := func(r countersign.ReasonCode) countersign.Revocation {
						t.Helper()
						w.clock.Advance(time.Minute)
						w.takeCuts()
						req := countersign.RevokeRequest{Cert: ref, Reason: r}
						if next == "device" {
							req = countersign.RevokeRequest{Device: id, Reason: r}
						}
						out, err := w.Revoke(t.Context(), req)
						if err != nil {
							t.Fatal(err)
						}
						if len(w.takeCuts()) == 0 {
							t.Errorf("%s: no session was cut", r)
						}
						return *out
					}
					out := ask(countersign.KeyCompromise)
					if out.Already || !out.Raised || out.Reason != countersign.KeyCompromise || len(out.Certificates) != 1 {
						t.Errorf("graver: got %+v, want the reason raised", out)
					}
					w.wantReason(t, cert.SerialNumber.String(), countersign.KeyCompromise)
					c := w.record(t, cert)
					if c.Reason != countersign.KeyCompromise || !c.RevokedAt.Equal(since) {
						t.Errorf("record: got %s since %v, want keyCompromise since %v", c.Reason, c.RevokedAt, since)
					}
					list := w.events(t, event.Filter{Type: countersign.CertRevokedEv})
					if e := list[len(list)-1]; len(list) != 2 || e.Data["reason"] != "keyCompromise" || e.Data["reason_before"] != first.was.String() || e.Data["again"] != "" {
						t.Errorf("events: got %+v, want a second one with both reasons", list)
					}
					for _, r := range []countersign.ReasonCode{countersign.KeyCompromise, countersign.Superseded, countersign.Unspecified} {
						if out := ask(r); !out.Already || out.Raised || out.Reason != countersign.KeyCompromise {
							t.Errorf("%s: got %+v, want keyCompromise to stay", r, out)
						}
						if got := w.record(t, cert).Reason; got != countersign.KeyCompromise {
							t.Errorf("%s: the record shows %s", r, got)
						}
					}
					if got := w.device(t, id).State; got != first.state {
						t.Errorf("got the device %s, want %s", got, first.state)
					}
				})
			})
		}
	}
}

// wantReason wants the next CRL to show a reason for a certificate.
func (w *world) wantReason(t *testing.T, serial string, want countersign.ReasonCode) {
	t.Helper()
	if _, err := w.CA.Publish(t.Context(), ca.IssuingID, 0); err != nil {
		t.Fatal(err)
	}
	list, _ := w.crl(t)
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.String() == serial {
			if countersign.ReasonCode(e.ReasonCode) != want {
				t.Errorf("the CRL shows %s, want %s", countersign.ReasonCode(e.ReasonCode), want)
			}
			return
		}
	}
	t.Errorf("the CRL does not show %s", serial)
}
