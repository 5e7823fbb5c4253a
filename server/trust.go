package server

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"slices"

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

// CACerts returns the path of the fleet's issuing authority.
func (t *trust) CACerts(ctx context.Context, fleet string) ([][]byte, error) {
	f, err := t.fleet(ctx, fleet)
	if err != nil {
		return nil, err
	}
	return t.ca.Chain(f.Issuer)
}

// CSRAttrs asks for what the fleet's profile takes.
func (t *trust) CSRAttrs(ctx context.Context, fleet string) (est.CSRAttrs, error) {
	p, err := t.profile(ctx, fleet)
	if err != nil {
		return nil, err
	}
	if len(p.Keys) == 0 { // any will do; this is the one we would take
		return est.Want("P-256"), nil
	}
	return est.Want(p.Keys...), nil
}

// GenerateKey makes a key for a device that cannot, where the fleet's profile
// allows it (RFC 7030, 4.4). It is stored nowhere.
func (t *trust) GenerateKey(ctx context.Context, fleet string) (crypto.Signer, error) {
	p, err := t.profile(ctx, fleet)
	if err != nil {
		return nil, err
	}
	if !p.ServerKeys {
		return nil, countersign.Errorf(countersign.NotAllowed, "profile %s wants keys made on the device", p.Name).WithNext("make a key and use simpleenroll")
	}
	if len(p.Keys) > 0 && !slices.Contains(p.Keys, "P-256") {
		return nil, countersign.Errorf(countersign.NotAllowed, "profile %s takes no P-256 key, and the server makes no other", p.Name).WithNext("make a key and use simpleenroll")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

// profile returns the profile of a fleet's certificates.
func (t *trust) profile(ctx context.Context, fleet string) (ca.Profile, error) {
	f, err := t.fleet(ctx, fleet)
	if err != nil {
		return ca.Profile{}, err
	}
	return ca.ReadProfile(ctx, t.ca.DB, f.Profile)
}

func (t *trust) fleet(ctx context.Context, name string) (countersign.Fleet, error) {
	return t.registry.Fleet(ctx, t.registry.DB, cmp.Or(name, countersign.DefaultFleet))
}
