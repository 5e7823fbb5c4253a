package policy_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
)

func parse(t testing.TB, source string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(source))
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, source)
	}
	return p
}

func pump(id string) policy.Subject {
	return policy.Subject{Kind: policy.Devices, Device: id, Fleet: "pumps", CN: id, ClientID: id}
}

func TestStarterIsSoundAndItsTestsHold(t *testing.T) {
	p := parse(t, string(policy.Starter()))
	if f := p.RunTests(); len(f) > 0 {
		t.Errorf("tests of the starter: got %+v, want none to fail", f)
	}
	if w := p.Lint(); len(w) > 0 {
		t.Errorf("warnings on the starter: got %+v, want none", w)
	}
}

func TestBuiltinGrantsWhatADeviceNeeds(t *testing.T) {
	got, connect, why := policy.Builtin().Permissions(pump("pump-1"))
	if !connect {
		t.Fatalf("connect: got refused (%s), want allowed", why)
	}
	up, down, inbox := "devices/pump-1/up/#", "devices/pump-1/down/#", "_inbox/+/#"
	want := countersign.Permissions{
		Publish:   countersign.Filters{Allow: []string{up, inbox}},
		Retain:    countersign.Filters{Allow: []string{up}},
		Subscribe: countersign.Filters{Allow: []string{down}},
		Receive:   countersign.Filters{Allow: []string{down}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("permissions of a device (-want +got):\n%s", d)
	}
	app := policy.Subject{Kind: policy.Apps, Device: "operator/alice", ClientID: "x", Scope: []string{"a", "b"}}
	got, connect, why = policy.Builtin().Permissions(app)
	if !connect {
		t.Fatalf("connect of an app: got refused (%s), want allowed", why)
	}
	want = countersign.Permissions{
		Publish:   countersign.Filters{Allow: []string{"devices/a/down/#", "devices/b/down/#"}},
		Subscribe: countersign.Filters{Allow: []string{"devices/a/up/#", "devices/b/up/#"}},
		Receive:   countersign.Filters{Allow: []string{"devices/a/up/#", "devices/b/up/#"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("permissions of an app (-want +got):\n%s", d)
	}
	if _, connect, _ := policy.Builtin().Permissions(policy.Subject{Kind: policy.Guests, Device: "guest/x", ClientID: "x"}); connect {
		t.Error("a guest: got in, want refused")
	}
}

func TestJSONIsReadTheSameWay(t *testing.T) {
	p := parse(t, `{"statements": [{"id": "a", "effect": "allow", "actions": ["connect", "publish"], "topics": ["a/${device.id}"]}]}`)
	if d := p.Explain(pump("x"), policy.Publish, "a/x"); !d.Allowed {
		t.Errorf("publish: got %q, want allowed", d.Why)
	}
}

const rules = `
statements:
  - {id: in, effect: allow, actions: [connect], clients: ['${device.id}', '${device.id}:*']}
  - {id: no-debug, effect: deny, actions: [connect], clients: ['*:debug?']}
  - id: own
    effect: allow
    actions: [publish, retain, subscribe, receive]
    topics: ['d/${device.id}/#', 'site/${device.tags.site}/+', 'fleet/${device.fleet}']
  - id: not-secret
    effect: deny
    actions: [publish, subscribe]
    topics: ['+/+/secret/#', 'zone/${device.tags.zone}/x']
  - {id: zones, effect: allow, actions: [publish], topics: ['zone/#', 'zone-b/#']}
  - {id: no-retain, effect: deny, actions: [retain], topics: ['d/+/volatile']}
  - {id: retain-more, effect: allow, actions: [retain], topics: ['elsewhere']}
`

func TestRulesDecide(t *testing.T) {
	p := parse(t, rules)
	s := pump("p1")
	s.Tags = map[string]string{"site": "north", "zone": "z1"}
	for _, c := range []struct {
		act       string
		allowed   bool
		statement string
	}{
		{"connect", true, "in"},
		{"connect p1:a", true, "in"},
		{"connect p1:debug1", false, "no-debug"},
		{"connect p1:debug", true, "in"}, // ? is one character
		{"connect p2", false, ""},
		{"publish d/p1/t", true, "own"},
		{"publish d/p1", true, "own"}, // # covers its parent too
		{"publish d/p2/t", false, ""},
		{"publish d/p1/secret/x", false, "not-secret"},
		{"publish d/p1/secret", false, "not-secret"},
		{"receive d/p1/secret/x", true, "own"},
		{"subscribe d/p1/#", false, "not-secret"}, // it would take the secret with it
		{"subscribe d/p1/+", false, "not-secret"},
		{"subscribe d/p1/a/#", true, "own"},
		{"subscribe $share/g/d/p1/a", true, "own"},
		{"subscribe $share/g", false, ""},
		{"subscribe site/+/a", false, ""},
		{"publish site/north/a", true, "own"},
		{"publish site/north/a/b", false, ""},
		{"publish fleet/pumps", true, "own"},
		{"publish zone/z1/x", false, "not-secret"},
		{"publish zone/z2/x", true, "zones"},
		{"retain d/p1/t", true, "own"},
		{"retain d/p1/volatile", false, "no-retain"},
		{"publish d/p1/volatile", true, "own"},
		{"retain d/p1/secret", false, "not-secret"}, // what may not be published
		{"retain elsewhere", false, ""},
		{"publish $SYS/x", false, ""},
		{"publish d/p1/+", false, ""},
		{"publish x", false, ""},
	} {
		t.Run(c.act, func(t *testing.T) {
			a, problem := policy.ParseAct(c.act)
			if problem != "" {
				t.Fatal(problem)
			}
			d := p.Explain(s, a.Action, a.Topic)
			if d.Allowed != c.allowed || d.Statement != c.statement {
				t.Errorf("Explain: got %v by %q (%s), want %v by %q", d.Allowed, d.Statement, d.Why, c.allowed, c.statement)
			}
		})
	}
}

func TestValueThatCouldMeanMoreNeverSubstitutes(t *testing.T) {
	p := parse(t, `
statements:
  - {id: in, effect: allow, actions: [connect]}
  - {id: own, effect: allow, actions: [publish], topics: ['d/${device.tags.v}/t', 'zone/#', 'pre/#']}
  - {id: not, effect: deny, actions: [publish], topics: ['zone/z-${device.tags.v}/t', 'pre/x']}
`)
	q := parse(t, `
statements:
  - {id: in, effect: allow, actions: [connect], clients: ['${device.tags.v}']}
`)
	r := parse(t, `
statements:
  - {id: in, effect: allow, actions: [connect]}
  - {id: not, effect: deny, actions: [connect], clients: ['a-${device.tags.v}']}
`)
	for _, v := range []string{"", "+", "#", "a/b", "/", "a*", "a?", "$x", "a\x00", "\xff", strings.Repeat("x", 1025)} {
		s := pump("p1")
		s.Tags = map[string]string{"v": v}
		perms, connect, _ := p.Permissions(s)
		want := countersign.Filters{Allow: []string{"zone/#", "pre/#"}, Deny: []string{"zone/#", "pre/x"}}
		if d := cmp.Diff(want, perms.Publish); !connect || d != "" {
			t.Errorf("tag %.20q (-want +got):\n%s", v, d)
		}
		if d := p.Explain(s, policy.Publish, "zone/other"); d.Allowed || d.Statement != "not" {
			t.Errorf("tag %.20q, publish zone/other: got %+v, want denied by not", v, d)
		}
		s.ClientID = v
		if _, connect, why := q.Permissions(s); connect || why == "" {
			t.Errorf("tag %.20q: got in (%s), want refused", v, why)
		}
		s.ClientID = "a-anything"
		if _, connect, _ := r.Permissions(s); connect {
			t.Errorf("tag %.20q and a deny: got in, want refused", v)
		}
		s.ClientID = "b"
		if _, connect, _ := r.Permissions(s); !connect {
			t.Errorf("tag %.20q and a deny of others: got refused, want in", v)
		}
	}
	s := pump("p1")
	s.Tags = map[string]string{"v": strings.Repeat("x", 1024)}
	if perms, _, _ := p.Permissions(s); len(perms.Publish.Allow) != 3 {
		t.Errorf("a value of 1,024 octets: got %d filters, want 3", len(perms.Publish.Allow))
	}
}

func TestGuestIsNoDevice(t *testing.T) {
	p := parse(t, `
statements:
  - {id: in, effect: allow, for: [guests, apps], actions: [connect]}
  - {id: own, effect: allow, for: [guests, apps], actions: [publish], topics: ['devices/${device.id}/up', 'cn/${cert.subject.cn}']}
`)
	for _, s := range []policy.Subject{
		{Kind: policy.Guests, Device: "guest/pump-1", CN: "pump-1", ClientID: "pump-1"},
		{Kind: policy.Guests, Device: "pump-1", CN: "pump-1", ClientID: "pump-1"},
		{Kind: policy.Apps, Device: "pump-1", CN: "pump-1", ClientID: "pump-1", Scope: []string{"pump-1"}},
	} {
		perms, connect, why := p.Permissions(s)
		if !connect || len(perms.Publish.Allow) != 0 {
			t.Errorf("%s: got %v, %v (%s), want to come in and do nothing", s.Kind, connect, perms.Publish.Allow, why)
		}
	}
}

func TestKindOfReadsTheName(t *testing.T) {
	for name, want := range map[string]policy.Kind{"pump-1": policy.Devices, "guest/x": policy.Guests, "operator/alice": policy.Apps, "other/x": policy.Guests} {
		if got := policy.KindOf(name); got != want {
			t.Errorf("KindOf(%q): got %s, want %s", name, got, want)
		}
	}
}

func TestRunTestsTellsWhatFailed(t *testing.T) {
	p := parse(t, `
statements:
  - {id: in, effect: allow, actions: [connect]}
  - {id: own, effect: allow, actions: [publish], topics: ['d/${device.id}']}
tests:
  - name: a pump
    as: {device: p1, fleet: pumps, tags: {site: north}, cn: p1, client: 'p1:x'}
    allow:
      - publish d/p1
      - publish d/p2
    deny:
      - publish d/p3
      - publish d/p1
`)
	failed := p.RunTests()
	if len(failed) != 2 || failed[0].Line != 10 || failed[0].Want != policy.Allow || failed[1].Line != 13 || failed[1].Decision.Statement != "own" {
		t.Errorf("RunTests: got %+v, want the acts of lines 10 and 13", failed)
	}
}

func TestDiffNamesWhatChanged(t *testing.T) {
	a := parse(t, rules)
	b := parse(t, strings.NewReplacer("site/${device.tags.site}/+", "site/+", "id: zones", "id: areas").Replace(rules))
	want := []policy.Change{
		{What: "added", ID: "areas", Lines: []string{"+ effect allow", "+ for devices", "+ action publish", "+ topic zone/#", "+ topic zone-b/#"}},
		{What: "changed", ID: "own", Lines: []string{"- topic site/${device.tags.site}/+", "+ topic site/+"}},
		{What: "removed", ID: "zones", Lines: []string{"- effect allow", "- for devices", "- action publish", "- topic zone/#", "- topic zone-b/#"}},
	}
	if d := cmp.Diff(want, policy.Diff(a, b)); d != "" {
		t.Errorf("Diff (-want +got):\n%s", d)
	}
	if got := policy.Diff(a, a); len(got) != 0 {
		t.Errorf("Diff of one with itself: got %v, want nothing", got)
	}
}

func TestLosesSeesWhatIsTakenAway(t *testing.T) {
	perms := func(allow, deny string) countersign.Permissions {
		return countersign.Permissions{Publish: countersign.Filters{Allow: strings.Fields(allow), Deny: strings.Fields(deny)}}
	}
	for _, c := range []struct {
		name     string
		was, now countersign.Permissions
		want     bool
	}{
		{"the same", perms("a/# b", "a/x"), perms("b a/#", "a/x"), false},
		{"more", perms("a/b", ""), perms("a/#", ""), false},
		{"less", perms("a/#", ""), perms("a/b", ""), true},
		{"nothing left", perms("a", ""), perms("", ""), true},
		{"a new deny", perms("a/#", ""), perms("a/#", "a/x"), true},
		{"a new deny of what was not allowed", perms("a/#", ""), perms("a/#", "b"), false},
		{"a deny that was there", perms("a/#", "a/+"), perms("a/#", "a/x"), false},
		{"a deny less", perms("a/#", "a/x"), perms("a/#", ""), false},
		{"nothing to lose", perms("", ""), perms("", "#"), false},
	} {
		if got := policy.Loses(c.was, c.now); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}
