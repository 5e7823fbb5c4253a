package respond_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/respond"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestActsOnDevicesAreOnRecord holds each act of an operator on an alert's device to
// what it changes, what its line says, and its event.
func TestActsOnDevicesAreOnRecord(t *testing.T) {
	for _, tt := range []struct {
		act   string
		do    func(*world, context.Context, string) (respond.Alert, *countersign.Revocation, error)
		text  string
		state countersign.DeviceState
	}{
		{"suspend", func(w *world, ctx context.Context, id string) (respond.Alert, *countersign.Revocation, error) {
			return w.Suspend(ctx, id, ana)
		}, "2 sessions ended, 1 certificate on hold: looked at it", countersign.DeviceSuspended},
		{"reactivate", func(w *world, ctx context.Context, id string) (respond.Alert, *countersign.Revocation, error) {
			if _, err := w.RA.Suspend(ctx, ra.Act{Device: "pump-1", Actor: ana.Actor}); err != nil {
				return respond.Alert{}, nil, err
			}
			return w.Reactivate(ctx, id, ana)
		}, "1 certificate good again: looked at it", countersign.DeviceActive},
		{"revoke", func(w *world, ctx context.Context, id string) (respond.Alert, *countersign.Revocation, error) {
			return w.Revoke(ctx, id, countersign.KeyCompromise, ana)
		}, "2 sessions ended, 1 certificate revoked: looked at it", countersign.DeviceRegistered},
	} {
		t.Run(tt.act, func(t *testing.T) {
			each(t, func(t *testing.T, w *world) {
				w.enroll(t, "pump-1", 2)
				w.find(t, clone("pump-1"))
				id := w.one(t, respond.Filter{}).ID
				a, r, err := tt.do(w, t.Context(), id)
				if err != nil || r == nil || len(r.Certificates) != 1 {
					t.Fatalf("%s: got %+v, %v", tt.act, r, err)
				}
				last := a.Timeline[len(a.Timeline)-1]
				if last.Act != tt.act || last.Text != tt.text || last.Actor != ana.Actor || last.Outcome != respond.Done {
					t.Errorf("line: got %+v, want %s: %s", last, tt.act, tt.text)
				}
				if got := w.state(t, "pump-1"); got != tt.state {
					t.Errorf("device: got %s, want %s", got, tt.state)
				}
				events := w.events(t, countersign.MitigationDone)
				if len(events) != 1 || events[0].Data["act"] != tt.act || events[0].Data["alert"] != id || events[0].Via != "test" {
					t.Errorf("events: got %+v", events)
				}
				read, err := w.Alert(t.Context(), id)
				if err != nil || lines(read, tt.act, respond.Done) != 1 {
					t.Errorf("on record: got %+v, %v", read.Timeline, err)
				}
			})
		})
	}
}

// TestBlockOfAnAlert blocks the network that an alert is about, which is its subject
// before the address of its last finding.
func TestBlockOfAnAlert(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		f := countersign.Finding{Rule: cloned, Subject: "address:198.51.100.4/32", Remote: "192.0.2.1:99", Summary: "x"}
		w.find(t, f)
		a, b, err := w.Block(t.Context(), w.one(t, respond.Filter{}).ID, time.Hour, ana)
		if err != nil || b.Prefix.String() != "198.51.100.4/32" || !b.Until.Equal(w.clock.Now().Add(time.Hour)) {
			t.Fatalf("block: got %+v, %v", b, err)
		}
		if lines(a, "block", respond.Done) != 1 {
			t.Errorf("timeline: got %+v", a.Timeline)
		}
		if err := w.Ledger.Check(b.Prefix.Addr()); countersign.CodeOf(err) != countersign.RateLimited {
			t.Errorf("a client from there: got %v", err)
		}
		w.clock.Advance(time.Second)
		w.find(t, countersign.Finding{Rule: cloned, Subject: "fleet:default", Summary: "no address"})
		newest := w.one(t, respond.Filter{Limit: 1})
		_, _, err = w.Block(t.Context(), newest.ID, time.Hour, ana)
		kit.WantCode(t, err, countersign.BadRequest)
	})
}

// TestActsThatCannotBe are refused, say why, name no shell command and change nothing.
func TestActsThatCannotBe(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.find(t, countersign.Finding{Rule: cloned, Subject: "server", Summary: "no device"}, clone("unknown"))
		var none, ghost, closed string
		for _, a := range w.list(t, respond.Filter{}) {
			if a.Device == "" {
				none = a.ID
			} else {
				ghost = a.ID
			}
		}
		w.find(t, countersign.Finding{Rule: looked, Severity: countersign.SeverityHigh, Subject: "server", Summary: "over"})
		closed = w.one(t, respond.Filter{Rule: looked}).ID
		if a, err := w.Close(t.Context(), closed, respond.NotAnIssue, ana); err != nil || a.Resolution != respond.NotAnIssue {
			t.Fatalf("close: got %+v, %v", a, err)
		}
		ctx, quiet := t.Context(), respond.By{By: ana.By}
		for name, tt := range map[string]struct {
			do   func() error
			code countersign.Code
		}{
			"suspend no device":      {func() error { _, _, err := w.Suspend(ctx, none, ana); return err }, countersign.Conflict},
			"revoke no device":       {func() error { _, _, err := w.Revoke(ctx, none, 0, ana); return err }, countersign.Conflict},
			"reactivate an unknown":  {func() error { _, _, err := w.Reactivate(ctx, ghost, ana); return err }, countersign.NotFound},
			"acknowledge a closed":   {func() error { _, err := w.Acknowledge(ctx, closed, ana); return err }, countersign.Conflict},
			"close a closed":         {func() error { _, err := w.Close(ctx, closed, respond.Resolved, ana); return err }, countersign.Conflict},
			"close as something":     {func() error { _, err := w.Close(ctx, none, "fine", ana); return err }, countersign.BadRequest},
			"assign to a long name":  {func() error { _, err := w.Assign(ctx, none, strings.Repeat("x", 64), ana); return err }, countersign.BadRequest},
			"comment with nothing":   {func() error { _, err := w.Comment(ctx, none, quiet); return err }, countersign.BadRequest},
			"snooze for too long":    {func() error { _, err := w.Snooze(ctx, none, 91*24*time.Hour, ana); return err }, countersign.BadRequest},
			"any act on none":        {func() error { _, err := w.Acknowledge(ctx, "none", ana); return err }, countersign.NotFound},
			"test of no channel":     {func() error { _, err := w.TestChannel(ctx, "none", ana.By); return err }, countersign.NotFound},
			"actions of no alert":    {func() error { _, err := w.Actions(ctx, "none"); return err }, countersign.NotFound},
			"responses of no rule":   {func() error { return w.CheckRules(rulesOf("none")) }, countersign.BadRequest},
			"block without an alert": {func() error { _, _, err := w.Block(ctx, "none", time.Hour, ana); return err }, countersign.NotFound},
		} {
			err := tt.do()
			if got := countersign.CodeOf(err); got != tt.code {
				t.Errorf("%s: got %v, want %s", name, err, tt.code)
			}
			if p := countersign.Public(err); strings.Contains(p.Message+p.Next, "countersign ") {
				t.Errorf("%s: %q names a command of the shell", name, p.Next)
			}
		}
		if a, err := w.Comment(ctx, closed, ana); err != nil || a.State != respond.Closed || lines(a, "comment", respond.Done) != 1 {
			t.Errorf("comment on a closed alert: got %+v, %v", a, err)
		}
		if a, err := w.Assign(ctx, none, "", quiet); err != nil || a.Timeline[len(a.Timeline)-1].Text != "to no one" {
			t.Errorf("assign to no one: got %+v, %v", a.Timeline, err)
		}
	})
}

func rulesOf(name string) countersign.Rules {
	return countersign.Rules{Respond: map[string][]countersign.Mitigation{name: {countersign.MitigateNote}}}
}

// TestAlertsAreFiltered asks for alerts by each field.
func TestAlertsAreFiltered(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.enroll(t, "pump-1", 0)
		w.find(t, clone("pump-1"), countersign.Finding{Rule: "guessed", Severity: countersign.SeverityCritical, Subject: "server", Summary: "x"})
		if _, err := w.Snooze(t.Context(), w.one(t, respond.Filter{Rule: "guessed"}).ID, time.Hour, ana); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			filter respond.Filter
			want   string
		}{
			{respond.Filter{}, "guessed shared_certificate"},
			{respond.Filter{State: respond.Live}, "guessed shared_certificate"},
			{respond.Filter{State: respond.Open}, "shared_certificate"},
			{respond.Filter{State: respond.Snoozed}, "guessed"},
			{respond.Filter{State: respond.Closed}, ""},
			{respond.Filter{Severity: countersign.SeverityCritical}, "guessed"},
			{respond.Filter{Fleet: countersign.DefaultFleet}, "shared_certificate"},
			{respond.Filter{Device: "pump-1"}, "shared_certificate"},
			{respond.Filter{Device: "pump-2"}, ""},
			{respond.Filter{Rule: cloned, State: respond.Snoozed}, ""},
		} {
			seen := map[string]bool{}
			for _, a := range w.list(t, tt.filter) {
				seen[a.Rule] = true
			}
			var got []string
			for _, rule := range []string{"guessed", cloned} {
				if seen[rule] {
					got = append(got, rule)
				}
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("%+v: got %q, want %q", tt.filter, got, tt.want)
			}
		}
	})
}

// TestOldRowsAreDeleted runs the maintenance on alerts, mitigations and notices of each
// age: what is open stays whatever its age.
func TestOldRowsAreDeleted(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		r, c := newReceiver(t)
		r.set(500)
		w := newWorld(t, db, c)
		begin := w.clock.Now()
		for i := range 3 {
			w.find(t, countersign.Finding{Rule: cloned, Subject: fmt.Sprintf("address:192.0.2.%d/32", i), Summary: "x"})
		}
		list := w.list(t, respond.Filter{})
		if _, err := w.Close(t.Context(), list[0].ID, respond.Resolved, ana); err != nil {
			t.Fatal(err)
		}
		write(t, db, func(ctx context.Context, tx *store.Tx) error {
			for id, state := range map[string]string{"old-done": "done", "old-failed": "failed"} {
				_, err := tx.Exec(ctx, `INSERT INTO mitigation (id, alert, act, object, fleet, finding, state, attempts, made_at, began_at, next_at)
					VALUES ($1, $2, 'block', 'x', '', '{}', $3, 1, $4, 0, 0)`, id, list[1].ID, state, store.Micros(begin))
				if err != nil {
					return err
				}
			}
			_, err := tx.Exec(ctx, `INSERT INTO notification (id, channel, alert, body, attempts, next_at, made_at, error)
				VALUES ('left', 'removed-channel', '', '{}', 0, 0, $1, '')`, store.Micros(begin))
			return err
		})
		count := func(table string) int {
			n, err := store.Count(t.Context(), db, `SELECT COUNT(*) FROM `+table)
			if err != nil {
				t.Error(err)
			}
			return n
		}
		w.clock.Advance(29 * 24 * time.Hour)
		stop := start(t, w.Run)
		kit.Eventually(t, "notices of a channel that was removed are deleted", func() bool { return count("notification WHERE channel = 'removed-channel'") == 0 })
		kit.Eventually(t, "the open alerts are counted", func() bool {
			return w.OpenAlerts(countersign.SeverityHigh)+w.OpenAlerts(countersign.SeverityMedium) == 2
		})
		stop()
		if count("mitigation") != 2 || count("alert") != 3 {
			t.Errorf("after a month: got %d mitigations and %d alerts, want 2 and 3", count("mitigation"), count("alert"))
		}
		w.clock.Advance(380 * 24 * time.Hour)
		again := w.node() // another process: nothing is due to its memory
		start(t, again.Run)
		kit.Eventually(t, "finished mitigations are deleted", func() bool { return count("mitigation") == 0 })
		kit.Eventually(t, "the closed alert is deleted", func() bool { return count("alert") == 2 })
	})
}

// TestOutcomesAreObserved holds the calls for metrics, and the trial of a channel both ways.
func TestOutcomesAreObserved(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		r, c := newReceiver(t)
		c.Severity = string(countersign.SeverityHigh)
		w := newWorld(t, db, c, config.Channel{Name: "nowhere", Kind: config.ChannelSyslog, Addr: "127.0.0.1:1"})
		got := make(chan respond.Outcome, 100)
		w.Observe = func(o respond.Outcome) { got <- o }
		w.enroll(t, "pump-1", 0)
		w.respond(t, map[string][]countersign.Mitigation{cloned: {countersign.MitigateAlert, countersign.MitigateSuspend}})
		w.find(t, clone("pump-1"))
		start(t, w.Run)
		want := map[respond.Outcome]bool{
			{What: "finding", Name: cloned, Result: "high"}: true, {What: "mitigation", Name: "suspend", Result: respond.Done}: true,
			{What: "notification", Name: "hook", Result: respond.Done}: true,
		}
		for len(want) > 0 {
			select {
			case o := <-got:
				delete(want, o)
			case <-time.After(kit.Patience):
				t.Fatalf("not observed: %v", want)
			}
		}
		test, err := w.TestChannel(t.Context(), "hook", ana.By)
		if err != nil || !test.Delivered || test.Error != "" {
			t.Errorf("a channel that works: got %+v, %v", test, err)
		}
		if n := r.notices(t); n[len(n)-1].Kind != respond.NewsTest || n[len(n)-1].Alert != nil {
			t.Errorf("the last notice: got %+v", n[len(n)-1])
		}
		test, err = w.TestChannel(t.Context(), "nowhere", ana.By)
		if err != nil || test.Delivered || test.Error == "" {
			t.Errorf("a channel that does not work: got %+v, %v", test, err)
		}
		failed := w.events(t, countersign.MitigationFailed)
		if len(failed) != 1 || failed[0].Data["channel"] != "nowhere" || failed[0].Actor != ana.Actor {
			t.Errorf("event of the trial: got %+v", failed)
		}
	})
}
