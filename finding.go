package countersign

import (
	"slices"
	"time"
)

// Severity is how much a finding matters.
type Severity string

// The severities.
const (
	SeverityInfo     Severity = "info" // help, not an accusation
	SeverityLow      Severity = "low"
	SeverityMedium   Severity = "medium"
	SeverityHigh     Severity = "high"
	SeverityCritical Severity = "critical"
)

// Severities lists the severities from the lowest to the highest.
func Severities() []Severity {
	return []Severity{SeverityInfo, SeverityLow, SeverityMedium, SeverityHigh, SeverityCritical}
}

// Rank returns the index of s in Severities, so that ranks compare as severities do;
// -1 for the empty severity and for an unknown one.
func (s Severity) Rank() int { return slices.Index(Severities(), s) }

// Rule is what those who respond to findings know of the detector or the audit check
// that they are from.
type Rule struct {
	Name     string
	Title    string   // what it sees, in a few words
	Severity Severity // of its findings, unless one has its own
	// Unproven: its findings name a device that a client claimed to be, without proof.
	Unproven bool
	// Default is what follows where the fleet's rules say nothing; empty: an alert.
	Default []Mitigation
	Why     string // why it matters
	Do      string // what to do about it
}

// Finding is what a detector or an audit check found.
type Finding struct {
	Rule     string // which one: shared_certificate, DEVICE_CERTIFICATE_AGE_CHECK
	Severity Severity
	At       time.Time // of the event that completed it
	// Subject is what it is about, and by which findings of one rule are one alert:
	// device:<id>, address:<network>, fleet:<name>, authority:<id>, server.
	Subject string
	Device  string // empty where none is known
	// Claimed: Device is an id that a client presented without proof. No device is ever
	// suspended for what an unauthenticated client does in its name.
	Claimed  bool
	Fleet    string
	Cert     CertRef
	Remote   string            // the address that it came from; empty if none
	Summary  string            // one sentence for a person
	Evidence map[string]string // the facts that it is based on
	Events   []int64           // sequence numbers of the events that led to it, the last ones
}

// Mitigation is the response to a finding.
type Mitigation string

// The mitigations.
const (
	MitigateNote    Mitigation = "note"    // record the finding only
	MitigateAlert   Mitigation = "alert"   // open an alert
	MitigateSuspend Mitigation = "suspend" // suspend the device; one command undoes it
	MitigateRevoke  Mitigation = "revoke"  // revoke its certificates, for good
	MitigateBlock   Mitigation = "block"   // refuse the address
	MitigateWebhook Mitigation = "webhook"
	MitigateMail    Mitigation = "mail"
	MitigateSyslog  Mitigation = "syslog"
)
