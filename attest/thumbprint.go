package attest

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/weakkey"
)

// Thumbprint is the SHA-256 of a certificate's DER, by which a device without a
// CA is registered. The zero value matches nothing.
type Thumbprint [sha256.Size]byte

// maxThumbprint bounds the text form: 32 octets with colons, and openssl's
// "SHA256 Fingerprint=" before them.
const maxThumbprint = 128

// ThumbprintOf returns the thumbprint of a certificate.
func ThumbprintOf(cert *x509.Certificate) Thumbprint { return sha256.Sum256(cert.Raw) }

// ParseThumbprint parses a thumbprint: 64 hex digits in either
// case, with colons or spaces between octets, or the line that openssl x509
// -fingerprint -sha256 prints. A SHA-1 one is refused by name. Errors have code BadRequest.
func ParseThumbprint(s string) (Thumbprint, error) {
	if len(s) > maxThumbprint {
		return Thumbprint{}, badThumbprint("is longer than %d characters", maxThumbprint)
	}
	text := strings.TrimSpace(s)
	if label, value, found := strings.Cut(text, "="); found {
		if !strings.EqualFold(label, "SHA256 Fingerprint") {
			return Thumbprint{}, badThumbprint("has the label %q", label)
		}
		text = value
	}
	octets, ok := splitOctets(text)
	if !ok {
		return Thumbprint{}, badThumbprint("is not hex, plain or in pairs with one kind of separator")
	}
	b, err := hex.DecodeString(octets)
	switch {
	case err != nil:
		return Thumbprint{}, badThumbprint("is not hex")
	case len(b) == 20:
		return Thumbprint{}, badThumbprint("is SHA-1, which can be forged")
	case len(b) != sha256.Size:
		return Thumbprint{}, badThumbprint("has %d octets, not %d", len(b), sha256.Size)
	case Thumbprint(b) == Thumbprint{}:
		return Thumbprint{}, badThumbprint("is all zeros")
	}
	return Thumbprint(b), nil
}

// splitOctets removes the separators of "ab:cd:ef" or "ab cd ef"; any other place
// for one is a sign that part of the text was lost.
func splitOctets(s string) (string, bool) {
	if !strings.ContainsAny(s, ": ") {
		return s, true
	}
	separator := ":"
	if !strings.Contains(s, separator) {
		separator = " "
	}
	octets := strings.Split(s, separator)
	for _, o := range octets {
		if len(o) != 2 {
			return "", false
		}
	}
	return strings.Join(octets, ""), true
}

func badThumbprint(format string, args ...any) error {
	return countersign.Errorf(countersign.BadRequest, "thumbprint "+format, args...).
		WithNext("take it from: openssl x509 -in cert.pem -noout -fingerprint -sha256")
}

func (t Thumbprint) String() string { return hex.EncodeToString(t[:]) }

// Thumbprints are the certificates that one device may present. Either may be zero.
type Thumbprints struct {
	Primary   Thumbprint
	Secondary Thumbprint
	// WeakKeys lists keys that the certificate may not have; nil: the built-in list.
	WeakKeys *weakkey.Blocklist
}

// Verify reports whether the device may enroll with this self-signed certificate,
// whose key TLS has proved, and returns which of the two it is. It accepts no certificate
// that a CA signed: the thumbprint would still be valid after that CA revoked it. Errors have
// code CertUnknown, Misconfigured, WeakKey, CertExpired or CertNotYetValid.
func (t Thumbprints) Verify(cert *x509.Certificate, now time.Time) (KeySlot, error) {
	got := ThumbprintOf(cert)
	first, second := got.equal(t.Primary), got.equal(t.Secondary)
	if !first && !second {
		return "", countersign.Errorf(countersign.CertUnknown, "the certificate's thumbprint is not registered for this device").
			WithNext("register the SHA-256 thumbprint of the certificate that the device presents")
	}
	if err := checkSelfSigned(cert, now, t.WeakKeys); err != nil {
		return "", err
	}
	if first {
		return Primary, nil
	}
	return Secondary, nil
}

func (t Thumbprint) equal(registered Thumbprint) bool {
	same := subtle.ConstantTimeCompare(t[:], registered[:]) == 1
	return same && registered != Thumbprint{}
}

func checkSelfSigned(cert *x509.Certificate, now time.Time, known *weakkey.Blocklist) error {
	if !bytes.Equal(cert.RawIssuer, cert.RawSubject) {
		return countersign.Errorf(countersign.Misconfigured, "the certificate is not self-signed").
			WithNext("use the manufacturer-certificate method for a certificate that a CA signed")
	}
	if err := checkAlgorithms(cert); err != nil {
		return err
	}
	if err := checkKey(cert, known); err != nil {
		return err
	}
	if err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		return countersign.Errorf(countersign.Misconfigured, "the self-signed certificate's signature is not its own key's").WithCause(err)
	}
	return checkTime(cert, now)
}
