package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"

	"github.com/countersign-iot/countersign"
)

const (
	minRSA = 2048
	// maxRSA bounds what one verification can cost: 4096 bits is 130 us here.
	maxRSA = 4096
	// minExponent is the usual public exponent. Smaller ones have a history of
	// broken padding checks, and no device maker needs them.
	minExponent = 65537
)

// keyTypes are the names that CheckKey returns.
var keyTypes = []string{"P-256", "P-384", "P-521", "Ed25519", "RSA"}

// CheckKey reports whether a public key may be in a certificate, and names its
// type: P-256, P-384, P-521, Ed25519 or RSA.
func CheckKey(pub crypto.PublicKey) (kind string, err error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return k.Curve.Params().Name, nil
		case nil:
			return "", weak("the key names no curve")
		}
		return "", weak("curve %s is not accepted", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return "Ed25519", nil
	case *rsa.PublicKey:
		n := k.N.BitLen()
		switch {
		case n < minRSA || n > maxRSA:
			return "", weak("RSA key of %d bits is not between %d and %d", n, minRSA, maxRSA)
		case k.E < minExponent || k.E%2 == 0:
			return "", weak("RSA public exponent %d is not an odd number from %d", k.E, minExponent)
		case k.N.Bit(0) == 0:
			return "", weak("RSA modulus is even")
		}
		return "RSA", nil
	}
	return "", weak("key type %T is not accepted", pub)
}

func weak(format string, args ...any) error {
	return countersign.Errorf(countersign.WeakKey, format, args...).
		WithNext("make a P-256, P-384, Ed25519 or RSA 2048-4096 key")
}

// KeyHash is the hex SHA-256 of the key's SubjectPublicKeyInfo, by which the
// registry distinguishes keys.
func KeyHash(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("encode public key: %w", err)
	}
	return hexSum(der), nil
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// keyID is the key identifier of RFC 7093, section 2, method 1: the leftmost 160
// bits of the SHA-256 of the public key.
func keyID(pub crypto.PublicKey) ([]byte, error) {
	bits, err := publicKeyBits(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(bits)
	return sum[:20], nil
}

func publicKeyBits(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, fmt.Errorf("decode public key: %w", err)
	}
	return spki.PublicKey.RightAlign(), nil
}
