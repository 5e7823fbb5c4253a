package server_test

import (
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/countersigntest"
)

// TestTwoNodesWithOneName starts a second node with the name of the first, as a copied
// data folder has it: the first one's checks fail and say why, the second one's do not.
func TestTwoNodesWithOneName(t *testing.T) {
	named := func(c *config.Config) { c.Engine.Node = "same" }
	one := countersigntest.Start(t, countersigntest.Options{Database: countersigntest.Postgres, Configure: named})
	if c := messagesCheck(t, one); c.Level != api.LevelOK {
		t.Fatalf("check of the only node: got %+v", c)
	}
	id := one.Enroll(t, "pump-1")
	two := countersigntest.Start(t, countersigntest.Options{Beside: one, Configure: named})
	if c := messagesCheck(t, one); c.Level != api.LevelFail || !strings.Contains(c.Message, `"same"`) || !strings.Contains(c.Fix, "engine.node") {
		t.Errorf("check of the older node: got %+v, want a failure that names the node and the setting", c)
	}
	if c := messagesCheck(t, two); c.Level != api.LevelOK {
		t.Errorf("check of the newer node: got %+v", c)
	}
	if _, code := connect(t, one, id); code != 0 { // with Clean Session
		t.Errorf("a clean session on the older node: CONNACK %d, want 0", code)
	}
}

func messagesCheck(t *testing.T, s *countersigntest.Server) api.Check {
	t.Helper()
	d, err := s.Admin.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range d.Checks {
		if c.Name == "messages" {
			return c
		}
	}
	t.Fatal("no check of the messages")
	return api.Check{}
}
