package command

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func rulesOf(t testing.TB, text string) ruleset {
	t.Helper()
	r, err := readRuleset([]byte(text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return r
}

func TestRuleValuesHaveTheirTypes(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"networks", "192.0.2.0/24, 2001:db8::/32", `["192.0.2.0/24","2001:db8::/32"]`},
		{"networks", "[192.0.2.0/24]", `["192.0.2.0/24"]`},
		{"networks", "", `[]`},
		{"approval_ttl", "72h", `"72h"`},
		{"connect", "true", `true`},
		{"access.kinds", "certificate,secret", `["certificate","secret"]`},
		{"access.guests", "false", `false`},
		{"recovery.max_times", "3", `3`},
		{"recovery", "{max_age: 720h, max_times: 3}", `{"max_age":"720h","max_times":3}`},
		{"respond.shared_certificate", "alert,suspend", `["alert","suspend"]`},
		{"respond.*", "note", `["note"]`},
		{"pcrs.7", "00ff", `"00ff"`},
		{"budget.unread", "1048576", `1048576`},
		{"expression", "1 == 2", `"1 == 2"`},
	} {
		v, err := ruleValue(tt.name, tt.text)
		b, _ := json.Marshal(v)
		if err != nil || string(b) != tt.want {
			t.Errorf("%s %s: got %s, %v, want %s", tt.name, tt.text, b, err, tt.want)
		}
	}
	for _, tt := range []struct{ name, text, want string }{
		{"netwroks", "x", "there is no rule"},
		{"access.knds", "x", "there is no rule"},
		{"connect", "maybe", "true or false"},
		{"connect.x", "true", "nothing inside it"},
		{"recovery.max_times", "three", "cannot be read"},
		{"recovery", "{max_agee: 1h}", "cannot be read"},
		{"recovery", "[", "cannot be read"},
	} {
		if _, err := ruleValue(tt.name, tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: got %v, want %q", tt.name, tt.text, err, tt.want)
		}
	}
}

func TestRulesetsAreComparedRuleByRule(t *testing.T) {
	now := rulesOf(t, `{networks: [192.0.2.0/24], recovery: {max_age: 720h, max_times: 3}, connect: true, respond: {"*": [note]}}`)
	to := now.with("recovery.max_times", 5.0).with("connect", nil).with("respond.*", nil).with("access.guests", true)
	d := now.diff(to)
	want := []string{"+ access.guests: true", "- connect: true", "- recovery.max_times: 3", "+ recovery.max_times: 5", "- respond.*: note"}
	if diff := cmp.Diff(want, d.lines); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"connect", "respond.*"}, d.dropped); diff != "" {
		t.Errorf("dropped (-want +got)\n%s", diff)
	}
	b, err := json.Marshal(now.patchTo(to))
	if err != nil || string(b) != `{"access":{"guests":true},"connect":null,"recovery":{"max_times":5},"respond":null}` {
		t.Errorf("patch: got %s, %v", b, err)
	}
	if v, ok := now.at("recovery.max_age"); !ok || v != "720h" {
		t.Errorf("at: got %v", v)
	}
	if _, ok := to.at("respond.*"); ok {
		t.Error("a rule that was removed is there")
	}
	if _, ok := now.at("connect.x"); ok {
		t.Error("something is inside of true")
	}
}

// TestPatchMakesWhatItIsFor draws two rulesets: the patch between them, applied as
// RFC 7396 has it, makes the second of the first.
func TestPatchMakesWhatItIsFor(t *testing.T) {
	draw := rapid.Custom(func(t *rapid.T) ruleset {
		r := ruleset{}
		for range rapid.IntRange(0, 6).Draw(t, "rules") {
			name := rapid.SampledFrom([]string{"a", "b", "c.x", "c.y", "d.x.z", "d.x.y"}).Draw(t, "name")
			r = r.with(name, rapid.SampledFrom([]any{true, "1", 2.0, []any{"x"}}).Draw(t, "value"))
		}
		return r
	})
	var apply func(target, patch map[string]any) map[string]any
	apply = func(target, patch map[string]any) map[string]any {
		out := map[string]any{}
		maps.Copy(out, target)
		for k, v := range patch {
			object, nested := v.(map[string]any)
			switch {
			case v == nil:
				delete(out, k)
			case nested:
				inner, _ := out[k].(map[string]any)
				out[k] = apply(inner, object)
			default:
				out[k] = v
			}
		}
		return out
	}
	rapid.Check(t, func(t *rapid.T) {
		from, to := draw.Draw(t, "from"), draw.Draw(t, "to")
		if got := apply(from, from.patchTo(to)); !cmp.Equal(map[string]any(to), got) {
			t.Fatalf("from %v to %v: got %v", from, to, got)
		}
	})
}

func TestEveryRuleHasAName(t *testing.T) {
	names := ruleNames()
	if len(names) < 25 {
		t.Errorf("only %v", names)
	}
	for _, name := range names {
		if _, err := ruleType(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
