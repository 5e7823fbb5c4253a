package respond_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/respond"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/test/kit"
)

func TestSuspendIsDoneAndUndone(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		cert := w.enroll(t, "pump-1", 2)
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateAlert, countersign.MitigateSuspend}})
		w.find(t, clone("pump-1"))
		a, err := w.Alert(t.Context(), w.one(t, respond.Filter{}).ID)
		if err != nil {
			t.Fatal(err)
		}
		if lines(a, "suspend", respond.Waiting) != 1 {
			t.Errorf("before it is done: got timeline %+v, want suspend waiting", a.Timeline)
		}
		start(t, w.Run)
		kit.Eventually(t, "the device is suspended", func() bool { return lines(w.one(t, respond.Filter{}), "suspend", respond.Done) == 1 })
		if got := w.state(t, "pump-1"); got != countersign.DeviceSuspended || len(w.live()) != 0 {
			t.Errorf("device: got %s with %d sessions, want suspended with none", got, len(w.live()))
		}
		if _, _, err := w.Reactivate(t.Context(), a.ID, ana); err != nil {
			t.Fatal(err)
		}
		v := w.RA.Admit(t.Context(), connection(cert))
		if !v.Allow {
			t.Errorf("connect after reactivation: got %s %s, want allowed with the certificate it had", v.Code, v.Reason)
		}
	})
}

func TestAClosedAlertSuspendsNobody(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 0)
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateAlert, countersign.MitigateSuspend}})
		w.find(t, clone("pump-1"))
		if _, err := w.Close(t.Context(), w.one(t, respond.Filter{}).ID, respond.NotAnIssue, ana); err != nil {
			t.Fatal(err)
		}
		start(t, w.Run)
		kit.Eventually(t, "the mitigation is settled", func() bool { return lines(w.one(t, respond.Filter{}), "suspend", respond.Done) == 1 })
		if got := w.state(t, "pump-1"); got != countersign.DeviceActive {
			t.Errorf("device: got %s, want active: the alert was no issue before anything was done", got)
		}
	})
}

func TestLowSeverityNeverSuspendsByDefault(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 0)
		f := countersign.Finding{Rule: looked, Subject: "device:pump-1", Device: "pump-1", Summary: "x"}
		w.find(t, f)
		w.respond(t, map[string][]countersign.Mitigation{"*": {countersign.MitigateSuspend, countersign.MitigateRevoke, countersign.MitigateBlock}})
		f.Subject = "server"
		w.find(t, f)
		f.Subject, f.Severity, f.Rule = "fleet:default", countersign.SeverityHigh, cloned // "*" never revokes
		w.find(t, f)
		f.Subject, f.Rule = "device:pump-1", "guessed" // nor suspends on a stranger's word
		w.find(t, f)
		var queued int
		err := w.RA.DB.QueryRow(t.Context(), `SELECT COUNT(*) FROM mitigation 
			WHERE act = 'revoke' OR act = 'suspend' AND alert IN (SELECT id FROM alert WHERE rule IN ($1, 'guessed'))`, looked).Scan(&queued)
		if err != nil || queued != 0 {
			t.Errorf("mitigations of low findings, and revocations: got %d, %v, want none", queued, err)
		}
		w.respond(t, map[string][]countersign.Mitigation{looked: {countersign.MitigateSuspend}})
		f.Rule, f.Severity, f.Subject = looked, countersign.SeverityLow, "device:pump-1"
		w.find(t, f)
		if err := w.RA.DB.QueryRow(t.Context(), `SELECT COUNT(*) FROM mitigation WHERE act = 'suspend' AND finding LIKE '%"device:pump-1"%'`).Scan(&queued); err != nil || queued != 1 {
			t.Errorf("a fleet that names the rule: got %d suspensions, %v, want 1", queued, err)
		}
	})
}

// TestNoDeviceIsHeldForAStrangersWord has strangers name more devices than the server
// suspends within an hour, by a rule whose findings prove no name, and by single findings
// of another rule that do not. None is held, and what is proven is still acted on.
func TestNoDeviceIsHeldForAStrangersWord(t *testing.T) {
	takes := []countersign.Mitigation{countersign.MitigateAlert, countersign.MitigateSuspend, countersign.MitigateRevoke}
	for name, plan := range map[string]map[string][]countersign.Mitigation{
		"all rules": {"*": takes}, "the rules by name": {"guessed": takes, cloned: takes},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				w.respond(t, plan)
				for i := range 5 { // of each, more than are suspended in an hour
					word, claimed := clone(fmt.Sprintf("word-%d", i)), clone(fmt.Sprintf("claimed-%d", i))
					word.Rule, claimed.Claimed = "guessed", true
					for _, f := range []countersign.Finding{word, claimed} {
						w.enroll(t, f.Device, 0)
						w.find(t, f)
					}
				}
				w.enroll(t, "proven", 0)
				w.find(t, clone("proven"))
				start(t, w.Run)
				kit.Eventually(t, "the device that is proven is held", func() bool { return w.state(t, "proven") != countersign.DeviceActive })
				for i := range 5 {
					for _, id := range []string{fmt.Sprintf("word-%d", i), fmt.Sprintf("claimed-%d", i)} {
						if got := w.state(t, id); got != countersign.DeviceActive {
							t.Errorf("%s is %s, want active", id, got)
						}
					}
				}
			})
		})
	}
}

// TestCrashedMitigationIsDoneOnce ends the server between each two steps: before
// the mitigation was begun, after it was begun, and after it had its effect.
func TestCrashedMitigationIsDoneOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateSuspend}})
		for _, step := range []string{"queued", "begun", "effective", "undone-meanwhile"} {
			w.crash(t, step)
			w.clock.Advance(2 * time.Hour) // away from the limit of an hour
		}
	})
}

// crash ends the server at a step of the suspension of a device of that name, and
// runs another one.
func (w *world) crash(t *testing.T, step string) {
	t.Helper()
	w.enroll(t, step, 0)
	w.find(t, clone(step))
	a := w.one(t, respond.Filter{Device: step})
	if step != "queued" {
		write(t, w.RA.DB, func(ctx context.Context, tx *store.Tx) error {
			now := store.Micros(w.clock.Now())
			_, err := tx.Exec(ctx, `UPDATE mitigation SET state = 'running', attempts = 1, began_at = $1, next_at = $2 WHERE alert = $3`, now, now+60_000_000, a.ID)
			return err
		})
	}
	w.clock.Advance(time.Second)
	want := countersign.DeviceSuspended
	if step == "effective" || step == "undone-meanwhile" {
		_, err := w.RA.Suspend(t.Context(), ra.Act{Device: step, Actor: countersign.System, Note: "held", Via: "respond", Alert: a.ID})
		if err != nil {
			t.Fatal(err)
		}
	}
	if step == "undone-meanwhile" {
		want = countersign.DeviceActive
		if _, err := w.RA.Reactivate(t.Context(), ra.Act{Device: step, Actor: ana.Actor}); err != nil {
			t.Fatal(err)
		}
	}
	w.clock.Advance(2 * time.Minute)
	stop := start(t, w.Run)
	defer stop()
	kit.Eventually(t, step+": the mitigation is finished", func() bool {
		return lines(w.one(t, respond.Filter{Device: step}), "suspend", respond.Done) == 1
	})
	if got := w.state(t, step); got != want {
		t.Errorf("%s: device: got %s, want %s", step, got, want)
	}
	n := 0
	for _, e := range w.events(t, countersign.DeviceSuspendedEv) {
		if e.Device == step {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%s: device.suspended: got %d, want 1", step, n)
	}
}

func TestSuspensionsAreLimited(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateSuspend}})
		const devices = 6
		var list []countersign.Finding
		for i := range devices {
			id := fmt.Sprintf("pump-%d", i)
			w.enroll(t, id, 0)
			list = append(list, clone(id))
		}
		w.find(t, list...) // a detector that is wrong about all of them
		start(t, w.Run)
		finished := func(outcome string) (n int) {
			for _, a := range w.list(t, respond.Filter{}) {
				n += lines(a, "suspend", outcome)
			}
			return n
		}
		kit.Eventually(t, "all mitigations end", func() bool { return finished(respond.Done)+finished(respond.Failed) == devices })
		if got := finished(respond.Done); got != 3 {
			t.Errorf("suspended of %d: got %d, want 3", devices, got)
		}
		failed := w.events(t, countersign.MitigationFailed)
		if len(failed) != devices-3 || !strings.Contains(failed[0].Reason, "a person must act") {
			t.Errorf("mitigation.failed: got %+v", failed)
		}
		// An hour later the server may again.
		w.clock.Advance(61 * time.Minute)
		again := clone("pump-9")
		w.enroll(t, "pump-9", 0)
		w.find(t, again)
		kit.Eventually(t, "the next hour", func() bool { return w.state(t, "pump-9") == countersign.DeviceSuspended })
	})
}

// TestTwoNodesDoItOnce runs two desks on one database, as two nodes do.
func TestTwoNodesDoItOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateSuspend}})
		var list []countersign.Finding
		for i := range 3 {
			id := fmt.Sprintf("pump-%d", i)
			w.enroll(t, id, 0)
			list = append(list, clone(id))
		}
		if w.RA.DB.Postgres() {
			other := w.node()
			start(t, other.Run)
		}
		start(t, w.Run)
		w.find(t, list...)
		kit.Eventually(t, "all are suspended", func() bool {
			n := 0
			for _, a := range w.list(t, respond.Filter{}) {
				n += lines(a, "suspend", respond.Done)
			}
			return n == 3
		})
		if got := len(w.events(t, countersign.MitigationDone)); got != 3 {
			t.Errorf("mitigation.done: got %d, want 3", got)
		}
		if got := len(w.events(t, countersign.DeviceSuspendedEv)); got != 3 {
			t.Errorf("device.suspended: got %d, want 3", got)
		}
	})
}

// TestAlertOfManyDevicesHoldsEach: what is done once is once for each device.
func TestAlertOfManyDevicesHoldsEach(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateSuspend}})
		start(t, w.Run)
		for _, id := range []string{"pump-1", "pump-2", "pump-1"} {
			if id == "pump-2" || w.clock.Now().Minute() == 0 {
				w.enroll(t, id, 0)
			}
			f := clone(id)
			f.Subject = "address:203.0.113.9/32"
			w.find(t, f)
			w.clock.Advance(time.Minute)
		}
		kit.Eventually(t, "both are suspended", func() bool { return lines(w.one(t, respond.Filter{}), "suspend", respond.Done) == 2 })
		a := w.one(t, respond.Filter{})
		if a.Count != 3 || !strings.HasPrefix(a.Timeline[1].Text, "pump-1: ") {
			t.Errorf("alert: got %d findings, timeline %+v", a.Count, a.Timeline)
		}
	})
}

func TestBlockRefusesGuessesAlone(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		cert := w.enroll(t, "pump-1", 0)
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateBlock}})
		f := clone("pump-1")
		f.Remote = connection(cert).Remote.String()
		w.find(t, f)
		start(t, w.Run)
		kit.Eventually(t, "the address is blocked", func() bool { return lines(w.one(t, respond.Filter{}), "block", respond.Done) == 1 })
		addr := connection(cert).Remote.Addr()
		if err := w.RA.Ledger.Check(addr); countersign.CodeOf(err) != countersign.RateLimited {
			t.Errorf("a stranger from there: got %v, want rate_limited", err)
		}
		if err := w.RA.Ledger.CheckProven(addr); err != nil {
			t.Errorf("a device with a good certificate behind the same address: got %v", err)
		}
		blocks, _, err := w.RA.Ledger.Blocks(t.Context(), "", 10)
		if err != nil || len(blocks) != 1 || blocks[0].Until.Sub(w.clock.Now()) > time.Hour {
			t.Errorf("blocks: got %+v, %v, want one of an hour", blocks, err)
		}
		w.clock.Advance(6 * time.Minute)
		w.find(t, f) // while it holds
		kit.Eventually(t, "the second is nothing to do", func() bool { return lines(w.one(t, respond.Filter{}), "block", respond.Done) == 2 })
		again, _, err := w.RA.Ledger.Blocks(t.Context(), "", 10)
		if err != nil || len(again) != 1 || !again[0].Until.Equal(blocks[0].Until) {
			t.Errorf("blocks: got %+v, %v, want the first unchanged", again, err)
		}
	})
}

func TestRevokeOnlyWhereTheFleetSaysSo(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 1)
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateRevoke}})
		w.find(t, clone("pump-1"))
		start(t, w.Run)
		kit.Eventually(t, "the device is revoked", func() bool { return lines(w.one(t, respond.Filter{}), "revoke", respond.Done) == 1 })
		if got := w.state(t, "pump-1"); got != countersign.DeviceRegistered {
			t.Errorf("device: got %s, want registered", got)
		}
	})
}

func TestMitigationWithoutObjectFailsAloud(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateSuspend, countersign.MitigateBlock}})
		f := clone("unknown")
		f.Remote = ""
		w.find(t, f)
		start(t, w.Run)
		kit.Eventually(t, "both fail", func() bool {
			a := w.one(t, respond.Filter{})
			return lines(a, "suspend", respond.Failed) == 1 && lines(a, "block", respond.Failed) == 1
		})
	})
}

// TestActionsForetell holds what each button says against what then happens.
func TestActionsForetell(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 3)
		w.find(t, clone("pump-1"))
		id := w.one(t, respond.Filter{}).ID
		says := func(name string) (sessions, certificates int, possible bool) {
			t.Helper()
			acts, err := w.Actions(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range acts {
				if x.Name == name {
					return x.Sessions, x.Certificates, x.Possible
				}
			}
			t.Fatalf("no action %s", name)
			return 0, 0, false
		}
		check := func(name string, do func() (*countersign.Revocation, error)) {
			t.Helper()
			sessions, certificates, possible := says(name)
			r, err := do()
			if possible != (err == nil) {
				t.Fatalf("%s: foretold possible %v, then got %v", name, possible, err)
			}
			if err == nil && (r.Sessions != sessions || len(r.Certificates) != certificates) {
				t.Errorf("%s: foretold %d sessions and %d certificates, got %d and %d", name, sessions, certificates, r.Sessions, len(r.Certificates))
			}
		}
		suspend := func() (*countersign.Revocation, error) { _, r, err := w.Suspend(t.Context(), id, ana); return r, err }
		reactivate := func() (*countersign.Revocation, error) {
			_, r, err := w.Reactivate(t.Context(), id, ana)
			return r, err
		}
		revoke := func() (*countersign.Revocation, error) {
			_, r, err := w.Revoke(t.Context(), id, countersign.KeyCompromise, ana)
			return r, err
		}
		if sessions, certificates, _ := says("suspend"); sessions != 3 || certificates != 1 {
			t.Errorf("suspend: foretold %d sessions and %d certificates, want 3 and 1", sessions, certificates)
		}
		check("reactivate", reactivate) // not possible yet
		check("suspend", suspend)
		check("suspend", suspend) // again: it is in force, and cuts what is there
		check("reactivate", reactivate)
		check("revoke", revoke)
		check("revoke", func() (*countersign.Revocation, error) {
			return revoke() // again, in the same way
		})
		_, b, err := w.Block(t.Context(), id, time.Hour, ana)
		if _, _, possible := says("block"); !possible || err != nil || b.Prefix.String() != "203.0.113.9/32" || !b.Manual {
			t.Errorf("block: got %+v, %v", b, err)
		}
		a, err := w.Alert(t.Context(), id)
		if err != nil || lines(a, "suspend", respond.Done) != 2 || lines(a, "revoke", respond.Done) != 2 || lines(a, "block", respond.Done) != 1 {
			t.Errorf("timeline: got %+v, %v", a.Timeline, err)
		}
	})
}

// TestReactivationAfterAForkWarns has a device fork and reads what the button says: which
// certificate comes back, that it may be the other holder's, and that it is the only one.
func TestReactivationAfterAForkWarns(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		cert := w.enroll(t, "pump-1", 0)
		serial := string(countersign.SerialOf(cert.SerialNumber))
		w.find(t, countersign.Finding{
			Rule: detect.RenewalFork, Severity: countersign.SeverityCritical, Subject: "device:pump-1", Device: "pump-1", Fleet: countersign.DefaultFleet, Summary: "two holders",
		})
		w.find(t, clone("pump-1"))
		for _, a := range w.list(t, respond.Filter{}) { // at the other alert of the device, too
			if _, _, err := w.Suspend(t.Context(), a.ID, ana); err != nil && countersign.CodeOf(err) != countersign.Conflict {
				t.Fatal(err)
			}
			acts, err := w.Actions(t.Context(), a.ID)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range acts {
				if x.Name != "reactivate" {
					continue
				}
				for _, words := range []string{serial, "the device or the other holder", "stay revoked", "revoke the device and enroll it anew"} {
					if !strings.Contains(x.Effect, words) {
						t.Errorf("%s: the button says %q, want %q in it", a.Rule, x.Effect, words)
					}
				}
				if !x.Possible || x.Certificates != 1 {
					t.Errorf("%s: got %+v, want it possible with one certificate", a.Rule, x)
				}
			}
		}
	})
}
