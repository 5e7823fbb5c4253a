package countersign

import (
	"net/netip"
	"slices"
	"time"
)

// Rules bound a fleet's enrollment beyond the choice of methods. The zero value
// asks for nothing more than the evidence.
type Rules struct {
	// Networks that first certificates are given to; empty: all.
	Networks []netip.Prefix `json:"networks,omitempty"`
	// Approval lists the methods whose enrollments wait for an operator.
	Approval []Method `json:"approval,omitempty"`
	// ApprovalTTL is how long such a request waits; zero: DefaultApprovalTTL.
	ApprovalTTL Span `json:"approval_ttl,omitempty"`
	// Registered lists the methods that admit registered devices only; by the
	// others first contact creates the device.
	Registered []Method `json:"registered,omitempty"`
	// FactoryProfiles are the profiles that an operator who vouches may pick besides the
	// fleet's own.
	FactoryProfiles []string `json:"factory_profiles,omitempty"`
	// Authorities are the registered authorities whose factory certificates the
	// fleet takes.
	Authorities []string `json:"authorities,omitempty"`
	// ID is where a factory certificate holds the device id.
	ID IDRule `json:"id,omitzero"`
	// Connect lets a device use its factory certificate to connect (just-in-time
	// registration).
	Connect bool `json:"connect,omitempty"`
	// TPMID takes the device id from the chip instead of the request.
	TPMID bool `json:"tpm_id,omitempty"`
	// PCRs are reference values, hex SHA-256 by register number, that a TPM must
	// quote; empty: no quote is asked for.
	PCRs map[int]string `json:"pcrs,omitempty"`
	// Recovery lets an expired device renew; nil: it may not.
	Recovery *Recovery `json:"recovery,omitempty"`
	// Expression is a CEL expression that must be true for a first certificate.
	Expression string `json:"expression,omitempty"`
	// Webhook is asked before a first certificate; nil: nobody is.
	Webhook *Webhook `json:"webhook,omitempty"`
	// Access says how devices of the fleet authenticate when they connect.
	Access Access `json:"access,omitzero"`
	// Budget is what one device of the fleet may use.
	Budget Budget `json:"budget,omitzero"`
	// Usual is when and from where devices of the fleet enroll. Others may, and are
	// noticed.
	Usual Usual `json:"usual,omitzero"`
	// Respond says what follows on a finding, by the name of its rule; "*" stands
	// for the others. A rule that is not here has its own default.
	Respond map[string][]Mitigation `json:"respond,omitempty"`
	// Audit are the fleet's thresholds of the audit checks.
	Audit AuditRules `json:"audit,omitzero"`
}

// Normalize brings the networks of the rules into the form of ParseNetwork.
func (u *Rules) Normalize() {
	u.Networks, u.Usual.Networks = NormalNetworks(u.Networks), NormalNetworks(u.Usual.Networks)
	if u.Recovery != nil {
		r := *u.Recovery
		r.Networks = NormalNetworks(r.Networks)
		u.Recovery = &r
	}
}

// AccessKind is a kind of credential that a client shows when it connects.
type AccessKind string

// The kinds. docs/access.md compares them.
const (
	AccessCertificate AccessKind = "certificate" // mutual TLS
	AccessPassword    AccessKind = "password"    // chosen by a person, or brought along
	AccessSecret      AccessKind = "secret"      // made by us, at least 256 random bits
	AccessSCRAM       AccessKind = "scram"       // such a secret, which is not sent (RFC 5802, 7677)
	AccessSAS         AccessKind = "sas"         // a token signed with the device's symmetric key
	AccessToken       AccessKind = "token"       // a short-lived JWT of ours
)

// Access is what a fleet accepts at the door.
type Access struct {
	Kinds  []AccessKind `json:"kinds,omitempty"`  // empty: certificate alone
	Guests bool         `json:"guests,omitempty"` // admit clients without any credential, as guests
}

// Usual bounds what is nothing to notice. The zero value notices nothing.
type Usual struct {
	Networks []netip.Prefix `json:"networks,omitempty"`
	Hours    string         `json:"hours,omitempty"` // UTC, such as 06-20; empty: all
}

// AuditRules are thresholds of audit checks. Zero is the check's own default.
type AuditRules struct {
	Expiring  Span `json:"expiring,omitempty"`   // before the end of a certificate; 30 days
	MaxAge    Span `json:"max_age,omitempty"`    // of a certificate; 365 days
	SecretAge Span `json:"secret_age,omitempty"` // of a connection secret; 365 days
	Unused    Span `json:"unused,omitempty"`     // of a device that never connected; 30 days
	Inactive  Span `json:"inactive,omitempty"`   // of a device that connected once; 180 days
}

// IDRule says where a factory certificate holds the device id; package attest
// lists the fields. Prefix and Suffix surround the id there.
type IDRule struct {
	Field  string `json:"field"` // empty: common_name
	Prefix string `json:"prefix,omitempty"`
	Suffix string `json:"suffix,omitempty"`
}

// Recovery bounds the renewal of expired certificates.
type Recovery struct {
	MaxAge       Span           `json:"max_age"`                 // after notAfter
	MaxTimes     int            `json:"max_times"`               // of one device, until its identity is revoked
	Networks     []netip.Prefix `json:"networks,omitempty"`      // empty: all
	ApproveAfter Span           `json:"approve_after,omitempty"` // older ones wait for an operator; zero: none do
}

// Webhook is a service that decides with us.
type Webhook struct {
	URL    string `json:"url"`    // https, or http on loopback
	Secret string `json:"secret"` // file: or env: reference of the HMAC key
}

// DefaultApprovalTTL is a working week.
const DefaultApprovalTTL = 7 * 24 * time.Hour

// Contains reports whether addr is in one of the networks. No networks is all.
func Contains(networks []netip.Prefix, addr netip.Addr) bool {
	return len(networks) == 0 || slices.ContainsFunc(networks, func(p netip.Prefix) bool { return normal(p).Contains(addr.Unmap()) })
}
