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

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

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

// subjectKey is a public key as certificates have it.
type subjectKey struct {
	spki []byte // SubjectPublicKeyInfo, DER
	bits []byte // its subjectPublicKey
}

var (
	oidECDSAKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidRSAKey   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidEd25519  = asn1.ObjectIdentifier{1, 3, 101, 112}
)

// curveIDs are the curves that encodeKey writes (RFC 5480, 2.1.1.1).
var curveIDs = map[elliptic.Curve]asn1.ObjectIdentifier{
	elliptic.P256(): {1, 2, 840, 10045, 3, 1, 7},
	elliptic.P384(): {1, 3, 132, 0, 34},
	elliptic.P521(): {1, 3, 132, 0, 35},
}

// encodeKey encodes a public key, octet for octet as x509.MarshalPKIXPublicKey does. A
// type that CheckKey refuses is left to that.
func encodeKey(pub crypto.PublicKey) (key subjectKey, err error) {
	var algorithm cryptobyte.BuilderContinuation
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		curve := curveIDs[k.Curve]
		if curve == nil {
			return encodeOtherKey(pub)
		}
		if key.bits, err = k.Bytes(); err != nil {
			return key, fmt.Errorf("encode public key: %w", err)
		}
		algorithm = func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidECDSAKey)
			b.AddASN1ObjectIdentifier(curve)
		}
	case ed25519.PublicKey:
		key.bits = k
		algorithm = func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidEd25519) }
	case *rsa.PublicKey:
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1BigInt(k.N)
			b.AddASN1Int64(int64(k.E))
		})
		if key.bits, err = b.Bytes(); err != nil {
			return key, fmt.Errorf("encode public key: %w", err)
		}
		algorithm = func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidRSAKey)
			b.AddASN1NULL()
		}
	default:
		return encodeOtherKey(pub)
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(key.bits)+keyOverhead))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, algorithm)
		b.AddASN1BitString(key.bits)
	})
	if key.spki, err = b.Bytes(); err != nil {
		return key, fmt.Errorf("encode public key: %w", err)
	}
	return key, nil
}

// keyOverhead is what a SubjectPublicKeyInfo has beside the key, at most.
const keyOverhead = 36

func encodeOtherKey(pub crypto.PublicKey) (key subjectKey, err error) {
	if key.spki, err = x509.MarshalPKIXPublicKey(pub); err != nil {
		return key, fmt.Errorf("encode public key: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if _, err := asn1.Unmarshal(key.spki, &spki); err != nil {
		return key, fmt.Errorf("decode public key: %w", err)
	}
	key.bits = spki.PublicKey.RightAlign()
	return key, nil
}

// id returns the key identifier of RFC 7093, section 2, method 1: the leftmost 160 bits
// of the SHA-256 of the public key.
func (k subjectKey) id() []byte {
	sum := sha256.Sum256(k.bits)
	return sum[:20]
}

// hash returns what KeyHash does.
func (k subjectKey) hash() string { return hexSum(k.spki) }

// KeyHash is the hex SHA-256 of the key's SubjectPublicKeyInfo, by which the
// registry distinguishes keys.
func KeyHash(pub crypto.PublicKey) (string, error) {
	key, err := encodeKey(pub)
	if err != nil {
		return "", err
	}
	return key.hash(), nil
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
