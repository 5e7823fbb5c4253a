package policy_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign/policy"
)

// mixed has statements for each kind of client.
const mixed = `
statements:
  - {id: in, effect: allow, for: [devices, apps, guests], actions: [connect], clients: ['${client.id}']}
  - id: out
    effect: deny
    for: [devices, guests]
    actions: [connect]
    clients: ['bad-*', '${device.id}?x']
  - id: up
    effect: allow
    actions: [publish, retain]
    topics: ['up/${device.id}/${device.tags.site}/#', 'cn/${cert.subject.cn}']
  - id: app
    effect: allow
    for: [apps]
    actions: [subscribe, receive]
    topics: ['up/${device}/+/#', 'news']
  - {id: quiet, effect: deny, actions: [retain], topics: ['up/+/+/volatile']}
  - {id: calm, effect: deny, for: [apps], actions: [receive], topics: ['up/${device}/+/noise']}
`

func TestExplainSaysWhatDecided(t *testing.T) {
	p := parse(t, mixed)
	pump := policy.Subject{Kind: policy.Devices, Device: "p1", CN: "pump 1", ClientID: "p1", Tags: map[string]string{"site": "north"}}
	untagged := policy.Subject{Kind: policy.Devices, Device: "p2", ClientID: "p2"}
	guest := policy.Subject{Kind: policy.Guests, Device: "guest/x", ClientID: "x"}
	app := policy.Subject{Kind: policy.Apps, Device: "operator/ann", ClientID: "ann", Scope: []string{"p1", "p2"}}
	long := strings.Repeat("\u00e4", 150) // 300 octets
	for _, c := range []struct {
		name   string
		as     policy.Subject
		action policy.Action
		topic  string
		want   policy.Decision
	}{
		{"its own client id", pump, policy.Connect, "", policy.Decision{Allowed: true, Statement: "in", Line: 3, Pattern: "${client.id}", As: "p1", Why: "statement in (line 3) allows it with ${client.id}, here p1"}},
		{"another client id", pump, policy.Connect, "p9", policy.Decision{Why: `no statement allows a device to connect with client id "p9"`}},
		{"a client id that is denied", pump, policy.Connect, "bad-1", policy.Decision{Statement: "out", Line: 8, Pattern: "bad-*", As: "bad-*", Why: "statement out (line 4) denies it with bad-*"}},
		{"a client id denied by a variable", pump, policy.Connect, "p1_x", policy.Decision{Statement: "out", Line: 8, Pattern: "${device.id}?x", As: "p1?x", Why: "statement out (line 4) denies it with ${device.id}?x, here p1?x"}},
		{"a variable without value denies all", guest, policy.Connect, "x", policy.Decision{Statement: "out", Line: 8, Pattern: "${device.id}?x", As: "*", Why: "statement out (line 4) denies it with ${device.id}?x, here *"}},
		{"an app", app, policy.Connect, "", policy.Decision{Allowed: true, Statement: "in", Line: 3, Pattern: "${client.id}", As: "ann", Why: "statement in (line 3) allows it with ${client.id}, here ann"}},
		{"a topic with two variables", pump, policy.Publish, "up/p1/north/t", policy.Decision{Allowed: true, Statement: "up", Line: 12, Pattern: "up/${device.id}/${device.tags.site}/#", As: "up/p1/north/#", Why: "statement up (line 9) allows it with up/${device.id}/${device.tags.site}/#, here up/p1/north/#"}},
		{"a common name", pump, policy.Publish, "cn/pump 1", policy.Decision{Allowed: true, Statement: "up", Line: 12, Pattern: "cn/${cert.subject.cn}", As: "cn/pump 1", Why: "statement up (line 9) allows it with cn/${cert.subject.cn}, here cn/pump 1"}},
		{"a tag without value", untagged, policy.Publish, "up/p2//t", policy.Decision{Why: `no statement allows a device to publish "up/p2//t"`}},
		{"what is denied only if retained", pump, policy.Publish, "up/p1/north/volatile", policy.Decision{Allowed: true, Statement: "up", Line: 12, Pattern: "up/${device.id}/${device.tags.site}/#", As: "up/p1/north/#", Why: "statement up (line 9) allows it with up/${device.id}/${device.tags.site}/#, here up/p1/north/#"}},
		{"retained", pump, policy.Retain, "up/p1/north/volatile", policy.Decision{Statement: "quiet", Line: 18, Pattern: "up/+/+/volatile", As: "up/+/+/volatile", Why: "statement quiet (line 18) denies it with up/+/+/volatile"}},
		{"retained without publish", pump, policy.Retain, "elsewhere", policy.Decision{Why: `what is retained is published first: no statement allows a device to publish "elsewhere"`}},
		{"an app's second device", app, policy.Subscribe, "up/p2/+/#", policy.Decision{Allowed: true, Statement: "app", Line: 17, Pattern: "up/${device}/+/#", As: "up/p2/+/#", Why: "statement app (line 13) allows it with up/${device}/+/#, here up/p2/+/#"}},
		{"a fixed topic", app, policy.Subscribe, "news", policy.Decision{Allowed: true, Statement: "app", Line: 17, Pattern: "news", As: "news", Why: "statement app (line 13) allows it with news"}},
		{"a device beyond the scope", app, policy.Receive, "up/p3/a/b", policy.Decision{Why: `no statement allows an app to receive "up/p3/a/b"`}},
		{"an app's deny", app, policy.Receive, "up/p2/a/noise", policy.Decision{Statement: "calm", Line: 19, Pattern: "up/${device}/+/noise", As: "up/p2/+/noise", Why: "statement calm (line 19) denies it with up/${device}/+/noise, here up/p2/+/noise"}},
		{"a guest", guest, policy.Publish, "a", policy.Decision{Why: `no statement allows a guest to publish "a"`}},
		{"no topic name", pump, policy.Publish, "a/+", policy.Decision{Why: `"a/+" is not a topic name`}},
		{"an empty topic", pump, policy.Receive, "", policy.Decision{Why: `"" is not a topic name`}},
		{"the broker's topic", pump, policy.Publish, "$SYS/a", policy.Decision{Why: "topics that begin with $ are the broker's own"}},
		{"the broker's filter", pump, policy.Subscribe, "$SYS/#", policy.Decision{Why: "topics that begin with $ are the broker's own"}},
		{"the broker's filter, shared", pump, policy.Subscribe, "$share/g/$SYS/#", policy.Decision{Why: "topics that begin with $ are the broker's own"}},
		{"no filter", pump, policy.Subscribe, "a/#/b", policy.Decision{Why: `"a/#/b" is not a topic filter`}},
		{"no share", pump, policy.Subscribe, "$share/g", policy.Decision{Why: `"$share/g" is not a topic filter`}},
		{"an unknown action", pump, "Publish", "a", policy.Decision{Why: `there is no action "Publish"`}},
		{"a long topic", pump, policy.Publish, long, policy.Decision{Why: `no statement allows a device to publish "` + long[:200] + `"`}},
		{"a cut rune", pump, policy.Publish, "x" + long, policy.Decision{Why: `no statement allows a device to publish "x` + long[:198] + `"`}},
		{"an unknown kind", policy.Subject{Kind: "users", Device: "p1"}, policy.Publish, "a", policy.Decision{Why: "the policy has no such kind of client"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, p.Explain(c.as, c.action, c.topic)); d != "" {
				t.Errorf("Explain (-want +got):\n%s", d)
			}
		})
	}
	if perms, connect, why := p.Permissions(policy.Subject{Kind: "users"}); connect || why != "the policy has no such kind of client" || len(perms.Publish.Allow) > 0 {
		t.Errorf("permissions of an unknown kind: got %+v, %v, %q", perms, connect, why)
	}
}

func TestPermissionsOfAnAppAreThoseOfItsScope(t *testing.T) {
	p := parse(t, mixed)
	for _, c := range []struct {
		scope       []string
		allow, deny []string
	}{
		{[]string{"p1", "p2"}, []string{"up/p1/+/#", "up/p2/+/#", "news"}, []string{"up/p1/+/noise", "up/p2/+/noise"}},
		{nil, []string{"news"}, nil},
		// A device whose name could mean more: nothing is allowed for it, and all is denied.
		{[]string{"+", "p2"}, []string{"up/p2/+/#", "news"}, []string{"up/#", "up/p2/+/noise"}},
	} {
		perms, connect, why := p.Permissions(policy.Subject{Kind: policy.Apps, Device: "operator/ann", ClientID: "ann", Scope: c.scope})
		if d := cmp.Diff([2][]string{c.allow, c.deny}, [2][]string{perms.Receive.Allow, perms.Receive.Deny}); d != "" || !connect {
			t.Errorf("scope %q: connect %v (%s) (-want +got):\n%s", c.scope, connect, why, d)
		}
	}
}

func TestMatchingOfClientIDs(t *testing.T) {
	for _, c := range []struct {
		pattern string
		yes, no []string
	}{
		{"a", []string{"a"}, []string{"", "A", "aa", "ab"}},
		{"*", []string{"a", "a/b", "\u00e4", "*"}, nil},
		{"a*", []string{"a", "ab", "a*", "abc"}, []string{"b", "ba", ""}},
		{"*a", []string{"a", "ba", "aba"}, []string{"ab", ""}},
		{"a*b*c", []string{"abc", "axbxc", "abbcc", "abcbc"}, []string{"ab", "acb", "abcx"}},
		{"a**b", []string{"ab", "axb"}, []string{"a", "b"}},
		{"?", []string{"a", "?"}, []string{"", "ab", "\u00e4"}}, // one octet
		{"a?c", []string{"abc", "a/c"}, []string{"ac", "abbc"}},
		{"*?", []string{"a", "ab"}, []string{""}},
		{"p-+", []string{"p-+"}, []string{"p-1"}},
	} {
		p := parse(t, "statements:\n  - {id: a, effect: allow, actions: [connect], clients: ['"+c.pattern+"']}\n")
		for want, ids := range map[bool][]string{true: c.yes, false: c.no} {
			for _, id := range ids {
				if _, got, _ := p.Permissions(policy.Subject{Kind: policy.Devices, ClientID: id}); got != want {
					t.Errorf("%q on %q: got %v, want %v", c.pattern, id, got, want)
				}
			}
		}
	}
}

func TestSpeaksOfFindsVariables(t *testing.T) {
	p := parse(t, mixed)
	for prefix, want := range map[string]bool{
		"device.tags.": true, "device.tags.site": true, "device.tags.zone": false, "cert.": true, "client.id": true,
		"device.id": true, "device": true, "device.fleet": false, "": true, "site": false, "${": false,
	} {
		if got := p.SpeaksOf(prefix); got != want {
			t.Errorf("SpeaksOf(%q): got %v, want %v", prefix, got, want)
		}
	}
	if parse(t, sound).SpeaksOf("") {
		t.Error("SpeaksOf of a policy without variables: got true")
	}
}
