package ra

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/weakkey"
)

const (
	// hygieneEvery is how often the keys of all devices are held against each other.
	// Such keys come from bad random numbers in the factory, so a day is soon enough.
	hygieneEvery = 24 * time.Hour
	// maxModuli bounds one look: the work grows with the square of it. The newest
	// keys are taken, since the older ones have been compared before.
	maxModuli = 50_000
)

// SharedFactors looks for RSA keys of devices that share a prime, so that anyone
// can compute both, and raises an alert on both devices. It gives their number.
func (d *Desk) SharedFactors(ctx context.Context) (int, error) {
	var moduli []*big.Int
	var holders []countersign.Certificate
	err := d.CA.EachKey(ctx, maxModuli, func(c countersign.Certificate) error {
		cert, err := x509.ParseCertificate(c.DER)
		if err != nil {
			return fmt.Errorf("parse certificate %s: %w", c.Serial, err)
		}
		if k, ok := cert.PublicKey.(*rsa.PublicKey); ok {
			c.DER = nil
			moduli, holders = append(moduli, k.N), append(holders, c)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	pairs, err := weakkey.SharedFactors(ctx, moduli)
	if err != nil && len(pairs) == 0 {
		return 0, fmt.Errorf("compare keys: %w", err)
	}
	for _, p := range pairs {
		a, b := &holders[p.I], &holders[p.J]
		if a.Device == b.Device { // one key, renewed
			continue
		}
		err := d.DB.Write(ctx, func(ctx context.Context, tx *store.Tx) error {
			why := "the RSA keys of " + a.Device + " and " + b.Device + " share a prime: both are broken"
			return d.Events.Append(ctx, tx,
				certEvent(countersign.FindingSharedFactor, a, countersign.System, why),
				certEvent(countersign.FindingSharedFactor, b, countersign.System, why))
		})
		if err != nil {
			return 0, err
		}
	}
	return len(pairs), nil
}
