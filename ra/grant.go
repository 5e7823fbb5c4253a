package ra

import (
	"time"

	"github.com/countersign-iot/countersign"
)

// grant puts together what the device gets.
func (d *Authority) grant(c *countersign.Certificate, again bool) (*countersign.Grant, error) {
	chain, err := d.CA.Chain(c.Issuer)
	if err != nil {
		return nil, err
	}
	return &countersign.Grant{
		Device: c.Device, Fleet: c.Fleet, Serial: c.Serial, Leaf: c.DER, Chain: chain, Again: again,
		RenewAt: renewAt(c), NotAfter: c.NotAfter,
	}, nil
}

// renewAt is two thirds into the certificate's life, moved by up to a twentieth
// either way by its serial, so that a fleet enrolled in one hour does not renew in
// one hour.
func renewAt(c *countersign.Certificate) time.Time {
	if c.NotAfter.Year() == 9999 { // no well-defined expiry: nothing to renew
		return time.Time{}
	}
	life := c.NotAfter.Sub(c.IssuedAt)
	var spread int64
	if n := c.Serial.Int(); n != nil {
		spread = int64(n.Uint64()%2001) - 1000
	}
	return c.IssuedAt.Add(life*2/3 + life/20*time.Duration(spread)/1000)
}
