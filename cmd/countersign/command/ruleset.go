package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign/api"
	"github.com/goccy/go-yaml"
)

// ruleset is the rules of a fleet as JSON, to compare, change and show them rule by
// rule. A rule inside another one is named by both with a dot between: recovery.max_age.
type ruleset map[string]any

// rulesetOf returns rules as a ruleset; nil rules are an empty one.
func rulesetOf(r *api.Rules) (ruleset, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	all := ruleset{}
	if r != nil {
		err = json.Unmarshal(b, &all)
	}
	return all, err
}

// readRuleset reads rules in YAML.
func readRuleset(text []byte) (ruleset, error) {
	var r api.Rules
	if err := readYAML(text, &r); err != nil {
		return nil, err
	}
	return rulesetOf(&r)
}

// readYAML reads YAML, which JSON is too. A name that is not known is an error.
func readYAML(text []byte, into any) error {
	b, err := yaml.YAMLToJSON(text)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode(into)
}

// leaves returns each single rule by its name; lists are written with commas.
func (r ruleset) leaves() map[string]string {
	all := map[string]string{}
	var walk func(prefix string, v any)
	walk = func(prefix string, v any) {
		object, nested := v.(map[string]any)
		if !nested {
			all[prefix] = ruleText(v)
			return
		}
		for name, inner := range object {
			walk(prefix+"."+name, inner)
		}
	}
	for name, v := range r {
		walk(name, v)
	}
	return all
}

func ruleText(v any) string {
	if list, ok := v.([]any); ok {
		words := make([]string, len(list))
		for i, w := range list {
			words[i] = fmt.Sprint(w)
		}
		return strings.Join(words, ",")
	}
	return fmt.Sprint(v)
}

// at returns the rule of that name, false if it is not set.
func (r ruleset) at(name string) (any, bool) {
	var v any = map[string]any(r)
	for part := range strings.SplitSeq(name, ".") {
		object, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = object[part]; !ok {
			return nil, false
		}
	}
	return v, true
}

// with returns a copy in which the rule of that name has the value; nil removes it.
func (r ruleset) with(name string, value any) ruleset {
	head, rest, inner := strings.Cut(name, ".")
	out := maps.Clone(r)
	if out == nil {
		out = ruleset{}
	}
	if inner {
		object, _ := r[head].(map[string]any)
		changed := ruleset(object).with(rest, value)
		if value = map[string]any(changed); len(changed) == 0 {
			value = nil
		}
	}
	if value == nil {
		delete(out, head)
	} else {
		out[head] = value
	}
	return out
}

// patchTo returns the JSON merge patch (RFC 7396) that makes r into to.
func (r ruleset) patchTo(to ruleset) map[string]any {
	patch := map[string]any{}
	for name := range r {
		if _, stays := to[name]; !stays {
			patch[name] = nil
		}
	}
	for name, v := range to {
		was, had := r[name]
		before, nested := was.(map[string]any)
		after, nestedToo := v.(map[string]any)
		switch {
		case had && reflect.DeepEqual(was, v):
		case nested && nestedToo:
			patch[name] = ruleset(before).patchTo(after)
		default:
			patch[name] = v
		}
	}
	return patch
}

// ruleDiff is how two sets of rules differ.
type ruleDiff struct {
	lines   []string // "- name: value" and "+ name: value", by name
	dropped []string // names of rules that end
}

func (r ruleset) diff(to ruleset) (d ruleDiff) {
	was, is := r.leaves(), to.leaves()
	names := map[string]bool{}
	for name := range was {
		names[name] = true
	}
	for name := range is {
		names[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		before, had := was[name]
		after, has := is[name]
		if had && has && before == after {
			continue
		}
		if had {
			d.lines = append(d.lines, "- "+name+": "+before)
		}
		if has {
			d.lines = append(d.lines, "+ "+name+": "+after)
		} else {
			d.dropped = append(d.dropped, name)
		}
	}
	return d
}

// show writes the difference for people.
func (d ruleDiff) show(p printer) {
	for _, l := range d.lines {
		if l = printable(l); strings.HasPrefix(l, "-") {
			p.linef("%s", p.red(l))
		} else {
			p.linef("%s", p.green(l))
		}
	}
}

// ruleValue reads the text of a value as the rule's type wants it: a list with commas
// between, a number, true or false, or for a rule that holds others YAML or JSON.
func ruleValue(name, text string) (any, error) {
	t, err := ruleType(name)
	if err != nil {
		return nil, err
	}
	switch t.Kind() {
	case reflect.String:
		return text, nil
	case reflect.Slice:
		if !strings.HasPrefix(strings.TrimSpace(text), "[") {
			return listValue(text), nil
		}
	case reflect.Bool:
		if v, err := strconv.ParseBool(text); err == nil {
			return v, nil
		}
		return nil, usagef("the rule %s is true or false, not %q", name, text)
	}
	typed := reflect.New(t)
	if err := readYAML([]byte(text), typed.Interface()); err != nil {
		return nil, usagef("the value of the rule %s cannot be read: %v", name, err)
	}
	var v any
	b, err := json.Marshal(typed.Interface())
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	return v, err
}

func listValue(text string) []any {
	list := []any{}
	for w := range strings.SplitSeq(text, ",") {
		if w = strings.TrimSpace(w); w != "" {
			list = append(list, w)
		}
	}
	return list
}

// ruleType is the type of a rule, found by the names that the API has.
func ruleType(name string) (reflect.Type, error) {
	t := reflect.TypeFor[api.Rules]()
	for part := range strings.SplitSeq(name, ".") {
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch t.Kind() {
		case reflect.Map:
			t = t.Elem()
			continue
		case reflect.Struct:
			names := ruleFields(t)
			f, ok := names[part]
			if !ok {
				return nil, usagef("there is no rule %q; there are: %s", name, strings.Join(slices.Sorted(maps.Keys(names)), ", "))
			}
			t = f
		default:
			return nil, usagef("the rule %q has nothing inside it", strings.TrimSuffix(name, "."+part))
		}
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t, nil
}

func ruleFields(t reflect.Type) map[string]reflect.Type {
	names := map[string]reflect.Type{}
	for f := range t.Fields() {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names[tag] = f.Type
	}
	return names
}

// ruleNames lists the rules that there are, those inside others too.
func ruleNames() []string {
	var all []string
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct {
			all = append(all, prefix)
			return
		}
		for name, f := range ruleFields(t) {
			if prefix != "" {
				name = prefix + "." + name
			}
			walk(name, f)
		}
	}
	walk("", reflect.TypeFor[api.Rules]())
	slices.Sort(all)
	return all
}
