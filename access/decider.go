package access

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
)

// Decider decides connections.
type Decider struct {
	DB  *store.DB
	Now func() time.Time
	// CA has the manufacturers' authorities and their CRLs.
	CA       *ca.CA
	Registry *registry.Registry
	Secrets  *Secrets
	Tokens   *Tokens
	Policies *policies.Store

	rules   rules
	issuers issuers
	guests  guests
}

// New returns a Decider that uses the database and the clock of the log. It derives the
// key of access tokens from the sealing key, so that all nodes share it.
func New(events *event.Log, authority *ca.CA, reg *registry.Registry, sealer *keystore.Sealer) (*Decider, error) {
	db, now := events.DB, events.Now
	key, err := sealer.Derive("access tokens")
	if err != nil {
		return nil, fmt.Errorf("couldn't derive the key of access tokens: %w", err)
	}
	return &Decider{
		DB: db, Now: now, CA: authority, Registry: reg,
		Secrets:  &Secrets{DB: db, Now: now, Sealer: sealer},
		Tokens:   &Tokens{DB: db, Now: now, Key: key},
		Policies: &policies.Store{DB: db, Now: now, Events: events},
	}, nil
}

// BudgetOf returns what one device of a fleet may use, as read by the last decision about
// the fleet, or the defaults before the first decision.
func (d *Decider) BudgetOf(fleet string) countersign.Budget { return d.rules.budgetOf(fleet) }

// readRules reads the rules of a fleet from its record. It returns sql.ErrNoRows if there
// is no such fleet.
func (d *Decider) readRules(ctx context.Context, fleet string) (readRules, error) {
	var text string
	if err := d.DB.QueryRow(ctx, `SELECT rules FROM fleet WHERE name = $1`, fleet).Scan(&text); err != nil {
		return readRules{}, fmt.Errorf("couldn't read the rules of fleet %s: %w", fleet, err)
	}
	return d.rules.of(fleet, text)
}

// checkClient reports why the device may not use the MQTT Client Identifier. It checks the
// form and the record: ids may hold colons, so "a:b" may be a client identifier of device
// a and also the id of another device. Device a must not be taken for that one in a
// policy, or at a broker where all clients share one name space.
func (d *Decider) checkClient(ctx context.Context, client, device string) (countersign.Code, string) {
	if !policies.MayUseClientID(device, client) {
		return countersign.SubjectMismatch, policies.NotItsClientID(device, client)
	}
	if client == "" || client == device || !countersign.IsDeviceID(client) {
		return "", ""
	}
	other, err := store.Count(ctx, d.DB, `SELECT COUNT(*) FROM device WHERE id = $1`, client)
	switch {
	case err != nil:
		return countersign.Unavailable, "the record of devices cannot be read now"
	case other > 0:
		return countersign.SubjectMismatch, fmt.Sprintf("client id %.80q is another device's id", client)
	}
	return "", ""
}

// brokers is the prefix of the names of gateways that are foreign brokers.
const brokers = "hook:"

// checkStranger refuses a guest or an operator's application that uses the client
// identifier of a device, as [policies.MayUseClientID] defines it. At a foreign broker all
// clients share one name space, so it would end the session of the device there and
// receive the messages that are queued for it.
func (d *Decider) checkStranger(ctx context.Context, client string) (countersign.Code, string) {
	client, _, _ = strings.Cut(client, "/")
	var ids []string
	for i := 1; i <= len(client); i++ {
		if (i == len(client) || client[i] == ':') && countersign.IsDeviceID(client[:i]) {
			ids = append(ids, client[:i])
		}
	}
	if len(ids) == 0 {
		return "", ""
	}
	var q store.Query
	in := store.In(&q, ids)
	n, err := store.Count(ctx, d.DB, `SELECT COUNT(*) FROM device WHERE id IN `+in, q.Args...)
	switch {
	case err != nil:
		return countersign.Unavailable, "the record of devices cannot be read now"
	case n > 0:
		return countersign.SubjectMismatch, "the client id is a device's"
	}
	return "", ""
}
