package pkcs10

import "github.com/countersign-iot/countersign"

// notARequest is the refusal of what is not a certification request.
func notARequest(der []byte) error {
	what := "something else"
	if e, _, err := readElement(der); err == nil {
		if like := looksLike(e); like != "" {
			what = like
		}
	}
	return countersign.Errorf(countersign.BadRequest, "this is %s, not a certification request", what).
		WithNext("send a PKCS #10 request (RFC 2986)")
}

// Tags of times (RFC 5280, 4.1.2.5).
const (
	tagUTCTime         = 0x17
	tagGeneralizedTime = 0x18
)

// looksLike returns what an element is that was sent instead of a request; empty
// for a request and if it is unknown.
func looksLike(e element) string {
	parts := first(e, 2)
	if len(parts) < 2 {
		return ""
	}
	a, b := parts[0], parts[1]
	switch {
	case a.tag == tagOID:
		return "a CMS or PKCS #7 message"
	case a.tag == tagInteger && len(a.body) > 1:
		return "a public key"
	case a.tag == tagInteger && len(a.body) == 1 && a.body[0] == 3:
		return "a PKCS #12 file"
	case a.tag == tagInteger:
		return "a private key"
	case a.tag == tagSequence && b.tag == tagBitString:
		return "a public key"
	case a.tag == tagSequence && b.tag == tagOctetString:
		return "an encrypted private key"
	case a.tag == tagSequence && b.tag == tagSequence:
		return looksSigned(a)
	}
	return ""
}

// looksSigned returns what a signed structure is, by its signed part, except a request:
// TBSCertificate (RFC 5280, 4.1) or TBSCertList (5.1).
func looksSigned(tbs element) string {
	parts := first(tbs, 4)
	if len(parts) > 0 && parts[0].tag == tagContext0 {
		return "a certificate"
	}
	if len(parts) > 0 && parts[0].tag == tagInteger {
		parts = parts[1:] // a serial number, or the version of a list
	}
	if len(parts) < 3 {
		return ""
	}
	algorithm, issuer, after := parts[0], parts[1], parts[2].tag
	switch {
	case len(algorithm.body) == 0 || algorithm.body[0] != tagOID || len(issuer.body) == 0 || issuer.body[0] != tagSet:
		return ""
	case after == tagUTCTime || after == tagGeneralizedTime:
		return "a certificate revocation list"
	}
	return "a certificate"
}

// first returns the first n elements of e, or as many as can be read.
func first(e element, n int) []element {
	var parts []element
	for in := (list{e.body}); len(parts) < n; {
		part, err := in.next()
		if err != nil {
			break
		}
		parts = append(parts, part)
	}
	return parts
}
