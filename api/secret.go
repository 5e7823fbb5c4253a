package api

import "time"

// Secret is what a device connects with beside certificates, without the secret itself.
type Secret struct {
	ID        string    `json:"id"`
	Device    string    `json:"device"`
	Slot      string    `json:"slot" enum:"primary,secondary"`
	Kind      string    `json:"kind" enum:"secret,password" doc:"secret: made by the server; password: chosen by a person."`
	SCRAM     bool      `json:"scram,omitempty" doc:"It can be used without being sent, with SCRAM-SHA-256."`
	State     string    `json:"state" enum:"active,stopped"`
	Reason    string    `json:"reason,omitempty" doc:"Why it was stopped."`
	CreatedBy string    `json:"created_by"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at,omitzero" doc:"Absent: never."`
	UsedAt    time.Time `json:"used_at,omitzero" doc:"Last connection with it."`
}

// NewSecret asks for a Secret.
type NewSecret struct {
	Slot       string `json:"slot,omitempty" enum:"primary,secondary" doc:"Default: primary. It must be free."`
	Secret     []byte `json:"secret,omitempty" doc:"A chosen password, in base64: 8 to 65535 octets. Absent: the server makes one."`
	Binary     bool   `json:"binary,omitempty" doc:"The one that the server makes is 32 raw octets and not text."`
	TTLSeconds int64  `json:"ttl_seconds,omitempty" minimum:"60" maximum:"315360000" doc:"Absent: it does not end by itself."`
}

// RotateSecret asks for the successor of the present secret of a slot.
type RotateSecret struct {
	NewSecret
	OverlapSeconds *int64 `json:"overlap_seconds,omitempty" minimum:"0" maximum:"2592000" doc:"How long the present one stays good; absent: a day. 0 ends its sessions now."`
}

// ChangeSecret is what a device asks for that changes its own secret.
type ChangeSecret struct {
	Binary bool `json:"binary,omitempty" doc:"32 raw octets and not text."`
}

// IssuedSecret is a Secret with the secret itself, which is not shown again.
type IssuedSecret struct {
	Secret
	Text   string `json:"text,omitempty" doc:"The secret; absent if it is a chosen password or binary."`
	Octets []byte `json:"octets,omitempty" doc:"The secret in base64, if it is binary."`
}

// StoppedSecret is a Secret that was stopped, with what that did.
type StoppedSecret struct {
	Secret
	Sessions int  `json:"sessions" doc:"Live sessions that were closed."`
	Already  bool `json:"already,omitempty" doc:"It was stopped before; live sessions were closed again."`
}
