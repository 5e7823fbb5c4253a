package attest

import "time"

// RegistrationIDOf is the registration id of a public area, whatever its key.
func RegistrationIDOf(area []byte) string { return registrationID(&tpmKey{area: area}) }

// IdentifyTPM appraises EK and AK alone.
func IdentifyTPM(ev TPMEvidence, o TPMOptions) (TPMIdentity, error) {
	id, _, _, err := identifyTPM(ev, o)
	return id, err
}

// Len is how many certificates the list revokes.
func (l *CRL) Len() int { return len(l.entries) }

// NextUpdate is when a newer list is due.
func (l *CRL) NextUpdate() time.Time { return l.list.NextUpdate }

// Issuer is the raw name of the issuer of the list.
func (l *CRL) Issuer() []byte { return l.list.RawIssuer }
