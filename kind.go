package countersign

import "maps"

// Kind describes one type of event. All that acts on events reads it from the one
// table below: the log (whether other nodes must be notified at once), the index of
// sessions and external brokers (which sessions it ends), metrics and the API (how
// severe it is). A type without a row fails a test.
type Kind struct {
	Level   Level
	Ends    Ends    // the live sessions that end with it, on every node
	Recheck Recheck // the live sessions that are compared with the record because of it
	// Urgent events are sent to the other nodes in their own transaction; the others
	// are read there when the log is sealed. What ends or rechecks sessions is urgent.
	Urgent bool
	// Restores: the device regains what an earlier event took from it.
	Restores bool
	// Status: the status of Event.Cert in CRL and OCSP changes with it.
	Status bool
	// Authorities: nodes must read their copy of the authorities again.
	Authorities bool
	// Purges: what is stored for the device must not be delivered to it any more.
	Purges bool
}

// Level is the severity of an event.
type Level string

// The levels. An alert is for a person.
const (
	LevelInfo    Level = "info"
	LevelWarning Level = "warning"
	LevelAlert   Level = "alert"
)

// Ends names the sessions that an event ends.
type Ends int

// What an event can end.
const (
	EndsNothing     Ends = iota
	EndsDevice           // all sessions of Event.Device, and those with it in their scope; with Data["session"] that one
	EndsCertificate      // those that depend on Event.Cert
	EndsCredential       // those that depend on Event.Credential
)

// Recheck names the sessions that have to be compared with the record.
type Recheck int

// What has to be compared.
const (
	RecheckNone  Recheck = iota
	RecheckFleet         // those of Event.Fleet
	RecheckAll
)

var (
	info    = Kind{Level: LevelInfo}
	warning = Kind{Level: LevelWarning}
	alert   = Kind{Level: LevelAlert}
)

// kinds is the table. A new type of event gets its row here and in docs/events.md.
var kinds = map[EventType]Kind{
	DeviceCreated:     info,
	DeviceChanged:     {Level: LevelInfo, Recheck: RecheckFleet, Urgent: true},
	DeviceActivated:   info,
	DeviceSuspendedEv: {Level: LevelInfo, Ends: EndsDevice, Urgent: true},
	DeviceReactivated: {Level: LevelInfo, Urgent: true, Restores: true},
	DeviceRevoked:     {Level: LevelInfo, Ends: EndsDevice, Urgent: true, Purges: true},
	DeviceRetiredEv:   {Level: LevelInfo, Ends: EndsDevice, Urgent: true, Purges: true},
	DevicePurged:      info,

	CertIssued:       info,
	CertAccepted:     info,
	CertActivated:    info,
	CertSupersededEv: info,
	CertReplaced:     {Level: LevelInfo, Ends: EndsCertificate, Urgent: true, Status: true},
	CertRevokedEv:    {Level: LevelInfo, Ends: EndsCertificate, Urgent: true, Status: true},
	CertHeldEv:       {Level: LevelInfo, Ends: EndsCertificate, Urgent: true, Status: true},
	CertReleased:     {Level: LevelInfo, Urgent: true, Status: true, Restores: true},

	SessionOpened:      info,
	SessionClosed:      info,
	SessionKicked:      info,
	SessionEnded:       {Level: LevelInfo, Ends: EndsDevice, Urgent: true},
	ConnectRefused:     warning,
	ConnectionsRefused: warning,
	TopicDenied:        warning,
	BudgetExceeded:     warning,

	EnrollRefused:     warning,
	EnrollWaiting:     info,
	EnrollApproved:    info,
	EnrollRejected:    info,
	TokenCreated:      info,
	CredentialCreated: info,
	CredentialStopped: {Level: LevelInfo, Ends: EndsCredential, Urgent: true},

	SecretCreated:      info,
	SecretStopped:      {Level: LevelInfo, Ends: EndsCredential, Urgent: true},
	AccessTokenIssued:  info,
	AccessTokenRevoked: {Level: LevelInfo, Ends: EndsCredential, Urgent: true},
	IntroductionIssued: info,

	AuthorityCreated:    {Level: LevelInfo, Urgent: true, Authorities: true},
	AuthorityRegistered: {Level: LevelInfo, Urgent: true, Authorities: true},
	AuthorityUpdated:    {Level: LevelInfo, Urgent: true, Authorities: true, Recheck: RecheckAll},
	ProfileSaved:        {Level: LevelInfo, Urgent: true},
	FleetSaved:          {Level: LevelInfo, Urgent: true, Recheck: RecheckFleet},
	PolicyApplied:       {Level: LevelInfo, Urgent: true, Recheck: RecheckFleet},
	CRLPublished:        info,
	SerialsVoided:       info,

	OperatorTokenAdded:   info,
	OperatorTokenRevoked: info,
	OperatorRefused:      warning,

	FindingClaim:        alert,
	FindingGroupKey:     alert,
	FindingGuessing:     alert,
	FindingKeyReuse:     alert,
	FindingSharedFactor: alert,
	FindingFork:         alert,
	FindingRaised:       alert,
	AddressBlocked:      {Level: LevelAlert, Urgent: true},
	AddressUnblocked:    {Level: LevelInfo, Urgent: true},

	AlertOpened:       info,
	AlertChanged:      info,
	MitigationDone:    info,
	MitigationFailed:  alert,
	AuditCompleted:    info,
	AuditSuppressed:   info,
	AuditUnsuppressed: info,

	ServerStarted:    info,
	ServerStopped:    info,
	EventsSuppressed: warning,
	HoldPlaced:       {Level: LevelAlert, Ends: EndsDevice, Urgent: true},
	HoldRecorded:     info,
	HoldDropped:      {Level: LevelInfo, Urgent: true, Restores: true},
	DatabaseLost:     alert,
	DatabaseBack:     info,

	DatabaseRestored:   alert,
	DatabaseSetBack:    alert,
	WatermarkMissing:   alert,
	ReserveUsed:        alert,
	ReserveRefilled:    info,
	SealingKeyReplaced: alert,
	ServerReloaded:     info,
}

// Kind returns the type's row; a type that is not in the table is information that ends nothing.
func (t EventType) Kind() Kind {
	if k, ok := kinds[t]; ok {
		return k
	}
	return info
}

// Kinds returns a copy of the table, for tests and documentation.
func Kinds() map[EventType]Kind { return maps.Clone(kinds) }

// Credential returns the credential that the event is about, in the form of
// Verdict.Credential; empty if there is none.
func (e *Event) Credential() string {
	switch e.Type {
	case SecretStopped, SecretCreated:
		return "secret:" + e.Data["secret"]
	case AccessTokenIssued, AccessTokenRevoked:
		return "token:" + e.Data["token"]
	case CredentialCreated, CredentialStopped:
		return e.Data["kind"] + ":" + e.Data["credential"]
	}
	return ""
}

// Cut returns the sessions that the event ends; false if it ends none.
func (e *Event) Cut() (Cut, bool) {
	c := Cut{Code: e.Type, Reason: e.ending()}
	switch e.Type.Kind().Ends {
	case EndsDevice:
		if c.Session = e.Data["session"]; c.Session == "" {
			c.Device = e.Device
		}
	case EndsCertificate:
		c.Cert = e.Cert
	case EndsCredential:
		c.Credential = e.Credential()
	}
	return c, c.Device != "" || !c.Cert.IsZero() || c.Credential != "" || c.Session != ""
}

// Cuts returns the cuts that the events of one act require, each session named once: an
// event that ends all sessions of a device covers those about its certificates and
// credentials.
func Cuts(events []Event) []Cut {
	whole := map[string]bool{}
	var cuts []Cut
	for i := range events {
		if e := &events[i]; e.Type.Kind().Ends == EndsDevice && e.Data["session"] == "" {
			if c, ok := e.Cut(); ok && !whole[e.Device] {
				whole[e.Device] = true
				cuts = append(cuts, c)
			}
		}
	}
	for i := range events {
		e := &events[i]
		if c, ok := e.Cut(); ok && !whole[e.Device] {
			cuts = append(cuts, c)
		}
	}
	return cuts
}

// ending returns the sentence that the peer of a session is sent at its end.
func (e *Event) ending() string {
	switch e.Type {
	case DeviceRevoked:
		return because("device revoked", e.Data["reason"])
	case DeviceRetiredEv:
		return "device retired"
	case DeviceSuspendedEv:
		return "device suspended"
	case CertRevokedEv:
		return because("certificate revoked", e.Data["reason"])
	case CertHeldEv:
		return "certificate on hold"
	case CertReplaced:
		return "certificate replaced"
	case SecretStopped:
		return "the secret was stopped"
	case CredentialStopped:
		return "the credential was stopped"
	case AccessTokenRevoked:
		return "the access token was revoked"
	case SessionEnded:
		return "disconnected by an operator"
	case HoldPlaced:
		return "device stopped by an emergency hold"
	}
	return string(e.Type)
}

func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}
