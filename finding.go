package countersign

import (
	"slices"
	"time"
)

// Severity says how much a finding matters.
type Severity string

// The severities.
const (
	SeverityInfo     Severity = "info" // help, not an accusation
	SeverityLow      Severity = "low"
	SeverityMedium   Severity = "medium"
	SeverityHigh     Severity = "high"
	SeverityCritical Severity = "critical"
)

// Severities lists the severities from the least to the worst.
func Severities() []Severity {
	return []Severity{SeverityInfo, SeverityLow, SeverityMedium, SeverityHigh, SeverityCritical}
}

// Rank returns the place of s in Severities, so that ranks compare as severities do;
// -1 for the empty severity and for a word that is none.
func (s Severity) Rank() int { return slices.Index(Severities(), s) }

// Finding is what a detector or an audit check saw.
type Finding struct {
	Rule     string // which one: shared_certificate, DEVICE_CERTIFICATE_AGE_CHECK
	Severity Severity
	At       time.Time // of the event that completed it
	// Subject is what it is about, and by which findings of one rule are one alert:
	// device:<id>, address:<network>, fleet:<name>, authority:<id>, server.
	Subject string
	Device  string // empty where none is known
	// Claimed: Device is a name that a client gave without proof to be it. No device is
	// ever held for what a stranger says in its name.
	Claimed  bool
	Fleet    string
	Cert     CertRef
	Remote   string            // the address that it came from; empty if none
	Summary  string            // one sentence for a person
	Evidence map[string]string // what it rests on
	Events   []int64           // sequence numbers of the events that led to it, the last ones
}

// Mitigation is what is done about a finding.
type Mitigation string

// The mitigations.
const (
	MitigateNote    Mitigation = "note"    // keep the finding, bother nobody
	MitigateAlert   Mitigation = "alert"   // open an alert
	MitigateSuspend Mitigation = "suspend" // hold the device; undone by one act
	MitigateRevoke  Mitigation = "revoke"  // take its certificates away, for good
	MitigateBlock   Mitigation = "block"   // refuse the address
	MitigateWebhook Mitigation = "webhook"
	MitigateMail    Mitigation = "mail"
	MitigateSyslog  Mitigation = "syslog"
)
