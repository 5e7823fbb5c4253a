package countersign

import (
	"strings"
	"time"
)

// Actor is who did something: device:<id>, operator:<name>, token:<id> or system.
type Actor string

// System is the authority acting by itself.
const System Actor = "system"

// DeviceActor is the device acting.
func DeviceActor(id string) Actor { return Actor("device:" + id) }

// ActorOf returns the actor whose session Session.Device names: operator:<name> for
// operator/<name>, guest:<x> for guest/<x>, else the device itself.
func ActorOf(device string) Actor {
	if kind, name, other := strings.Cut(device, "/"); other {
		return Actor(kind + ":" + name)
	}
	return DeviceActor(device)
}

// OperatorActor is a person or a token that administers.
func OperatorActor(name string) Actor { return Actor("operator:" + name) }

// EventType names an event: noun.verb.
type EventType string

// The events. docs/events.md describes what each means and carries.
const (
	DeviceCreated        EventType = "device.created"
	DeviceActivated      EventType = "device.activated" // by its first connection with a secret
	DeviceSuspendedEv    EventType = "device.suspended"
	DeviceReactivated    EventType = "device.reactivated"
	DeviceRevoked        EventType = "device.revoked"
	DeviceRetiredEv      EventType = "device.retired"
	CertIssued           EventType = "certificate.issued"
	CertAccepted         EventType = "certificate.accepted"
	CertActivated        EventType = "certificate.activated"
	CertSupersededEv     EventType = "certificate.superseded"
	CertReplaced         EventType = "certificate.replaced"
	CertRevokedEv        EventType = "certificate.revoked"
	CertHeldEv           EventType = "certificate.held"
	CertReleased         EventType = "certificate.released"
	EnrollRefused        EventType = "enrollment.refused"
	TokenCreated         EventType = "token.created"
	SessionOpened        EventType = "session.opened"
	SessionClosed        EventType = "session.closed"
	ConnectRefused       EventType = "connection.refused"
	TopicDenied          EventType = "topic.denied"
	EnrollWaiting        EventType = "enrollment.waiting"
	EnrollApproved       EventType = "enrollment.approved"
	EnrollRejected       EventType = "enrollment.rejected"
	CredentialCreated    EventType = "credential.created" //nolint:gosec // a name
	CredentialStopped    EventType = "credential.stopped" //nolint:gosec // a name
	FindingClaim         EventType = "finding.claim_misuse"
	FindingGroupKey      EventType = "finding.group_key_leaked"
	FindingGuessing      EventType = "finding.guessing"
	FindingKeyReuse      EventType = "finding.key_reused"
	FindingSharedFactor  EventType = "finding.shared_factor"
	AuthorityRegistered  EventType = "authority.registered"
	AuthorityUpdated     EventType = "authority.updated"
	FindingFork          EventType = "finding.fork"
	AuthorityCreated     EventType = "authority.created"
	ProfileSaved         EventType = "profile.saved"
	FleetSaved           EventType = "fleet.saved"
	OperatorTokenAdded   EventType = "operator_token.created"
	OperatorTokenRevoked EventType = "operator_token.revoked"
	CRLPublished         EventType = "crl.published"
	ServerStarted        EventType = "server.started"
	ServerStopped        EventType = "server.stopped"
	EventsSuppressed     EventType = "events.suppressed"
	SerialsVoided        EventType = "serials.voided"
	AddressBlocked       EventType = "address.blocked"
	AddressUnblocked     EventType = "address.unblocked"
	SecretCreated        EventType = "secret.created"
	SecretStopped        EventType = "secret.stopped"
	AccessTokenIssued    EventType = "access_token.issued"
	AccessTokenRevoked   EventType = "access_token.revoked"
	IntroductionIssued   EventType = "introduction.issued"
	PolicyApplied        EventType = "policy.applied"
	FindingRaised        EventType = "finding.raised" // by a detector or an audit check
	AlertOpened          EventType = "alert.opened"
	AlertChanged         EventType = "alert.changed"
	MitigationDone       EventType = "mitigation.done"
	MitigationFailed     EventType = "mitigation.failed"
	AuditCompleted       EventType = "audit.completed"
	AuditSuppressed      EventType = "audit.suppressed"
	AuditUnsuppressed    EventType = "audit.unsuppressed"
	SessionKicked        EventType = "session.kicked" // at an external broker
	SessionEnded         EventType = "session.ended"  // by an operator; the device may reconnect
	ConnectionsRefused   EventType = "connections.turned_away"
	DeviceChanged        EventType = "device.changed" // owner, tags, fleet or purpose
	BudgetExceeded       EventType = "budget.exceeded"
	DevicePurged         EventType = "device.purged"    // an operator dropped what was stored for it
	OperatorRefused      EventType = "operator.refused" // a wrong token, or an act that the role does not allow
	HoldPlaced           EventType = "hold.placed"      // an emergency hold of one node, while the database cannot be written
	HoldRecorded         EventType = "hold.recorded"    // its revocation is in the database now
	HoldDropped          EventType = "hold.dropped"     // it ended without that
	DatabaseLost         EventType = "database.lost"
	DatabaseBack         EventType = "database.back"
	DatabaseRestored     EventType = "database.restored"    // an operator accepted a database that is older than what was seen
	DatabaseSetBack      EventType = "database.set_back"    // a running node found the database older than before
	WatermarkMissing     EventType = "watermark.missing"    // whether the database is as new as it was cannot be known
	ReserveUsed          EventType = "reserve.used"         // the disk is full: revocations use the reserve
	ReserveRefilled      EventType = "reserve.refilled"     // the disk has space again
	SealingKeyReplaced   EventType = "sealing_key.replaced" // what was sealed with the old one cannot be read
	ServerReloaded       EventType = "server.reloaded"      // its configuration was read again
)

// Position is a place in the order of the log: the id of its newest event at that
// time. Acts are ordered by position and not by their times, because the clocks of
// nodes differ and can be set back.
type Position int64

// Event is one entry of the log: who, what, when, from where, why.
type Event struct {
	Seq    int64 // dense, in sealed order; 0 until sealed
	At     time.Time
	Type   EventType
	Actor  Actor
	Device string
	Fleet  string
	Cert   CertRef
	Remote string // address of the other side; empty for acts without one
	Via    string // door or tool: est, rest, mqtt, cli
	Code   Code   // of a refusal; of session.closed its EndCode
	Reason string // why, one sentence
	Data   map[string]string
	Hash   []byte // of this line and, through the previous one, of all before; nil until sealed
}
