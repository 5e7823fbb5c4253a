package countersign

import (
	"crypto"
	"time"
)

// CertID names a certificate in an OCSP request (RFC 6960, 4.1.1).
type CertID struct {
	Hash           crypto.Hash // of the two below; 0 if the algorithm is unknown
	NullParameters bool        // the algorithm came with parameters, NULL; else without
	IssuerNameHash []byte
	IssuerKeyHash  []byte
	Serial         Serial
	DER            []byte // the CertID as sent; the answer repeats it
}

// OCSPQuery is a decoded OCSP request.
type OCSPQuery struct {
	CertIDs []CertID
	Nonce   []byte // nil: none was sent (RFC 9654)
}

// OCSPAnswer is a signed OCSPResponse.
type OCSPAnswer struct {
	DER        []byte
	ProducedAt time.Time
	ThisUpdate time.Time // the earliest of its answers
	NextUpdate time.Time // the earliest of its answers
}
