package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign/policy"
)

// sound is a document to which others are added.
const sound = "statements:\n  - {id: a, effect: allow, actions: [connect]}\n"

// statement returns a document with one statement, in line 2.
func statement(fields string) string { return "statements:\n  - {" + fields + "}\n" }

// tested returns a document with one test, in line 4.
func tested(fields string) string { return sound + "tests:\n  - {" + fields + "}\n" }

// times returns n lines of format, which holds the number of the line.
func times(n int, format string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// problems returns what Parse refuses a document for, one line each.
func problems(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	pe, ok := errors.AsType[*policy.ParseError](err)
	if !ok {
		t.Fatalf("got %T (%v), want a *policy.ParseError", err, err)
	}
	var list []string
	for _, p := range pe.Problems {
		list = append(list, p.String())
	}
	return list
}

func TestParseRefusesWithPlaceAndReason(t *testing.T) {
	const publish = "id: a, effect: allow, actions: [publish], topics: "
	const connect = "effect: allow, actions: [connect]"
	const as = "name: a, as: "
	for _, c := range []struct{ name, source, want string }{
		// The document.
		{"empty", "", "it is empty: begin with the policy that is built in"},
		{"a comment", "# nothing\n", "it is empty: begin with the policy that is built in"},
		{"a mark of a document", "---\n", "it is empty: begin with the policy that is built in"},
		{"two documents", sound + "---\n" + sound, "it has more than one document"},
		{"an open list", "a: [\n", "line 1, column 4: sequence end token ']' not found"},
		{"an open quote", "a: 'b\n", "line 1, column 4: could not find end character of single-quoted text"},
		{"a list", "- a\n", "line 1, column 1: a policy must be a mapping of names to values"},
		{"a text", "text", "line 1, column 1: a policy must be a mapping of names to values"},
		{"nothing", "null", "line 1, column 1: a policy must be a mapping of names to values"},
		{"no fields", "{}", "line 1, column 1: there are no statements"},
		{"only tests", "tests: []", "line 1, column 6: there are no statements"},
		{"an empty list", "statements: []\n", "line 1, column 11: there are no statements"},
		{"a mapping of statements", "statements: {}\n", "line 1, column 13: statements must be a list"},
		{"no value", "statements:\n", "line 1, column 13: statements must be a list"},
		{"a block of text", "statements: |\n  text\n", "line 1, column 13: statements must be a list"},
		{"unknown field", sound + "rules: []\n", `line 3, column 1: a policy has no "rules": there are statements, tests`},
		{"repeated field", sound + "statements: []\n", `line 3, column 1: mapping key "statements" already defined at [1:1]`},
		{"a number for a name", "1: 2\n", "line 1, column 1: a name must be a string: put quotes around it"},
		{"a merge", "<<: {statements: []}\n", "line 1, column 1: a name must be a string"},
		{"an alias", "statements: &a\n  - {id: a, effect: allow, actions: [connect]}\ntests: *a\n", "line 1, column 13: statements must be a list\nline 3, column 8: tests must be a list"},
		// Statements.
		{"a word for a statement", "statements:\n  - a\n", "line 2, column 5: a statement must be a mapping of names to values"},
		{"nothing for a statement", "statements:\n  -\n", "line 2, column 5: a statement must be a mapping of names to values"},
		{"a repeated field of it", "statements:\n  - id: a\n    id: b\n", `line 3, column 5: mapping key "id" already defined at [2:5]`},
		{"no id", statement(connect), "line 2, column 5: a statement has no id: explanations and comparisons name it by that"},
		{"no effect", statement("id: a"), "line 2, column 5: statement a has no effect: allow or deny"},
		{"no actions", statement("id: a, effect: allow"), "line 2, column 5: statement a has no actions"},
		{"empty actions", statement("id: a, effect: allow, actions: []"), "line 2, column 5: statement a has no actions"},
		{"for nobody", statement("id: a, for: [], " + connect), "line 2, column 5: statement a is for no kind of client"},
		{"no topics", statement("id: a, effect: allow, actions: [publish]"), "line 2, column 5: statement a has no topics"},
		{"topics of connect", statement("id: a, topics: [a], " + connect), "line 2, column 5: statement a has topics, but connect alone is about none: write clients"},
		{"clients of publish", statement(publish + "[a], clients: [a]"), "line 2, column 5: statement a has clients, which only connect is about"},
		{"same id", sound + "  - {id: a, effect: deny, actions: [connect]}\n", `line 3, column 5: the id "a" is that of the statement in line 2`},
		{"a blank in the id", statement("id: 'a b', " + connect), "line 2, column 10: the id must be 1 to 64 of A-Z a-z 0-9 . _ : -"},
		{"two lines in the id", statement(`id: "a\nb", ` + connect), "line 2, column 10: the id must be one line of at most 256 octets"},
		{"a truth value for the id", statement("id: true, " + connect), "line 2, column 10: the id must be a string: put quotes around it"},
		{"a number for the id", statement("id: 1, " + connect), "line 2, column 10: the id must be a string: put quotes around it"},
		{"a fraction for the id", statement("id: 1.5, " + connect), "line 2, column 10: the id must be a string: put quotes around it"},
		{"infinity for the id", statement("id: .inf, " + connect), "line 2, column 10: the id must be a string: put quotes around it"},
		{"no number for the id", statement("id: .nan, " + connect), "line 2, column 10: the id must be a string: put quotes around it"},
		{"null for the id", statement("id: null, " + connect), "line 2, column 10: the id must be a string"},
		{"a list for the id", statement("id: [], " + connect), "line 2, column 10: the id must be a string"},
		{"a tagged id", statement("id: !!str a, " + connect), "line 2, column 10: the id must be a string"},
		{"unknown effect", statement("id: a, effect: permit, actions: [connect]"), `line 2, column 21: effect is not "permit": there are allow, deny`},
		{"unknown action", statement("id: a, effect: allow, actions: [write]"), `line 2, column 38: actions is not "write": there are publish, retain, subscribe, receive, connect`},
		{"unknown kind", statement("id: a, for: [users], " + connect), `line 2, column 19: for is not "users": there are devices, guests, apps`},
		{"a word for actions", statement("id: a, effect: allow, actions: connect"), "line 2, column 37: actions must be a list"},
		{"an action twice", statement("id: a, effect: allow, actions: [connect, connect]"), "line 2, column 47: connect is here twice"},
		{"a kind twice", statement("id: a, for: [apps, apps], " + connect), "line 2, column 25: apps is here twice"},
		{"six actions", statement("id: a, effect: allow, actions: [a, b, c, d, e, f]"), "line 2, column 37: actions has more than 5 entries"},
		// Topics and clients.
		{"empty topics", statement(publish + "[]"), "line 2, column 56: topics is empty: leave it out, or list what is meant"},
		{"empty clients", statement("id: a, clients: [], " + connect), "line 2, column 22: clients is empty: leave it out, or list what is meant"},
		{"a word for topics", statement(publish + "a"), "line 2, column 56: topics must be a list"},
		{"an empty topic", statement(publish + "['']"), `line 2, column 57: "": it is empty`},
		{"numbers for topics", statement(publish + "[1, a, true]"), "line 2, column 57: an entry of topics must be a string: put quotes around it\nline 2, column 63: an entry of topics must be a string: put quotes around it"},
		{"NUL in a topic", statement(publish + `["a\0b"]`), `line 2, column 57: "a\x00b": it is not UTF-8 without NUL`},
		{"unknown variable", "statements:\n  - id: a\n    effect: allow\n    actions: [publish]\n    topics:\n      - a\n      - a/${device.name}\n", `line 7, column 9: "a/${device.name}": there is no variable ${device.name}: use device.id, device.fleet, device.tags.<tag>, cert.subject.cn, client.id, or device for apps`},
		{"no tag", statement(publish + "['${device.tags.}']"), `line 2, column 57: "${device.tags.}": there is no variable ${device.tags.}: use device.id, device.fleet, device.tags.<tag>, cert.subject.cn, client.id, or device for apps`},
		{"unknown variable in a client", statement("id: a, clients: ['${x}'], " + connect), `line 2, column 23: "${x}": there is no variable ${x}: use device.id, device.fleet, device.tags.<tag>, cert.subject.cn, client.id, or device for apps`},
		{"open variable", statement(publish + "['a/${device.id']"), `line 2, column 57: "a/${device.id": a variable that begins with ${ has no }`},
		{"wildcard in a level", statement(publish + "['a/b+']"), `line 2, column 57: "a/b+": it is not a topic filter: + and # must be whole levels, and # the last one`},
		{"wildcard beside a variable", statement(publish + "['a/${device.id}#']"), `line 2, column 57: "a/${device.id}#": it is not a topic filter: + and # must be whole levels, and # the last one`},
		{"wildcard before the end", statement(publish + "['a/#/b']"), `line 2, column 57: "a/#/b": it is not a topic filter: + and # must be whole levels, and # the last one`},
		{"the broker's topic", statement(publish + "['$SYS/#']"), `line 2, column 57: "$SYS/#": topics that begin with $ are the broker's own and cannot be allowed`},
		{"shared subscription", statement("id: a, effect: deny, actions: [subscribe], topics: ['$share/g/a']"), `line 2, column 58: "$share/g/a": write the filter without $share/<name>/: it applies to shared subscriptions too`},
		// Tests.
		{"a mapping of tests", sound + "tests: {}\n", "line 3, column 8: tests must be a list"},
		{"a word for a test", sound + "tests:\n  - a\n", "line 4, column 5: a test must be a mapping of names to values"},
		{"a test without name", tested("as: {device: a}, allow: [connect]"), "line 4, column 5: a test has no name"},
		{"a test without a client", tested("name: a, allow: [connect]"), `line 4, column 5: test "a" has no client: write for example as: {device: pump-1}`},
		{"a test of nothing", tested(as + "{device: a}"), `line 4, column 5: test "a" has no acts: list them under allow or deny`},
		{"no client", tested(as + "{}, allow: [connect]"), "line 4, column 19: as must name one device, guest or app"},
		{"two clients", tested(as + "{device: a, app: b}, allow: [connect]"), "line 4, column 19: as must name one device, guest or app"},
		{"a word for a client", tested(as + "a, allow: [connect]"), "line 4, column 19: as must be a mapping of names to values"},
		{"unknown field of a client", tested(as + "{device: a, owner: x}, allow: [connect]"), `line 4, column 31: as has no "owner": there are app, client, cn, device, fleet, guest, scope, tags`},
		{"a number for a tag", tested(as + "{device: a, tags: {x: 1}}, allow: [connect]"), "line 4, column 41: the value of a tag must be a string: put quotes around it"},
		{"a list of tags", tested(as + "{device: a, tags: [x]}, allow: [connect]"), "line 4, column 37: tags must be a mapping of names to values"},
		{"a word for the scope", tested(as + "{app: a, scope: b}, allow: [connect]"), "line 4, column 35: scope must be a list"},
		{"a number in the scope", tested(as + "{app: a, scope: [1]}, allow: [connect]"), "line 4, column 36: a device must be a string: put quotes around it"},
		{"an act without topic", tested(as + "{device: a}, deny: [publish]"), `line 4, column 39: "publish" is not an act: a topic is missing`},
		{"unknown act", tested(as + "{device: a}, allow: [write a/b]"), `line 4, column 40: "write a/b" is not an act: it begins with none of publish, retain, subscribe, receive, connect`},
		{"a number for an act", tested(as + "{device: a}, deny: [1]"), "line 4, column 39: an act must be a string: put quotes around it"},
		// Nesting.
		{"nested lists", strings.Repeat("[", 17), "it is nested more than 16 deep"},
		{"nested mappings", strings.Repeat("{a: ", 17), "it is nested more than 16 deep"},
		{"nested dashes", strings.Repeat("- ", 17) + "a", "it is nested more than 16 deep"},
		{"lists as deep as may be", strings.Repeat("[", 16) + strings.Repeat("]", 16), "line 1, column 1: a policy must be a mapping of names to values"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := policy.Parse([]byte(c.source))
			if d := cmp.Diff(strings.Split(c.want, "\n"), problems(t, err)); d != "" {
				t.Errorf("Parse (-want +got):\n%s", d)
			}
		})
	}
}

// TestParseKeepsItsBounds reads documents with as much as a bound allows, and with one more.
func TestParseKeepsItsBounds(t *testing.T) {
	list := func(n int, entry string) string { return "[" + strings.Repeat(entry+", ", n-1) + entry + "]" }
	const publish = "id: a, effect: allow, actions: [publish], topics: "
	for _, c := range []struct {
		name string
		most int
		doc  func(n int) string
		want string // of one more
	}{
		{"octets", policy.MaxSource, func(n int) string { return sound + "#" + strings.Repeat("x", n-len(sound)-1) }, "it has more than 65536 octets"},
		{"statements", 256, func(n int) string {
			return "statements:\n" + times(n, "  - {id: s%d, effect: allow, actions: [connect]}\n")
		}, "line 2, column 3: statements has more than 256 entries"},
		{"tests", 256, func(n int) string {
			return sound + "tests:\n" + times(n, "  - {name: t%d, as: {device: a}, allow: [connect]}\n")
		}, "line 4, column 3: tests has more than 256 entries"},
		{"topics of a statement", 64, func(n int) string { return statement(publish + list(n, "a")) }, "line 2, column 56: topics has more than 64 entries"},
		{"topics in all", 1024 / 64, func(n int) string {
			return "statements:\n" + times(n, "  - {id: s%d, effect: allow, actions: [publish], topics: "+list(64, "a")+"}\n")
		}, "line 1, column 11: there are more than 1024 topics and clients in all"},
		{"octets of a topic", 1024, func(n int) string { return statement(publish + "[" + strings.Repeat("a", n) + "]") }, fmt.Sprintf("line 2, column 57: %q: it has more than 1024 octets", strings.Repeat("a", 80))},
		{"octets of a text", 1034, func(n int) string {
			return tested("name: a, as: {device: a}, allow: [publish " + strings.Repeat("a", n-len("publish ")) + "]")
		}, "line 4, column 40: an act is too long"},
		{"variables of a topic", 8, func(n int) string { return statement(publish + "['" + strings.Repeat("${client.id}", n) + "']") }, fmt.Sprintf("line 2, column 57: %q: it has more than 8 variables", strings.Repeat("${client.id}", 9)[:80])},
		{"octets of an id", 64, func(n int) string {
			return statement("id: " + strings.Repeat("a", n) + ", effect: allow, actions: [connect]")
		}, "line 2, column 10: the id must be 1 to 64 of A-Z a-z 0-9 . _ : -"},
		{"octets of a name", 256, func(n int) string {
			return tested("name: " + strings.Repeat("a", n) + ", as: {device: a}, allow: [connect]")
		}, "line 4, column 12: the name must be one line of at most 256 octets"},
		{"acts of a test", 64, func(n int) string { return tested("name: a, as: {device: a}, allow: " + list(n, "connect")) }, "line 4, column 39: allow has more than 64 entries"},
		{"devices of a scope", 64, func(n int) string {
			return tested("name: a, as: {app: a, scope: " + list(n, "b") + "}, deny: [publish a]")
		}, "line 4, column 35: scope has more than 64 entries"},
		{"tags", 64, func(n int) string {
			return tested("name: a, as: {device: a, tags: {" + times(n-1, "t%d: x, ") + "last: x}}, allow: [connect]")
		}, "line 4, column 37: tags has more than 64 entries"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := policy.Parse([]byte(c.doc(c.most))); err != nil {
				t.Errorf("Parse of %d: got %v, want a policy", c.most, err)
			}
			_, err := policy.Parse([]byte(c.doc(c.most + 1)))
			if d := cmp.Diff([]string{c.want}, problems(t, err)); d != "" {
				t.Errorf("Parse of %d (-want +got):\n%s", c.most+1, d)
			}
		})
	}
}

func TestParseReportsTheFirstTwentyByLine(t *testing.T) {
	_, err := policy.Parse([]byte("tests:\n  - {name: 1}\nstatements:\n" + times(30, "  - {id: s%d, effect: no, actions: [connect]}\n")))
	got := problems(t, err)
	if len(got) != 20 || got[0] != "line 2, column 12: the name must be a string: put quotes around it" || !strings.HasPrefix(got[19], "line 22, ") {
		t.Errorf("Parse: got %d problems, %q", len(got), got)
	}
	if want := got[0] + " (and 19 more)"; err.Error() != want {
		t.Errorf("the error: got %q, want %q", err, want)
	}
	// That an id is not the first of its name is known when all of the statement was read.
	_, err = policy.Parse([]byte(sound + "  - id: a\n    effect: no\n    actions: no\n"))
	want := []string{
		`line 3, column 7: the id "a" is that of the statement in line 2`,
		`line 4, column 13: effect is not "no": there are allow, deny`,
		"line 5, column 14: actions must be a list",
	}
	if d := cmp.Diff(want, problems(t, err)); d != "" {
		t.Errorf("three faults (-want +got):\n%s", d)
	}
}

func TestParseSubjectReadsAClient(t *testing.T) {
	for text, want := range map[string]policy.Subject{
		"{device: pump-1}":              {Kind: policy.Devices, Device: "pump-1", ClientID: "pump-1"},
		"device: pump-1":                {Kind: policy.Devices, Device: "pump-1", ClientID: "pump-1"},
		`{"device": "pump-1"}`:          {Kind: policy.Devices, Device: "pump-1", ClientID: "pump-1"},
		"{guest: visitor, client: x}":   {Kind: policy.Guests, Device: "guest/visitor", ClientID: "x"},
		"{app: alice, scope: [a, b]}":   {Kind: policy.Apps, Device: "operator/alice", ClientID: "alice", Scope: []string{"a", "b"}},
		"{client: '', device: pump-1}":  {Kind: policy.Devices, Device: "pump-1", ClientID: "pump-1"},
		"{device: p, tags: {a: b, c: }": {},
		"{device: p, fleet: f, cn: c, client: 'p:1', tags: {site: north, '7': \"\"}}": {
			Kind: policy.Devices, Device: "p", Fleet: "f", CN: "c", ClientID: "p:1", Tags: map[string]string{"site": "north", "7": ""},
		},
	} {
		got, err := policy.ParseSubject(text)
		if want.Kind == "" {
			if problems(t, err) == nil {
				t.Errorf("ParseSubject(%s): got %+v, want an error", text, got)
			}
			continue
		}
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("ParseSubject(%s): %v (-want +got):\n%s", text, err, d)
		}
		if policy.KindOf(got.Device) != got.Kind {
			t.Errorf("ParseSubject(%s): KindOf(%q) is %s, want %s", text, got.Device, policy.KindOf(got.Device), got.Kind)
		}
	}
	for text, want := range map[string]string{
		"":                                 "it is empty",
		"pump-1":                           "line 1, column 1: as must be a mapping of names to values",
		"{}":                               "line 1, column 1: as must name one device, guest or app",
		"{device: a, guest: b}":            "line 1, column 1: as must name one device, guest or app",
		"{device: 7}":                      "line 1, column 10: a name must be a string: put quotes around it",
		"{device: a, tags: {1: b}}":        "line 1, column 20: a name must be a string: put quotes around it",
		"{device: a}\n---\n{device: b}":    "it has more than one document",
		strings.Repeat("x", 64<<10+1):      "it has more than 65536 octets",
		"{app: a, scope: [\"b\\nc\"]}":     "line 1, column 18: a device must be one line of at most 256 octets",
		"{device: a, cn: [b]}":             "line 1, column 17: the common name must be a string",
		"{device: a, client: {b: c}}":      "line 1, column 21: the client id must be a string",
		"{device: a, fleet: \"f\\u0000\"}": "line 1, column 20: the fleet must be one line of at most 256 octets",
	} {
		got, err := policy.ParseSubject(text)
		if list := problems(t, err); len(list) != 1 || !strings.HasPrefix(list[0], want) {
			t.Errorf("ParseSubject(%.60q): got %+v, %q, want %q", text, got, list, want)
		}
	}
}

func TestParseActReadsWhatStringWrites(t *testing.T) {
	for text, want := range map[string]policy.Act{
		"connect":                    {Action: policy.Connect},
		"connect pump-1/a":           {Action: policy.Connect, Topic: "pump-1/a"},
		"  publish   a/b  ":          {Action: policy.Publish, Topic: "a/b"},
		"subscribe $share/g/a b/+":   {Action: policy.Subscribe, Topic: "$share/g/a b/+"},
		"retain a":                   {Action: policy.Retain, Topic: "a"},
		"receive \u00fcber/\u00e4/#": {Action: policy.Receive, Topic: "\u00fcber/\u00e4/#"},
	} {
		got, problem := policy.ParseAct(text)
		if got != want || problem != "" {
			t.Errorf("ParseAct(%q): got %+v, %q, want %+v", text, got, problem, want)
		}
		if again, _ := policy.ParseAct(got.String()); again != want {
			t.Errorf("ParseAct(%q): got %+v, want %+v", got.String(), again, want)
		}
	}
	for text, want := range map[string]string{
		"": "it begins with none of", "Publish a": "it begins with none of", "publish": "a topic is missing", "receive  ": "a topic is missing",
	} {
		if a, problem := policy.ParseAct(text); !strings.HasPrefix(problem, want) {
			t.Errorf("ParseAct(%q): got %+v, %q, want %q", text, a, problem, want)
		}
	}
}
