// Package cms encodes and decodes the forms of the Cryptographic Message Syntax
// (RFC 5652) that enrollment needs: the degenerate SignedData without signers that
// carries certificates, known as certs-only (RFC 8551, 3.2.2), and the private
// key that a server made, signed and encrypted for its device (RFC 7030, 4.4.2):
// SignedData with one signer, EnvelopedData for one recipient. It checks
// structure and signatures; the caller decides whether to trust the certificates.
package cms

import (
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxCertificates is the most certificates in one message: a certification path
// plus the old-with-new pairs of a rollover (RFC 7030, 4.1.3) is under ten.
const MaxCertificates = 32

// MaxSize is the largest message, DER. It leaves 8 KiB for each certificate,
// enough for post-quantum keys and signatures.
const MaxSize = MaxCertificates * 8 << 10

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1} // RFC 5652, 4
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2} // RFC 5652, 5.1

	tagExplicit0 = cbasn1.Tag(0).ContextSpecific().Constructed()
	tagExplicit1 = cbasn1.Tag(1).ContextSpecific().Constructed()
)

// EncodeCertsOnly returns the DER of a certs-only message that carries certs, each
// the DER of one certificate. The order is kept: strict DER would sort the set,
// but receivers read it as a path, and RFC 5652 asks for BER only.
func EncodeCertsOnly(certs ...[]byte) ([]byte, error) {
	if len(certs) == 0 || len(certs) > MaxCertificates {
		return nil, fmt.Errorf("couldn't encode %d certificates: a message holds 1 to %d", len(certs), MaxCertificates)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(info *cryptobyte.Builder) { // ContentInfo
		info.AddASN1ObjectIdentifier(oidSignedData)
		info.AddASN1(tagExplicit0, func(content *cryptobyte.Builder) {
			content.AddASN1(cbasn1.SEQUENCE, func(sd *cryptobyte.Builder) { addSignedData(sd, certs) })
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("couldn't encode certificates: %w", err)
	}
	if len(der) > MaxSize {
		return nil, fmt.Errorf("couldn't encode certificates: %d octets are over %d", len(der), MaxSize)
	}
	return der, nil
}

func addSignedData(sd *cryptobyte.Builder, certs [][]byte) {
	sd.AddASN1Int64(1) // version, RFC 5652, 5.1: plain certificates and id-data
	sd.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
	sd.AddASN1(cbasn1.SEQUENCE, func(encap *cryptobyte.Builder) { encap.AddASN1ObjectIdentifier(oidData) })
	sd.AddASN1(tagExplicit0, func(set *cryptobyte.Builder) {
		for i, c := range certs {
			if !isOneSequence(c) {
				set.SetError(fmt.Errorf("number %d is not one DER SEQUENCE", i+1))
				return
			}
			set.AddBytes(c)
		}
	})
	sd.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
}

func isOneSequence(der []byte) bool {
	s := cryptobyte.String(der)
	return s.SkipASN1(cbasn1.SEQUENCE) && s.Empty()
}

var errMalformed = errors.New("couldn't parse message: not a certs-only SignedData in DER")

// ParseCertsOnly returns the certificates of a certs-only message, each as DER, in
// the order of the message. The slices share memory with der. CRLs in the
// message are skipped, and so are signers: the signature is not verified. It refuses messages over [MaxSize] or with no certificate.
func ParseCertsOnly(der []byte) ([][]byte, error) {
	if len(der) > MaxSize {
		return nil, fmt.Errorf("couldn't parse message: %d octets are over %d", len(der), MaxSize)
	}
	in := cryptobyte.String(der)
	var info, content, sd, encap, set cryptobyte.String
	var contentType asn1.ObjectIdentifier
	var version int
	var hasCerts bool
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !in.Empty() ||
		!info.ReadASN1ObjectIdentifier(&contentType) || !contentType.Equal(oidSignedData) ||
		!info.ReadASN1(&content, tagExplicit0) || !info.Empty() ||
		!content.ReadASN1(&sd, cbasn1.SEQUENCE) || !content.Empty() ||
		!sd.ReadASN1Integer(&version) ||
		!sd.SkipASN1(cbasn1.SET) ||
		!sd.ReadASN1(&encap, cbasn1.SEQUENCE) ||
		!sd.ReadOptionalASN1(&set, &hasCerts, tagExplicit0) ||
		!sd.SkipOptionalASN1(tagExplicit1) ||
		!sd.SkipASN1(cbasn1.SET) || !sd.Empty() {
		return nil, errMalformed
	}
	return readCertificates(set)
}

func readCertificates(set cryptobyte.String) ([][]byte, error) {
	var certs [][]byte
	for !set.Empty() {
		var c cryptobyte.String
		var tag cbasn1.Tag
		if !set.ReadAnyASN1Element(&c, &tag) {
			return nil, errMalformed
		}
		if tag != cbasn1.SEQUENCE {
			continue // an attribute certificate or another form, RFC 5652, 10.2.2
		}
		if len(certs) == MaxCertificates {
			return nil, fmt.Errorf("couldn't parse message: more than %d certificates", MaxCertificates)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("couldn't parse message: it carries no certificate")
	}
	return certs, nil
}
