package countersigntest_test

import (
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
)

// TestEachNodeKnowsTheSameDevicesAfterARestart enrolls on one node and looks on the
// other, which has been restarted.
func TestEachNodeKnowsTheSameDevicesAfterARestart(t *testing.T) {
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		asked.Enroll(t, "pump-1")
		before := other.Endpoints()
		other.Restart(t)
		if got := other.Endpoints(); got.MQTT != before.MQTT || got.Enroll != before.Enroll {
			t.Errorf("endpoints after the restart: got %+v, want %+v", got, before)
		}
		d, err := other.Admin.Device(t.Context(), "pump-1")
		if err != nil || d.ID != "pump-1" {
			t.Errorf("Device: got %+v, %v", d, err)
		}
	})
}

// TestFaultsOfOneNodeSpareTheOther cuts one node's database only.
func TestFaultsOfOneNodeSpareTheOther(t *testing.T) {
	one := countersigntest.Start(t, countersigntest.Options{Database: countersigntest.Postgres})
	two := countersigntest.Start(t, countersigntest.Options{Beside: one})
	one.Faults.Cut()
	if _, err := one.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "pump-1"}); err == nil {
		t.Error("a device was recorded without a database")
	}
	if _, err := two.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "pump-1"}); err != nil {
		t.Errorf("on the other node: %v", err)
	}
	one.Faults.Heal()
}
