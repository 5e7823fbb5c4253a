package keystore

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Sealer encrypts small secrets that are stored: symmetric keys of devices. It uses
// AES-256-GCM; the context, such as the credential's kind and fleet, is authenticated
// with it, so that a sealed key that is copied to another row cannot be opened.
type Sealer struct {
	aead cipher.AEAD
	key  []byte
}

// MakeSealer creates the server's sealing key at uri, and opens it. An existing one is
// opened. Only a founding calls it: what was sealed with a lost key cannot be opened,
// so a missing key must never be replaced silently.
func (s *Store) MakeSealer(uri string) (*Sealer, error) {
	path, err := s.path(uri)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err == nil {
		return s.OpenSealer(uri)
	}
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return nil, fmt.Errorf("draw a sealing key: %w", err)
	}
	text := base64.StdEncoding.EncodeToString(key[:]) + "\n"
	if err := writeNew(path, []byte(text)); err != nil && !errors.Is(err, os.ErrExist) { // another process was first
		return nil, fmt.Errorf("write sealing key %s: %w", uri, err)
	}
	return s.OpenSealer(uri)
}

// OpenSealer reads the server's sealing key at uri. It returns os.ErrNotExist where
// there is none.
func (s *Store) OpenSealer(uri string) (*Sealer, error) {
	path, err := s.path(uri)
	if err != nil {
		return nil, err
	}
	text, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("open sealing key %s: %w", uri, err)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("sealing key %s is not 32 octets in base64", uri)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return &Sealer{aead, key}, err
}

// Derive returns a key of 32 octets for a purpose, the same on each node that has the
// sealing key (HKDF, RFC 5869).
func (s *Sealer) Derive(purpose string) ([]byte, error) {
	return hkdf.Key(sha256.New, s.key, nil, "countersign "+purpose, sha256.Size)
}

// CheckPurpose is what a check value of the key is derived for. A check value shows
// that two sealing keys are the same and reveals nothing else about them.
const CheckPurpose = "check value"

// Seal encrypts secret for a context.
func (s *Sealer) Seal(secret []byte, context string) []byte {
	return s.aead.Seal(nil, nil, secret, []byte(context)) //nolint:gosec // the mode draws the nonce itself
}

// Open decrypts what Seal made for the same context.
func (s *Sealer) Open(sealed []byte, context string) ([]byte, error) {
	secret, err := s.aead.Open(nil, nil, sealed, []byte(context))
	if err != nil {
		return nil, errors.New("a sealed secret cannot be opened: another sealing key, or a changed row")
	}
	return secret, nil
}
