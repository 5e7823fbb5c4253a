package countersign

import (
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// ClockSkew is how far the start of a certificate or token may be ahead of our
// clock. Makers of devices and the nodes of a cluster have clocks of their own.
const ClockSkew = time.Minute

// Serial is a certificate serial number as lower-case hex of its big-endian
// octets, two digits each, no sign octet (RFC 5280, 4.1.2.2).
type Serial string

// SerialOf returns the serial of n, which must be positive.
func SerialOf(n *big.Int) Serial { return Serial(hex.EncodeToString(n.Bytes())) }

// ParseSerial reads a serial as people write it: hex in either case, with or
// without colons.
func ParseSerial(s string) (Serial, error) {
	h := strings.ToLower(strings.ReplaceAll(s, ":", ""))
	if len(h)%2 == 1 {
		h = "0" + h
	}
	b, err := hex.DecodeString(h)
	if err != nil || len(b) == 0 || len(b) > 20 {
		return "", Errorf(BadRequest, "serial %.60q is not 1 to 20 octets of hex", s)
	}
	return SerialOf(new(big.Int).SetBytes(b)), nil
}

// Int returns the number; nil if s is not hex.
func (s Serial) Int() *big.Int {
	n, ok := new(big.Int).SetString(string(s), 16)
	if !ok {
		return nil
	}
	return n
}

// CertRef names one certificate: issuer and serial. A serial number alone names none:
// it is unique for its issuer only (RFC 5280, 4.1.2.2).
type CertRef struct {
	// Issuer is the id of an authority. Of a certificate whose issuer is a CA below a
	// registered authority it is that authority's id, a slash, and 16 hex digits of the
	// SHA-256 of the issuer's SubjectPublicKeyInfo.
	Issuer string
	Serial Serial
}

func (r CertRef) String() string { return r.Issuer + "/" + string(r.Serial) }

// ParseCertRef reads what String writes.
func ParseCertRef(s string) (CertRef, error) {
	i := strings.LastIndexByte(s, '/')
	if i < 1 {
		return CertRef{}, Errorf(BadRequest, "%.100q is not an issuer, a slash and a serial number", s)
	}
	serial, err := ParseSerial(s[i+1:])
	return CertRef{Issuer: s[:i], Serial: serial}, err
}

// Authority returns the id of the authority that answers for the certificate.
func (r CertRef) Authority() string {
	id, _, _ := strings.Cut(r.Issuer, "/")
	return id
}

// IsZero reports whether r names no certificate.
func (r CertRef) IsZero() bool { return r == CertRef{} }

// CertState is the state of a certificate. Package ca has the table of transitions.
// Expiry is not stored: it follows from NotAfter.
type CertState string

// The states of a certificate.
const (
	CertPending    CertState = "pending"    // issued, not yet used to connect
	CertActive     CertState = "active"     // in use
	CertSuperseded CertState = "superseded" // a newer one is in use; accepted until AcceptUntil
	CertHeld       CertState = "held"       // certificateHold; can be released
	CertRevoked    CertState = "revoked"    // for good
)

// Certificate is the record of one issued certificate.
type Certificate struct {
	Issuer      string // as in CertRef
	Serial      Serial
	Device      string
	Fleet       string
	Profile     string
	State       CertState
	HeldFrom    CertState // the state to return to when the hold ends
	Reason      ReasonCode
	Replaced    bool      // revoked while pending because the device asked again with another key
	Predecessor CertRef   // the certificate it was renewed from; zero for a first one
	Evidence    string    // fingerprint of the evidence that earned it; never the secret
	Method      string    // kind of that evidence
	KeyHash     string    // hex SHA-256 of the SubjectPublicKeyInfo
	Fingerprint string    // hex SHA-256 of DER
	NotBefore   time.Time // as in the certificate
	NotAfter    time.Time // as in the certificate
	IssuedAt    time.Time
	IssuedPos   Position  // of the log, when it was recorded
	UsedAt      time.Time // first use; zero if never
	UsedPos     Position  // of the log, at the first use; 0 if never
	AcceptUntil time.Time // end of the overlap once superseded; zero before
	RevokedAt   time.Time // zero unless revoked or held
	Shard       int       // CRL shard, fixed at issuance
	DER         []byte    // empty where a list leaves it out
}

// Ref names the certificate.
func (c *Certificate) Ref() CertRef { return CertRef{c.Issuer, c.Serial} }

// StateAt returns the state as shown to people: expired takes precedence over all but revoked.
func (c *Certificate) StateAt(now time.Time) string {
	if c.State != CertRevoked && now.After(c.NotAfter) {
		return "expired"
	}
	return string(c.State)
}

// ReasonCode is a CRLReason (RFC 5280, 5.3.1).
type ReasonCode int

// The reasons. 7 is not used; 8 belongs to delta CRLs.
const (
	Unspecified          ReasonCode = 0
	KeyCompromise        ReasonCode = 1
	CACompromise         ReasonCode = 2
	AffiliationChanged   ReasonCode = 3
	Superseded           ReasonCode = 4
	CessationOfOperation ReasonCode = 5
	CertificateHold      ReasonCode = 6
	RemoveFromCRL        ReasonCode = 8
	PrivilegeWithdrawn   ReasonCode = 9
	AACompromise         ReasonCode = 10
)

var reasonNames = map[ReasonCode]string{
	Unspecified: "unspecified", KeyCompromise: "keyCompromise", CACompromise: "cACompromise",
	AffiliationChanged: "affiliationChanged", Superseded: "superseded",
	CessationOfOperation: "cessationOfOperation", CertificateHold: "certificateHold",
	RemoveFromCRL: "removeFromCRL", PrivilegeWithdrawn: "privilegeWithdrawn", AACompromise: "aACompromise",
}

// Graver reports whether r is recorded over old, the reason for which a certificate was
// revoked before (RFC 5280, 5.3.1). Only keyCompromise is: it alone means that what the
// key signed or decrypted before the revocation cannot be trusted. Between the others the
// first one recorded is kept.
func (r ReasonCode) Graver(old ReasonCode) bool { return r == KeyCompromise && old != KeyCompromise }

func (r ReasonCode) String() string {
	if s, ok := reasonNames[r]; ok {
		return s
	}
	return fmt.Sprintf("reason %d", int(r))
}

// ParseReasonCode reads the ASN.1 name of a reason, in any case.
func ParseReasonCode(s string) (ReasonCode, error) {
	for r, n := range reasonNames {
		if strings.EqualFold(n, s) {
			return r, nil
		}
	}
	return 0, Errorf(BadRequest, "%.40q is no revocation reason", s).
		WithNext("use one of keyCompromise, affiliationChanged, superseded, cessationOfOperation, privilegeWithdrawn, unspecified")
}

// CertStatus is the status of a certificate in OCSP (RFC 6960, 2.2).
type CertStatus int

// The answers.
const (
	StatusGood CertStatus = iota
	StatusRevoked
	StatusUnknown
)

func (s CertStatus) String() string {
	switch s {
	case StatusGood:
		return "good"
	case StatusRevoked:
		return "revoked"
	}
	return "unknown"
}

// Authority is a CA: managed (we hold the key) or registered (external).
type Authority struct {
	ID          string
	Kind        AuthorityKind
	Parent      string // authority id; empty for a root
	Subject     string // RFC 4514 string
	Certificate *x509.Certificate
	KeyURI      string // where the key is kept; empty for a registered authority
	State       string // active, retired
	CreatedAt   time.Time
}

// AuthorityKind is the purpose of an authority.
type AuthorityKind string

// The kinds of authority.
const (
	RootAuthority       AuthorityKind = "root"
	IssuingAuthority    AuthorityKind = "issuing"
	RegisteredAuthority AuthorityKind = "registered"
)

// CRL is one published certificate revocation list.
type CRL struct {
	Issuer     string
	Shard      int
	Number     int64
	ThisUpdate time.Time
	NextUpdate time.Time
	Entries    int
	Size       int64  // of DER
	DER        []byte // empty where only the record was read
}
