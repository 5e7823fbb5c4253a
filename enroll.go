package countersign

import (
	"context"
	"crypto/x509"
	"net/netip"
	"time"
)

// Method is a method of enrollment: the kind of evidence that entitles to a certificate.
type Method string

// The methods. docs/enrollment.md compares them.
const (
	MethodToken       Method = "token"       // enrollment token
	MethodFactory     Method = "factory"     // an operator of role factory vouches
	MethodClaim       Method = "claim"       // shared or temporary claim certificate
	MethodIDevID      Method = "idevid"      // manufacturer's certificate of a registered authority (802.1AR)
	MethodThumbprint  Method = "thumbprint"  // registered self-signed certificate
	MethodKey         Method = "key"         // symmetric key of one device, in a SAS token
	MethodGroup       Method = "group"       // key derived from a group's key, in a SAS token
	MethodTPM         Method = "tpm"         // TPM 2.0: endorsement key, activation, key attestation
	MethodCertificate Method = "certificate" // the device's current certificate: renewal
	MethodRecovery    Method = "recovery"    // its expired certificate, through the recovery door
)

// MaxCSR is the largest certification request, DER. A generous one with an
// RSA-4096 key, attestation and forty names is under 16 KiB.
const MaxCSR = 64 << 10

// Evidence is what a device presents to get a certificate (RFC 9334). It is data:
// a door fills in what the request carried and judges none of it.
type Evidence struct {
	Token   string              // enrollment token or SAS token; empty if none was shown
	Peer    []*x509.Certificate // TLS client chain as presented, leaf first; TLS proved possession of its key
	TPM     *TPMProof           // what a TPM proved in the door's exchange; nil if none
	Voucher *Voucher            // an operator vouches for the request; nil if none
}

// TPMProof is the outcome of an exchange with a TPM: credential activation and
// attestation of the requested key, appraised by package attest.
type TPMProof struct {
	RegistrationID string            // of the endorsement key: unpadded lower-case base32 of its SHA-256
	EKHash         string            // hex SHA-256 of the endorsement key's public area
	EKVerified     bool              // its certificate chains to a manufacturer that the operator trusts
	Facts          map[string]string // for events and operators
}

// Voucher is an operator's approval of one device.
type Voucher struct {
	Actor   Actor
	Item    string // idempotency key; the same key returns the same certificate again
	Profile string // empty: the fleet's
}

// EnrollRequest asks for a certificate.
type EnrollRequest struct {
	CSR []byte // PKCS #10, DER; the signature is not yet checked
	// Asked is the request as the device sent it where the door put one of its own
	// into CSR, over a key that it made; whether the profile allows that is for the
	// Enroller. While approval is pending, CSR differs at each try and Asked stays.
	// Empty: CSR is the device's.
	Asked    []byte
	Evidence Evidence
	Fleet    string // as the door's path names it; empty: the evidence's, else default
	Door     string // est, rest, …
	Remote   netip.AddrPort
	// Bound: the request names the TLS session that it came over, so it was signed for
	// no other (RFC 7030, 3.5). Only true if the signature is valid.
	Bound bool
	// Began is when the door began to read the request. A request that was
	// overtaken by a later one of the same device is refused by it. Zero: now.
	Began time.Time
	// Recovery: the door admits certificates past their notAfter, and nothing else.
	Recovery bool
}

// Grant is an issued certificate with what its holder needs to use it.
type Grant struct {
	Device string
	Fleet  string
	Serial Serial
	Leaf   []byte   // DER
	Chain  [][]byte // DER, issuing authority first, root last
	Again  bool     // the same certificate as before: the request was a retry
	// RenewAt is the start of the window in which the device should renew.
	RenewAt  time.Time
	NotAfter time.Time
}

// RevokeRequest asks for the revocation of a certificate or of a device's identity.
type RevokeRequest struct {
	Device string  // all of the device's certificates, or
	Cert   CertRef // this one
	Reason ReasonCode
	Note   string // why, in the operator's words
	Actor  Actor
	Via    string // cli, rest
	Alert  string // id of the alert that it is about; empty: none
}

// Revocation is the result of a revocation, a suspension or a retirement.
type Revocation struct {
	Device       string
	Certificates []CertRef
	At           time.Time
	Already      bool          // it was in force before; sessions were cut again
	Reason       ReasonCode    // of a revocation: the one on record now
	Raised       bool          // a certificate was revoked before, for a reason that is less grave
	Sessions     int           // live sessions cut on this node
	CutIn        time.Duration // from the durable record to the last socket closed
	// CRLNumber is the number of the CRL that lists it; 0 while that CRL is being made.
	CRLNumber int64
}

// Enroller grants and revokes certificates. Every enrollment door calls it; package
// ra implements it. Errors are *Error with a Code that doors map to their protocol.
type Enroller interface {
	// Enroll grants a first certificate on the evidence.
	Enroll(ctx context.Context, req EnrollRequest) (*Grant, error)
	// Reenroll grants the next certificate to the holder of a current one,
	// Evidence.Peer. The request must be for the same subject; the key may change.
	Reenroll(ctx context.Context, req EnrollRequest) (*Grant, error)
	// Revoke revokes certificates. It returns after the record is durable and
	// this node's sessions are cut.
	Revoke(ctx context.Context, req RevokeRequest) (*Revocation, error)
}

// TokenPrefix starts every enrollment token so that a leaked one is recognized
// by secret scanners and by people.
const TokenPrefix = "cset_"
