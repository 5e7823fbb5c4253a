package ra_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/hold"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestDatabaseThatCannotWriteHoldsTheDeviceBack suspends a device while the database
// answers reads and takes no write. The device is cut and refused, and the act recorded
// once it can be. A hold whose recording got no answer is not recorded again.
func TestDatabaseThatCannotWriteHoldsTheDeviceBack(t *testing.T) {
	proxy := storetest.NewProxy(t, storetest.PostgresURL(t))
	w := newWorld(t, storetest.OpenURL(t, proxy.URL()))
	var err error
	path := filepath.Join(t.TempDir(), "holds.json")
	if w.Holds, err = hold.Open(path, w.clock.Now); err != nil {
		t.Fatal(err)
	}
	cert := w.active(t, "pump-1")
	proxy.RefuseWrites()
	_, err = w.Suspend(t.Context(), ra.Act{Device: "pump-1", Actor: boss.Actor, Note: "seen twice"})
	kit.WantCode(t, err, countersign.Unavailable)
	if !strings.Contains(err.Error(), "not recorded") || !strings.Contains(err.Error(), "other nodes do not know") {
		t.Errorf("got %v, want that it is not recorded, and not in force on other nodes", err)
	}
	if cuts := w.takeCuts(); len(cuts) != 1 || cuts[0].Device != "pump-1" {
		t.Errorf("cuts: got %+v, want the device's", cuts)
	}
	if v := w.connect(t, cert); v.Allow || v.Code != countersign.DeviceOnHold {
		t.Errorf("connect: got %+v, want it held back", v)
	}
	_, err = w.Reenroll(t.Context(), renewal(t, cert, kit.Key(t)))
	kit.WantCode(t, err, countersign.DeviceOnHold)

	held := w.Holds.List()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	proxy.Heal()
	if err := w.RetryHold(t.Context(), held[0].ID); err != nil {
		t.Fatal(err)
	}
	if w.device(t, "pump-1").State != countersign.DeviceSuspended || len(w.Holds.List()) != 0 {
		t.Error("with room again: the act is not recorded, or still held")
	}
	// A node that was killed before it forgot the hold has it again.
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if w.Holds, err = hold.Open(path, w.clock.Now); err != nil || len(w.Holds.List()) != 1 {
		t.Fatalf("the holds of before: %v, %v", w.Holds.List(), err)
	}
	if err := w.RetryHold(t.Context(), held[0].ID); err != nil || len(w.Holds.List()) != 0 {
		t.Errorf("again: %v, and holds %v", err, w.Holds.List())
	}
	for _, kind := range []countersign.EventType{countersign.HoldPlaced, countersign.DeviceSuspendedEv, countersign.HoldRecorded} {
		if n := len(w.events(t, event.Filter{Type: kind})); n != 1 {
			t.Errorf("%s: got %d events, want one", kind, n)
		}
	}
}
