package ra_test

import (
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store/storetest"
)

// TestSampleHasOnlyConnectionsThatThePolicyJudged keeps out of the sample what was refused
// before the policy of the fleet was asked: a replay would take it for an act that the
// policy denies.
func TestSampleHasOnlyConnectionsThatThePolicyJudged(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	w.Sample = &policies.Sample{DB: w.DB, Now: w.clock.Now, Log: w.Log}
	unused, held, gone := w.enroll(t, "pump-1"), w.enroll(t, "pump-2"), w.enroll(t, "pump-3")
	if _, err := w.Suspend(t.Context(), ra.Act{Device: "pump-2", Actor: boss.Actor}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-3", Reason: countersign.KeyCompromise}); err != nil {
		t.Fatal(err)
	}
	forged := *unused
	forged.Raw = append([]byte{}, unused.Raw...)
	forged.Raw[len(forged.Raw)-1] ^= 1
	sampled := func() int {
		t.Helper()
		if err := w.Sample.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		return w.count(t, "policy_decision")
	}
	for code, c := range map[countersign.Code]countersign.Verdict{
		countersign.DeviceOnHold:    w.connect(t, held),
		countersign.CertIsRevoked:   w.connect(t, gone),
		countersign.CertUnknown:     w.connect(t, &forged),
		countersign.Unauthenticated: w.Admit(t.Context(), countersign.Connection{Gateway: "test", Remote: remote, ClientID: "pump-1"}),
	} {
		if c.Allow || c.Code != code {
			t.Errorf("got %s (%s), want %s", c.Code, c.Reason, code)
		}
	}
	if n := sampled(); n != 0 {
		t.Errorf("refused before the policy was asked: %d rows in the sample, want none", n)
	}
	w.use(t, unused)
	if n := sampled(); n != 1 || w.count(t, "policy_decision WHERE device = 'pump-1' AND action = 'connect' AND allowed") != 1 {
		t.Errorf("admitted: %d rows in the sample, want its connection", n)
	}
}
