package api

import "time"

// Device is one piece of equipment with one identity.
type Device struct {
	ID        string            `json:"id"`
	Fleet     string            `json:"fleet"`
	State     string            `json:"state" enum:"registered,pending,active,suspended,retired"`
	Reason    string            `json:"reason,omitempty" doc:"Why the state is what it is."`
	Owner     string            `json:"owner,omitempty" doc:"Person or team that answers for it."`
	Purpose   string            `json:"purpose,omitempty" doc:"What it is for."`
	Tags      map[string]string `json:"tags,omitempty"`
	CreatedAt time.Time         `json:"created_at"`
	UpdatedAt time.Time         `json:"updated_at"`
	LastSeen  time.Time         `json:"last_seen,omitzero" doc:"Last accepted connection."`
	LastAddr  string            `json:"last_addr,omitempty" doc:"Remote address of the last accepted connection."`
}

// NewDevice registers a device before it enrolls.
type NewDevice struct {
	ID      string            `json:"id" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9._:-]+$"`
	Fleet   string            `json:"fleet,omitempty" maxLength:"63" doc:"Default: the fleet default."`
	Owner   string            `json:"owner,omitempty" maxLength:"200"`
	Purpose string            `json:"purpose,omitempty" maxLength:"200"`
	Tags    map[string]string `json:"tags,omitempty" maxProperties:"64"`
}

// DeviceFilter narrows a list of devices.
type DeviceFilter struct {
	Fleet string `query:"fleet" maxLength:"63"`
	State string `query:"state" enum:"registered,pending,active,suspended,retired"`
}

// Act says why an operator suspends, reactivates or retires a device.
type Act struct {
	Note string `json:"note,omitempty" maxLength:"500" doc:"Why, in your words."`
}

// Revoke takes a device's certificates, or one certificate, away for good.
type Revoke struct {
	Reason string `json:"reason" minLength:"1" maxLength:"40" doc:"keyCompromise, affiliationChanged, superseded, cessationOfOperation, privilegeWithdrawn or unspecified (RFC 5280, 5.3.1)."`
	Note   string `json:"note,omitempty" maxLength:"500" doc:"Why, in your words."`
}

// Cut is what an act did that took an identity away, for good or for now.
type Cut struct {
	Device       string    `json:"device"`
	Reason       string    `json:"reason" doc:"The one on record, which stays where it was in force before for the same or a graver one."`
	Certificates []CertRef `json:"certificates" doc:"Certificates whose state changed."`
	At           time.Time `json:"at" doc:"When it was on durable record."`
	Already      bool      `json:"already,omitempty" doc:"It was in force before; live sessions were closed again."`
	Raised       bool      `json:"raised,omitempty" doc:"A certificate was revoked before, for a reason that is less grave: the record, the next CRL and OCSP show this one now."`
	Sessions     int       `json:"sessions" doc:"Live sessions that were closed."`
	CutMicros    int64     `json:"cut_micros" doc:"Microseconds from the durable record to the last socket closed."`
	CRLs         []CRLRef  `json:"crls,omitempty" doc:"Lists that now show it."`
}

// CRLRef names one published certificate revocation list.
type CRLRef struct {
	Issuer string `json:"issuer"`
	Shard  int    `json:"shard"`
	Number int64  `json:"number"`
}

// Session is one live connection.
type Session struct {
	ID       string    `json:"id"`
	Device   string    `json:"device"`
	Fleet    string    `json:"fleet"`
	Issuer   string    `json:"issuer"`
	Serial   string    `json:"serial"`
	Gateway  string    `json:"gateway"`
	Protocol string    `json:"protocol"`
	ClientID string    `json:"client_id"`
	Remote   string    `json:"remote"`
	Since    time.Time `json:"since"`
	NotAfter time.Time `json:"not_after" doc:"The session ends here at the latest."`
}

// SessionFilter narrows a list of sessions.
type SessionFilter struct {
	Device string `query:"device" maxLength:"128"`
}

// Fleet is a group of devices with the rules they live by.
type Fleet struct {
	Name           string    `json:"name"`
	Issuer         string    `json:"issuer" doc:"Id of the authority that issues to the fleet."`
	Profile        string    `json:"profile" doc:"Name of the certificate profile."`
	Methods        []string  `json:"methods" doc:"Evidence that may enroll."`
	OverlapSeconds int64     `json:"overlap_seconds" doc:"How long a superseded certificate is still accepted."`
	TrustDomain    string    `json:"trust_domain,omitempty" doc:"SPIFFE trust domain; absent: devices are named by URN."`
	Rules          *Rules    `json:"rules,omitempty" doc:"Bounds of enrollment beyond the methods; absent: none."`
	CreatedAt      time.Time `json:"created_at"`
	UpdatedAt      time.Time `json:"updated_at"`
}

// PutFleet creates or changes a fleet. A field that is absent keeps its value,
// or takes its default where the fleet is new.
type PutFleet struct {
	Issuer         *string   `json:"issuer,omitempty" maxLength:"63"`
	Profile        *string   `json:"profile,omitempty" maxLength:"63"`
	Methods        *[]string `json:"methods,omitempty" maxItems:"16"`
	OverlapSeconds *int64    `json:"overlap_seconds,omitempty" minimum:"0" maximum:"7776000"`
	TrustDomain    *string   `json:"trust_domain,omitempty" maxLength:"255"`
	Rules          *Rules    `json:"rules,omitempty" doc:"All of them: a rule that is left out here ends."`
	AccessKinds    *[]string `json:"access_kinds,omitempty" maxItems:"6" doc:"Changes rules.access.kinds alone."`
	Guests         *bool     `json:"guests,omitempty" doc:"Changes rules.access.guests alone."`
	// Respond changes rules.respond by name.
	Respond map[string][]string `json:"respond,omitempty" doc:"What follows on findings of these rules; the others stay. An empty list takes the fleet's word back."`
}
