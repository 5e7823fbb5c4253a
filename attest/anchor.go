package attest

import (
	"crypto/x509"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
)

// CheckAnchor reports why no path to the anchor could be valid, by the same rules that
// ValidatePath applies to each device later: what is wrong with the CA's certificate,
// and with the certificates that come with it. CRLs are not checked: they change.
// Errors have the codes of ValidatePath.
func CheckAnchor(a Anchor, now time.Time) error {
	a.CRLs, a.RequireCRL = nil, false
	v := &validator{anchor: &a, o: PathOptions{Now: now}, steps: maxSteps, known: distinct(a.Intermediates)}
	if err := v.checkCertificate(a.Certificate, 0, []*x509.Certificate{a.Certificate}); err != nil {
		return err
	}
	if !a.Certificate.BasicConstraintsValid || !a.Certificate.IsCA {
		return badPath("%s is not a CA's", nameOf(a.Certificate)).WithNext("use the certificate of the manufacturer's CA")
	}
	if err := v.checkCA(a.Certificate, nil, true); err != nil {
		return err
	}
	if ca := a.Certificate; has(ca, oidExtKeyUsage) && !slices.Contains(ca.ExtKeyUsage, x509.ExtKeyUsageAny) &&
		!slices.Contains(ca.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.ContainsFunc(ca.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return badPath("%s has an extended key usage that allows neither client certificates nor those of endorsement keys", nameOf(ca)).
			WithNext("use the CA that issues the certificates of the devices")
	}
	for _, c := range distinct([]*x509.Certificate{a.Certificate}, a.Intermediates) {
		if has(c, oidNameConstraints) {
			if _, err := readConstraints(c); err != nil {
				return err
			}
		}
	}
	for _, c := range a.Intermediates {
		if c.Equal(a.Certificate) {
			continue
		}
		if c.IsCA { // else it signs lists
			if err := v.checkCA(c, nil, false); err != nil {
				return err
			}
		}
		v.steps = maxSteps
		if _, err := v.validate(c, listIssuer); err != nil {
			if countersign.CodeOf(err) == countersign.CertUnknown {
				return badPath("%s does not lead to the registered CA", nameOf(c)).WithNext("send the certificates of CAs below it, and no others")
			}
			return err
		}
	}
	return nil
}
