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
	addContentInfo(&b, oidSignedData, func(sd *cryptobyte.Builder) { addSignedData(sd, certs) })
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("couldn't encode certificates: %w", err)
	}
	if len(der) > MaxSize {
		return nil, fmt.Errorf("couldn't encode certificates: %d octets are over %d", len(der), MaxSize)
	}
	return der, nil
}

// addContentInfo adds a ContentInfo (RFC 5652, 3) around a SEQUENCE.
func addContentInfo(b *cryptobyte.Builder, contentType asn1.ObjectIdentifier, content cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(contentType)
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, content) })
	})
}

// readContentInfo reads the content of the SEQUENCE in a ContentInfo of that type.
func readContentInfo(der []byte, want asn1.ObjectIdentifier) (content cryptobyte.String, ok bool) {
	in := cryptobyte.String(der)
	var info, explicit cryptobyte.String
	var contentType asn1.ObjectIdentifier
	ok = in.ReadASN1(&info, cbasn1.SEQUENCE) && in.Empty() &&
		info.ReadASN1ObjectIdentifier(&contentType) && contentType.Equal(want) &&
		info.ReadASN1(&explicit, tagExplicit0) && info.Empty() &&
		explicit.ReadASN1(&content, cbasn1.SEQUENCE) && explicit.Empty()
	return content, ok
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
	var encap, set cryptobyte.String
	var version int
	var hasCerts bool
	sd, ok := readContentInfo(der, oidSignedData)
	if !ok || !sd.ReadASN1Integer(&version) ||
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
