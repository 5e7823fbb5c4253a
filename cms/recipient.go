package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha512" // for crypto.Hash
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidRSA      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidRSAOAEP  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidMGF1     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	oidECPublic = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}

	// RFC 5753, 7.1.4: dhSinglePass-stdDH-sha*kdf-scheme.
	oidECDH = map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.SHA256: {1, 3, 132, 1, 11, 1}, crypto.SHA384: {1, 3, 132, 1, 11, 2}, crypto.SHA512: {1, 3, 132, 1, 11, 3},
	}
	oidDigest = map[crypto.Hash]asn1.ObjectIdentifier{
		crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1}, crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2}, crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
	}
)

// addOID adds an AlgorithmIdentifier without parameters.
func addOID(b *cryptobyte.Builder, id asn1.ObjectIdentifier) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(id) })
}

// addIssuerAndSerial names a certificate (RFC 5652, 10.2.4). Every certificate has these
// two, but not every one a subject key identifier.
func addIssuerAndSerial(b *cryptobyte.Builder, cert *x509.Certificate) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(cert.RawIssuer)
		b.AddASN1BigInt(cert.SerialNumber)
	})
}

// readIsMe reads a RecipientIdentifier and reports whether it names cert: by
// issuer and serial, or by subject key identifier under tagKeyID.
func readIsMe(in *cryptobyte.String, cert *x509.Certificate, tagKeyID cbasn1.Tag) (me, ok bool) {
	var id cryptobyte.String
	if in.PeekASN1Tag(tagKeyID) {
		if !in.ReadASN1(&id, tagKeyID) {
			return false, false
		}
		if tagKeyID == tagExplicit0 { // RecipientKeyIdentifier: a date may follow
			var ski cryptobyte.String
			if !id.ReadASN1(&ski, cbasn1.OCTET_STRING) {
				return false, false
			}
			id = ski
		}
		return len(id) > 0 && bytes.Equal(id, cert.SubjectKeyId), true
	}
	var issuer cryptobyte.String
	serial := new(big.Int)
	if !in.ReadASN1(&id, cbasn1.SEQUENCE) || !id.ReadASN1Element(&issuer, cbasn1.SEQUENCE) || !id.ReadASN1Integer(serial) || !id.Empty() {
		return false, false
	}
	return bytes.Equal(issuer, cert.RawIssuer) && serial.Cmp(cert.SerialNumber) == 0, true
}

// wrapRSA makes a KeyTransRecipientInfo (RFC 5652, 6.2.1; RFC 3560).
func (r Recipient) wrapRSA(key []byte) ([]byte, error) {
	pub, ok := r.Certificate.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, errAlgorithm
	}
	encrypted, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, key, nil)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		addIssuerAndSerial(b, r.Certificate)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidRSAOAEP)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { addOID(b, oidDigest[crypto.SHA256]) })
				b.AddASN1(tagExplicit1, func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier(oidMGF1)
						addOID(b, oidDigest[crypto.SHA256])
					})
				})
			})
		})
		b.AddASN1OctetString(encrypted)
	})
	return b.Bytes()
}

func (r Recipient) unwrapRSA(info cryptobyte.String) ([]byte, error) {
	var version int
	if !info.ReadASN1Integer(&version) {
		return nil, errEnvelope
	}
	me, ok := readIsMe(&info, r.Certificate, tagImplicit0)
	if !ok {
		return nil, errEnvelope
	}
	if !me {
		return nil, errNoRecipient
	}
	var algorithm, encrypted cryptobyte.String
	var id asn1.ObjectIdentifier
	if !info.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&id) ||
		!info.ReadASN1(&encrypted, cbasn1.OCTET_STRING) || !info.Empty() {
		return nil, errEnvelope
	}
	private, ok := r.Key.(crypto.Decrypter)
	if !ok {
		return nil, errors.New("the key cannot decrypt")
	}
	// Not PKCS #1 v1.5: errors of its padding can be used as an oracle.
	hash, ok := readOAEP(algorithm)
	if !ok || !id.Equal(oidRSAOAEP) {
		return nil, errAlgorithm
	}
	key, err := private.Decrypt(rand.Reader, encrypted, &rsa.OAEPOptions{Hash: hash})
	if err != nil {
		return nil, errUnwrap
	}
	return key, nil
}

// readOAEP reads RSAES-OAEP-params (RFC 4055, 4.1) that name one hash for both
// uses and no label.
func readOAEP(params cryptobyte.String) (crypto.Hash, bool) {
	var seq, explicit, algorithm, mgf cryptobyte.String
	var hash, mgfID, mgfHash asn1.ObjectIdentifier
	if !params.ReadASN1(&seq, cbasn1.SEQUENCE) || !params.Empty() ||
		!seq.ReadASN1(&explicit, tagExplicit0) || !explicit.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!algorithm.ReadASN1ObjectIdentifier(&hash) ||
		!seq.ReadASN1(&explicit, tagExplicit1) || !explicit.ReadASN1(&mgf, cbasn1.SEQUENCE) ||
		!mgf.ReadASN1ObjectIdentifier(&mgfID) || !mgf.ReadASN1(&algorithm, cbasn1.SEQUENCE) ||
		!algorithm.ReadASN1ObjectIdentifier(&mgfHash) ||
		!seq.Empty() || !mgfID.Equal(oidMGF1) || !mgfHash.Equal(hash) {
		return 0, false
	}
	return named(hash, oidDigest)
}

// wrapEC makes a KeyAgreeRecipientInfo with a fresh key (RFC 5753, 3.1.1).
func (r Recipient) wrapEC(key []byte) ([]byte, error) {
	static, err := staticKey(r.Certificate)
	if err != nil {
		return nil, err
	}
	ephemeral, err := static.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	z, err := ephemeral.ECDH(static)
	if err != nil {
		return nil, err
	}
	defer clear(z)
	var w cryptobyte.Builder
	addOID(&w, oidAESWrap[keySize])
	wrap := w.BytesOrPanic()
	kek, err := deriveKEK(crypto.SHA256, z, wrap, nil, keySize)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	wrapped, err := wrapKey(kek, key)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(tagExplicit1, func(b *cryptobyte.Builder) { // kari [1] IMPLICIT
		b.AddASN1Int64(3)
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { // originator
			b.AddASN1(tagExplicit1, func(b *cryptobyte.Builder) { // originatorKey [1] IMPLICIT
				addOID(b, oidECPublic)
				b.AddASN1BitString(ephemeral.PublicKey().Bytes())
			})
		})
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidECDH[crypto.SHA256])
			b.AddBytes(wrap)
		})
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // recipientEncryptedKeys
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				addIssuerAndSerial(b, r.Certificate)
				b.AddASN1OctetString(wrapped)
			})
		})
	})
	return b.Bytes()
}

func staticKey(cert *x509.Certificate) (*ecdh.PublicKey, error) {
	pub, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, errAlgorithm
	}
	key, err := pub.ECDH()
	if err != nil {
		return nil, fmt.Errorf("the key of the certificate: %w", err)
	}
	return key, nil
}

// agreement is a parsed KeyAgreeRecipientInfo.
type agreement struct {
	hash       crypto.Hash
	point      []byte
	ukm        []byte // nil: none
	wrap       cryptobyte.String
	kekSize    int
	recipients cryptobyte.String
}

func (r Recipient) unwrapEC(info cryptobyte.String) ([]byte, error) {
	a, err := parseAgreement(info)
	if err != nil {
		return nil, err
	}
	for !a.recipients.Empty() {
		var one, wrapped cryptobyte.String
		if !a.recipients.ReadASN1(&one, cbasn1.SEQUENCE) {
			return nil, errEnvelope
		}
		me, ok := readIsMe(&one, r.Certificate, tagExplicit0)
		if !ok || !one.ReadASN1(&wrapped, cbasn1.OCTET_STRING) || !one.Empty() {
			return nil, errEnvelope
		}
		if me {
			return a.open(r.Key, wrapped)
		}
	}
	return nil, errNoRecipient
}

func parseAgreement(info cryptobyte.String) (*agreement, error) {
	var a agreement
	var version int
	var originator, public, algorithm, kdf, explicit, ukm, wrap cryptobyte.String
	var id, kdfID, wrapID asn1.ObjectIdentifier
	var hasUKM bool
	if !info.ReadASN1Integer(&version) ||
		!info.ReadASN1(&originator, tagExplicit0) || !originator.ReadASN1(&public, tagExplicit1) ||
		!public.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&id) || !id.Equal(oidECPublic) ||
		!public.ReadASN1BitStringAsBytes(&a.point) ||
		!info.ReadOptionalASN1(&explicit, &hasUKM, tagExplicit1) ||
		hasUKM && !explicit.ReadASN1(&ukm, cbasn1.OCTET_STRING) ||
		!info.ReadASN1(&kdf, cbasn1.SEQUENCE) || !kdf.ReadASN1ObjectIdentifier(&kdfID) ||
		!kdf.ReadASN1Element(&a.wrap, cbasn1.SEQUENCE) || !kdf.Empty() ||
		!info.ReadASN1(&a.recipients, cbasn1.SEQUENCE) || !info.Empty() {
		return nil, errEnvelope
	}
	whole := a.wrap
	if !whole.ReadASN1(&wrap, cbasn1.SEQUENCE) || !wrap.ReadASN1ObjectIdentifier(&wrapID) {
		return nil, errEnvelope
	}
	if hasUKM {
		a.ukm = append([]byte{}, ukm...)
	}
	var known bool
	if a.hash, known = named(kdfID, oidECDH); !known {
		return nil, errAlgorithm
	}
	if a.kekSize, known = named(wrapID, oidAESWrap); !known {
		return nil, errAlgorithm
	}
	return &a, nil
}

func (a *agreement) open(key crypto.PrivateKey, wrapped []byte) ([]byte, error) {
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key cannot agree on another")
	}
	static, err := private.ECDH()
	if err != nil {
		return nil, err
	}
	ephemeral, err := static.Curve().NewPublicKey(a.point)
	if err != nil {
		return nil, errUnwrap
	}
	z, err := static.ECDH(ephemeral)
	if err != nil {
		return nil, errUnwrap
	}
	defer clear(z)
	kek, err := deriveKEK(a.hash, z, a.wrap, a.ukm, a.kekSize)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	return unwrapKey(kek, wrapped)
}

// wrapSecret makes a KEKRecipientInfo (RFC 5652, 6.2.3; RFC 3565, 2.3).
func (r Recipient) wrapSecret(key []byte) ([]byte, error) {
	id, ok := oidAESWrap[len(r.Secret)]
	if !ok {
		return nil, fmt.Errorf("a secret of %d octets is not an AES key", len(r.Secret))
	}
	wrapped, err := wrapKey(r.Secret, key)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(tagExplicit2, func(b *cryptobyte.Builder) { // kekri [2] IMPLICIT
		b.AddASN1Int64(4)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1OctetString(r.SecretID) })
		addOID(b, id)
		b.AddASN1OctetString(wrapped)
	})
	return b.Bytes()
}

func (r Recipient) unwrapSecret(info cryptobyte.String) ([]byte, error) {
	var version int
	var kekID, id, algorithm, wrapped cryptobyte.String
	var wrapID asn1.ObjectIdentifier
	if !info.ReadASN1Integer(&version) ||
		!info.ReadASN1(&kekID, cbasn1.SEQUENCE) || !kekID.ReadASN1(&id, cbasn1.OCTET_STRING) ||
		!info.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&wrapID) ||
		!info.ReadASN1(&wrapped, cbasn1.OCTET_STRING) || !info.Empty() {
		return nil, errEnvelope
	}
	if !bytes.Equal(id, r.SecretID) {
		return nil, errNoRecipient
	}
	if size, known := named(wrapID, oidAESWrap); !known || size != len(r.Secret) {
		return nil, errAlgorithm
	}
	return unwrapKey(r.Secret, wrapped)
}
