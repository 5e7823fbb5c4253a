package api

import "time"

// NewAccessToken asks for an AccessToken.
type NewAccessToken struct {
	Devices    []string `json:"devices" minItems:"1" maxItems:"100" doc:"The devices that it is for, all of one fleet."`
	ReadOnly   bool     `json:"read_only,omitempty" doc:"It may listen to the devices and not publish to them."`
	TTLSeconds int64    `json:"ttl_seconds,omitempty" minimum:"60" maximum:"3600" doc:"Default 900."`
}

// NewDeviceAccessToken asks for the AccessToken of the device that asks.
type NewDeviceAccessToken struct {
	TTLSeconds int64 `json:"ttl_seconds,omitempty" minimum:"60" maximum:"3600" doc:"Default 900."`
}

// AccessToken lets a web application connect to the MQTT listeners for a short time.
type AccessToken struct {
	ID        string    `json:"id"`
	Subject   string    `json:"subject" doc:"operator/<name>, or the id of a device"`
	Fleet     string    `json:"fleet"`
	Devices   []string  `json:"devices" doc:"the devices that it is for"`
	ReadOnly  bool      `json:"read_only"`
	IssuedAt  time.Time `json:"issued_at"`
	ExpiresAt time.Time `json:"expires_at"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// IssuedAccessToken is a new AccessToken with its text, shown this once.
type IssuedAccessToken struct {
	AccessToken
	Token string `json:"token" doc:"the password at CONNECT, with any user name"`
}
