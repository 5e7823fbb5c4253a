package access

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
)

const (
	// scramIterations is the least of RFC 7677, 4. More would only slow devices
	// down: these secrets cannot be searched for.
	scramIterations = 4096
	scramSalt       = 16
	scramVersion    = 1
)

// Secrets makes, keeps and compares the secrets of devices.
type Secrets struct {
	DB  *store.DB
	Now func() time.Time
	// Sealer seals the SCRAM keys of secrets, and derives the keys of their hashes.
	Sealer *keystore.Sealer

	hasher hasher
}

// hash is by what a secret that we made is known.
func (k *Secrets) hash(device string, secret []byte) ([]byte, error) {
	return k.keyed("connection secrets", []byte(device), secret)
}

// tried distinguishes wrong secrets and reveals nothing else about them: 32 bits under a
// key of ours fit too many secrets to find it out.
func (k *Secrets) tried(secret []byte) string {
	sum, err := k.keyed("tried secrets", secret)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(sum[:4])
}

// keyed is a hash that cannot be computed without the server's key.
func (k *Secrets) keyed(purpose string, parts ...[]byte) ([]byte, error) {
	key, err := k.Sealer.Derive(purpose)
	if err != nil {
		return nil, fmt.Errorf("couldn't derive the key of %s: %w", purpose, err)
	}
	h := hmac.New(sha256.New, key)
	for i, p := range parts {
		if i > 0 {
			h.Write([]byte{0}) // no part but the last may hold one
		}
		h.Write(p)
	}
	return h.Sum(nil), nil
}

// scramKeys are what a server keeps of a secret (RFC 5802, 3).
type scramKeys struct{ stored, server []byte }

// proves checks a client's proof (RFC 5802, 3): the client's key is what the proof
// hides, and its hash is on record.
func (k scramKeys) proves(auth, proof []byte) bool {
	if len(proof) != sha256.Size {
		return false
	}
	key := make([]byte, sha256.Size)
	subtle.XORBytes(key, mac(k.stored, auth), proof)
	sum := sha256.Sum256(key)
	return subtle.ConstantTimeCompare(sum[:], k.stored) == 1
}

func mac(key, data []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(data)
	return h.Sum(nil)
}

func makeSCRAMKeys(secret string, salt []byte, iterations int) (scramKeys, error) {
	salted, err := pbkdf2.Key(sha256.New, secret, salt, iterations, sha256.Size)
	if err != nil {
		return scramKeys{}, fmt.Errorf("couldn't make SCRAM keys: %w", err)
	}
	stored := sha256.Sum256(mac(salted, []byte("Client Key")))
	return scramKeys{stored[:], mac(salted, []byte("Server Key"))}, nil
}

// scramKeysOf are the keys of a secret, as they are sealed. All secrets of a device
// have one salt, so that a client need not say which of them it has.
func (k *Secrets) scramKeysOf(device, secret string) ([]byte, error) {
	salt, err := k.scramSaltOf(device)
	if err != nil {
		return nil, err
	}
	keys, err := makeSCRAMKeys(secret, salt, scramIterations)
	return slices.Concat([]byte{scramVersion}, keys.stored, keys.server), err
}

func (k *Secrets) scramSaltOf(name string) ([]byte, error) {
	sum, err := k.keyed("scram salts", []byte(name))
	if err != nil {
		return nil, err
	}
	return sum[:scramSalt], nil
}

// OpensSecrets reports whether a sealing key opens what is sealed of a secret; found is
// false where nothing is.
func OpensSecrets(ctx context.Context, r store.Reader, s *keystore.Sealer) (opens, found bool, err error) {
	var id string
	var sealed []byte
	err = r.QueryRow(ctx, `SELECT id, scram FROM device_secret WHERE scram IS NOT NULL LIMIT 1`).Scan(&id, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("look for a sealed secret: %w", err)
	}
	_, err = s.Open(sealed, scramContext(id))
	return err == nil, true, nil
}

func scramContext(id string) string { return "scram\x00" + id }
