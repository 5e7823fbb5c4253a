package api

import "time"

// IntroducerURI is the one name in the certificate that signs introductions.
const IntroducerURI = "urn:countersign:introducer"

// IntroductionType is the type of an introduction's JWS (RFC 7515, 4.1.9).
const IntroductionType = "countersign-introduction"

// NewIntroduction asks the authority to introduce the device that asks to another
// of its fleet. An operator names both, of any fleets.
type NewIntroduction struct {
	Device     string `json:"device,omitempty" maxLength:"128" doc:"Who is introduced; a device leaves it out."`
	Peer       string `json:"peer" minLength:"1" maxLength:"128" doc:"To whom."`
	Purpose    string `json:"purpose" minLength:"1" maxLength:"128" doc:"What for, in words that both devices understand: modbus, firmware."`
	TTLSeconds int64  `json:"ttl_seconds,omitempty" minimum:"10" maximum:"3600" doc:"Default 300."`
}

// Introduction is the authority's word, for a short time, that two devices may
// speak with each other for one purpose. Its signed form is a JWS (RFC 7515) with
// the signer's certificates (x5c).
type Introduction struct {
	ID        string    `json:"jti"`
	Purpose   string    `json:"purpose"`
	Parties   [2]Party  `json:"parties" doc:"who asked, then whom he asked for"`
	IssuedAt  time.Time `json:"issued_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Party is one of the two.
type Party struct {
	Device string   `json:"device"`
	Fleet  string   `json:"fleet"`
	Keys   []string `json:"keys" doc:"hex SHA-256 of the public keys (SubjectPublicKeyInfo) by which it is known now"`
}

// SignedIntroduction is an introduction with its signed form.
type SignedIntroduction struct {
	Introduction
	Signed string `json:"signed" doc:"compact JWS: what the devices show each other"`
}
