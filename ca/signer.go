package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
)

// ErrBadSignature means that the key of an authority made a signature that its own
// public key does not verify.
var ErrBadSignature = errors.New("the key makes signatures that its public key does not verify")

// signer is the key of an authority, ready to sign.
type signer struct {
	crypto.Signer
	alg  []byte // AlgorithmIdentifier, DER
	hash crypto.Hash
	each bool // each signature is verified
}

// trial is what a key signs when it is opened. It is no DER, so that its signature is one
// over nothing that a relying party would read.
const trial = "a trial of this key when it is opened"

// newSigner has a key sign once, and verifies that. A key of crypto/ecdsa or crypto/rsa
// needs no more: it is in the memory of this process and signs by code of the process,
// and crypto/rsa verifies each result itself. A key of any other kind may be one that a
// device or a server keeps, which can answer with a wrong signature at any time, so each
// signature is verified before what it is on is handed out. So is each of Ed25519, which
// is deterministic: a wrong one can reveal the key.
func newSigner(key crypto.Signer) (*signer, error) {
	s := &signer{Signer: key}
	switch key.(type) {
	case *ecdsa.PrivateKey, *rsa.PrivateKey:
	default:
		s.each = true
	}
	var err error
	if s.alg, s.hash, err = algorithmOf(key.Public()); err != nil {
		return nil, err
	}
	m := s.message([]byte(trial))
	sig, err := s.Sign(rand.Reader, m, s.hash)
	if err != nil {
		return nil, fmt.Errorf("sign with it: %w", err)
	}
	return s, s.verify(m, sig)
}

// sign returns the signature over what the parts are together: of a certificate, a list or
// an OCSP answer. It is ErrBadSignature where the key made a wrong one.
func (s *signer) sign(parts ...[]byte) ([]byte, error) {
	m := s.message(parts...)
	sig, err := s.Sign(rand.Reader, m, s.hash)
	if err == nil && s.each {
		err = s.verify(m, sig)
	}
	return sig, err
}

// message returns what the key signs: the hash of the parts, or all of them under Ed25519.
func (s *signer) message(parts ...[]byte) []byte {
	if s.hash == 0 {
		return bytes.Join(parts, nil)
	}
	h := s.hash.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// verify returns ErrBadSignature unless sig is the key's over a message.
func (s *signer) verify(m, sig []byte) error {
	good := false
	switch pub := s.Public().(type) {
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(pub, m, sig)
	case *rsa.PublicKey:
		good = rsa.VerifyPKCS1v15(pub, s.hash, m, sig) == nil
	case ed25519.PublicKey:
		good = ed25519.Verify(pub, m, sig)
	}
	if !good {
		return ErrBadSignature
	}
	return nil
}

// certify returns the signed certificate of a template. What the encoder does not write
// is left to x509.CreateCertificate, which makes the same of all others too.
func (s *signer) certify(t, issuer *x509.Certificate, pub crypto.PublicKey, key subjectKey) ([]byte, error) {
	if err := checkSerial(t.SerialNumber); err != nil {
		return nil, err
	}
	if !encodable(t) {
		return x509.CreateCertificate(rand.Reader, t, issuer, pub, s.Signer)
	}
	tbs, err := encodeTBS(t, issuer, key, s.alg)
	if err != nil {
		return nil, err
	}
	sig, err := s.sign(tbs)
	if err != nil {
		return nil, err
	}
	return withSignature(tbs, s.alg, sig)
}
