// Package pkcs10 reads certification requests (PKCS #10, RFC 2986) as devices in
// the field send them. crypto/x509 refuses a whole request for a part that is not
// used. Here the parts that are used are checked strictly, the others are parsed as
// far as possible, the signature is checked over the octets as received, and each
// refusal has its actual reason, as a [countersign.Error]. ADR 18 lists what a
// request may contain. Whether a key is strong enough or a name allowed
// is for package ca.
package pkcs10

import (
	"bytes"
	"crypto"
	"crypto/x509/pkix"
	"errors"
	"net"

	"github.com/countersign-iot/countersign"
)

// MaxSize is the largest request, DER; countersign.MaxCSR is the same number.
const MaxSize = countersign.MaxCSR

// Request is a parsed certification request.
type Request struct {
	Raw        []byte    // the request as received, without padding after it
	RawTBS     []byte    // CertificationRequestInfo as received: what is signed
	RawSubject []byte    // DER
	Subject    pkix.Name // at most one common name; see readSubject for the rest

	// RawSubjectPublicKeyInfo is the key in DER, PublicKey what it holds. Both are
	// nil for a key that is not accepted; Key returns why.
	RawSubjectPublicKeyInfo []byte
	PublicKey               crypto.PublicKey

	// Attributes are all attributes as received, including the extension request.
	Attributes []Attribute

	// Extensions are those that the request asks for, the others the content of its
	// subjectAltName, as text. None of it has been checked.
	Extensions     []pkix.Extension
	DNSNames       []string
	EmailAddresses []string
	URIs           []string
	IPAddresses    []net.IP

	badKey    error
	signedBy  element // AlgorithmIdentifier
	signature element // BIT STRING
}

// Parse reads one request in DER, or BER. White space and padding after it (zero
// or 0xff octets) are dropped. Parse does not check the signature, see
// [Request.CheckSignature]. A key that is not accepted is not an error here: a
// client whose key the server generates sends any, see [Request.Key].
func Parse(der []byte) (*Request, error) {
	if len(der) > MaxSize {
		return nil, tooLarge()
	}
	outer, rest, err := readElement(der)
	if short, ok := errors.AsType[*shortError](err); ok && len(der) > 0 && der[0] == tagSequence {
		return nil, countersign.Errorf(countersign.BadRequest, "the certification request is truncated: %d octets are missing at its end", short.missing).
			WithNext("send all of it")
	}
	if err != nil || outer.tag != tagSequence {
		return nil, notARequest(der)
	}
	if rest = bytes.Trim(rest, "\x00\xff \t\r\n"); len(rest) > 0 {
		return nil, countersign.Errorf(countersign.BadRequest, "other data follows the certification request of %d octets", len(outer.raw)).
			WithNext("send one request and nothing after it")
	}
	r := &Request{Raw: outer.raw}
	in := list{outer.body}
	info, err := in.nextOf(tagSequence)
	if err == nil {
		r.signedBy, err = in.nextOf(tagSequence)
	}
	if err == nil {
		r.signature, err = in.nextOf(tagBitString)
	}
	if err != nil || looksLike(outer) != "" {
		return nil, notARequest(der)
	}
	return r, r.readInfo(info)
}

// readInfo reads CertificationRequestInfo (RFC 2986, 4.1). The version is not
// checked: there is only one form. The attributes may be missing altogether, as
// many embedded encoders leave them out.
func (r *Request) readInfo(info element) error {
	r.RawTBS = info.raw
	in := list{info.body}
	if _, err := in.nextOf(tagInteger); err != nil {
		return malformed("version", err)
	}
	subject, err := in.nextOf(tagSequence)
	if err != nil {
		return malformed("subject", err)
	}
	if r.Subject, err = readSubject(subject); err != nil {
		return err
	}
	if r.RawSubject, err = toDER(subject); err != nil {
		return malformed("subject", err)
	}
	key, err := in.nextOf(tagSequence)
	if err != nil {
		return malformed("public key", err)
	}
	r.PublicKey, r.RawSubjectPublicKeyInfo, r.badKey = readKey(key)
	if in.empty() {
		return nil
	}
	attributes, err := in.nextOf(tagContext0)
	if err != nil {
		return malformed("list of attributes", err)
	}
	if r.Attributes, err = readAttributes(attributes); err != nil {
		return err
	}
	return r.readExtensions()
}

// Key returns the public key, or an error if it is not accepted.
func (r *Request) Key() (crypto.PublicKey, error) { return r.PublicKey, r.badKey }

func tooLarge() error {
	return countersign.Errorf(countersign.TooLarge, "the certification request is over %d octets", MaxSize).
		WithNext("send a smaller one: a key, a name and a few attributes are enough")
}
