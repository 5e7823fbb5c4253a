package ra_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestFirstConnectionsAtOnceAllGetIn has factory devices connect for the first time at
// once, some with several connections, as after a power cut on the day of installation.
func TestFirstConnectionsAtOnceAllGetIn(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := newMaker(t, w.Now())
		w.registers(t, ca.Registration{ID: "maker", Certificate: m.cert.Raw})
		w.rules(t, "default", countersign.Rules{Authorities: []string{"maker"}, Connect: true})
		for name, tt := range map[string]struct{ devices, each int }{"many devices": {60, 1}, "one device": {1, 60}, "some": {12, 5}} {
			var running sync.WaitGroup
			var mu sync.Mutex
			refused := map[string]int{}
			for n := range tt.devices {
				id := fmt.Sprintf("%s-%d", name[:3], n)
				cert := m.device(t, id, w.Now())
				for k := range tt.each {
					from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 3, byte(n), 1}), uint16(1000+k))
					running.Go(func() {
						v := w.Admit(context.WithoutCancel(t.Context()), countersign.Connection{Gateway: "test", Remote: from, ClientID: id, Peer: peerOf(cert)})
						mu.Lock()
						defer mu.Unlock()
						if !v.Allow {
							refused[string(v.Code)+": "+v.Reason]++
						}
					})
				}
			}
			running.Wait()
			if len(refused) > 0 {
				t.Errorf("%s: refused %v", name, refused)
			}
			if n := w.count(t, "certificate WHERE device LIKE $1", name[:3]+"-%"); n != tt.devices {
				t.Errorf("%s: got %d certificates on record, want one for each of %d devices", name, n, tt.devices)
			}
		}
	})
}

// TestAnApprovedRequestOutlivesItsEvidence has evidence end while its device waits for
// an operator, in each way that evidence ends by itself.
func TestAnApprovedRequestOutlivesItsEvidence(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{Approval: everyMethod})
		start := w.Now()
		brief, _ := w.claim(t, registry.Credential{})
		own := selfSigned(t, start.Add(-time.Hour), start.Add(time.Hour))
		if _, err := w.provisioner().CreateThumbprint(t.Context(), registry.Credential{Device: "by-thumbprint"}, thumb(own), "", boss); err != nil {
			t.Fatal(err)
		}
		_, k, err := w.provisioner().CreateKey(t.Context(), registry.Credential{Device: "by-key"}, provision.SymmetricKeys{}, boss)
		if err != nil {
			t.Fatal(err)
		}
		key, err := attest.ParseSymmetricKey(k.Primary)
		if err != nil {
			t.Fatal(err)
		}
		bound, shared, stopped := w.token(t, registry.Credential{Device: "by-token"}), w.token(t, registry.Credential{Label: "shared", UsesMax: 9}), w.token(t, registry.Credential{Label: "stop"})
		w.exec(t, `UPDATE credential SET expires_at = $1 WHERE kind = 'token'`, start.Add(time.Hour).UnixMicro())
		ways := map[string]countersign.Evidence{
			"by-token": {Token: bound}, "by-shared": {Token: shared}, "by-stopped": {Token: stopped}, "by-claim": peer(brief), "by-thumbprint": peer(own),
			"by-key": sas(key, "default", "by-key", start.Add(time.Hour)),
		}
		requests := map[string]countersign.EnrollRequest{}
		for id, ev := range ways {
			requests[id] = shows(t, kit.Key(t), id, ev)
			kit.WantCode(t, asks(w.Enroll, requests[id]), countersign.Pending)
		}
		w.clock.Advance(48 * time.Hour) // the claim's certificate is good for a day
		queue, _, err := w.Registry.Queue(t.Context(), registry.Awaits, "", 100)
		if err != nil || len(queue) != len(ways) {
			t.Fatalf("got %d requests that wait, %v, want %d", len(queue), err, len(ways))
		}
		for id, req := range requests {
			kit.WantCode(t, asks(w.Enroll, req), countersign.Pending)
			other := shows(t, kit.Key(t), id, ways[id]) // another key is another request
			if c := countersign.CodeOf(asks(w.Enroll, other)); c != countersign.CredentialExpire && c != countersign.CertExpired {
				t.Errorf("%s, another key after the end: got %q", id, c)
			}
		}
		for _, q := range queue {
			if _, err := w.provisioner().Approve(t.Context(), q.ID, "", boss); err != nil {
				t.Fatal(err)
			}
		}
		list, _, err := w.Registry.Credentials(t.Context(), registry.CredentialFilter{Kind: countersign.MethodToken})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if c.Label == "stop" {
				if _, _, err := w.provisioner().StopCredential(t.Context(), c.ID, "lost", boss); err != nil {
					t.Fatal(err)
				}
			}
		}
		for id, req := range requests {
			err := asks(w.Enroll, req)
			switch {
			case id == "by-stopped":
				kit.WantCode(t, err, countersign.CredentialExpire) // an operator ended it
			case err != nil:
				t.Errorf("%s, approved: %v", id, err)
			}
		}
	})
}

// TestDroppedApprovalDoesNotReviveEvidence takes the rule away while a request waits
// whose token has ended.
func TestDroppedApprovalDoesNotReviveEvidence(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	w.rules(t, "default", countersign.Rules{Approval: everyMethod})
	req := enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{}))
	kit.WantCode(t, asks(w.Enroll, req), countersign.Pending)
	w.exec(t, `UPDATE credential SET expires_at = $1 WHERE kind = 'token'`, w.Now().Add(time.Hour).UnixMicro())
	w.clock.Advance(2 * time.Hour)
	w.rules(t, "default", countersign.Rules{})
	kit.WantCode(t, asks(w.Enroll, req), countersign.CredentialExpire)
}

func TestAnApprovalLeavesTheDeviceTimeToComeBack(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{Approval: everyMethod, ApprovalTTL: countersign.Span(time.Hour)})
		req := enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{}))
		kit.WantCode(t, asks(w.Enroll, req), countersign.Pending)
		w.clock.Advance(59 * time.Minute)
		queue, _, err := w.Registry.Queue(t.Context(), registry.Awaits, "", 100)
		if err != nil || len(queue) != 1 {
			t.Fatal(queue, err)
		}
		approved, err := w.provisioner().Approve(t.Context(), queue[0].ID, "", boss)
		if err != nil || !approved.ExpiresAt.Equal(w.Now().Add(registry.ApprovedFor)) {
			t.Fatalf("Approve: got an end at %s, %v, want %s from now", approved.ExpiresAt, err, registry.ApprovedFor)
		}
		w.clock.Advance(registry.ApprovedFor - time.Minute)
		if err := asks(w.Enroll, req); err != nil {
			t.Errorf("a day after the approval: %v", err)
		}
	})
}

// TestRecoveryThatWaitedTooLongIsServed approves the recovery of a device once it is
// older than the fleet recovers without having asked.
func TestRecoveryThatWaitedTooLongIsServed(t *testing.T) {
	w := newWorld(t, storetest.Open(t))
	w.rules(t, "default", countersign.Rules{Recovery: &countersign.Recovery{
		MaxAge: countersign.Span(24 * time.Hour), MaxTimes: 1, ApproveAfter: countersign.Span(time.Hour),
	}})
	old := w.active(t, "pump-1")
	w.clock.Advance(ca.DefaultValidity + 23*time.Hour)
	req, late := renewal(t, old, kit.Key(t)), renewal(t, old, kit.Key(t))
	recovery := ra.Recovery{RA: w.Authority}
	kit.WantCode(t, asks(recovery.Reenroll, req), countersign.Pending)
	w.clock.Advance(24 * time.Hour)
	queue, _, err := w.Registry.Queue(t.Context(), registry.Awaits, "", 100)
	if err != nil || len(queue) != 1 {
		t.Fatal(queue, err)
	}
	if _, err := w.provisioner().Approve(t.Context(), queue[0].ID, "", boss); err != nil {
		t.Fatal(err)
	}
	kit.WantCode(t, asks(recovery.Reenroll, late), countersign.CertExpired)
	if err := asks(recovery.Reenroll, req); err != nil {
		t.Errorf("approved: %v", err)
	}
}

// TestABoundTokenServesADeviceThatLostItsKey asks with the same token and another key
// before the first connection, as docs/enrollment.md promises, and not after it.
func TestABoundTokenServesADeviceThatLostItsKey(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		secret := w.token(t, registry.Credential{Device: "pump-1"})
		var g *countersign.Grant
		for n := range 4 {
			w.clock.Advance(time.Second)
			var err error
			if g, err = w.Enroll(t.Context(), enrollment(t, kit.Key(t), "pump-1", secret)); err != nil {
				t.Fatalf("key %d: %v", n, err)
			}
		}
		if n := w.count(t, "certificate WHERE device = 'pump-1' AND state = 'pending'"); n != 1 {
			t.Errorf("got %d certificates pending, want 1", n)
		}
		w.use(t, leaf(t, g))
		kit.WantCode(t, asks(w.Enroll, enrollment(t, kit.Key(t), "pump-1", secret)), countersign.CredentialSpent)

		stopped := w.token(t, registry.Credential{Device: "pump-2", Label: "stop"})
		if err := asks(w.Enroll, enrollment(t, kit.Key(t), "pump-2", stopped)); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		w.exec(t, `UPDATE credential SET state = 'stopped' WHERE label = 'stop'`)
		kit.WantCode(t, asks(w.Enroll, enrollment(t, kit.Key(t), "pump-2", stopped)), countersign.CredentialExpire)

		shared := w.token(t, registry.Credential{}) // for any one device: its use is spent
		if err := asks(w.Enroll, enrollment(t, kit.Key(t), "pump-3", shared)); err != nil {
			t.Fatal(err)
		}
		w.clock.Advance(time.Second)
		kit.WantCode(t, asks(w.Enroll, enrollment(t, kit.Key(t), "pump-3", shared)), countersign.CredentialSpent)
	})
}

// TestATPMIsInOneDevice registers chips without a device.
func TestATPMIsInOneDevice(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.rules(t, "default", countersign.Rules{})
		chip := func(b byte) countersign.Evidence {
			hash := fmt.Sprintf("%064x", b)
			if _, err := w.provisioner().CreateTPM(t.Context(), registry.Credential{}, nil, hash, boss); err != nil {
				t.Fatal(err)
			}
			return countersign.Evidence{TPM: &countersign.TPMProof{EKHash: hash}}
		}
		ev := chip(1)
		g, err := w.Enroll(t.Context(), shows(t, kit.Key(t), "pump-1", ev))
		if err != nil {
			t.Fatal(err)
		}
		if c := countersign.CodeOf(asks(w.Enroll, shows(t, kit.Key(t), "pump-2", ev))); c != countersign.SubjectMismatch && c != countersign.NotAllowed {
			t.Errorf("another id by the same chip: got %q", c)
		}
		w.use(t, leaf(t, g))

		old := chip(2) // as a database of before has it: used, and bound to nothing
		if err := asks(w.Enroll, shows(t, kit.Key(t), "pump-3", old)); err != nil {
			t.Fatal(err)
		}
		w.exec(t, `UPDATE credential SET device = '' WHERE kind = 'tpm' AND device = 'pump-3'`)
		kit.WantCode(t, asks(w.Enroll, shows(t, kit.Key(t), "pump-4", old)), countersign.NotAllowed)
		w.clock.Advance(time.Second)
		if err := asks(w.Enroll, shows(t, kit.Key(t), "pump-3", old)); err != nil && countersign.CodeOf(err) != countersign.DeviceIsActive {
			t.Errorf("the device of the chip: %v", err)
		}

		race := chip(3)
		var running sync.WaitGroup
		for n := range 8 {
			req := shows(t, kit.Key(t), fmt.Sprint("race-", n), race)
			running.Go(func() { _ = asks(w.Enroll, req) })
		}
		running.Wait()
		if n := w.count(t, "device WHERE id LIKE 'race-%'"); n != 1 {
			t.Errorf("one chip enrolled %d devices at once", n)
		}
	})
}

// TestMappedNetworksOfOldDatabasesMatch has networks on record as they were once taken.
func TestMappedNetworksOfOldDatabasesMatch(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		mapped := `["::ffff:192.0.2.0/120"]`
		w.rules(t, "default", countersign.Rules{})
		cert, made := w.claim(t, registry.Credential{})
		secret := w.token(t, registry.Credential{})
		w.exec(t, `UPDATE credential SET networks = $1`, mapped)
		w.exec(t, `UPDATE fleet SET rules = '{"networks":`+mapped+`}'`)
		for id, ev := range map[string]countersign.Evidence{"by-claim": peer(cert), "by-token": {Token: secret}} {
			if err := asks(w.Enroll, shows(t, kit.Key(t), id, ev)); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		if c, err := w.Registry.Credential(t.Context(), w.DB, made.ID); err != nil || c.State != registry.CredentialActive || c.Networks[0].String() != "192.0.2.0/24" {
			t.Errorf("got a claim %s for %v, %v, want an active one for 192.0.2.0/24", c.State, c.Networks, err)
		}
		saved, err := w.provisioner().SaveFleet(t.Context(), "default", func(f *countersign.Fleet) {
			f.Rules.Networks = []netip.Prefix{netip.MustParsePrefix("::ffff:10.9.8.7/104")}
		}, boss)
		if err != nil || saved.Rules.Networks[0].String() != "10.0.0.0/8" {
			t.Errorf("SaveFleet: got %v, %v", saved.Rules.Networks, err)
		}
	})
}

// TestAnIDOfAnotherFleetIsTaken has a manufacturer that two fleets trust name a device
// that the other has.
func TestAnIDOfAnotherFleetIsTaken(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		m := newMaker(t, w.Now())
		w.registers(t, ca.Registration{ID: "maker", Certificate: m.cert.Raw})
		w.rules(t, "default", countersign.Rules{})
		w.rules(t, "other", countersign.Rules{Authorities: []string{"maker"}, Connect: true})
		if _, err := w.provisioner().CreateDevice(t.Context(), countersign.Device{ID: "pump-1", Fleet: "default"}, boss); err != nil {
			t.Fatal(err)
		}
		cert := m.device(t, "pump-1", w.Now())
		req := shows(t, kit.Key(t), "pump-1", peer(cert))
		req.Fleet = "other"
		kit.WantCode(t, asks(w.Enroll, req), countersign.NotAllowed)
		if v := w.Admit(t.Context(), countersign.Connection{Gateway: "test", Remote: remote, Peer: peerOf(cert)}); v.Allow || v.Code != countersign.NotAllowed {
			t.Errorf("Admit: got %v, %s", v.Allow, v.Code)
		}
		token := enrollment(t, kit.Key(t), "pump-1", w.token(t, registry.Credential{Fleet: "other"}))
		kit.WantCode(t, asks(w.Enroll, token), countersign.NotAllowed)
	})
}
