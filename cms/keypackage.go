package cms

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// oidKeyPackage is id-ct-KP-aKeyPackage (RFC 5958, 2).
var oidKeyPackage = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 2, 1, 2, 78, 5}

// SealKey packs a private key, PKCS #8 in DER, as servers deliver one that they
// generated (RFC 7030, 4.4.2; RFC 5958, 4): the package is signed, and the whole
// encrypted. certs begins with the signer's.
func SealKey(pkcs8 []byte, to Recipient, signer crypto.Signer, certs ...*x509.Certificate) ([]byte, error) {
	if !isOneSequence(pkcs8) {
		return nil, errors.New("couldn't seal key: not PKCS #8 in DER")
	}
	pkg := element(cbasn1.SEQUENCE, pkcs8) // AsymmetricKeyPackage: a list of one
	defer clear(pkg)
	signed, err := Sign(oidKeyPackage, pkg, signer, certs...)
	if err != nil {
		return nil, err
	}
	defer clear(signed)
	return Encrypt(oidSignedData, signed, to)
}

// OpenKey returns the private key in what [SealKey] made, and the signer's certificate.
func OpenKey(der []byte, as Recipient) (pkcs8 []byte, signer *x509.Certificate, err error) {
	contentType, signed, err := Decrypt(der, as)
	if err != nil {
		return nil, nil, err
	}
	if !contentType.Equal(oidSignedData) {
		return nil, nil, errors.New("couldn't open key: it is not signed")
	}
	contentType, pkg, signer, err := Verify(signed)
	if err != nil {
		return nil, nil, err
	}
	in := cryptobyte.String(pkg)
	var list, key cryptobyte.String
	if !contentType.Equal(oidKeyPackage) || !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() ||
		!list.ReadASN1Element(&key, cbasn1.SEQUENCE) || !list.Empty() {
		return nil, nil, errors.New("couldn't open key: the message has no package of one key")
	}
	return bytes.Clone(key), signer, nil
}
