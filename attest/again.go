package attest

import (
	"crypto/x509"
	"slices"
	"strconv"

	"github.com/countersign-iot/countersign"
)

// CheckAgain reports why a path that ValidatePath found valid is no longer valid. It checks
// what time and CRLs can change: the validity period of each certificate and its revocation.
// Signatures, names and constraints do not change. path is the end entity first and
// the certificate of anchor last. Errors have the codes of ValidatePath.
func CheckAgain(path []*x509.Certificate, anchor *Anchor, o PathOptions) error {
	if len(path) < 2 || !path[len(path)-1].Equal(anchor.Certificate) {
		return noPath()
	}
	for _, c := range path {
		if err := checkTime(c, o.Now); err != nil {
			return err
		}
	}
	v := &validator{anchor: anchor, o: o, steps: maxSteps, known: distinct(path[1:len(path)-1], anchor.Intermediates)}
	_, err := v.checkRevocation(path)
	return err
}

// SignedBy returns the certificate, of a CA or CRL issuer, that has the list's issuer as
// its subject and whose key signed the list; nil if there is none.
func (l *CRL) SignedBy(certificates []*x509.Certificate) *x509.Certificate {
	if i := slices.IndexFunc(certificates, l.isBy); i >= 0 {
		return certificates[i]
	}
	return nil
}

// Scope returns the scope of the list: a list replaces earlier ones of the same issuer and
// scope (RFC 5280, 5.2.3), and no others.
func (l *CRL) Scope() string {
	return strconv.FormatBool(l.base != nil) + " " + l.scope.text()
}

// Same reports whether both lists have the same signed content.
func (l *CRL) Same(other *CRL) bool {
	return string(l.list.RawTBSRevocationList) == string(other.list.RawTBSRevocationList)
}

// Replaces refuses with Conflict a list that may not replace old, a list of the same
// issuer and scope: its number must be higher, and it must not have been issued earlier
// (RFC 5280, 5.2.3). Otherwise an old list would undo the revocations of a newer one.
func (l *CRL) Replaces(old *CRL) error {
	if l.list.Number.Cmp(old.list.Number) > 0 && !l.list.ThisUpdate.Before(old.list.ThisUpdate) {
		return nil
	}
	const form = "2006-01-02T15:04:05Z"
	return countersign.Errorf(countersign.Conflict, "the CRL of %s with number %d, issued at %s, does not follow the one on record, number %d of %s",
		l.IssuerName(), l.list.Number, l.list.ThisUpdate.UTC().Format(form), old.list.Number, old.list.ThisUpdate.UTC().Format(form)).
		WithNext("load the newest list that the CA publishes; if the CA restarted its numbering, replace all lists of the authority explicitly")
}

// IssuerName returns the list's issuer as an RFC 4514 string.
func (l *CRL) IssuerName() string { return l.list.Issuer.String() }

// DER returns the list as it was read.
func (l *CRL) DER() []byte { return l.list.Raw }
