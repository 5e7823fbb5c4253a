// Package keystore opens the crypto.Signer of a key URI. A file: URI is a PKCS #8
// PEM file, plain or encrypted with a passphrase (RFC 5958, RFC 8018), that
// openssl reads too. It creates and opens keys; it does not know what they sign.
package keystore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/youmark/pkcs8"
)

// Why a key that exists cannot be opened.
var (
	// ErrPassphraseMissing means that the key is encrypted and there is no passphrase.
	ErrPassphraseMissing = errors.New("it is encrypted, and no passphrase was given")
	// ErrPassphraseWrong means that the passphrase does not open the key. The padding of
	// a damaged file fails in the same way.
	ErrPassphraseWrong = errors.New("the passphrase does not open it")
)

// encrypted is the PEM type of an encrypted key (RFC 7468, 11).
const encrypted = "ENCRYPTED PRIVATE KEY"

// maxKeyFile bounds a key file: an encrypted RSA-4096 key is under 4 KiB.
const maxKeyFile = 64 << 10

// Store opens and creates keys. Relative file: URIs are below Dir.
type Store struct {
	Dir string
}

// wrap is how a key is derived from a passphrase: PBKDF2 with HMAC-SHA-256 and AES-256-CBC,
// since openssl 3 reads it everywhere; 600,000 rounds as OWASP advises for it.
var wrap = &pkcs8.Opts{
	Cipher:  pkcs8.AES256CBC,
	KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 600_000, HMACHash: crypto.SHA256},
}

// KeyTypes are the types of keys that Create makes; the first is the usual one.
var KeyTypes = []string{"P-256", "P-384", "P-521", "RSA-2048", "RSA-3072", "RSA-4096"}

// generate returns a new key of a type; empty is P-256.
func generate(keyType string) (crypto.Signer, error) {
	curves := map[string]elliptic.Curve{"": elliptic.P256(), "P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}
	if curve := curves[keyType]; curve != nil {
		return ecdsa.GenerateKey(curve, rand.Reader)
	}
	if bits := map[string]int{"RSA-2048": 2048, "RSA-3072": 3072, "RSA-4096": 4096}[keyType]; bits > 0 {
		return rsa.GenerateKey(rand.Reader, bits)
	}
	return nil, fmt.Errorf("key type %.40q is not one of %s", keyType, strings.Join(KeyTypes, ", "))
}

// Create makes a key of one of KeyTypes at uri, encrypted when passphrase is not
// empty, and opens it. An empty type is P-256. An existing key is never overwritten.
func (s *Store) Create(uri, keyType string, passphrase []byte) (crypto.Signer, error) {
	path, err := s.path(uri)
	if err != nil {
		return nil, err
	}
	key, err := generate(keyType)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	block := &pem.Block{Type: "PRIVATE KEY"}
	if len(passphrase) > 0 {
		block.Type = encrypted
		block.Bytes, err = pkcs8.MarshalPrivateKey(key, passphrase, wrap)
	} else {
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(key)
	}
	if err != nil {
		return nil, fmt.Errorf("encode key %s: %w", uri, err)
	}
	if err := writeNew(path, pem.EncodeToMemory(block)); err != nil {
		return nil, fmt.Errorf("write key %s: %w", uri, err)
	}
	return key, nil
}

// Open returns the signer behind uri. It returns ErrPassphraseMissing or
// ErrPassphraseWrong where the key is encrypted and passphrase does not open it,
// os.ErrNotExist where there is none. A passphrase for a plain key is ignored; see
// Wrapped.
func (s *Store) Open(uri string, passphrase []byte) (crypto.Signer, error) {
	block, err := s.block(uri)
	if err != nil {
		return nil, err
	}
	var key any
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case encrypted:
		if len(passphrase) == 0 {
			return nil, fmt.Errorf("open key %s: %w", uri, ErrPassphraseMissing)
		}
		key, err = pkcs8.ParsePKCS8PrivateKey(block.Bytes, passphrase)
		if err != nil {
			return nil, fmt.Errorf("open key %s: %w", uri, ErrPassphraseWrong)
		}
	default:
		return nil, fmt.Errorf("read key %s: PEM block %q is not PKCS #8", uri, block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("parse key %s: %w", uri, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("open key %s: a %T cannot sign", uri, key)
	}
	return signer, nil
}

// Wrapped reports whether the key at uri is encrypted.
func (s *Store) Wrapped(uri string) (bool, error) {
	block, err := s.block(uri)
	return err == nil && block.Type == encrypted, err
}

// block reads the PEM block of a key.
func (s *Store) block(uri string) (*pem.Block, error) {
	path, err := s.path(uri)
	if err != nil {
		return nil, err
	}
	raw, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", uri, err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("read key %s: no PEM block", uri)
	}
	return block, nil
}

// Path returns the file of a key, for messages.
func (s *Store) Path(uri string) string {
	path, err := s.path(uri)
	if err != nil {
		return uri
	}
	return path
}

func (s *Store) path(uri string) (string, error) {
	rest, ok := strings.CutPrefix(uri, "file:")
	if !ok || rest == "" {
		return "", fmt.Errorf("key URI %q: only file: is known", uri)
	}
	if filepath.IsAbs(rest) {
		return rest, nil
	}
	return filepath.Join(s.Dir, rest), nil
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%d bytes is too large for a key", info.Size())
	}
	return os.ReadFile(path) //nolint:gosec // the operator names the key
}

// writeNew creates a file with a secret: mode 0600 from its first byte, complete and
// on disk before it has its name, and never in the place of another.
func writeNew(path string, data []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600 by contract
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreMissing(os.Remove(tmp.Name()))) }()
	if _, err = tmp.Write(data); err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the folder of a key
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
