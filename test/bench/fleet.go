package main

import (
	"context"
	"fmt"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/registry"
)

const (
	// loadFleet is the fleet of the devices that send and receive as fast as they can.
	loadFleet = "load"
	// loadPublishes is more than any server takes in a second: what is measured is the
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

// createLoadFleet makes the fleet and a token for it.
func (b *bench) createLoadFleet(ctx context.Context) error {
	methods := []string{"token"}
	rules := &api.Rules{Budget: &api.Budget{Publishes: loadPublishes}}
	if _, err := b.admin.PutFleet(ctx, loadFleet, api.PutFleet{Methods: &methods, Rules: rules}); err != nil {
		return fmt.Errorf("create the fleet %s: %w", loadFleet, err)
	}
	policy := api.ApplyPolicy{PolicySource: api.PolicySource{Source: loadPolicy}}
	if _, err := b.admin.ApplyPolicy(ctx, loadFleet, policy); err != nil {
		return fmt.Errorf("apply the policy of the fleet %s: %w", loadFleet, err)
	}
	issued, err := b.admin.CreateToken(ctx, api.NewToken{Fleet: loadFleet, Uses: registry.MaxUses, TTLSeconds: 24 * 3600})
	if err != nil {
		return err
	}
	b.loadToken = issued.Secret
	return nil
}

// loaders returns n devices of the load fleet that have connected before.
func (b *bench) loaders(ctx context.Context, n int) ([]*enrollee, error) {
	if missing := n - len(b.load); missing > 0 {
		devices, err := b.newDevices(ctx, missing, b.loadToken)
		if err != nil {
			return nil, err
		}
		if _, _, err := drive(ctx, webWorkers, missing, b.askKept(devices)); err != nil {
			return nil, err
		}
		if err := b.takeAll(devices); err != nil {
			return nil, err
		}
		if _, err := b.connects(ctx, b.server, "", hostOf(b.endpoints.MQTT), devices); err != nil {
			return nil, err
		}
		b.load = append(b.load, devices...)
	}
	return b.load[:n:n], nil
}
