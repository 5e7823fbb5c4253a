package hook

import (
	"strconv"
	"testing"

	"github.com/countersign-iot/countersign"
)

func TestOneDeviceHoldsFewVerdicts(t *testing.T) {
	t.Parallel()
	var c cache
	put := func(client, device string) {
		k := key{hook: "h", client: client, user: device}
		if !c.put([]key{k}, entry{verdict: countersign.Verdict{Allow: true, Device: device}}, c.mark()) {
			t.Fatalf("the verdict of %s was not kept", client)
		}
	}
	put("other", "pump-2")
	for i := range 10 * maxOfDevice {
		put("pump-1/"+strconv.Itoa(i), "pump-1")
	}
	if len(c.entries) != maxOfDevice+1 || len(c.byDevice["pump-1"]) != maxOfDevice {
		t.Errorf("got %d verdicts, %d of the device, want %d of it and the other's", len(c.entries), len(c.byDevice["pump-1"]), maxOfDevice)
	}
	if _, ok := c.get(key{"h", "pump-1/" + strconv.Itoa(10*maxOfDevice-1), "pump-1"}); !ok {
		t.Error("the last one is gone")
	}
}

func TestCacheSeesEveryCutSinceAMark(t *testing.T) {
	t.Parallel()
	var c cache
	mark := c.mark()
	all := func(entry) bool { return true }
	for range 3 * maxRecent { // far more than are remembered
		c.cut("another", all)
	}
	v := entry{verdict: countersign.Verdict{Allow: true, Device: "pump-1"}}
	if c.put([]key{{hook: "h"}}, v, mark) {
		t.Error("a verdict was kept although it may have been cut meanwhile")
	}
	mark = c.mark()
	c.cut("another", all)
	if !c.put([]key{{hook: "h"}}, v, mark) {
		t.Error("a cut of another device keeps out this one")
	}
}
