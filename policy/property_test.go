package policy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/topics"
)

var (
	levels    = []string{"a", "b", "+", "${device.id}", "${device.tags.x}", "b-${device.tags.x}", "${device.fleet}", "${client.id}"}
	hostile   = []string{"", "a", "b", "+", "#", "a/b", "$", "*", "?", "x", "a/#", "\x00", "b/+"}
	actions   = []policy.Action{policy.Publish, policy.Retain, policy.Subscribe, policy.Receive}
	effects   = []policy.Effect{policy.Allow, policy.Deny}
	plainText = []string{"a", "b", "x", "b-x", "b-a"}
)

func drawFilter(t *rapid.T) string {
	f := strings.Join(rapid.SliceOfN(rapid.SampledFrom(levels), 1, 3).Draw(t, "levels"), "/")
	if rapid.Bool().Draw(t, "rest") {
		f += "/#"
	}
	return f
}

func drawPolicy(t *rapid.T) (*policy.Policy, string) {
	b := strings.Builder{}
	b.WriteString("statements:\n  - {id: in, effect: allow, actions: [connect]}\n")
	for i := range rapid.IntRange(1, 5).Draw(t, "statements") {
		var acts []string
		for _, a := range rapid.SliceOfNDistinct(rapid.SampledFrom(actions), 1, 3, rapid.ID).Draw(t, "actions") {
			acts = append(acts, string(a))
		}
		fmt.Fprintf(&b, "  - {id: s%d, effect: %s, actions: [%s], topics: ['%s', '%s']}\n",
			i, rapid.SampledFrom(effects).Draw(t, "effect"), strings.Join(acts, ", "), drawFilter(t), drawFilter(t))
	}
	p, err := policy.Parse([]byte(b.String()))
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, b.String())
	}
	return p, b.String()
}

func drawSubject(t *rapid.T) policy.Subject {
	value := rapid.SampledFrom(hostile)
	return policy.Subject{
		Kind: policy.Devices, Device: value.Draw(t, "device"), Fleet: value.Draw(t, "fleet"), ClientID: value.Draw(t, "client"),
		Tags: map[string]string{"x": value.Draw(t, "tag")},
	}
}

func filters(p countersign.Permissions, a policy.Action) countersign.Filters {
	return map[policy.Action]countersign.Filters{
		policy.Publish: p.Publish, policy.Retain: p.Retain, policy.Subscribe: p.Subscribe, policy.Receive: p.Receive,
	}[a]
}

// statementOf finds a statement by its id.
func statementOf(p *policy.Policy, id string) policy.Statement {
	return p.Statements[slices.IndexFunc(p.Statements, func(s policy.Statement) bool { return s.ID == id })]
}

func TestDenyAlwaysWins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, source := drawPolicy(t)
		s := drawSubject(t)
		perms, _, _ := p.Permissions(s)
		a := rapid.SampledFrom(actions).Draw(t, "action")
		topic := strings.Join(rapid.SliceOfN(rapid.SampledFrom(plainText), 1, 4).Draw(t, "topic"), "/")
		if a == policy.Subscribe && rapid.Bool().Draw(t, "wild") {
			topic += "/#"
		}
		f := filters(perms, a)
		denied := slices.ContainsFunc(f.Deny, func(d string) bool { return topics.Overlap(d, topic) })
		d := p.Explain(s, a, topic)
		if denied && d.Allowed {
			t.Fatalf("%s %s: allowed by %s though denied\n%s", a, topic, d.Statement, source)
		}
		// What is explained is what the session's lists say.
		want := topics.Allowed(f.Allow, f.Deny, topic)
		if a == policy.Retain {
			want = want && topics.Allowed(perms.Publish.Allow, perms.Publish.Deny, topic)
		}
		if d.Allowed != want {
			t.Fatalf("%s %s: explained as %v (%s), the session's lists say %v\n%s", a, topic, d.Allowed, d.Why, want, source)
		}
		if d.Statement != "" && (statementOf(p, d.Statement).Effect == policy.Allow) != d.Allowed {
			t.Fatalf("%s %s: %v by %s, which decides differently\n%s", a, topic, d.Allowed, d.Statement, source)
		}
	})
}

// widest is what a filter can mean at most: one level for each that holds a variable.
func widest(filter string) string {
	parts := strings.Split(filter, "/")
	for i, l := range parts {
		if strings.Contains(l, "${") {
			parts[i] = "+"
		}
	}
	return strings.Join(parts, "/")
}

func TestSubstitutionNeverWidens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, source := drawPolicy(t)
		perms, _, _ := p.Permissions(drawSubject(t))
		for _, a := range actions {
			var may, must []string
			for _, st := range p.Statements {
				if !slices.Contains(st.Actions, a) {
					continue
				}
				for _, pattern := range st.Topics {
					if st.Effect == policy.Allow {
						may = append(may, widest(pattern.Text))
					} else {
						must = append(must, pattern.Text)
					}
				}
			}
			got := filters(perms, a)
			for _, f := range got.Allow {
				// $ is no topic of a client, and Covers keeps it apart from wildcards.
				if !topics.ValidFilter(f) || f[0] == '$' || !slices.ContainsFunc(may, func(w string) bool { return topics.Covers(w, f) }) {
					t.Fatalf("%s: %q is allowed, and no statement can mean it\n%s", a, f, source)
				}
			}
			if len(got.Deny) != len(must) { // each denies something, whatever the values
				t.Fatalf("%s: %q are denied, want one for each of %q\n%s", a, got.Deny, must, source)
			}
		}
	})
}

// TestExplainAgreesWithPermissions asks, for each kind of client, about connecting and about topics
// that are near the filters of the policy: Explain is what the permissions of the session say.
func TestExplainAgreesWithPermissions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, source := drawMixed(t)
		value := rapid.SampledFrom(hostile)
		s := policy.Subject{
			Kind:   rapid.SampledFrom([]policy.Kind{policy.Devices, policy.Guests, policy.Apps}).Draw(t, "kind"),
			Device: value.Draw(t, "device"), Fleet: value.Draw(t, "fleet"), CN: value.Draw(t, "cn"), ClientID: value.Draw(t, "client"),
			Tags: map[string]string{"x": value.Draw(t, "tag")}, Scope: rapid.SliceOfN(value, 0, 3).Draw(t, "scope"),
		}
		perms, connect, why := p.Permissions(s)
		c := p.Explain(s, policy.Connect, s.ClientID)
		if c.Allowed != connect || !connect && c.Why != why {
			t.Fatalf("connect: Explain says %v (%s), Permissions %v (%s)\n%s", c.Allowed, c.Why, connect, why, source)
		}
		if !connect {
			return
		}
		topic := strings.Join(rapid.SliceOfN(rapid.SampledFrom(plainText), 1, 4).Draw(t, "topic"), "/")
		for _, a := range actions {
			f := filters(perms, a)
			want := topics.Allowed(f.Allow, f.Deny, topic)
			if a == policy.Retain {
				want = want && topics.Allowed(perms.Publish.Allow, perms.Publish.Deny, topic)
			}
			d := p.Explain(s, a, topic)
			if d.Allowed != want || d.Why == "" {
				t.Fatalf("%s %s as %+v: Explain says %v (%s), the lists %+v\n%s", a, topic, s, d.Allowed, d.Why, f, source)
			}
			if d.Statement != "" && !slices.Contains(statementOf(p, d.Statement).For, s.Kind) {
				t.Fatalf("%s %s: decided by %s, which is not for %s\n%s", a, topic, d.Statement, s.Kind, source)
			}
		}
		if policy.Loses(perms, perms) {
			t.Fatalf("%+v loses by keeping what it has", perms)
		}
		if now := (countersign.Permissions{}); policy.Loses(perms, now) != (len(perms.Publish.Allow)+len(perms.Retain.Allow)+len(perms.Subscribe.Allow)+len(perms.Receive.Allow) > 0) {
			t.Fatalf("%+v against nothing: Loses says %v", perms, policy.Loses(perms, now))
		}
	})
}

// drawMixed draws a policy for all kinds of client, with patterns of client identifiers.
func drawMixed(t *rapid.T) (*policy.Policy, string) {
	b := strings.Builder{}
	b.WriteString("statements:\n")
	pick := func(what string, from ...string) string {
		return strings.Join(rapid.SliceOfNDistinct(rapid.SampledFrom(from), 1, len(from), rapid.ID).Draw(t, what), ", ")
	}
	for i := range rapid.IntRange(1, 6).Draw(t, "statements") {
		effect := rapid.SampledFrom(effects).Draw(t, "effect")
		kinds := pick("for", "devices", "guests", "apps")
		if rapid.Bool().Draw(t, "connect") {
			fmt.Fprintf(&b, "  - {id: s%d, effect: %s, for: [%s], actions: [connect], clients: ['%s']}\n", i, effect, kinds,
				rapid.SampledFrom([]string{"*", "a*", "?", "${device.id}", "${client.id}", "${device}*", "x-${device.tags.x}"}).Draw(t, "clients"))
			continue
		}
		filter := drawFilter(t)
		if rapid.Bool().Draw(t, "of the scope") {
			filter = "a/${device}/" + filter
		}
		fmt.Fprintf(&b, "  - {id: s%d, effect: %s, for: [%s], actions: [%s], topics: ['%s']}\n", i, effect, kinds,
			pick("actions", "publish", "retain", "subscribe", "receive"), filter)
	}
	p, err := policy.Parse([]byte(b.String()))
	if err != nil {
		t.Fatalf("Parse: %v\n%s", err, b.String())
	}
	return p, b.String()
}

// TestDiffIsMadeOfWhatDiffers compares two drawn policies both ways.
func TestDiffIsMadeOfWhatDiffers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, _ := drawMixed(t)
		b, _ := drawMixed(t)
		there, back := policy.Diff(a, b), policy.Diff(b, a)
		if len(there) != len(back) {
			t.Fatalf("%d changes there, %d back", len(there), len(back))
		}
		opposite := map[string]string{"added": "removed", "removed": "added", "changed": "changed"}
		sign := strings.NewReplacer("+ ", "- ", "- ", "+ ")
		for i, c := range there {
			o := back[i]
			var lines []string
			for _, l := range o.Lines {
				lines = append(lines, sign.Replace(l[:2])+l[2:])
			}
			slices.Sort(lines)
			got := slices.Sorted(slices.Values(c.Lines))
			if o.ID != c.ID || o.What != opposite[c.What] || !slices.Equal(got, lines) {
				t.Fatalf("there %+v, back %+v", c, o)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(policy.Starter())
	f.Add([]byte(rules))
	f.Add([]byte(`{"statements": [{"id": "a", "effect": "allow", "actions": ["connect"]}]}`))
	f.Add([]byte("statements:\n- !!seq a\n- &x b\n- *x\n- <<: *x\n"))
	f.Fuzz(func(t *testing.T, source []byte) {
		p, err := policy.Parse(source)
		if err != nil {
			return
		}
		p.RunTests()
		p.Lint()
		for _, kind := range []policy.Kind{policy.Devices, policy.Guests, policy.Apps} {
			perms, _, _ := p.Permissions(policy.Subject{Kind: kind, Device: "d", Fleet: "f", ClientID: "d", CN: "d", Scope: []string{"e", "+"}})
			for _, a := range actions {
				for _, filter := range slices.Concat(filters(perms, a).Allow, filters(perms, a).Deny) {
					if !topics.ValidFilter(filter) {
						t.Fatalf("%q is no filter\n%s", filter, source)
					}
				}
			}
		}
		if d := policy.Diff(p, p); len(d) > 0 {
			t.Fatalf("Diff of one with itself: %v", d)
		}
	})
}

// The bound on a document is also one on the time that a hostile one takes.
func TestParseTakesBoundedTime(t *testing.T) {
	for name, piece := range map[string]string{"siblings": "a%d:\n", "lists": "[", "maps": "{", "dashes": "- ", "anchors": "&a ", "comments": "#\n"} {
		var b strings.Builder
		for i := 0; b.Len() < policy.MaxSource-16; i++ {
			if strings.Contains(piece, "%d") {
				fmt.Fprintf(&b, piece, i)
			} else {
				b.WriteString(piece)
			}
		}
		if _, err := policy.Parse([]byte(b.String())); err == nil {
			t.Errorf("%s: got a policy, want an error", name)
		}
	}
}

func BenchmarkPermissions(b *testing.B) {
	p := policy.Builtin()
	s := pump("pump-1")
	b.ReportAllocs()
	for b.Loop() {
		p.Permissions(s)
	}
}

func TestExamplesInTheManualAreSound(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "policy.md"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
		source, _, _ := strings.Cut(block, "```")
		if !strings.HasPrefix(source, "statements:") {
			continue
		}
		n++
		p, err := policy.Parse([]byte(source))
		if err != nil {
			t.Errorf("example: %v\n%s", err, source)
			continue
		}
		if failed := p.RunTests(); len(failed) > 0 {
			t.Errorf("example: %+v\n%s", failed, source)
		}
	}
	if n == 0 {
		t.Error("got no examples in the manual")
	}
}
