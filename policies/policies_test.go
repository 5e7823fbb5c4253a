package policies_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// drafts are policies by what a device may publish to.
func draft(topics ...string) string {
	return "statements:\n  - {id: in, effect: allow, actions: [connect]}\n" +
		"  - {id: own, effect: allow, actions: [publish], topics: ['" + strings.Join(topics, "', '") + "']}\n"
}

// fleet is the one fleet of these tests.
const fleet = "pumps"

// ref is the certificate of device pump-1.
var ref = countersign.CertRef{Issuer: "issuing", Serial: "a1"}

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// newStore records device pump-1 with a tag and a certificate, and returns the policies of
// its fleet with the events that are recorded.
func newStore(t *testing.T, db *store.DB) (*policies.Store, *[]countersign.Event) {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(0xa1), Subject: pkix.Name{CommonName: "pump-1"}}
	key := kit.Key(t)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		for _, q := range []struct {
			text string
			args []any
		}{
			{`INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at) VALUES ('issuing', 'issuing', '', $1, '', 'active', 0)`, []any{[]byte{}}},
			{`INSERT INTO profile (name, spec, created_at, updated_at) VALUES ('device', '{}', 0, 0)`, nil},
			{`INSERT INTO fleet (name, issuer, profile, methods, overlap, trust_domain, created_at, updated_at) VALUES ('pumps', 'issuing', 'device', '[]', 0, '', 0, 0)`, nil},
			{`INSERT INTO device (id, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
				VALUES ('pump-1', 'pumps', 'active', '', '', '{"site":"north"}', 0, 0, 0, 0, '')`, nil},
			{`INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence, method,
				key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
				VALUES ('a1', 'issuing', 'pump-1', 'pumps', 'device', 'active', '', 0, FALSE, '', '', '', '', '', 0, 0, 0, 0, 0, 0, 0, $1)`, []any{der}},
		} {
			if _, err := tx.Exec(ctx, q.text, q.args...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p := nodeOn(db)
	var mu sync.Mutex
	var events []countersign.Event
	p.Events.SubscribeRecorded(func(e countersign.Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	})
	return p, &events
}

// nodeOn is the policies as one process has them.
func nodeOn(db *store.DB) *policies.Store {
	now := func() time.Time { return start }
	return &policies.Store{DB: db, Now: now, Events: &event.Log{DB: db, Now: now, Log: slog.New(slog.DiscardHandler)}}
}

func apply(t *testing.T, p *policies.Store, d policies.Draft) policies.Version {
	t.Helper()
	v, changed, err := p.Apply(t.Context(), d, "operator:ann", "rest")
	if err != nil || !changed {
		t.Fatalf("Apply: got %+v, %v, %v, want a new version", v, changed, err)
	}
	return v
}

// may reports whether pump-1 may publish to a topic by the policy in force.
func may(t *testing.T, p *policies.Store, topic string) bool {
	t.Helper()
	in, err := p.Of(t.Context(), fleet)
	if err != nil {
		t.Fatal(err)
	}
	return in.Policy.Explain(policy.Subject{Kind: policy.Devices, Device: "pump-1", ClientID: "pump-1"}, policy.Publish, topic).Allowed
}

func TestVersionsFollowEachOther(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		p, events := newStore(t, db)
		if v, err := p.Present(t.Context(), fleet); err != nil || v.Version != 0 || v.Source != string(policy.Starter()) {
			t.Fatalf("Present before any: got version %d, %v, want the built-in one", v.Version, err)
		}
		if !may(t, p, "devices/pump-1/up/t") {
			t.Error("built-in policy: got no right to report")
		}
		one, two := draft("a"), draft("b")
		apply(t, p, policies.Draft{Fleet: fleet, Source: one, Note: "first"})
		if !may(t, p, "a") || may(t, p, "devices/pump-1/up/t") {
			t.Error("after version 1: got the policy before it")
		}
		if v, changed, err := p.Apply(t.Context(), policies.Draft{Fleet: fleet, Source: one}, "operator:ann", "rest"); err != nil || changed || v.Version != 1 {
			t.Errorf("the same again: got version %d, changed %v, %v, want 1 as it is", v.Version, changed, err)
		}
		expect := int64(0)
		_, _, err := p.Apply(t.Context(), policies.Draft{Fleet: fleet, Source: two, Expect: &expect}, "operator:bob", "rest")
		if countersign.CodeOf(err) != countersign.Conflict || !strings.Contains(err.Error(), "operator:ann") {
			t.Errorf("expecting version 0: got %v, want a conflict that names ann", err)
		}
		expect = 1
		apply(t, p, policies.Draft{Fleet: fleet, Source: two, Expect: &expect})
		back, changed, err := p.Rollback(t.Context(), policies.Draft{Fleet: fleet}, 1, "operator:ann", "cli")
		if err != nil || !changed || back.Version != 3 || back.Source != one || back.Note != "back to version 1" {
			t.Errorf("Rollback to 1: got %+v, %v, want version 3 with its source", back, err)
		}
		if _, _, err := p.Rollback(t.Context(), policies.Draft{Fleet: fleet}, 9, "operator:ann", "cli"); countersign.CodeOf(err) != countersign.NotFound {
			t.Errorf("Rollback to 9: got %v, want not found", err)
		}
		if _, _, err := p.Rollback(t.Context(), policies.Draft{Fleet: fleet}, 0, "operator:ann", "cli"); err != nil {
			t.Errorf("Rollback to the built-in policy: %v", err)
		}
		if !may(t, p, "devices/pump-1/up/t") {
			t.Error("back at the built-in policy: got no right to report")
		}
		page, next, err := p.Versions(t.Context(), fleet, "", 3)
		if err != nil || len(page) != 3 || page[0].Version != 4 || next != "2" {
			t.Fatalf("Versions: got %+v, next %q, %v, want 4, 3, 2", page, next, err)
		}
		page, next, err = p.Versions(t.Context(), fleet, next, 3)
		if err != nil || len(page) != 1 || page[0].Note != "first" || next != "" {
			t.Errorf("Versions, second page: got %+v, next %q, %v, want 1", page, next, err)
		}
		if len(*events) != 4 || (*events)[0].Type != countersign.PolicyApplied || (*events)[3].Data["version"] != "4" || (*events)[0].Actor != "operator:ann" {
			t.Errorf("events: got %+v, want four of policy.applied", *events)
		}
	})
}

func TestApplyRefusesWhatIsWrong(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		p, _ := newStore(t, db)
		failing := draft("a") + "tests:\n  - {name: t, as: {device: x}, deny: [publish a]}\n"
		for name, c := range map[string]struct {
			draft policies.Draft
			want  countersign.Code
		}{
			"malformed":    {policies.Draft{Fleet: fleet, Source: "statements: 1"}, countersign.BadRequest},
			"failing test": {policies.Draft{Fleet: fleet, Source: failing}, countersign.BadRequest},
			"no fleet":     {policies.Draft{Fleet: "nowhere", Source: draft("a")}, countersign.NotFound},
			"long note":    {policies.Draft{Fleet: fleet, Source: draft("a"), Note: strings.Repeat("x", 401)}, countersign.BadRequest},
		} {
			if _, _, err := p.Apply(t.Context(), c.draft, "operator:ann", "rest"); countersign.CodeOf(err) != c.want {
				t.Errorf("%s: got %v, want %s", name, err, c.want)
			}
		}
		if v, err := p.Present(t.Context(), fleet); err != nil || v.Version != 0 {
			t.Errorf("after refusals: got version %d, %v, want 0", v.Version, err)
		}
	})
}

func TestTwoAppliesAtOnceDoNotOverwrite(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		p, _ := newStore(t, db)
		const writers = 8
		errs := make([]error, writers)
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				expect := int64(0)
				_, _, errs[i] = p.Apply(t.Context(), policies.Draft{Fleet: fleet, Source: draft(fmt.Sprintf("t%d", i)), Expect: &expect}, "operator:ann", "rest")
			})
		}
		wg.Wait()
		done := 0
		for _, err := range errs {
			switch countersign.CodeOf(err) {
			case "":
				done++
			case countersign.Conflict:
			default:
				t.Errorf("Apply: got %v, want a conflict", err)
			}
		}
		list, _, err := p.Versions(t.Context(), fleet, "", 10)
		if done != 1 || err != nil || len(list) != 1 {
			t.Errorf("%d at once that expect version 0: got %d done, %d versions, %v, want one", writers, done, len(list), err)
		}
		for i := range writers { // without an expectation all go through, one after the other
			wg.Go(func() {
				_, _, errs[i] = p.Apply(t.Context(), policies.Draft{Fleet: fleet, Source: draft(fmt.Sprintf("u%d", i))}, "operator:ann", "rest")
			})
		}
		wg.Wait()
		if list, _, _ = p.Versions(t.Context(), fleet, "", 20); errors.Join(errs...) != nil || len(list) != 1+writers {
			t.Errorf("%d at once: got %d versions, %v, want %d", writers, len(list), errors.Join(errs...), 1+writers)
		}
	})
}

func TestPolicyInForceIsNeverStale(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		here, _ := newStore(t, db)
		there := nodeOn(db) // with PostgreSQL nothing runs that receives the notices of others
		if may(t, there, "a") {
			t.Fatal("before any: got a right to a")
		}
		apply(t, here, policies.Draft{Fleet: fleet, Source: draft("a")})
		if got := may(t, there, "a"); got != db.Postgres() {
			t.Errorf("without a notice: got the new policy %v, want it read from the record only if notices may be missed: %v", got, db.Postgres())
		}
		there.Forget(fleet)
		if !may(t, there, "a") {
			t.Error("after the notice: got the old policy")
		}
	})
}

func TestReaderUnderWayDoesNotKeepTheOldPolicy(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		p, _ := newStore(t, db)
		stop := make(chan struct{})
		var readers sync.WaitGroup
		defer readers.Wait()
		defer close(stop)
		for range 4 {
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := p.Of(t.Context(), fleet); err != nil {
						t.Errorf("Of: %v", err)
						return
					}
					p.Forget("another") // so that some read while others are told
				}
			})
		}
		for i := range 100 {
			v := apply(t, p, policies.Draft{Fleet: fleet, Source: draft(fmt.Sprintf("t%d", i))})
			if in, err := p.Of(t.Context(), fleet); err != nil || in.Version != v.Version {
				t.Fatalf("after version %d: got %d, %v", v.Version, in.Version, err)
			}
		}
	})
}

func TestLosersAreThoseWhoHaveMore(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		p, _ := newStore(t, db)
		session := func(device, client string, topics ...string) countersign.Session {
			return countersign.Session{
				Device: device, Fleet: fleet, ClientID: client, Permissions: countersign.Permissions{Publish: countersign.Filters{Allow: topics}},
			}
		}
		shown := session("pump-1", "pump-1", "cn/pump-1")
		shown.Cert = ref
		for _, c := range []struct {
			name, source string
			session      countersign.Session
			want         bool
		}{
			{"the same", draft("a"), session("pump-1", "pump-1", "a"), false},
			{"more", draft("a", "b"), session("pump-1", "pump-1", "a"), false},
			{"less", draft("b"), session("pump-1", "pump-1", "a"), true},
			{"a tag it has", draft("${device.tags.site}/#"), session("pump-1", "pump-1", "north/x"), false},
			{"a tag it has not", draft("${device.tags.zone}/#"), session("pump-1", "pump-1", "north/x"), true},
			{"its certificate's name", draft("cn/${cert.subject.cn}"), shown, false},
			{"no certificate", draft("cn/${cert.subject.cn}"), session("pump-1", "pump-1", "cn/pump-1"), true},
			{"an identifier that we chose", draft("c/${client.id}"), session("pump-1", "pump-1:k3j2k3j2k3j2", "c/pump-1"), false},
			{"an identifier that it chose", draft("c/${client.id}"), session("pump-1", "pump-1:k3j2", "c/pump-1"), true},
			{"not even in", "statements:\n  - {id: s, effect: allow, actions: [publish], topics: [a]}\n", session("pump-1", "pump-1", "a"), true},
			{"a guest", draft("a"), session("guest/x", "x"), true},
			{"a gateway that asks at each act", draft("a"), session("pump-1", "pump-1"), false},
		} {
			now, err := policy.Parse([]byte(c.source))
			if err != nil {
				t.Fatal(err)
			}
			losers, err := p.Losers(t.Context(), now, []countersign.Session{c.session})
			if err != nil || (len(losers) == 1) != c.want {
				t.Errorf("%s: got %d losers, %v, want %v", c.name, len(losers), err, c.want)
			}
		}
	})
}

func sampler(db *store.DB, now *time.Time) *policies.Sample {
	return &policies.Sample{DB: db, Now: func() time.Time { return *now }, Log: slog.New(slog.DiscardHandler)}
}

func TestReplayComparesWithWhatWasDecided(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		p, _ := newStore(t, db)
		now := start
		s := sampler(db, &now)
		device := countersign.Session{Device: "pump-1", Fleet: fleet, ClientID: "pump-1"}
		device.Cert = ref
		app := countersign.Session{Device: "operator/ann", Fleet: fleet, ClientID: "web", Scope: []string{"pump-1", "pump-2"}}
		act := func(in countersign.Session, action, topic string, allowed bool) {
			s.Act(in, countersign.Act{Action: action, Topic: topic, Allowed: allowed})
			now = now.Add(time.Second)
		}
		act(device, "publish", "old", true)
		act(device, "publish", "old", true) // the same, within ten minutes
		act(device, "will", "site/north/gone", false)
		act(device, "publish", "cn/pump-1", false)
		act(device, "publish", "kept", true)
		act(device, "publish", "\xff", true) // no database would take it
		act(app, "publish", "to/pump-2", false)
		s.Connect(policy.Subject{Device: "pump-1", Fleet: fleet, ClientID: "pump-1"}, true)
		now = now.Add(policies.ThinFor)
		act(device, "publish", "old", true)
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		source := draft("site/${device.tags.site}/#", "cn/${cert.subject.cn}", "kept") +
			"  - {id: app, effect: allow, for: [apps], actions: [publish], topics: ['to/${device}']}\n"
		trial, err := p.Try(t.Context(), fleet, source, []countersign.Session{device, {Device: "x", Fleet: "other"}})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range trial.Changes {
			got = append(got, fmt.Sprintf("%s %s %s %v %dx by %s", c.Device, c.Action, c.Topic, c.Decision.Allowed, c.Times, c.Decision.Statement))
		}
		want := []string{
			"pump-1 publish old false 2x by ",
			"operator/ann publish to/pump-2 true 1x by app",
			"pump-1 publish cn/pump-1 true 1x by own",
			"pump-1 publish site/north/gone true 1x by own",
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("changes (-want +got):\n%s", d)
		}
		if trial.Acts != 6 || trial.NowDenied != 1 || trial.NowAllowed != 3 || !trial.Since.Equal(start) || trial.Sessions != 0 || len(trial.Statements) == 0 {
			t.Errorf("Try: got %d acts, %d denied, %d allowed, since %v, %d sessions, %d statements, want 6, 1, 3, %v, 0 and some",
				trial.Acts, trial.NowDenied, trial.NowAllowed, trial.Since, trial.Sessions, len(trial.Statements), start)
		}
	})
}

func TestSampleIsBounded(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		newStore(t, db)
		err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10300)
				INSERT INTO policy_decision (fleet, device, client_id, cn, scope, action, topic, allowed, at)
				SELECT CAST($1 AS TEXT), 'pump-1', '', '', '', 'publish', 't', TRUE, i FROM n`, fleet)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		now := start
		s := sampler(db, &now)
		s.Act(countersign.Session{Device: "pump-1", Fleet: fleet}, countersign.Act{Action: "publish", Topic: "the last"})
		if err := errors.Join(s.Flush(t.Context()), s.Sweep(t.Context())); err != nil {
			t.Fatal(err)
		}
		var n int
		var oldest, last int64
		if err := db.QueryRow(t.Context(), `SELECT count(*), MIN(at), MAX(at) FROM policy_decision`).Scan(&n, &oldest, &last); err != nil {
			t.Fatal(err)
		}
		if n != policies.MaxDecisions || oldest != 302 || last != store.Micros(start) {
			t.Errorf("after a sweep: got %d rows from %d to %d, want the newest %d", n, oldest, last, policies.MaxDecisions)
		}
	})
}

func TestNobodyPushesOthersOutOfTheSample(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		newStore(t, db)
		now := start
		s := sampler(db, &now)
		for i := range 3 * policies.MaxPerClient {
			s.Act(countersign.Session{Device: "pump-1", Fleet: fleet}, countersign.Act{Action: "publish", Topic: fmt.Sprintf("t%d", i)})
			s.Act(countersign.Session{Device: fmt.Sprintf("guest/%d", i), Fleet: fleet}, countersign.Act{Action: "publish", Topic: fmt.Sprintf("t%d", i)})
		}
		s.Act(countersign.Session{Device: "pump-2", Fleet: fleet}, countersign.Act{Action: "publish", Topic: "t"})
		now = now.Add(policies.ThinFor)
		s.Act(countersign.Session{Device: "pump-1", Fleet: fleet}, countersign.Act{Action: "publish", Topic: "later"})
		if err := s.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := db.QueryRow(t.Context(), `SELECT count(*) FROM policy_decision`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if want := 2*policies.MaxPerClient + 2; n != want {
			t.Errorf("rows: got %d, want %d: %d of pump-1 and of guests, and two more", n, want, policies.MaxPerClient)
		}
	})
}

func TestExplainHoldsTheClientIdentifierToTheDevice(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		p, _ := newStore(t, db)
		apply(t, p, policies.Draft{Fleet: fleet, Source: draft("${device.tags.site}/x")})
		for _, c := range []struct {
			q    api.PolicyQuestion
			want bool
		}{
			{api.PolicyQuestion{Device: "pump-1", Action: "publish", Topic: "north/x"}, true},
			{api.PolicyQuestion{Device: "pump-1", Action: "publish", Topic: "south/x"}, false},
			{api.PolicyQuestion{Device: "pump-1", Action: "connect"}, true},
			{api.PolicyQuestion{Device: "pump-1", Action: "connect", Topic: "pump-1:a"}, true},
			{api.PolicyQuestion{Device: "pump-1", Action: "connect", Topic: "pump-2"}, false},
			{api.PolicyQuestion{Device: "pump-1", ClientID: "pump-2", Action: "publish", Topic: "north/x"}, false},
			{api.PolicyQuestion{Guest: "x", Fleet: fleet, Action: "connect"}, false},
			{api.PolicyQuestion{App: "ann", Scope: []string{"pump-1"}, Fleet: fleet, Action: "publish", Topic: "devices/pump-1/down/x", Source: string(policy.Starter())}, true},
		} {
			a, err := p.Explain(t.Context(), c.q)
			if err != nil || a.Decision.Allowed != c.want || a.Decision.Why == "" {
				t.Errorf("Explain(%+v): got %+v, %v, want %v", c.q, a, err, c.want)
			}
		}
		for name, q := range map[string]api.PolicyQuestion{
			"nobody": {Action: "connect"}, "two": {Device: "pump-1", Guest: "x", Action: "connect"},
			"another fleet": {Device: "pump-1", Fleet: "other", Action: "connect"}, "a broken draft": {Device: "pump-1", Action: "connect", Source: "x"},
		} {
			if _, err := p.Explain(t.Context(), q); countersign.CodeOf(err) != countersign.BadRequest {
				t.Errorf("%s: got %v, want a bad request", name, err)
			}
		}
		if _, err := p.Explain(t.Context(), api.PolicyQuestion{Device: "unknown", Action: "connect"}); countersign.CodeOf(err) != countersign.NotFound {
			t.Errorf("no such device: got %v, want not found", err)
		}
	})
}
