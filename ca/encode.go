package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// context3 is the tag of the extensions in a TBSCertificate.
	context3 = context0 + 3
	// tbsSize and extensionsSize are where the buffers of a certificate begin, so that
	// those of devices with P-256 keys need no larger one.
	tbsSize        = 768
	extensionsSize = 512
	// knownKeyUsage are the nine bits of KeyUsage (RFC 5280, 4.2.1.3).
	knownKeyUsage = x509.KeyUsageDecipherOnly<<1 - 1
	// leastYear is the first that UTCTime can express (RFC 5280, 4.1.2.5.1), and maxYear
	// the last of GeneralizedTime.
	leastYear = 1950
	maxYear   = 9999
)

var (
	oidSubjectKeyID     = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidCRLPoints        = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidAuthorityInfo    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}
	oidAccessOCSP       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1}
	oidAccessIssuers    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 2}
)

// extKeyUsageIDs are the purposes that certificates of this package have.
var extKeyUsageIDs = map[x509.ExtKeyUsage]asn1.ObjectIdentifier{
	x509.ExtKeyUsageServerAuth:  {1, 3, 6, 1, 5, 5, 7, 3, 1},
	x509.ExtKeyUsageClientAuth:  {1, 3, 6, 1, 5, 5, 7, 3, 2},
	x509.ExtKeyUsageOCSPSigning: {1, 3, 6, 1, 5, 5, 7, 3, 9},
}

// The tags of GeneralName (RFC 5280, 4.2.1.6).
const (
	nameEmail = cbasn1.Tag(0x80 | 1)
	nameDNS   = cbasn1.Tag(0x80 | 2)
	nameURI   = cbasn1.Tag(0x80 | 6)
	nameIP    = cbasn1.Tag(0x80 | 7)
)

// encodable reports whether encodeTBS writes all of a template that
// x509.CreateCertificate would. The certificates of devices and of the authority's own
// services are encodable; those of authorities are not.
func encodable(t *x509.Certificate) bool {
	constrained := len(t.PermittedDNSDomains)+len(t.ExcludedDNSDomains)+len(t.PermittedIPRanges)+len(t.ExcludedIPRanges)+
		len(t.PermittedEmailAddresses)+len(t.ExcludedEmailAddresses)+len(t.PermittedURIDomains)+len(t.ExcludedURIDomains) > 0
	switch {
	case t.SignatureAlgorithm != x509.UnknownSignatureAlgorithm, // it is the key's usual one
		t.IsCA, t.MaxPathLenZero, t.MaxPathLen != 0 && t.MaxPathLen != -1,
		len(t.Policies)+len(t.PolicyIdentifiers) > 0, constrained,
		t.KeyUsage&^knownKeyUsage != 0:
		return false
	}
	for _, at := range []time.Time{t.NotBefore, t.NotAfter} {
		if y := at.UTC().Year(); y < leastYear || y > maxYear {
			return false
		}
	}
	for _, u := range t.ExtKeyUsage {
		if extKeyUsageIDs[u] == nil {
			return false
		}
	}
	return true
}

// checkSerial holds RFC 5280, 4.1.2.2: a serial is positive and has at most 20 octets.
func checkSerial(n *big.Int) error {
	if n == nil || n.Sign() <= 0 || n.BitLen() >= 8*serialOctets {
		return fmt.Errorf("serial %x is not a positive number of at most %d octets", n, serialOctets)
	}
	return nil
}

// encodeTBS returns the TBSCertificate of an encodable template (RFC 5280, 4.1), octet
// for octet as x509.CreateCertificate makes it. alg is the AlgorithmIdentifier of the
// issuer's signatures, DER.
func encodeTBS(t, issuer *x509.Certificate, key subjectKey, alg []byte) ([]byte, error) {
	subject, err := encodeSubject(t)
	if err != nil {
		return nil, err
	}
	extensions, err := encodeExtensions(t, issuer, subject)
	if err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, tbsSize))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addTagged(b, context0, []byte{0x02, 0x01, 0x02}) // INTEGER 2: v3
		b.AddASN1BigInt(t.SerialNumber)
		b.AddBytes(alg)
		b.AddBytes(issuer.RawSubject)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, t.NotBefore)
			addTime(b, t.NotAfter)
		})
		b.AddBytes(subject)
		b.AddBytes(key.spki)
		if len(extensions) > 0 {
			b.AddASN1(context3, func(b *cryptobyte.Builder) {
				addTagged(b, cbasn1.SEQUENCE, extensions)
			})
		}
	})
	tbs, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode certificate: %w", err)
	}
	return tbs, nil
}

// encodeSubject returns the Name of a template. Names with several values in one part,
// or with values that are not text, are left to encoding/asn1.
func encodeSubject(t *x509.Certificate) ([]byte, error) {
	if len(t.RawSubject) > 0 {
		return t.RawSubject, nil
	}
	name := t.Subject.ToRDNSequence()
	byHand := func(rdn pkix.RelativeDistinguishedNameSET) bool {
		text, isText := rdn[0].Value.(string)
		return len(rdn) == 1 && isText && utf8.ValidString(text)
	}
	for _, rdn := range name {
		if !byHand(rdn) {
			return asn1.Marshal(name)
		}
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, rdn := range name {
			b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					addObjectID(b, rdn[0].Type)
					addText(b, rdn[0].Value.(string))
				})
			})
		}
	})
	return b.Bytes()
}

// addText writes a PrintableString where its characters allow it, else a UTF8String.
func addText(b *cryptobyte.Builder, s string) {
	tag := cbasn1.PrintableString
	for i := range len(s) {
		if !printable(s[i]) {
			tag = cbasn1.UTF8String
		}
	}
	addTagged(b, tag, []byte(s))
}

// printable reports whether a PrintableString may hold c (X.680, 41.4).
func printable(c byte) bool {
	switch c {
	case ' ', '\'', '(', ')', '+', ',', '-', '.', '/', ':', '=', '?':
		return true
	}
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// extensions writes the extensions of a certificate.
type extensions struct {
	*cryptobyte.Builder
	extra []pkix.Extension // of the template; one here replaces the usual one
}

func (e extensions) add(oid asn1.ObjectIdentifier, critical bool, value cryptobyte.BuilderContinuation) {
	if !slices.ContainsFunc(e.extra, func(x pkix.Extension) bool { return x.Id.Equal(oid) }) {
		addAnyExtension(e.Builder, oid, critical, value)
	}
}

// encodeExtensions returns the extensions of a template in the order of
// x509.CreateCertificate, without the SEQUENCE around them.
func encodeExtensions(t, issuer *x509.Certificate, subject []byte) ([]byte, error) {
	e := extensions{cryptobyte.NewBuilder(make([]byte, 0, extensionsSize)), t.ExtraExtensions}
	if t.KeyUsage != 0 {
		e.add(oidKeyUsage, true, func(b *cryptobyte.Builder) { addKeyUsage(b, t.KeyUsage) })
	}
	if len(t.ExtKeyUsage)+len(t.UnknownExtKeyUsage) > 0 {
		e.add(oidExtKeyUsage, false, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, u := range t.ExtKeyUsage {
					addObjectID(b, extKeyUsageIDs[u])
				}
				for _, oid := range t.UnknownExtKeyUsage {
					addObjectID(b, oid)
				}
			})
		})
	}
	if t.BasicConstraintsValid {
		e.add(oidBasicConstraints, true, func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, func(*cryptobyte.Builder) {}) })
	}
	if len(t.SubjectKeyId) > 0 {
		e.add(oidSubjectKeyID, false, func(b *cryptobyte.Builder) { addTagged(b, cbasn1.OCTET_STRING, t.SubjectKeyId) })
	}
	above := t.AuthorityKeyId
	if len(issuer.SubjectKeyId) > 0 && !slices.Equal(subject, issuer.RawSubject) {
		above = issuer.SubjectKeyId
	}
	if len(above) > 0 {
		e.add(oidAuthorityKeyID, false, func(b *cryptobyte.Builder) { addAuthorityKeyID(b, above) })
	}
	if len(t.OCSPServer)+len(t.IssuingCertificateURL) > 0 {
		e.add(oidAuthorityInfo, false, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, u := range t.OCSPServer {
					addAccess(b, oidAccessOCSP, u)
				}
				for _, u := range t.IssuingCertificateURL {
					addAccess(b, oidAccessIssuers, u)
				}
			})
		})
	}
	if len(t.DNSNames)+len(t.EmailAddresses)+len(t.IPAddresses)+len(t.URIs) > 0 {
		noSubject := len(subject) == 2 // then it is critical (RFC 5280, 4.2.1.6)
		e.add(oidSubjectAltName, noSubject, func(b *cryptobyte.Builder) { addAltNames(b, t) })
	}
	if len(t.CRLDistributionPoints) > 0 {
		e.add(oidCRLPoints, false, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, u := range t.CRLDistributionPoints {
					addCRLPoint(b, u)
				}
			})
		})
	}
	for _, x := range e.extra {
		addAnyExtension(e.Builder, x.Id, x.Critical, func(b *cryptobyte.Builder) { b.AddBytes(x.Value) })
	}
	der, err := e.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encode extensions: %w", err)
	}
	return der, nil
}

// addKeyUsage writes a BIT STRING without zero bits at its end, as X.690, 11.2.2 wants it.
func addKeyUsage(b *cryptobyte.Builder, usage x509.KeyUsage) {
	var value [3]byte // the number of unused bits, and the bits
	last := 0
	for bit := range 9 {
		if usage>>bit&1 == 1 {
			value[1+bit/8] |= 0x80 >> (bit % 8)
			last = bit
		}
	}
	value[0] = byte(7 - last%8)
	addTagged(b, cbasn1.BIT_STRING, value[:2+last/8])
}

func addAuthorityKeyID(b *cryptobyte.Builder, id []byte) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addTagged(b, cbasn1.Tag(0).ContextSpecific(), id)
	})
}

func addAccess(b *cryptobyte.Builder, method asn1.ObjectIdentifier, url string) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addObjectID(b, method)
		addTagged(b, nameURI, []byte(url))
	})
}

// maxShort is the longest value whose length is one octet (X.690, 8.1.3.4), and the
// largest arc of an object identifier that is one (8.19.2).
const maxShort = 127

// addTagged writes an element whose value is known. AddASN1 would make a builder for it,
// which is most of what a certificate of some forty elements costs.
func addTagged(b *cryptobyte.Builder, tag cbasn1.Tag, value []byte) {
	if len(value) > maxShort {
		b.AddASN1(tag, func(b *cryptobyte.Builder) { b.AddBytes(value) })
		return
	}
	b.AddUint8(uint8(tag))
	b.AddUint8(uint8(len(value))) //nolint:gosec // at most maxShort
	b.AddBytes(value)
}

// addObjectID writes an object identifier. Those of certificates have few arcs of one
// octet each, and need no builder of their own; the others are left to cryptobyte, which
// also refuses what is none.
func addObjectID(b *cryptobyte.Builder, oid asn1.ObjectIdentifier) {
	large := func(arc int) bool { return arc < 0 || arc > maxShort }
	if len(oid) < 2 || len(oid) > maxShort || oid[0] > 2 || oid[1] > 39 || slices.ContainsFunc(oid, large) {
		b.AddASN1ObjectIdentifier(oid)
		return
	}
	b.AddUint8(uint8(cbasn1.OBJECT_IDENTIFIER))
	b.AddUint8(uint8(len(oid) - 1))       //nolint:gosec // at most maxShort
	b.AddUint8(uint8(40*oid[0] + oid[1])) //nolint:gosec // at most 119
	for _, arc := range oid[2:] {
		b.AddUint8(uint8(arc)) //nolint:gosec // at most maxShort
	}
}

// addAltNames writes the GeneralNames of a template.
func addAltNames(b *cryptobyte.Builder, t *x509.Certificate) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		for _, n := range t.DNSNames {
			addASCII(b, nameDNS, n)
		}
		for _, n := range t.EmailAddresses {
			addASCII(b, nameEmail, n)
		}
		for _, ip := range t.IPAddresses {
			if v4 := ip.To4(); v4 != nil {
				ip = v4
			}
			addTagged(b, nameIP, ip)
		}
		for _, u := range t.URIs {
			addASCII(b, nameURI, u.String())
		}
	})
}

// addASCII writes an IA5String. Anything but ASCII is an error of the builder.
func addASCII(b *cryptobyte.Builder, tag cbasn1.Tag, s string) {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			b.SetError(fmt.Errorf("the name %.200q is not ASCII, as RFC 5280, 4.2.1.6 wants it", s))
			return
		}
	}
	addTagged(b, tag, []byte(s))
}

// addCRLPoint writes a DistributionPoint with a fullName (RFC 5280, 4.2.1.13).
func addCRLPoint(b *cryptobyte.Builder, url string) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(context0, func(b *cryptobyte.Builder) {
			b.AddASN1(context0, func(b *cryptobyte.Builder) { addTagged(b, nameURI, []byte(url)) })
		})
	})
}
