// Package keystore gives a crypto.Signer for a key URI. A file: URI is a PKCS #8
// PEM file, plain or encrypted with a passphrase (RFC 5958, RFC 8018), that
// openssl reads too. It makes and opens keys; it does not know what they sign.
package keystore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/youmark/pkcs8"
)

// ErrPassphrase says that a key is encrypted and the passphrase is missing or wrong.
var ErrPassphrase = errors.New("passphrase missing or wrong")

// maxKeyFile bounds a key file: an encrypted RSA-4096 key is under 4 KiB.
const maxKeyFile = 64 << 10

// Store opens and makes keys. Relative file: URIs are below Dir.
type Store struct {
	Dir string
}

// wrap is how a passphrase becomes a key: PBKDF2 with HMAC-SHA-256 and AES-256-CBC,
// since openssl 3 reads it everywhere; 600,000 rounds as OWASP advises for it.
var wrap = &pkcs8.Opts{
	Cipher:  pkcs8.AES256CBC,
	KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 16, IterationCount: 600_000, HMACHash: crypto.SHA256},
}

// Create makes a P-256 key at uri, encrypted when passphrase is not empty, and
// opens it. An existing key is never overwritten.
func (s *Store) Create(uri string, passphrase []byte) (crypto.Signer, error) {
	path, err := s.path(uri)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	block := &pem.Block{Type: "PRIVATE KEY"}
	if len(passphrase) > 0 {
		block.Type = "ENCRYPTED PRIVATE KEY"
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

// Open gives the signer behind uri. It returns ErrPassphrase where the key is
// encrypted and passphrase does not open it, os.ErrNotExist where there is none.
func (s *Store) Open(uri string, passphrase []byte) (crypto.Signer, error) {
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
	var key any
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		if len(passphrase) == 0 {
			return nil, fmt.Errorf("open key %s: %w", uri, ErrPassphrase)
		}
		key, err = pkcs8.ParsePKCS8PrivateKey(block.Bytes, passphrase)
		if err != nil {
			// The library cannot tell a wrong passphrase from a damaged file: the padding fails for both.
			return nil, fmt.Errorf("open key %s: %w", uri, ErrPassphrase)
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

// writeNew makes a file that holds a secret: mode 0600 from its first byte,
// complete and on disk before it has its name, and never over another.
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
