package status

import (
	"bytes"
	"crypto"
	"crypto/sha1" //nolint:gosec // RFC 5019, 2.1.1: requests name the issuer by SHA-1; it secures nothing
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
)

const (
	// MaxOCSPRequest bounds a request in DER, in octets. One certificate and a nonce take
	// 120 octets; MaxCertIDs certificates with SHA-512 and all other fields take 7,000. A
	// request that is signed, with certificates, has room for only a few certificates.
	MaxOCSPRequest = 8 << 10
	// MaxCertIDs bounds the certificates in one request. One signature answers them all,
	// but each needs a lookup.
	MaxCertIDs = 32
	// maxCertID bounds a CertID, in octets: two hashes of 64 octets, a serial number of 20,
	// the algorithm and the headers take 180. The response repeats the CertID, so the
	// server signs and returns what a client puts into it.
	maxCertID = 256
	// maxRequestor bounds the name of a requestor, in octets: enough for a distinguished
	// name of ordinary length. The name is skipped.
	maxRequestor = 1 << 10
	// maxExtensions bounds the extensions of a request or of one of its parts. RFC 6960,
	// 4.4 defines six.
	maxExtensions = 16
	// MaxNonce is the longest nonce, in octets (RFC 9654, 2.1).
	MaxNonce = 128
	// maxSerial is the longest serial number of a certificate, in octets (RFC
	// 5280, 4.1.2.2).
	maxSerial = 20
)

// The contents of object identifiers, to be compared without decoding.
var (
	oidSHA1   = []byte{0x2b, 0x0e, 0x03, 0x02, 0x1a}
	oidSHA256 = []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}
	oidSHA384 = []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02}
	oidSHA512 = []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03}
	oidNonce  = []byte{0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x02} // id-pkix-ocsp-nonce
)

var (
	tag0 = cbasn1.Tag(0).ContextSpecific().Constructed()
	tag1 = cbasn1.Tag(1).ContextSpecific().Constructed()
	tag2 = cbasn1.Tag(2).ContextSpecific().Constructed()
)

var errMalformed = errors.New("couldn't parse OCSP request: malformed")

// ParseOCSPRequest parses an OCSPRequest (RFC 6960, 4.1.1). The result shares memory with
// der. A signature and the requestor's name are skipped, because status is public. It
// returns an error for an unknown critical extension (RFC 5280, 4.2), and for a nonce that
// is empty or longer than [MaxNonce] (RFC 9654, 2.1).
func ParseOCSPRequest(der []byte) (countersign.OCSPQuery, error) {
	var q countersign.OCSPQuery
	if len(der) > MaxOCSPRequest {
		return q, fmt.Errorf("couldn't parse OCSP request: %d octets are over %d", len(der), MaxOCSPRequest)
	}
	in := cryptobyte.String(der)
	var req, tbs, requestor, list, exts cryptobyte.String
	var hasExts bool
	if !in.ReadASN1(&req, cbasn1.SEQUENCE) || !in.Empty() ||
		!req.ReadASN1(&tbs, cbasn1.SEQUENCE) ||
		!req.SkipOptionalASN1(tag0) || !req.Empty() || // optionalSignature
		!readVersion1(&tbs) ||
		!tbs.ReadOptionalASN1(&requestor, nil, tag1) || len(requestor) > maxRequestor ||
		!tbs.ReadASN1(&list, cbasn1.SEQUENCE) ||
		!tbs.ReadOptionalASN1(&exts, &hasExts, tag2) || !tbs.Empty() {
		return q, errMalformed
	}
	ids, err := readRequests(list)
	if err != nil {
		return q, err
	}
	q.CertIDs = ids
	if hasExts {
		if q.Nonce, err = readExtensions(exts, true); err != nil {
			return q, err
		}
	}
	return q, nil
}

// readVersion1 reads [0] EXPLICIT INTEGER DEFAULT v1(0). DER omits the default value, but
// some clients write it.
func readVersion1(tbs *cryptobyte.String) bool {
	var field cryptobyte.String
	var has bool
	var v int
	return tbs.ReadOptionalASN1(&field, &has, tag0) &&
		(!has || field.ReadASN1Integer(&v) && v == 0 && field.Empty())
}

func readRequests(list cryptobyte.String) ([]countersign.CertID, error) {
	ids := make([]countersign.CertID, 0, 1) // nearly always one
	for !list.Empty() {
		if len(ids) == MaxCertIDs {
			return nil, fmt.Errorf("couldn't parse OCSP request: more than %d certificates", MaxCertIDs)
		}
		var one, exts cryptobyte.String
		var hasExts bool
		var id countersign.CertID
		if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !readCertID(&one, &id) ||
			!one.ReadOptionalASN1(&exts, &hasExts, tag0) || !one.Empty() {
			return nil, errMalformed
		}
		if hasExts {
			if _, err := readExtensions(exts, false); err != nil {
				return nil, err
			}
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil, errMalformed
	}
	return ids, nil
}

func readCertID(in *cryptobyte.String, id *countersign.CertID) bool {
	var element, seq, alg, oid, parameters, name, key, serial cryptobyte.String
	if !in.ReadASN1Element(&element, cbasn1.SEQUENCE) || len(element) > maxCertID {
		return false
	}
	id.DER = element
	if !element.ReadASN1(&seq, cbasn1.SEQUENCE) ||
		!seq.ReadASN1(&alg, cbasn1.SEQUENCE) || !alg.ReadASN1(&oid, cbasn1.OBJECT_IDENTIFIER) ||
		!alg.ReadOptionalASN1(&parameters, &id.NullParameters, cbasn1.NULL) || !parameters.Empty() || !alg.Empty() ||
		!seq.ReadASN1(&name, cbasn1.OCTET_STRING) ||
		!seq.ReadASN1(&key, cbasn1.OCTET_STRING) ||
		!seq.ReadASN1(&serial, cbasn1.INTEGER) || !seq.Empty() || !minimal(serial) {
		return false
	}
	id.Hash, id.IssuerNameHash, id.IssuerKeyHash = hashOf(oid), name, key
	if id.Hash != 0 && (len(name) != id.Hash.Size() || len(key) != id.Hash.Size()) {
		return false
	}
	// No certificate has a negative or very long serial number (RFC 5280, 4.1.2.2). id.Serial
	// then stays empty, and the status is unknown: a negative number must not be read as the
	// positive one with the same octets.
	if number := bytes.TrimLeft(serial, "\x00"); serial[0] < 0x80 && len(number) <= maxSerial {
		id.Serial = countersign.Serial(hex.EncodeToString(number))
	}
	return true
}

// minimal reports whether the content of an INTEGER has the least possible length (X.690,
// 8.3.2), so that each number has only one encoding.
func minimal(number []byte) bool {
	switch {
	case len(number) < 2:
		return len(number) == 1
	case number[0] == 0:
		return number[1] >= 0x80
	}
	return number[0] != 0xff || number[1] < 0x80
}

func hashOf(oid []byte) crypto.Hash {
	switch {
	case bytes.Equal(oid, oidSHA1):
		return crypto.SHA1
	case bytes.Equal(oid, oidSHA256):
		return crypto.SHA256
	case bytes.Equal(oid, oidSHA384):
		return crypto.SHA384
	case bytes.Equal(oid, oidSHA512):
		return crypto.SHA512
	}
	return 0
}

// readExtensions parses the content of an explicit tag around Extensions. It returns the
// nonce if there is one and it is allowed.
func readExtensions(in cryptobyte.String, nonceAllowed bool) (nonce []byte, err error) {
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, errMalformed
	}
	for n := 1; !list.Empty(); n++ {
		var ext, oid, flag, value cryptobyte.String
		var written bool
		if n > maxExtensions || !list.ReadASN1(&ext, cbasn1.SEQUENCE) ||
			!ext.ReadASN1(&oid, cbasn1.OBJECT_IDENTIFIER) ||
			!ext.ReadOptionalASN1(&flag, &written, cbasn1.BOOLEAN) || written && len(flag) != 1 ||
			!ext.ReadASN1(&value, cbasn1.OCTET_STRING) || !ext.Empty() {
			return nil, errMalformed
		}
		// DER omits the default FALSE and allows one encoding of TRUE; some clients write
		// FALSE, or TRUE as in BER (X.690, 8.2.2).
		critical := written && flag[0] != 0
		switch {
		case nonceAllowed && bytes.Equal(oid, oidNonce):
			var n cryptobyte.String
			if nonce != nil || !value.ReadASN1(&n, cbasn1.OCTET_STRING) || !value.Empty() ||
				len(n) == 0 || len(n) > MaxNonce {
				return nil, errors.New("couldn't parse OCSP request: one nonce of 1 to 128 octets is allowed")
			}
			nonce = n
		case critical:
			return nil, errors.New("couldn't parse OCSP request: unknown critical extension")
		}
	}
	return nonce, nil
}

// EncodeOCSPRequest returns the DER of a request for one certificate of issuer. The issuer
// is identified by SHA-1, which responders expect (RFC 5019, 2.1.1). With a nil nonce, the
// request has no nonce, so that the response may come from a cache.
func EncodeOCSPRequest(cert, issuer *x509.Certificate, nonce []byte) ([]byte, error) {
	if len(nonce) > MaxNonce || nonce != nil && len(nonce) == 0 {
		return nil, fmt.Errorf("couldn't encode OCSP request: a nonce has 1 to %d octets, not %d", MaxNonce, len(nonce))
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(issuer.RawSubjectPublicKeyInfo, &spki); err != nil {
		return nil, fmt.Errorf("couldn't encode OCSP request: key of the issuer: %w", err)
	}
	name, key := sha1.Sum(issuer.RawSubject), sha1.Sum(spki.Key.RightAlign()) //nolint:gosec // as above
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(req *cryptobyte.Builder) {
		req.AddASN1(cbasn1.SEQUENCE, func(tbs *cryptobyte.Builder) {
			tbs.AddASN1(cbasn1.SEQUENCE, func(list *cryptobyte.Builder) {
				list.AddASN1(cbasn1.SEQUENCE, func(one *cryptobyte.Builder) {
					one.AddASN1(cbasn1.SEQUENCE, func(id *cryptobyte.Builder) {
						id.AddASN1(cbasn1.SEQUENCE, func(alg *cryptobyte.Builder) {
							alg.AddASN1(cbasn1.OBJECT_IDENTIFIER, func(o *cryptobyte.Builder) { o.AddBytes(oidSHA1) })
							alg.AddASN1NULL()
						})
						id.AddASN1OctetString(name[:])
						id.AddASN1OctetString(key[:])
						id.AddASN1BigInt(cert.SerialNumber)
					})
				})
			})
			if nonce != nil {
				tbs.AddASN1(tag2, func(exts *cryptobyte.Builder) { addNonce(exts, nonce) })
			}
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("couldn't encode OCSP request: %w", err)
	}
	return der, nil
}

// addNonce adds Extensions that contain only the nonce.
func addNonce(exts *cryptobyte.Builder, nonce []byte) {
	exts.AddASN1(cbasn1.SEQUENCE, func(list *cryptobyte.Builder) {
		list.AddASN1(cbasn1.SEQUENCE, func(ext *cryptobyte.Builder) {
			ext.AddASN1(cbasn1.OBJECT_IDENTIFIER, func(o *cryptobyte.Builder) { o.AddBytes(oidNonce) })
			ext.AddASN1(cbasn1.OCTET_STRING, func(v *cryptobyte.Builder) { v.AddASN1OctetString(nonce) })
		})
	})
}

// responseNonce returns the nonce of a ResponseData (RFC 6960, 4.2.1), or nil if it has
// none. The caller must have parsed the response and verified its signature.
func responseNonce(tbs []byte) ([]byte, error) {
	in := cryptobyte.String(tbs)
	var data, exts cryptobyte.String
	var tag cbasn1.Tag
	var responder cryptobyte.String
	var hasExts bool
	if !in.ReadASN1(&data, cbasn1.SEQUENCE) ||
		!data.SkipOptionalASN1(tag0) || // version
		!data.ReadAnyASN1(&responder, &tag) ||
		!data.SkipASN1(cbasn1.GeneralizedTime) ||
		!data.SkipASN1(cbasn1.SEQUENCE) || // responses
		!data.ReadOptionalASN1(&exts, &hasExts, tag1) {
		return nil, errors.New("malformed response data")
	}
	if !hasExts {
		return nil, nil
	}
	return readExtensions(exts, true)
}
