package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// The constructed context-specific tags of CRLs and OCSP answers.
const (
	context0 = cbasn1.Tag(0x20 | 0x80)
	context1 = context0 + 1
	context2 = context0 + 2
)

// utcOrGeneralized encodes a time as RFC 5280, 4.1.2.5 wants it: UTCTime through 2049.
func utcOrGeneralized(t time.Time) (text string, tag byte) {
	t = t.UTC()
	if t.Year() < 2050 {
		return t.Format("060102150405Z"), 0x17
	}
	return t.Format("20060102150405Z"), 0x18
}

func addTime(b *cryptobyte.Builder, t time.Time) {
	text, tag := utcOrGeneralized(t)
	addTagged(b, cbasn1.Tag(tag), []byte(text))
}

func addGeneralizedTime(b *cryptobyte.Builder, t time.Time) {
	b.AddASN1(cbasn1.GeneralizedTime, func(b *cryptobyte.Builder) { b.AddBytes([]byte(t.UTC().Format("20060102150405Z"))) })
}

func addExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, value cryptobyte.BuilderContinuation) {
	addAnyExtension(b, oid, false, value)
}

func addAnyExtension(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, critical bool, value cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addObjectID(b, oid)
		if critical {
			addTagged(b, cbasn1.BOOLEAN, []byte{0xff})
		}
		b.AddASN1(cbasn1.OCTET_STRING, value)
	})
}

// withSignature returns the outer SEQUENCE of a certificate or BasicOCSPResponse: what was
// signed, the algorithm, the signature, and what comes after it.
func withSignature(tbs, alg, sig []byte, after ...[]byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(sig)+256))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(alg)
		b.AddASN1BitString(sig)
		for _, a := range after {
			b.AddBytes(a)
		}
	})
	return b.Bytes()
}

func digest(hash crypto.Hash, b []byte) []byte {
	h := hash.New()
	h.Write(b)
	return h.Sum(nil)
}

// algorithmOf returns the AlgorithmIdentifier, DER, and hash to sign with under a
// key: the hash of the curve's size (RFC 5758, RFC 8410, RFC 4055).
func algorithmOf(pub crypto.PublicKey) (der []byte, hash crypto.Hash, err error) {
	var alg pkix.AlgorithmIdentifier
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		alg.Algorithm, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, crypto.SHA256
		switch bits := k.Params().BitSize; {
		case bits > 384:
			alg.Algorithm, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}, crypto.SHA512
		case bits > 256:
			alg.Algorithm, hash = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}, crypto.SHA384
		}
	case ed25519.PublicKey:
		alg.Algorithm = asn1.ObjectIdentifier{1, 3, 101, 112}
	case *rsa.PublicKey:
		alg.Algorithm, hash = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, crypto.SHA256
		alg.Parameters = asn1.NullRawValue
	default:
		return nil, 0, fmt.Errorf("cannot sign with a %T", pub)
	}
	der, err = asn1.Marshal(alg)
	return der, hash, err
}
