package api

import (
	"time"

	"github.com/countersign-iot/countersign"
)

// Credential is what earns a first certificate, without its secret.
type Credential struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind" doc:"The method of enrollment: token, claim, key, group, thumbprint or tpm."`
	Fleet     string    `json:"fleet"`
	Device    string    `json:"device,omitempty" doc:"The one id that it may enroll; absent: any that devices allow."`
	Label     string    `json:"label,omitempty" doc:"The operator's name for it."`
	State     string    `json:"state" enum:"active,stopped"`
	Reason    string    `json:"reason,omitempty" doc:"Why it is stopped."`
	Uses      int       `json:"uses" doc:"How often it may be used; 0: any number of times."`
	Used      int       `json:"used"`
	PerMinute int       `json:"per_minute,omitempty" doc:"How often in a minute; absent: any."`
	Networks  []string  `json:"networks,omitempty" doc:"CIDR that it may be used from; absent: all."`
	Devices   []string  `json:"devices,omitempty" doc:"Ids, patterns and ranges that it may enroll; absent: any."`
	NotBefore time.Time `json:"not_before,omitzero"`
	ExpiresAt time.Time `json:"expires_at,omitzero" doc:"Absent: never."`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
}

// StoppedCredential is a Credential that was stopped, with what that did.
type StoppedCredential struct {
	Credential
	Sessions int  `json:"sessions" doc:"Live sessions that were closed."`
	Already  bool `json:"already,omitempty" doc:"It was stopped before; live sessions were closed again."`
}

// CredentialFilter narrows a list of credentials.
type CredentialFilter struct {
	Kind   string `query:"kind" enum:"token,claim,key,group,thumbprint,tpm"`
	Fleet  string `query:"fleet" maxLength:"63"`
	Device string `query:"device" maxLength:"128"`
}

// Bounds are what credentials that are made for many devices are good for.
type Bounds struct {
	Fleet      string    `json:"fleet,omitempty" maxLength:"63" doc:"Default: the device's fleet, else the fleet default."`
	Label      string    `json:"label,omitempty" maxLength:"200" doc:"Your name for it."`
	Uses       int       `json:"uses,omitempty" minimum:"0" maximum:"100000" doc:"Default 1."`
	TTLSeconds int64     `json:"ttl_seconds,omitempty" minimum:"0" maximum:"31622400" doc:"Default one hour."`
	NotBefore  time.Time `json:"not_before,omitzero" doc:"Default now. The lifetime counts from then."`
	PerMinute  int       `json:"per_minute,omitempty" minimum:"0" maximum:"60000" doc:"Uses in a minute; default any number."`
	Networks   []string  `json:"networks,omitempty" maxItems:"64" doc:"CIDR that it may be used from; default all."`
}

// NewToken asks for an enrollment token.
type NewToken struct {
	Fleet      string    `json:"fleet,omitempty" maxLength:"63" doc:"Default: the device's fleet, else the fleet default."`
	Device     string    `json:"device,omitempty" maxLength:"128" doc:"Bind it to this id."`
	Uses       int       `json:"uses,omitempty" minimum:"0" maximum:"100000" doc:"Default 1."`
	TTLSeconds int64     `json:"ttl_seconds,omitempty" minimum:"0" maximum:"31622400" doc:"Default one hour."`
	Label      string    `json:"label,omitempty" maxLength:"200" doc:"Your name for it."`
	NotBefore  time.Time `json:"not_before,omitzero" doc:"Default now. The lifetime counts from then."`
	PerMinute  int       `json:"per_minute,omitempty" minimum:"0" maximum:"60000" doc:"Uses in a minute; default any number."`
	Networks   []string  `json:"networks,omitempty" maxItems:"64" doc:"CIDR that it may be used from; default all."`
	Devices    []string  `json:"devices,omitempty" maxItems:"1000" doc:"Ids, patterns with * and ?, ranges such as pump-0001..pump-0500; default any."`
}

// IssuedToken is a new token with its secret, which is shown this once.
type IssuedToken struct {
	Credential
	Secret string `json:"secret"`
}

// MaxBulk is how many tokens are made at once.
const MaxBulk = 1000

// NewTokens asks for one enrollment token for each of many devices.
type NewTokens struct {
	Bounds
	IDs []string `json:"ids" minItems:"1" maxItems:"1000" doc:"Device ids. All get a token, or none."`
}

// IssuedTokens are new tokens in the order of their devices.
type IssuedTokens struct {
	Tokens []DeviceToken `json:"tokens"`
}

// DeviceToken is the token of one device, which is shown this once.
type DeviceToken struct {
	ID    string `json:"id" doc:"Device id."`
	Token string `json:"token"`
}

// NewClaim asks for a claim certificate.
type NewClaim struct {
	Bounds
	Devices   []string `json:"devices,omitempty" maxItems:"1000" doc:"Ids, patterns with * and ?, ranges such as pump-0001..pump-0500; default any."`
	CSR       string   `json:"csr,omitempty" doc:"PKCS #10 in PEM for a key of your own; absent: the server makes one and shows it once."`
	Temporary bool     `json:"temporary,omitempty" doc:"One use within five minutes, for a person beside the device."`
}

// IssuedClaim is a new claim certificate.
type IssuedClaim struct {
	Credential
	Chain string `json:"chain" doc:"PEM, the claim first, the root left out."`
	Key   string `json:"key,omitempty" doc:"PKCS #8 in PEM, where the server made it; shown this once."`
}

// NewKey registers the symmetric key of one device.
type NewKey struct {
	Device    string `json:"device" minLength:"1" maxLength:"128"`
	Fleet     string `json:"fleet,omitempty" maxLength:"63"`
	Label     string `json:"label,omitempty" maxLength:"200"`
	Primary   string `json:"primary,omitempty" maxLength:"128" doc:"Base64 of 16 to 64 octets; absent: drawn here."`
	Secondary string `json:"secondary,omitempty" maxLength:"128"`
}

// NewGroupKey registers a key from which those of many devices are derived.
type NewGroupKey struct {
	Label     string `json:"label" minLength:"1" maxLength:"200" doc:"Name of the group."`
	Fleet     string `json:"fleet,omitempty" maxLength:"63"`
	Primary   string `json:"primary,omitempty" maxLength:"128" doc:"Base64 of 16 to 64 octets; absent: drawn here."`
	Secondary string `json:"secondary,omitempty" maxLength:"128"`
}

// IssuedKey is a registered symmetric key, which is shown this once.
type IssuedKey struct {
	Credential
	Primary   string `json:"primary"`
	Secondary string `json:"secondary"`
}

// NewThumbprint registers a device's self-signed certificate.
type NewThumbprint struct {
	Device    string `json:"device" minLength:"1" maxLength:"128"`
	Fleet     string `json:"fleet,omitempty" maxLength:"63"`
	Label     string `json:"label,omitempty" maxLength:"200"`
	Primary   string `json:"primary" minLength:"1" maxLength:"100" doc:"SHA-256 of the certificate's DER in hex."`
	Secondary string `json:"secondary,omitempty" maxLength:"100" doc:"Of another one that will do as well."`
}

// NewTPM registers the endorsement key of a TPM 2.0.
type NewTPM struct {
	Device   string `json:"device,omitempty" maxLength:"128" doc:"Absent: the id that the chip or its request says."`
	Fleet    string `json:"fleet,omitempty" maxLength:"63"`
	Label    string `json:"label,omitempty" maxLength:"200"`
	EKPublic []byte `json:"ek_public,omitempty" doc:"Base64 of its public area as tpm2_createek -u writes it; or"`
	EKHash   string `json:"ek_sha256,omitempty" maxLength:"64" doc:"the SHA-256 of that in hex."`
}

// Waiting is an enrollment that waits for an operator, or did.
type Waiting struct {
	ID        string             `json:"id"`
	State     WaitingState       `json:"state" enum:"waiting,approved,rejected,done"`
	Device    string             `json:"device"`
	Fleet     string             `json:"fleet"`
	Method    countersign.Method `json:"method"`
	Evidence  string             `json:"evidence" doc:"Fingerprint of what was shown."`
	KeyHash   string             `json:"key_hash" doc:"Hex SHA-256 of the SubjectPublicKeyInfo."`
	Facts     map[string]string  `json:"facts,omitempty" doc:"What the evidence says."`
	Remote    string             `json:"remote,omitempty"`
	Via       string             `json:"via"`
	DecidedBy countersign.Actor  `json:"decided_by,omitempty"`
	Note      string             `json:"note,omitempty"`
	CreatedAt time.Time          `json:"created_at"`
	ExpiresAt time.Time          `json:"expires_at"`
	DecidedAt time.Time          `json:"decided_at,omitzero"`
}

// WaitingState is how far an approval has come.
type WaitingState string

// WaitingFilter narrows the queue.
type WaitingFilter struct {
	State string `query:"state" enum:"waiting,approved,rejected,done"`
}

// Explain asks what would become of an enrollment.
type Explain struct {
	CSR          string `json:"csr" minLength:"1" doc:"PKCS #10 in PEM."`
	Token        string `json:"token,omitempty" maxLength:"4096" doc:"Enrollment token or SAS token."`
	Certificates string `json:"certificates,omitempty" doc:"PEM of the client certificate and its chain. Its key is never asked for."`
	Fleet        string `json:"fleet,omitempty" maxLength:"63"`
	Remote       string `json:"remote,omitempty" maxLength:"64" doc:"Address that the device would come from."`
}

// Explanation is what would become of an enrollment.
type Explanation struct {
	Decision string            `json:"decision" enum:"issue,again,wait,refuse"`
	Code     string            `json:"code,omitempty" doc:"Of a refusal."`
	Reason   string            `json:"reason" doc:"The rule that decides."`
	Next     string            `json:"next,omitempty"`
	Device   string            `json:"device,omitempty"`
	Fleet    string            `json:"fleet,omitempty"`
	Method   string            `json:"method,omitempty"`
	Evidence string            `json:"evidence,omitempty"`
	Profile  string            `json:"profile,omitempty"`
	Facts    map[string]string `json:"facts,omitempty"`
}

// RegistrationCode is what an authority signs over to show that it has its key.
type RegistrationCode struct {
	Code      string    `json:"code" doc:"The common name of the verification certificate."`
	ExpiresAt time.Time `json:"expires_at"`
}

// NewAuthority registers the CA of a manufacturer.
type NewAuthority struct {
	ID            string   `json:"id" minLength:"1" maxLength:"63"`
	Certificate   string   `json:"certificate" minLength:"1" doc:"PEM."`
	Intermediates []string `json:"intermediates,omitempty" maxItems:"16" doc:"PEM of CAs below it, for devices that send too little."`
	CRLs          [][]byte `json:"crls,omitempty" maxItems:"16" doc:"Base64 of lists in DER or PEM, of it and of CAs below."`
	RequireCRL    bool     `json:"require_crl,omitempty" doc:"Refuse where there is no list for a link."`
	Legacy        bool     `json:"legacy,omitempty" doc:"Accept a chain without key identifiers, and a CA with basicConstraints that are not critical or with serial number 0."`
	Verification  string   `json:"verification,omitempty" doc:"PEM of a certificate that it signed over a registration code."`
	Override      bool     `json:"override,omitempty" doc:"Register without that, on your word."`
	Reason        string   `json:"reason,omitempty" maxLength:"500" doc:"Why, in your words; needed with override."`
}

// PutCRLs brings the revocation lists of a registered authority up to date. Each list
// takes the place of the one before it by the same issuer; the others stay.
type PutCRLs struct {
	CRLs          [][]byte `json:"crls" maxItems:"16" doc:"Base64 of lists in DER or PEM, of it and of CAs below."`
	Intermediates []string `json:"intermediates,omitempty" maxItems:"16" doc:"PEM of CAs below it that signed a list and are not known yet."`
	Override      bool     `json:"override,omitempty" doc:"Replace all lists by these on your word, newer ones too."`
	Reason        string   `json:"reason,omitempty" maxLength:"500" doc:"Why, in your words; needed with override."`
}
