package ra_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

const day = 24 * time.Hour

func TestRecoveryIsBounded(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		door := ra.Recovery{RA: w.Authority}
		rule := countersign.Recovery{MaxAge: countersign.Span(30 * day), MaxTimes: 1, Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
		cert := w.active(t, "pump-1")
		key := kit.Key(t)
		ask := func(from string) error {
			r := renewal(t, cert, key)
			r.Remote = netip.MustParseAddrPort(from)
			_, err := door.Reenroll(t.Context(), r)
			return err
		}
		w.clock.Set(cert.NotAfter.Add(time.Second))
		kit.WantCode(t, ask("192.0.2.1:1"), countersign.CertExpired) // no rule
		w.rules(t, "default", countersign.Rules{Recovery: &rule})
		_, err := w.Reenroll(t.Context(), renewal(t, cert, key)) // the ordinary door
		kit.WantCode(t, err, countersign.CertExpired)
		_, err = door.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-2", w.token(t, registry.Credential{})))
		kit.WantCode(t, err, countersign.NotAllowed)
		_, err = door.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-1"})
		kit.WantCode(t, err, countersign.NotAllowed)
		kit.WantCode(t, ask("198.51.100.1:1"), countersign.NotAllowed)
		w.clock.Set(cert.NotAfter.Add(30*day + time.Second))
		kit.WantCode(t, ask("192.0.2.1:1"), countersign.CertExpired)
		w.clock.Set(cert.NotAfter.Add(30 * day))
		g, err := door.Reenroll(t.Context(), renewal(t, cert, key))
		if err != nil {
			t.Fatalf("in time: %v", err)
		}
		if c := w.record(t, leaf(t, g)); c.Method != string(countersign.MethodRecovery) {
			t.Errorf("got method %s on record, want recovery", c.Method)
		}
		w.clock.Advance(time.Second)
		again, err := door.Reenroll(t.Context(), renewal(t, cert, key))
		if err != nil || again.Serial != g.Serial {
			t.Errorf("retry: got %v, want the same certificate", err)
		}
		cert, key = leaf(t, g), kit.Key(t)
		w.use(t, cert)
		w.clock.Set(cert.NotAfter.Add(time.Second))
		kit.WantCode(t, ask("192.0.2.1:1"), countersign.NotAllowed) // a second time
	})
}

func TestRecoveryForgivesExpiryOnly(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{Recovery: &countersign.Recovery{MaxAge: countersign.Span(30 * day), MaxTimes: 9}})
		door := ra.Recovery{RA: w.Authority}
		held, revoked, forked := w.active(t, "held"), w.active(t, "revoked"), w.active(t, "forked")
		if _, err := w.Suspend(t.Context(), ra.Act{Device: "held", Actor: boss.Actor}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "revoked", Reason: countersign.KeyCompromise, Actor: boss.Actor}); err != nil {
			t.Fatal(err)
		}
		w.clock.Set(forked.NotAfter.Add(time.Minute))
		_, err := door.Reenroll(t.Context(), renewal(t, held, kit.Key(t)))
		kit.WantCode(t, err, countersign.DeviceOnHold)
		_, err = door.Reenroll(t.Context(), renewal(t, revoked, kit.Key(t)))
		kit.WantCode(t, err, countersign.CertIsRevoked)
		g, err := door.Reenroll(t.Context(), renewal(t, forked, kit.Key(t)))
		if err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		w.use(t, leaf(t, g))
		_, err = door.Reenroll(t.Context(), renewal(t, forked, kit.Key(t))) // a second holder of the old key
		kit.WantCode(t, err, countersign.ForkDetected)
		w.clock.Advance(time.Second)
		_, err = door.Reenroll(t.Context(), renewal(t, leaf(t, g), kit.Key(t)))
		kit.WantCode(t, err, countersign.DeviceOnHold)
	})
}

func TestOldRecoveryWaitsForAnOperator(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{Recovery: &countersign.Recovery{
			MaxAge: countersign.Span(30 * day), MaxTimes: 9, ApproveAfter: countersign.Span(7 * day),
		}})
		door := ra.Recovery{RA: w.Authority}
		cert, key := w.active(t, "pump-1"), kit.Key(t)
		w.clock.Set(cert.NotAfter.Add(7*day + time.Second))
		_, err := door.Reenroll(t.Context(), renewal(t, cert, key))
		kit.WantCode(t, err, countersign.Pending)
		asked := w.waiting(t)
		if asked.Method != countersign.MethodRecovery || asked.Facts["expired"] == "" {
			t.Errorf("the operator sees %+v", asked)
		}
		if _, err := w.provisioner().Approve(t.Context(), asked.ID, "", boss); err != nil {
			t.Fatal(err)
		}
		_, err = door.Reenroll(t.Context(), renewal(t, cert, kit.Key(t)))
		kit.WantCode(t, err, countersign.Pending)
		if _, err := door.Reenroll(t.Context(), renewal(t, cert, key)); err != nil {
			t.Errorf("after approval: %v", err)
		}
	})
}

// TestRecoveriesAreCountedHoweverManyCertificates has a device with more certificates than
// a decision looks at, and one that loses its key before it used what it recovered.
func TestRecoveriesAreCountedHoweverManyCertificates(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{Recovery: &countersign.Recovery{MaxAge: countersign.Span(300 * day), MaxTimes: 1}})
		door := ra.Recovery{RA: w.Authority}
		cert := w.active(t, "pump-1")
		w.clock.Set(cert.NotAfter.Add(time.Second))
		var g *countersign.Grant
		for range 3 { // it loses its key, and asks again
			var err error
			if g, err = door.Reenroll(t.Context(), renewal(t, cert, kit.Key(t))); err != nil {
				t.Fatalf("recover: %v", err)
			}
			w.clock.Advance(time.Second)
		}
		recovered := leaf(t, g)
		w.use(t, recovered)
		cert = w.renew(t, recovered, kit.Key(t))
		w.use(t, cert)
		w.clock.Advance(overlap + time.Second)
		if _, err := w.Sweep(t.Context()); err != nil { // revokes the one that was recovered
			t.Fatal(err)
		}
		write(t, w.DB, func(ctx context.Context, tx *store.Tx) error {
			for i := range 300 { // renewals in a loop, revoked since
				_, err := tx.Exec(ctx, `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence, method,
						key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
					SELECT $1, issuer, device, fleet, profile, 'revoked', '', 4, FALSE, '', '', 'certificate', $1, $1, not_before, not_after, issued_at + 1, used_at, 0, issued_at + 2, 0, der
					FROM certificate WHERE serial = $2`, fmt.Sprintf("%040x", i), string(countersign.SerialOf(cert.SerialNumber)))
				if err != nil {
					return err
				}
			}
			return nil
		})
		w.clock.Set(cert.NotAfter.Add(time.Second))
		_, err := door.Reenroll(t.Context(), renewal(t, cert, kit.Key(t)))
		kit.WantCode(t, err, countersign.NotAllowed)
	})
}

// TestRecoveriesAreCountedAcrossAClockThatIsSetBack revokes a device while a clock is ahead.
// What it recovers afterwards counts, though its times are before that of the revocation.
func TestRecoveriesAreCountedAcrossAClockThatIsSetBack(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{Recovery: &countersign.Recovery{MaxAge: countersign.Span(300 * day), MaxTimes: 1}})
		door := ra.Recovery{RA: w.Authority}
		w.active(t, "pump-1")
		right := w.clock.Now()
		w.clock.Advance(3 * 365 * day)
		if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Device: "pump-1", Reason: countersign.Superseded}); err != nil {
			t.Fatal(err)
		}
		w.clock.Set(right.Add(time.Minute))
		key := kit.Key(t)
		g, err := w.Enroll(t.Context(), enrollment(t, key, "pump-1", w.token(t, registry.Credential{Device: "pump-1"})))
		if err != nil {
			t.Fatal(err)
		}
		cert := leaf(t, g)
		w.use(t, cert)
		for i, want := range []countersign.Code{"", countersign.NotAllowed} {
			w.clock.Set(cert.NotAfter.Add(time.Second))
			g, err := door.Reenroll(t.Context(), renewal(t, cert, kit.Key(t)))
			if countersign.CodeOf(err) != want {
				t.Fatalf("recovery %d: got %v, want %q", i+1, err, want)
			}
			if err == nil {
				cert = leaf(t, g)
				w.use(t, cert)
			}
		}
	})
}
