package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
)

// TestLintFindsWhatIsUnwise lists all warnings of a statement s in line 3 of a document
// that is otherwise sound. What is there twice would be noise.
func TestLintFindsWhatIsUnwise(t *testing.T) {
	const (
		critical, high = countersign.SeverityCritical, countersign.SeverityHigh
		medium, info   = countersign.SeverityMedium, countersign.SeverityInfo
		permissive     = policy.OverlyPermissive
		misconfigured  = policy.Misconfiguration
	)
	all := func(code, topic string) policy.Warning {
		return policy.Warning{Code: code, Check: permissive, Severity: critical, Message: topic + " matches every topic"}
	}
	unbound := func(topic string) policy.Warning {
		return policy.Warning{Code: policy.PublishUnbound, Check: permissive, Severity: high, Message: "any device may publish " + topic + ", also as another device: use ${device.id}"}
	}
	odd := func(code, message string) policy.Warning {
		return policy.Warning{Code: code, Check: misconfigured, Severity: medium, Message: message}
	}
	for _, c := range []struct {
		name, statement string
		want            []policy.Warning // of statement s; line 3 and the column are checked apart
	}{
		{"bound to the device", "effect: allow, actions: [publish, subscribe, receive], topics: ['d/${device.id}/#', 'c/${client.id}/#', 'n/${cert.subject.cn}/#']", nil},
		{"bound to the app's device", "effect: allow, for: [apps], actions: [publish], topics: ['devices/${device}/down/#']", nil},
		{"an inbox to answer to", "effect: allow, actions: [publish], topics: ['_inbox/+/#']", nil},
		{"one topic for all to read", "effect: allow, actions: [subscribe, receive], topics: ['news']", nil},
		{"a guest's own corner", "effect: allow, for: [guests], actions: [publish], topics: ['lobby/${client.id}']", nil},
		{"everything", "effect: allow, actions: [publish], topics: ['#']", []policy.Warning{all(policy.AllTopics, "#")}},
		{"everything, at length", "effect: allow, actions: [publish], topics: ['+/+/#']", []policy.Warning{all(policy.AllTopics, "+/+/#")}},
		{"one level", "effect: allow, for: [guests], actions: [receive], topics: ['+']", []policy.Warning{all(policy.AllTopics, "+")}},
		{"everything, for two kinds", "effect: allow, for: [guests, apps], actions: [publish], topics: ['#']", []policy.Warning{all(policy.AllTopics, "#")}},
		{"any device", "effect: allow, actions: [publish], topics: ['devices/#']", []policy.Warning{unbound("devices/#")}},
		{"any device of a fleet", "effect: allow, actions: [publish], topics: ['${device.fleet}/#']", []policy.Warning{unbound("${device.fleet}/#")}},
		{"retained by any device", "effect: allow, actions: [publish, retain], topics: ['state/+']", []policy.Warning{unbound("state/+")}},
		{"one topic for many", "effect: allow, actions: [publish], topics: ['alarms/${device.tags.site}']", []policy.Warning{
			{Code: policy.PublishShared, Severity: info, Message: "many devices may publish alarms/${device.tags.site}, so the sender of a message there is not known"},
		}},
		{"hearing others", "effect: allow, actions: [receive], topics: ['devices/+/up/#']", []policy.Warning{
			{Code: policy.SubscribeUnbound, Check: permissive, Severity: high, Message: "any device may receive devices/+/up/#, also messages for another device: use ${device.id}"},
		}},
		{"the inbox of others", "effect: allow, actions: [receive], topics: ['_inbox/#']", nil}, // no topics of devices
		{"guests", "effect: allow, for: [guests], actions: [publish], topics: ['devices/${client.id}/up']", []policy.Warning{
			{Code: policy.GuestReach, Check: permissive, Severity: critical, Message: "devices/${client.id}/up lets a guest reach the topics of devices"},
		}},
		{"apps", "effect: allow, for: [apps], actions: [publish], topics: ['devices/+/down']", []policy.Warning{
			{Code: policy.AppUnbound, Check: permissive, Severity: high, Message: "devices/+/down reaches devices beyond the app's scope: use ${device}"},
		}},
		{"a star", "effect: deny, actions: [publish], topics: ['pump*/x']", []policy.Warning{
			odd(policy.WildcardInsideLevel, "pump*/x: * and ? are ordinary characters in a topic; MQTT has + for one level and # for the rest"),
			odd(policy.DenyWithoutEffect, "no allowed topic overlaps pump*/x, so denying it has no effect"),
		}},
		{"a deny of nothing for two", "effect: deny, for: [devices, apps], actions: [publish], topics: ['a/x']", nil}, // it may be meant for one of them
		{"an unknown value", "effect: allow, for: [apps], actions: [publish], topics: ['a/${device.id}']", []policy.Warning{
			odd(policy.VariableWithoutValue, "${device.id} never has a value for apps, so for them it allows nothing"),
		}},
		{"a deny on an unknown value", "effect: deny, for: [guests, apps], actions: [connect], clients: ['${device.tags.x}', '${device}']", []policy.Warning{
			odd(policy.VariableWithoutValue, "${device.tags.x} never has a value for guests, so for them it denies everything from there on"),
			odd(policy.VariableWithoutValue, "${device} never has a value for guests, so for them it denies everything from there on"),
		}},
		{"deaf", "effect: allow, actions: [subscribe], topics: ['d/${device.id}']", []policy.Warning{
			odd(policy.SubscribeWithoutReceive, "d/${device.id} may be subscribed to, but nothing there may be received"),
		}},
		{"retained only", "effect: allow, actions: [retain], topics: ['d/${device.id}']", []policy.Warning{
			odd(policy.RetainWithoutPublish, "d/${device.id} may be retained, but not published"),
		}},
		{"a plus in a client", "effect: deny, actions: [connect], clients: ['pump+']", []policy.Warning{
			odd(policy.WildcardInClient, "pump+: + and # are ordinary characters in a client id; use * for any text and ? for one character"),
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := parse(t, "statements:\n  - {id: in, effect: allow, actions: [connect]}\n  - {id: s, "+c.statement+"}\ntests:\n  - {name: a, as: {device: a}, allow: [connect]}\n")
			got := p.Lint()
			for i := range got {
				if got[i].Line != 3 || got[i].Statement != "s" || got[i].Column < 40 {
					t.Errorf("got line %d, column %d of %q, want the pattern in line 3 of s", got[i].Line, got[i].Column, got[i].Statement)
				}
				got[i].Line, got[i].Column, got[i].Statement = 0, 0, ""
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("Lint (-want +got):\n%s", d)
			}
		})
	}
}

func TestLintOfTheWholeDocument(t *testing.T) {
	nobody := policy.Warning{Code: policy.NobodyConnects, Check: policy.Misconfiguration, Severity: countersign.SeverityHigh, Message: "no statement lets a device connect"}
	untested := policy.Warning{Code: policy.NoTests, Severity: countersign.SeverityInfo, Message: "there are no tests that check the next change"}
	const test = "tests:\n  - {name: a, as: {device: a}, deny: [connect]}\n"
	for source, want := range map[string][]policy.Warning{
		sound:        {untested},
		sound + test: nil,
		statement("id: a, effect: allow, for: [apps], actions: [connect]"):        {nobody, untested},
		statement("id: a, effect: allow, for: [apps], actions: [connect]") + test: {nobody},
		statement("id: a, effect: deny, actions: [connect]") + test:               {nobody},
	} {
		if d := cmp.Diff(want, parse(t, source).Lint()); d != "" {
			t.Errorf("%s (-want +got):\n%s", source, d)
		}
	}
}
