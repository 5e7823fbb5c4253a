// Package provision has what operators set up for devices and for each other: devices
// and fleets, enrollment credentials and the approvals of requests that wait, registered
// authorities, operator tokens and access tokens. Package ra decides by it what a device
// is granted.
package provision

import (
	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Provisioner sets up what enrollment and access rest on: devices before they enroll,
// credentials, tokens, fleets and profiles. Each act and its event are one transaction.
type Provisioner struct {
	DB        *store.DB
	CA        *ca.CA
	Registry  *registry.Registry
	Operators *operator.Accounts
	Events    *event.Log
	Sealer    *keystore.Sealer
	Tokens    *access.Tokens
	// Messages is what the gateways of this node keep for devices; nil: there are none.
	Messages countersign.MessageStore
	// Rules checks what a fleet's expression and webhook mean before they are saved. A
	// function, because they are evaluated by packages above the keepers.
	Rules func(countersign.Rules) error
}
