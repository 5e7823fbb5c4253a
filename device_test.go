package countersign_test

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
)

// TestDeviceIDsFitEveryGrammar holds the one rule for ids against what ids are put into.
func TestDeviceIDsFitEveryGrammar(t *testing.T) {
	spiffe := countersign.Fleet{Name: "line", TrustDomain: "example.org"}
	for id, want := range map[string]struct{ any, spiffe bool }{
		"pump-1": {true, true}, "A:B:C": {true, false}, ".a": {true, true}, "...": {true, true}, "a..b": {true, true}, "_": {true, true},
		strings.Repeat("x", 128): {true, true},
		"":                       {}, ".": {}, "..": {}, "-": {}, "-x": {}, "--help": {}, "a/b": {}, "a b": {}, "a\x00": {}, "a\n": {}, "a+": {}, "a#": {}, "$SYS": {}, "ä": {}, "a\xff": {},
		"a%2e": {}, strings.Repeat("x", 129): {},
	} {
		err := countersign.CheckDeviceID(id)
		if (err == nil) != want.any || err != nil && countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("CheckDeviceID(%q): got %v", id, err)
		}
		if err := countersign.CheckDevice(spiffe, id); (err == nil) != want.spiffe {
			t.Errorf("CheckDevice(%q) in a fleet with a trust domain: got %v", id, err)
		}
		if !want.any {
			continue
		}
		if !countersign.IsDeviceID(id) {
			t.Errorf("IsDeviceID(%q): got false of an id that may be given", id)
		}
		if got := path.Clean("/devices/" + id + "/events"); got != "/devices/"+id+"/events" {
			t.Errorf("%q: cleaning a path with it gives %s", id, got)
		}
		for _, f := range []countersign.Fleet{{Name: "line"}, spiffe} {
			u, err := url.Parse(countersign.DeviceURI(f, id))
			if err != nil || u.String() != countersign.DeviceURI(f, id) {
				t.Errorf("%q: its URI %s is read as %v, %v", id, countersign.DeviceURI(f, id), u, err)
			}
		}
	}
	for _, id := range []string{".", "..", "-x"} {
		if !countersign.IsDeviceID(id) {
			t.Errorf("IsDeviceID(%q): got false, want an old device of that id to be found", id)
		}
	}
}
