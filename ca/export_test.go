package ca

import (
	"crypto"
	"crypto/x509"
	"math/big"
	"time"

	"github.com/countersign-iot/countersign"
)

// Template returns what the certificate of a plan is encoded from.
func (p *Planned) Template() *x509.Certificate { return p.tbs }

// Encodable reports whether this package encodes a template itself.
func Encodable(t *x509.Certificate) bool { return encodable(t) }

// EncodeTBS encodes the TBSCertificate of a template for a key, signed by another.
func EncodeTBS(t, issuer *x509.Certificate, pub, by crypto.PublicKey) ([]byte, error) {
	alg, _, err := algorithmOf(by)
	if err != nil {
		return nil, err
	}
	key, err := encodeKey(pub)
	if err != nil {
		return nil, err
	}
	return encodeTBS(t, issuer, key, alg)
}

// EncodeKey returns a SubjectPublicKeyInfo.
func EncodeKey(pub crypto.PublicKey) ([]byte, error) {
	key, err := encodeKey(pub)
	return key.spki, err
}

// Certifier opens a key and returns what signs certificates with it.
func Certifier(key crypto.Signer) (func(t, issuer *x509.Certificate, pub crypto.PublicKey) ([]byte, error), error) {
	s, err := newSigner(key)
	if err != nil {
		return nil, err
	}
	return func(t, issuer *x509.Certificate, pub crypto.PublicKey) ([]byte, error) {
		k, err := encodeKey(pub)
		if err != nil {
			return nil, err
		}
		return s.certify(t, issuer, pub, k)
	}, nil
}

// ListSigner opens a key and returns what signs empty revocation lists with it.
func ListSigner(key crypto.Signer, issuer *x509.Certificate) (func() ([]byte, error), error) {
	s, err := newSigner(key)
	if err != nil {
		return nil, err
	}
	return func() ([]byte, error) {
		a := &authority{Authority: countersign.Authority{Certificate: issuer}}
		c, err := signCRL(a, s, &countersign.CRL{Number: 1, ThisUpdate: issuer.NotBefore, NextUpdate: issuer.NotAfter}, nil)
		if err != nil {
			return nil, err
		}
		return c.bytes(), nil
	}, nil
}

// SerialsAt draws the serials of a block.
func SerialsAt(at time.Time) ([]byte, error) { return serialsAt(at) }

// CheckSerial reports whether a serial may be in a certificate.
func CheckSerial(n *big.Int) error { return checkSerial(n) }
