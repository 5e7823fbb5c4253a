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
	// scramIterations is the minimum of RFC 7677, 4. More would only slow devices down:
	// secrets of 256 random bits cannot be found by search.
	scramIterations = 4096
	scramSalt       = 16
	scramVersion    = 1
)

// Secrets makes, stores and compares the secrets of devices.
type Secrets struct {
	DB  *store.DB
	Now func() time.Time
	// Sealer seals the SCRAM keys of secrets and derives the keys of their hashes.
	Sealer *keystore.Sealer

	hasher hasher
}

// hash returns the verifier of a secret that the server made.
func (k *Secrets) hash(device string, secret []byte) ([]byte, error) {
	return k.keyed("connection secrets", []byte(device), secret)
}

// tried returns a short hash that distinguishes wrong secrets. It does not reveal them: the
// hash is keyed, and its 32 bits are the same for very many secrets.
func (k *Secrets) tried(secret []byte) string {
	sum, err := k.keyed("tried secrets", secret)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(sum[:4])
}

// keyed returns a hash of parts that cannot be computed without the server's key.
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

// scramKeys are the StoredKey and the ServerKey of a secret (RFC 5802, 3).
type scramKeys struct{ stored, server []byte }

// proves reports whether a client's proof is right (RFC 5802, 3): it reveals the ClientKey,
// whose hash is the StoredKey.
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

// scramKeysOf returns the encoded SCRAM keys of a secret, to be sealed. All secrets of a
// device have one salt, so that a client need not name the one that it uses.
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

// OpensSecrets reports whether a sealing key opens the sealed keys of a secret on record.
// found is false if there are none.
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
