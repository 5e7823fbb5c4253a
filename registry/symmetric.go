package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
)

// DeviceKey reads the symmetric key that a device has in a fleet, as Find does. Azure
// compares device ids without regard to case.
func (r *Registry) DeviceKey(ctx context.Context, rd store.Reader, fleet, device string) (Credential, error) {
	return r.Find(ctx, rd, countersign.MethodKey, keyLookup(&Credential{Kind: countersign.MethodKey, Fleet: fleet, Device: device}))
}

// keyLookup returns what the symmetric key of a device, or of the group that its label
// names, is found by.
func keyLookup(c *Credential) string {
	if c.Kind == countersign.MethodGroup {
		return c.Fleet + "/" + c.Label
	}
	return c.Fleet + "/" + countersign.FoldDeviceID(c.Device)
}

// sealContext binds sealed keys to the row that they are in.
func sealContext(c *Credential, lookup string) string {
	return string(c.Kind) + "\x00" + c.Fleet + "\x00" + lookup
}

// SealKeys returns what a credential of kind key or group is found by, with its keys.
func SealKeys(s *keystore.Sealer, c *Credential, k attest.SymmetricKeys) (Lookup, error) {
	text, err := json.Marshal(k)
	if err != nil {
		return Lookup{}, fmt.Errorf("encode keys: %w", err)
	}
	lookup := keyLookup(c)
	return Lookup{First: lookup, Sealed: s.Seal(text, sealContext(c, lookup))}, nil
}

// OpenKeys returns the symmetric keys of a credential of kind key or group.
func (c *Credential) OpenKeys(s *keystore.Sealer) (k attest.SymmetricKeys, err error) {
	plain, err := s.Open(c.sealed, sealContext(c, c.lookup))
	if err != nil {
		return k, fmt.Errorf("open the keys of %s: %w", c.ID, err)
	}
	if err := json.Unmarshal(plain, &k); err != nil {
		return k, fmt.Errorf("read the keys of %s: %w", c.ID, err)
	}
	return k, nil
}

// OpensKeys reports whether a sealing key opens the symmetric keys on record; found is
// false where there are none.
func (r *Registry) OpensKeys(ctx context.Context, s *keystore.Sealer) (opens, found bool, err error) {
	c, err := scanCredential(r.DB.QueryRow(ctx, `SELECT `+credentialColumns+` FROM credential WHERE sealed IS NOT NULL LIMIT 1`))
	if errors.Is(err, sql.ErrNoRows) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("look for a sealed credential: %w", err)
	}
	_, err = c.OpenKeys(s)
	return err == nil, true, nil
}
