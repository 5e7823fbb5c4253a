//go:build linux

package server_test

import (
	"os/user"
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
)

// TestLocalActsNameTheirUser acts over the socket of a running server and wants the Unix
// user in the log.
func TestLocalActsNameTheirUser(t *testing.T) {
	s := countersigntest.Start(t)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admin.CreateDevice(t.Context(), api.NewDevice{ID: "pump-1"}); err != nil {
		t.Fatal(err)
	}
	if e := finds(t, s, api.EventFilter{Type: "device.created"}); e.Actor != "operator:local:"+me.Username || e.Via != "cli" {
		t.Errorf("the actor of a local act: got %s via %s, want operator:local:%s via cli", e.Actor, e.Via, me.Username)
	}
}
