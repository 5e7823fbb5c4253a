package server

import (
	"cmp"
	"context"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/est"
	"github.com/countersign-iot/countersign/registry"
)

// trust answers what devices ask the EST door about the authority.
type trust struct {
	ca       *ca.CA
	registry *registry.Registry
}

// CACerts gives the path of the fleet's issuing authority.
func (t *trust) CACerts(ctx context.Context, fleet string) ([][]byte, error) {
	f, err := t.fleet(ctx, fleet)
	if err != nil {
		return nil, err
	}
	return t.ca.Chain(f.Issuer)
}

// CSRAttrs asks for a P-256 key, which every profile of ours takes unless it says
// otherwise; then it asks for nothing.
func (t *trust) CSRAttrs(ctx context.Context, fleet string) (est.CSRAttrs, error) {
	f, err := t.fleet(ctx, fleet)
	if err != nil {
		return nil, err
	}
	p, err := t.ca.Profile(ctx, t.ca.DB, f.Profile)
	if err != nil {
		return nil, err
	}
	for i, k := range p.Keys {
		if k == "P-256" {
			break
		}
		if i == len(p.Keys)-1 {
			return nil, nil
		}
	}
	return est.WantP256(), nil
}

func (t *trust) fleet(ctx context.Context, name string) (countersign.Fleet, error) {
	return t.registry.Fleet(ctx, t.registry.DB, cmp.Or(name, countersign.DefaultFleet))
}
