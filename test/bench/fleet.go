package main

import (
	"context"
	"fmt"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
)

const (
	// loadFleet is the fleet of the devices that send and receive as fast as they can.
	loadFleet = "load"
	// loadPublishes is more than any server accepts in a second: what is measured is the
	// broker, and the budget of an honest device is 500.
	loadPublishes = 1_000_000
	// loadPolicy lets them use topics in common, and send commands to each other.
	loadPolicy = `statements:
  - {id: come-in, effect: allow, actions: [connect]}
  - {id: common, effect: allow, actions: [publish, subscribe, receive], topics: ["bench/#"]}
  - {id: commands, effect: allow, actions: [subscribe, receive], topics: ["devices/${device.id}/down/#"]}
  - {id: control, effect: allow, actions: [publish], topics: ["devices/+/down/#"]}
`
)

// createLoadFleet makes the fleet.
func createLoadFleet(ctx context.Context, admin *sdk.Admin) error {
	methods := []string{"token"}
	rules := &api.Rules{Budget: &api.Budget{Publishes: loadPublishes}}
	if _, err := admin.PutFleet(ctx, loadFleet, api.PutFleet{Methods: &methods, Rules: rules}); err != nil {
		return fmt.Errorf("create the fleet %s: %w", loadFleet, err)
	}
	policy := api.ApplyPolicy{PolicySource: api.PolicySource{Source: loadPolicy}}
	if _, err := admin.ApplyPolicy(ctx, loadFleet, policy); err != nil {
		return fmt.Errorf("apply the policy of the fleet %s: %w", loadFleet, err)
	}
	return nil
}
