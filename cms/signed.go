package cms

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3} // RFC 5652, 11.1
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4} // RFC 5652, 11.2
)

// suite is how one kind of key signs.
type suite struct {
	oid    asn1.ObjectIdentifier
	digest crypto.Hash // of the content
	null   bool        // parameters of the signature algorithm are NULL, not absent
	x509   x509.SignatureAlgorithm
}

var suites = []suite{
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, crypto.SHA256, false, x509.ECDSAWithSHA256},
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, crypto.SHA384, false, x509.ECDSAWithSHA384},
	{asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, crypto.SHA512, false, x509.ECDSAWithSHA512},
	{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, crypto.SHA256, true, x509.SHA256WithRSA},
	{asn1.ObjectIdentifier{1, 3, 101, 112}, crypto.SHA512, false, x509.PureEd25519}, // RFC 8419, 3
}

func suiteFor(public crypto.PublicKey) (suite, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P384():
			return suites[1], nil
		case elliptic.P521():
			return suites[2], nil
		}
		return suites[0], nil
	case *rsa.PublicKey:
		return suites[3], nil
	case ed25519.PublicKey:
		return suites[4], nil
	}
	return suite{}, fmt.Errorf("keys of type %T cannot sign", public)
}

// sign signs the attributes: Ed25519 needs them whole, others their digest.
func (s suite) sign(key crypto.Signer, attrs []byte) ([]byte, error) {
	if s.x509 == x509.PureEd25519 {
		return key.Sign(rand.Reader, attrs, crypto.Hash(0))
	}
	h := s.digest.New()
	h.Write(attrs)
	return key.Sign(rand.Reader, h.Sum(nil), s.digest)
}

// Sign returns the DER of a SignedData (RFC 5652, 5) over content, signed once, with
// certs: the signer's certificate first, then its path. It is not wrapped in a
// ContentInfo, as inside of an EnvelopedData.
func Sign(contentType asn1.ObjectIdentifier, content []byte, key crypto.Signer, certs ...*x509.Certificate) ([]byte, error) {
	if len(certs) == 0 || len(certs) > MaxCertificates {
		return nil, fmt.Errorf("couldn't sign: got %d certificates, want 1 to %d", len(certs), MaxCertificates)
	}
	how, err := suiteFor(key.Public())
	if err != nil {
		return nil, fmt.Errorf("couldn't sign: %w", err)
	}
	h := how.digest.New()
	h.Write(content)
	attrs := signedAttrs(contentType, h.Sum(nil))
	signature, err := how.sign(key, element(cbasn1.SET, attrs))
	if err != nil {
		return nil, fmt.Errorf("couldn't sign: %w", err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(3) // the content is not id-data
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { addOID(b, oidDigest[how.digest]) })
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(contentType)
			b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddASN1OctetString(content) })
		})
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) {
			for _, c := range certs {
				b.AddBytes(c.Raw)
			}
		})
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // SignerInfo
				b.AddASN1Int64(1)
				addIssuerAndSerial(b, certs[0])
				addOID(b, oidDigest[how.digest])
				b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddBytes(attrs) })
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(how.oid)
					if how.null {
						b.AddASN1NULL()
					}
				})
				b.AddASN1OctetString(signature)
			})
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("couldn't sign: %w", err)
	}
	return der, nil
}

// signedAttrs returns the content of the set of signed attributes. DER sorts it,
// and the shorter of these two comes first.
func signedAttrs(contentType asn1.ObjectIdentifier, digest []byte) []byte {
	attr := func(id asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) []byte {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(id)
			b.AddASN1(cbasn1.SET, value)
		})
		return b.BytesOrPanic()
	}
	return append(
		attr(oidContentType, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(contentType) }),
		attr(oidMessageDigest, func(b *cryptobyte.Builder) { b.AddASN1OctetString(digest) })...)
}

func element(tag cbasn1.Tag, content []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(content) })
	return b.BytesOrPanic()
}

var (
	errSigned    = errors.New("couldn't verify: not a SignedData in DER with one signer")
	errSignature = errors.New("couldn't verify: the signature is wrong")
)

// Verify verifies a message as [Sign] writes it: a SignedData with its content, one
// signer, signed attributes, and the signer's certificate inside. It returns that
// certificate and proves only that its key signed; the caller decides whether to
// trust it.
func Verify(der []byte) (contentType asn1.ObjectIdentifier, content []byte, signer *x509.Certificate, err error) {
	if len(der) > MaxSize {
		return nil, nil, nil, fmt.Errorf("couldn't verify: %d octets are over %d", len(der), MaxSize)
	}
	in := cryptobyte.String(der)
	var sd, encap, explicit, octets, set, infos, info cryptobyte.String
	var version int
	if !in.ReadASN1(&sd, cbasn1.SEQUENCE) || !in.Empty() ||
		!sd.ReadASN1Integer(&version) || !sd.SkipASN1(cbasn1.SET) ||
		!sd.ReadASN1(&encap, cbasn1.SEQUENCE) || !encap.ReadASN1ObjectIdentifier(&contentType) ||
		!encap.ReadASN1(&explicit, tagExplicit0) || !encap.Empty() ||
		!explicit.ReadASN1(&octets, cbasn1.OCTET_STRING) || !explicit.Empty() ||
		!sd.ReadASN1(&set, tagExplicit0) ||
		!sd.SkipOptionalASN1(tagExplicit1) ||
		!sd.ReadASN1(&infos, cbasn1.SET) || !sd.Empty() ||
		!infos.ReadASN1(&info, cbasn1.SEQUENCE) || !infos.Empty() {
		return nil, nil, nil, errSigned
	}
	certs, err := readCertificates(set)
	if err != nil {
		return nil, nil, nil, err
	}
	signer, err = verifySigner(info, certs, contentType, octets)
	if err != nil {
		return nil, nil, nil, err
	}
	return contentType, octets, signer, nil
}

func verifySigner(info cryptobyte.String, certs [][]byte, contentType asn1.ObjectIdentifier, content []byte) (*x509.Certificate, error) {
	var version int
	if !info.ReadASN1Integer(&version) {
		return nil, errSigned
	}
	var signer *x509.Certificate
	after := info
	for _, der := range certs {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("couldn't verify: %w", err)
		}
		after = info
		me, ok := readIsMe(&after, cert, tagImplicit0)
		if !ok {
			return nil, errSigned
		}
		if me {
			signer = cert
			break
		}
	}
	if signer == nil {
		return nil, errors.New("couldn't verify: the certificate of the signer is not in the message")
	}
	var digestAlg, attrs, sigAlg, signature cryptobyte.String
	var digestID, sigID asn1.ObjectIdentifier
	if !after.ReadASN1(&digestAlg, cbasn1.SEQUENCE) || !digestAlg.ReadASN1ObjectIdentifier(&digestID) ||
		!after.ReadASN1(&attrs, tagExplicit0) ||
		!after.ReadASN1(&sigAlg, cbasn1.SEQUENCE) || !sigAlg.ReadASN1ObjectIdentifier(&sigID) ||
		!after.ReadASN1(&signature, cbasn1.OCTET_STRING) ||
		!after.SkipOptionalASN1(tagExplicit1) || !after.Empty() {
		return nil, errSigned
	}
	digest, known := named(digestID, oidDigest)
	if !known {
		return nil, fmt.Errorf("couldn't verify: %w", errAlgorithm)
	}
	h := digest.New()
	h.Write(content)
	if !attrsMatch(attrs, contentType, h.Sum(nil)) {
		return nil, errSignature
	}
	for _, s := range suites {
		// RSA's identifier may name the key alone (RFC 3370, 3.2).
		if s.oid.Equal(sigID) || s.x509 == x509.SHA256WithRSA && sigID.Equal(oidRSA) && digest == crypto.SHA256 {
			if signer.CheckSignature(s.x509, element(cbasn1.SET, attrs), signature) != nil {
				return nil, errSignature
			}
			return signer, nil
		}
	}
	return nil, fmt.Errorf("couldn't verify: %w", errAlgorithm)
}

// attrsMatch reports whether content type and message digest occur, each once, and match
// (RFC 5652, 5.3).
func attrsMatch(attrs cryptobyte.String, contentType asn1.ObjectIdentifier, digest []byte) bool {
	types, digests := 0, 0
	for !attrs.Empty() {
		var attr, set, octets cryptobyte.String
		var id, value asn1.ObjectIdentifier
		if !attrs.ReadASN1(&attr, cbasn1.SEQUENCE) || !attr.ReadASN1ObjectIdentifier(&id) ||
			!attr.ReadASN1(&set, cbasn1.SET) || !attr.Empty() {
			return false
		}
		switch {
		case id.Equal(oidContentType):
			types++
			if !set.ReadASN1ObjectIdentifier(&value) || !set.Empty() || !value.Equal(contentType) {
				return false
			}
		case id.Equal(oidMessageDigest):
			digests++
			if !set.ReadASN1(&octets, cbasn1.OCTET_STRING) || !set.Empty() || subtle.ConstantTimeCompare(octets, digest) != 1 {
				return false
			}
		}
	}
	return types == 1 && digests == 1
}
