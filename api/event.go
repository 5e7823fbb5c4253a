package api

import "time"

// Event is one line of the log.
type Event struct {
	Seq      int64             `json:"seq" doc:"Place in the log."`
	At       time.Time         `json:"at"`
	Type     string            `json:"type"`
	Severity string            `json:"severity" enum:"info,warning,alert"`
	Actor    string            `json:"actor" doc:"device:<id>, operator:<name>, token:<id> or system."`
	Device   string            `json:"device,omitempty"`
	Fleet    string            `json:"fleet,omitempty"`
	Issuer   string            `json:"issuer,omitempty"`
	Serial   string            `json:"serial,omitempty"`
	Remote   string            `json:"remote,omitempty" doc:"Address of the other side."`
	Via      string            `json:"via,omitempty" doc:"Door or tool."`
	Code     string            `json:"code,omitempty" doc:"Of a refusal."`
	Reason   string            `json:"reason,omitempty"`
	Data     map[string]string `json:"data,omitempty"`
	Hash     string            `json:"hash,omitempty" doc:"Hex; seals this line and all before."`
}

// EventFilter narrows a list of events.
type EventFilter struct {
	Type   string    `query:"type" maxLength:"64"`
	Device string    `query:"device" maxLength:"128"`
	Since  time.Time `query:"since"`
}

// Order says from which end a list of events is read.
type Order struct {
	Order string `query:"order" enum:"asc,desc" doc:"asc, the default: oldest first."`
}

// Verification is the result of checking the hash chain of the log.
type Verification struct {
	Intact   bool   `json:"intact"`
	Events   int64  `json:"events" doc:"How many were checked, and lost."`
	Lost     int64  `json:"lost,omitempty" doc:"Of them, those that a restored backup had lost: the log says so itself."`
	Unsealed int64  `json:"unsealed" doc:"How many are too new to be sealed."`
	Head     string `json:"head,omitempty" doc:"Hex hash of the last good one."`
	BadSeq   int64  `json:"bad_seq,omitempty" doc:"The first that does not fit."`
	Reason   string `json:"reason,omitempty" doc:"What does not fit."`
}

// OperatorToken lets an operator in over the network. Its secret is not in it.
type OperatorToken struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Role      string    `json:"role" enum:"viewer,operator,approver,auditor,factory,admin"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	UsedAt    time.Time `json:"used_at,omitzero" doc:"Last use, to the minute."`
	Revoked   bool      `json:"revoked,omitempty"`
}

// NewOperatorToken asks for an OperatorToken.
type NewOperatorToken struct {
	Name       string `json:"name" minLength:"1" maxLength:"63"`
	Role       string `json:"role" enum:"viewer,operator,approver,auditor,factory,admin"`
	TTLSeconds int64  `json:"ttl_seconds" minimum:"60" maximum:"31536000"`
}

// IssuedOperatorToken is a new OperatorToken with its secret, shown this once.
type IssuedOperatorToken struct {
	OperatorToken
	Secret string `json:"secret"`
}
