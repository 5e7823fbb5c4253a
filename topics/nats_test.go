package topics

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNATSSubjectsAreThoseOfTheServer(t *testing.T) {
	for filter, want := range map[string][]string{
		"devices/a.b/up/#": {"devices.a//b.up.>", "devices.a//b.up"}, "/a": {"/.a"}, "a/": {"a./"}, "a//b": {"a./.b"}, "+/x": {"*.x"}, "#": {">"},
		"a b": nil, "a/*": nil, "a/#/b": nil,
	} {
		if d := cmp.Diff(want, NATSSubjects([]string{filter})); d != "" {
			t.Errorf("%q (-want +got):\n%s", filter, d)
		}
	}
}
