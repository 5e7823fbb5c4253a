// Package pkcs10 reads certification requests (PKCS #10, RFC 2986): all that
// crypto/x509 reads, and the attributes that it does not expose (RFC 2985). It
// reads; whether a key is strong enough or a name allowed is for package ca.
package pkcs10

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxSize is the largest request, DER; countersign.MaxCSR is the same number.
const MaxSize = 64 << 10

// MaxAttributes is the most attributes in one request. Clients send one to four.
const MaxAttributes = 32

// maxChallenge is ub-challengePassword of RFC 2985, 5.4.1, in characters.
const maxChallenge = 255

// Attribute is one attribute of a request (RFC 2986, 4.1).
type Attribute struct {
	Type   asn1.ObjectIdentifier
	Values [][]byte // each the DER of one value; at least one
}

// Request is a parsed certification request. The embedded request gives subject,
// subject alternative names, public key and requested extensions.
type Request struct {
	*x509.CertificateRequest

	// Attributes are all attributes as they stand, the extension request among
	// them. No type occurs twice.
	Attributes []Attribute

	// ChallengePassword is the attribute of that name (RFC 2985, 5.4.1), a
	// secret; empty if there is none.
	ChallengePassword string
}

var (
	oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}

	tagAttributes = cbasn1.Tag(0).ContextSpecific().Constructed()
)

// Parse reads one request from DER with nothing after it. It doesn't check the
// signature, see [Request.CheckSignature]. An unknown kind of public key is no
// error here: PublicKey is nil then.
func Parse(der []byte) (*Request, error) {
	if len(der) > MaxSize {
		return nil, fmt.Errorf("couldn't parse request: %d octets are over %d", len(der), MaxSize)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse request: %w", err)
	}
	attrs, err := parseAttributes(csr.RawTBSCertificateRequest)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse request: %w", err)
	}
	req := &Request{CertificateRequest: csr, Attributes: attrs}
	if a := req.Attribute(oidChallengePassword); a != nil {
		if req.ChallengePassword, err = parseChallenge(a); err != nil {
			return nil, fmt.Errorf("couldn't parse request: %w", err)
		}
	}
	return req, nil
}

// Attribute gives the attribute of that type, nil if the request has none.
func (r *Request) Attribute(id asn1.ObjectIdentifier) *Attribute {
	for i := range r.Attributes {
		if r.Attributes[i].Type.Equal(id) {
			return &r.Attributes[i]
		}
	}
	return nil
}

// CheckSignature tells whether the request is signed with the private half of
// its public key: proof of possession.
func (r *Request) CheckSignature() error {
	if r.PublicKey == nil {
		return errors.New("couldn't check signature: unknown kind of public key")
	}
	if err := r.CertificateRequest.CheckSignature(); err != nil {
		return fmt.Errorf("couldn't check signature: %w", err)
	}
	return nil
}

var errAttributes = errors.New("malformed attributes")

func parseAttributes(tbs []byte) ([]Attribute, error) {
	in := cryptobyte.String(tbs)
	var info, set cryptobyte.String
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) ||
		!info.SkipASN1(cbasn1.INTEGER) || // version
		!info.SkipASN1(cbasn1.SEQUENCE) || // subject
		!info.SkipASN1(cbasn1.SEQUENCE) || // subjectPKInfo
		!info.ReadASN1(&set, tagAttributes) || !info.Empty() {
		return nil, errAttributes
	}
	var attrs []Attribute
	for !set.Empty() {
		if len(attrs) == MaxAttributes {
			return nil, fmt.Errorf("more than %d attributes", MaxAttributes)
		}
		a, err := readAttribute(&set)
		if err != nil {
			return nil, err
		}
		// Two of one type would let two readers see two requests.
		for _, b := range attrs {
			if b.Type.Equal(a.Type) {
				return nil, fmt.Errorf("attribute %v occurs twice", a.Type)
			}
		}
		attrs = append(attrs, a)
	}
	return attrs, nil
}

func readAttribute(set *cryptobyte.String) (Attribute, error) {
	var seq, values cryptobyte.String
	var a Attribute
	if !set.ReadASN1(&seq, cbasn1.SEQUENCE) ||
		!seq.ReadASN1ObjectIdentifier(&a.Type) ||
		!seq.ReadASN1(&values, cbasn1.SET) || !seq.Empty() || values.Empty() {
		return Attribute{}, errAttributes
	}
	for !values.Empty() {
		var v cryptobyte.String
		var tag cbasn1.Tag
		if !values.ReadAnyASN1Element(&v, &tag) {
			return Attribute{}, errAttributes
		}
		a.Values = append(a.Values, v)
	}
	return a, nil
}

var errChallenge = errors.New("malformed challengePassword")

// parseChallenge reads the one value of a, a DirectoryString (RFC 2985, 5.4.1);
// IA5String is not among its forms, but old clients send it.
func parseChallenge(a *Attribute) (string, error) {
	if len(a.Values) != 1 {
		return "", errChallenge
	}
	in := cryptobyte.String(a.Values[0])
	var body cryptobyte.String
	var tag cbasn1.Tag
	if !in.ReadAnyASN1(&body, &tag) || !in.Empty() {
		return "", errChallenge
	}
	var s string
	switch tag {
	case cbasn1.UTF8String, cbasn1.PrintableString, cbasn1.IA5String, cbasn1.T61String:
		s = string(body)
	case cbasn1.Tag(asn1.TagBMPString):
		if len(body)%2 != 0 {
			return "", errChallenge
		}
		units := make([]uint16, 0, len(body)/2)
		for len(body) > 0 {
			var u uint16
			body.ReadUint16(&u)
			units = append(units, u)
		}
		s = string(utf16.Decode(units))
	default:
		return "", errChallenge
	}
	if !utf8.ValidString(s) || utf8.RuneCountInString(s) > maxChallenge {
		return "", errChallenge
	}
	return s, nil
}
