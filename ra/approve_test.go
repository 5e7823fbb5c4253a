package ra_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/test/kit"
)

// waiting gives the one request that waits.
func (w *world) waiting(t *testing.T) api.Waiting {
	t.Helper()
	list, _, err := w.Registry.Queue(t.Context(), registry.Awaits, "", 0)
	if err != nil || len(list) != 1 {
		t.Fatalf("got queue %+v, %v, want one request", list, err)
	}
	return list[0]
}

func approving(m ...countersign.Method) countersign.Rules { return countersign.Rules{Approval: m} }

func TestApprovalIsForOneKey(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", approving(countersign.MethodToken))
		key, secret := kit.Key(t), w.token(t, registry.Credential{UsesMax: 1, PerMinute: 1})
		req := enrollment(t, key, "pump-1", secret)
		for range 3 { // a poll is no use of the token's rate
			_, err := w.Enroll(t.Context(), req)
			kit.WantCode(t, err, countersign.Pending)
		}
		if e, err := w.Explain(t.Context(), req); err != nil || e.Decision != "wait" {
			t.Errorf("Explain: got %+v, %v, want wait", e, err)
		}
		if n := w.count(t, "device"); n != 0 {
			t.Errorf("asking made %d devices", n)
		}
		asked := w.waiting(t)
		if asked.Device != "pump-1" || asked.Facts["credential"] == "" || asked.Remote != remote.String() {
			t.Errorf("the operator sees %+v", asked)
		}
		if _, err := w.provisioner().Approve(t.Context(), asked.ID, "seen it", boss); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Minute)
		_, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", secret))
		kit.WantCode(t, err, countersign.Pending)
		w.clock.Advance(time.Minute)
		g, err := w.Enroll(t.Context(), req)
		if err != nil || g.Device != "pump-1" {
			t.Fatalf("after approval: %v", err)
		}
		again, err := w.Enroll(t.Context(), req)
		if err != nil || again.Serial != g.Serial {
			t.Errorf("retry: %v", err)
		}
		for _, kind := range []countersign.EventType{countersign.EnrollApproved, countersign.CertIssued} {
			if n := len(w.events(t, event.Filter{Type: kind, Device: "pump-1"})); n != 1 {
				t.Errorf("got %d events %s, want 1", n, kind)
			}
		}
	})
}

// TestAskingRegistersNothing wants a request that waits, or was rejected, to be no
// registration for the methods that admit registered devices only.
func TestAskingRegistersNothing(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		u := approving(countersign.MethodClaim)
		u.Registered = []countersign.Method{countersign.MethodToken}
		w.rules(t, "default", u)
		claim, _ := w.claim(t, registry.Credential{})
		_, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-1", peer(claim)))
		kit.WantCode(t, err, countersign.Pending)
		_, err = w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{})))
		kit.WantCode(t, err, countersign.NotAllowed)
		if _, err := w.provisioner().Reject(t.Context(), w.waiting(t).ID, "no", boss); err != nil {
			t.Fatal(err)
		}
		_, err = w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{})))
		kit.WantCode(t, err, countersign.NotAllowed)
	})
}

func TestRejectionHoldsUntilItExpires(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		u := approving(countersign.MethodToken)
		u.ApprovalTTL = countersign.Span(time.Hour)
		w.rules(t, "default", u)
		if _, err := w.provisioner().CreateDevice(t.Context(), countersign.Device{ID: "pump-1"}, boss); err != nil {
			t.Fatal(err)
		}
		req := enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{}))
		_, err := w.Enroll(t.Context(), req)
		kit.WantCode(t, err, countersign.Pending)
		if s := w.device(t, "pump-1").State; s != countersign.DevicePending {
			t.Errorf("got device %s, want pending", s)
		}
		asked := w.waiting(t)
		if _, err := w.provisioner().Reject(t.Context(), asked.ID, "not ours", boss); err != nil {
			t.Fatal(err)
		}
		_, err = w.Enroll(t.Context(), req)
		kit.WantCode(t, err, countersign.NotAllowed)
		if e, err := w.Explain(t.Context(), req); err != nil || e.Decision != "refuse" || countersign.Code(e.Code) != countersign.NotAllowed {
			t.Errorf("Explain: got %+v, %v, want refuse", e, err)
		}
		if s := w.device(t, "pump-1").State; s != countersign.DeviceRegistered {
			t.Errorf("got device %s, want registered", s)
		}
		_, err = w.provisioner().Approve(t.Context(), asked.ID, "", boss)
		kit.WantCode(t, err, countersign.Conflict)
		w.clock.Advance(time.Hour + time.Second)
		_, err = w.Enroll(t.Context(), req)
		kit.WantCode(t, err, countersign.Pending)
		second := w.waiting(t)
		w.clock.Advance(time.Hour + time.Second)
		_, err = w.provisioner().Approve(t.Context(), second.ID, "", boss)
		kit.WantCode(t, err, countersign.Conflict)
	})
}

func TestApprovalAtOnceIsGivenAndUsedOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", approving(countersign.MethodToken))
		req := enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{UsesMax: 5}))
		ctx := context.WithoutCancel(t.Context())
		together := func(act func() error) (won int, errs []error) {
			done := make(chan error, 5)
			for range cap(done) {
				go func() { done <- act() }()
			}
			for range cap(done) {
				if err := <-done; err != nil {
					errs = append(errs, err)
				} else {
					won++
				}
			}
			return won, errs
		}
		_, errs := together(func() error { _, err := w.Enroll(ctx, req); return err })
		for _, err := range errs {
			kit.WantCode(t, err, countersign.Pending)
		}
		id := w.waiting(t).ID
		won, errs := together(func() error { _, err := w.provisioner().Approve(ctx, id, "", boss); return err })
		if won != 1 {
			t.Errorf("%d approved, want 1", won)
		}
		for _, err := range errs {
			kit.WantCode(t, err, countersign.Conflict)
		}
		if won, errs = together(func() error { _, err := w.Enroll(ctx, req); return err }); won != 5 {
			t.Errorf("%d of 5 got the certificate: %v", won, errs)
		}
		if n := w.count(t, "certificate WHERE device = 'pump-1'"); n != 1 {
			t.Errorf("got %d certificates, want 1", n)
		}
	})
}

func TestReadmissionAfterRevocationNeedsALeaveOfItsOwn(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		all := ways(t, w)
		var idevid way
		for _, v := range all {
			if v.method == countersign.MethodIDevID {
				idevid = v
			}
		}
		cert := w.active(t, "pump-1")
		if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: cert.Subject.CommonName, Reason: countersign.KeyCompromise, Actor: boss.Actor}); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		ev := idevid.make(t, w, "pump-1")
		ev.Token = w.token(t, registry.Credential{}) // newer, but for no device
		_, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-1", ev))
		kit.WantCode(t, err, countersign.NotAllowed)
		ev.Token = w.token(t, registry.Credential{Device: "pump-2"})
		_, err = w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-2", ev))
		kit.WantCode(t, err, countersign.SubjectMismatch)
		ev.Token = w.token(t, registry.Credential{Device: "pump-1"})
		if _, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-1", ev)); err != nil {
			t.Errorf("both for pump-1, newer: %v", err)
		}
	})
}

func TestTokenBesideAStoppedClaimIsRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{})
		cert, made := w.claim(t, registry.Credential{UsesMax: 1})
		both := func(i int) error {
			ev := peer(cert)
			ev.Token = w.token(t, registry.Credential{})
			_, err := w.Enroll(t.Context(), shows(t, kit.Key(t), fmt.Sprint("pump-", i), ev))
			return err
		}
		if err := both(1); err != nil {
			t.Fatal(err)
		}
		kit.WantCode(t, both(2), countersign.CredentialSpent)
		if _, _, err := w.provisioner().StopCredential(t.Context(), made.ID, "lost", boss); err != nil {
			t.Fatal(err)
		}
		kit.WantCode(t, both(3), countersign.CredentialExpire)
	})
}
