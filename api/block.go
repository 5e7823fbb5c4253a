package api

import "time"

// Block is an address or a network that is refused for a time.
type Block struct {
	Network  string    `json:"network" doc:"Such as 203.0.113.7/32. In a path write _ for the slash."`
	Manual   bool      `json:"manual,omitempty" doc:"Made by an operator: it refuses devices with good certificates too."`
	Reason   string    `json:"reason,omitempty"`
	Failures int       `json:"failures,omitempty" doc:"Wrong credentials that led to it."`
	Strikes  int       `json:"strikes,omitempty" doc:"Which block of this address it is; each is twice as long as the one before."`
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until"`
}

// NewBlock asks for a Block.
type NewBlock struct {
	Network    string `json:"network" minLength:"1" maxLength:"64" doc:"An address or a network; IPv6 is blocked by /64 or wider."`
	Reason     string `json:"reason,omitempty" maxLength:"200"`
	TTLSeconds int64  `json:"ttl_seconds" minimum:"60" maximum:"31536000"`
}
