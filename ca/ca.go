package ca

import (
	"context"
	"fmt"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
)

// CA keeps the authorities and signs for them. Make it with Open. Each part owns what it
// remembers; all of them share the authorities and the Options.
type CA struct {
	*authorities
	*issuance      // plans, signs and records certificates
	*lifecycle     // moves certificates from state to state
	*responder     // answers OCSP requests
	*lists         // publishes CRLs
	*registrations // external authorities and their lists
}

// Open loads the authorities on record. It opens no key.
func Open(ctx context.Context, o Options) (*CA, error) {
	if o.CRLValidity == 0 {
		o.CRLValidity = DefaultCRLValidity
	}
	if o.Cacheable == nil {
		o.Cacheable = func() bool { return true }
	}
	all := &authorities{Options: o, byID: map[string]*authority{}}
	i := &issuance{authorities: all, serials: &serials{db: o.DB, now: o.Now}, newKeys: make(chan deviceKey, maxArrived)}
	r := &responder{issuance: i, answers: newAnswers(), signers: map[string]*ocspSigner{}}
	c := &CA{
		authorities: all, issuance: i, responder: r, lifecycle: &lifecycle{now: o.Now, answers: r.answers},
		registrations: &registrations{authorities: all},
		lists:         &lists{authorities: all, by: map[listName]lastList{}, copies: copies{current: map[listName]*sharedList{}, loading: map[listName]chan struct{}{}}},
	}
	return c, c.Reload(ctx)
}

// Reload reads the authorities again, after this or another node changed one. Lists of
// registered ones are parsed again only where they changed.
func (c *CA) Reload(ctx context.Context) error {
	found, err := store.List(ctx, c.DB, func(row store.Row) (*authority, error) { return scanAuthority(row) }, `SELECT `+authorityColumns+` FROM authority`)
	if err != nil {
		return fmt.Errorf("list authorities: %w", err)
	}
	for _, a := range found {
		if a.Kind != countersign.RegisteredAuthority {
			c.add(a)
		} else if _, err := c.Anchor(ctx, c.DB, a.ID, a.version); err != nil {
			return err
		}
	}
	return nil
}
