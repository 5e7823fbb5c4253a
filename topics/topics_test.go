package topics

import (
	"strings"
	"testing"
)

// FuzzTopicFilter holds covers against its definition: no topic matches the
// covered filter without matching the covering one.
func FuzzTopicFilter(f *testing.F) {
	f.Add("a/#", "a/+/c", "a/b/c")
	f.Add("#", "$SYS/#", "$SYS/x")
	f.Add("+/b", "a/#", "a")
	f.Add("/+/", "//", "//")
	f.Fuzz(func(t *testing.T, filter, sub, topic string) {
		if !ValidFilter(filter) || !ValidFilter(sub) || !ValidName(topic) {
			return
		}
		for _, s := range []string{filter, sub} {
			if Covers(s, topic) != matches(s, topic) {
				t.Fatalf("%q and topic %q: covers %v, matches %v", s, topic, Covers(s, topic), matches(s, topic))
			}
		}
		if Covers(filter, sub) && matches(sub, topic) && !matches(filter, topic) {
			t.Fatalf("Covers(%q, %q) is true, but %q matches only the second", filter, sub, topic)
		}
		if matches(filter, topic) && matches(sub, topic) && (!Overlap(filter, sub) || !Overlap(sub, filter)) {
			t.Fatalf("%q and %q both match %q, but Overlap is false", filter, sub, topic)
		}
		if !Covers(filter, filter) {
			t.Fatalf("%q does not cover itself", filter)
		}
	})
}

// matches is MQTT 5, 4.7, written down without thought for speed.
func matches(filter, topic string) bool {
	if topic[0] == '$' && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	f, n := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i, level := range f {
		if level == "#" {
			return len(n) >= i
		}
		if i >= len(n) || level != "+" && level != n[i] {
			return false
		}
	}
	return len(f) == len(n)
}

func TestCoversTable(t *testing.T) {
	for _, c := range []struct {
		filter, sub string
		want        bool
	}{
		{"devices/d/down/#", "devices/d/down/#", true},
		{"devices/d/down/#", "devices/d/down", true},
		{"devices/d/down/#", "devices/d/down/+/x", true},
		{"devices/d/down/#", "devices/d/+", false},
		{"devices/d/down/#", "devices/d/#", false},
		{"devices/d/down/#", "devices/+/down/a", false},
		{"devices/d/down/#", "#", false},
		{"devices/d/down/#", "devices/d/downx", false},
		{"a/+", "a/+", true},
		{"a/+", "a/#", false},
		{"a/+", "a", false},
		{"a/+", "a/", true},
		{"+/+", "a/b/c", false},
		{"#", "+", true},
		{"#", "$SYS/a", false},
		{"$SYS/#", "$SYS/a", true},
		{"+/a", "$SYS/a", false},
	} {
		if got := Covers(c.filter, c.sub); got != c.want {
			t.Errorf("Covers(%q, %q): got %v, want %v", c.filter, c.sub, got, c.want)
		}
	}
}

func TestOverlapTable(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"devices/#", "devices/secret/#", true},
		{"devices/+/up", "devices/a/+", true},
		{"devices/+/up", "devices/a/down", false},
		{"a/#", "a", true},
		{"a/+", "a", false},
		{"#", "$SYS/x", false},
		{"$SYS/#", "$SYS/x", true},
	} {
		if Overlap(c.a, c.b) != c.want || Overlap(c.b, c.a) != c.want {
			t.Errorf("Overlap(%q, %q): got %v, want %v both ways", c.a, c.b, !c.want, c.want)
		}
	}
}

func TestAllowedDenyWins(t *testing.T) {
	allow, deny := []string{"devices/a/#"}, []string{"devices/a/secret/#"}
	for _, c := range []struct {
		sub  string
		want bool
	}{
		{"devices/a/x", true},
		{"devices/a/secret/x", false},
		{"devices/a/secret", false},
		{"devices/a/#", false}, // touches what is denied
		{"devices/a/x/#", true},
		{"devices/b/x", false},
	} {
		if got := Allowed(allow, deny, c.sub); got != c.want {
			t.Errorf("Allowed(%q): got %v, want %v", c.sub, got, c.want)
		}
	}
	if Allowed(nil, nil, "a") {
		t.Error("nothing allowed must allow nothing")
	}
}
