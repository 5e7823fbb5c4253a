package api

import (
	"encoding/pem"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

// CertRef names one certificate.
type CertRef struct {
	Issuer string `json:"issuer" doc:"Authority id; of a certificate by a CA below a registered authority followed by a slash and a hash of the CA's key."`
	Serial string `json:"serial" doc:"Lower-case hex."`
}

// Certificate is the record of one issued certificate.
type Certificate struct {
	Issuer      string `json:"issuer" doc:"Authority id; of a certificate by a CA below a registered authority followed by a slash and a hash of the CA's key."`
	Serial      string `json:"serial" doc:"Lower-case hex."`
	Device      string `json:"device,omitempty" doc:"Absent: the authority's own."`
	Fleet       string `json:"fleet,omitempty"`
	Profile     string `json:"profile"`
	State       string `json:"state" enum:"pending,active,superseded,held,revoked,expired"`
	Reason      string `json:"reason,omitempty" doc:"Of a revocation or hold (RFC 5280, 5.3.1)."`
	Predecessor string `json:"predecessor,omitempty" doc:"Serial of the certificate it was renewed from."`

	PredecessorIssuer string `json:"predecessor_issuer,omitempty" doc:"Issuer of that certificate."`

	Method      string    `json:"method,omitempty" doc:"Kind of evidence that earned it."`
	KeyHash     string    `json:"key_hash" doc:"Hex SHA-256 of the SubjectPublicKeyInfo."`
	Fingerprint string    `json:"fingerprint" doc:"Hex SHA-256 of the DER."`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	IssuedAt    time.Time `json:"issued_at"`
	UsedAt      time.Time `json:"used_at,omitzero" doc:"First use."`
	AcceptUntil time.Time `json:"accept_until,omitzero" doc:"End of the overlap once superseded."`
	RevokedAt   time.Time `json:"revoked_at,omitzero"`
	PEM         string    `json:"pem,omitempty" doc:"Left out in lists."`
}

// CertificateFilter narrows a list of certificates.
type CertificateFilter struct {
	Device        string    `query:"device" maxLength:"128"`
	State         string    `query:"state" enum:"pending,active,superseded,held,revoked"`
	ExpiresBefore time.Time `query:"expires_before"`
}

// Authority is a CA that the server knows.
type Authority struct {
	ID          string    `json:"id"`
	Kind        string    `json:"kind" enum:"root,issuing,registered"`
	Parent      string    `json:"parent,omitempty"`
	Subject     string    `json:"subject"`
	State       string    `json:"state" enum:"active,retired"`
	KeyURI      string    `json:"key_uri,omitempty" doc:"Where the key is kept; absent for a registered authority."`
	Serial      string    `json:"serial"`
	Fingerprint string    `json:"fingerprint" doc:"Hex SHA-256 of the DER."`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	CreatedAt   time.Time `json:"created_at"`
	PEM         string    `json:"pem"`
}

// Profile says what a certificate may contain.
type Profile struct {
	Name            string   `json:"name"`
	Description     string   `json:"description,omitempty" maxLength:"500"`
	ValiditySeconds int64    `json:"validity_seconds,omitempty" minimum:"0" doc:"Lifetime; absent where no_expiry is set."`
	NoExpiry        bool     `json:"no_expiry,omitempty" doc:"notAfter is 99991231235959Z, as 802.1AR has it for an IDevID."`
	BackdateSeconds int64    `json:"backdate_seconds,omitempty" minimum:"0" doc:"How far notBefore is set back, for devices whose clock is slow."`
	ExtKeyUsage     []string `json:"ext_key_usage,omitempty" maxItems:"16"`
	KeyUsage        []string `json:"key_usage,omitempty" maxItems:"16"`
	Keys            []string `json:"keys,omitempty" maxItems:"16" doc:"Accepted key types; absent: all that are not weak."`
	ServerKeys      bool     `json:"server_keys,omitempty" doc:"The server may make keys (RFC 7030, 4.4); it stores none."`
	NoStatus        bool     `json:"no_status,omitempty" doc:"Leave out CRL distribution points and OCSP."`
	OmitURI         bool     `json:"omit_uri,omitempty" doc:"Leave out the URI that names the device."`
}

// EnrollRequest asks for a certificate, from a device.
type EnrollRequest struct {
	CSR   string `json:"csr" doc:"PKCS #10 in PEM."`
	Token string `json:"token,omitempty" doc:"Enrollment token; or give it as Bearer or Basic password."`
	Fleet string `json:"fleet,omitempty"`
}

// Grant is an issued certificate, for a device that asks for JSON.
type Grant struct {
	Device   string    `json:"device"`
	Fleet    string    `json:"fleet"`
	Serial   string    `json:"serial"`
	Chain    string    `json:"chain" doc:"PEM, the device's certificate first, the root left out."`
	RenewAt  time.Time `json:"renew_at" doc:"Start of the window in which to renew."`
	NotAfter time.Time `json:"not_after"`
}

// GrantOf returns the JSON form of a grant. The root is left out of the chain: it is
// trusted beforehand or not at all.
func GrantOf(g *countersign.Grant) Grant {
	chain := []string{PEM(g.Leaf)}
	for _, der := range g.Chain[:max(0, len(g.Chain)-1)] {
		chain = append(chain, PEM(der))
	}
	return Grant{
		Device: g.Device, Fleet: g.Fleet, Serial: string(g.Serial), Chain: strings.Join(chain, ""), RenewAt: g.RenewAt.UTC(), NotAfter: g.NotAfter.UTC(),
	}
}

// PEM returns a certificate in PEM.
func PEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
