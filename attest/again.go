package attest

import (
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"github.com/countersign-iot/countersign"
)

// CheckAgain reports why a path that ValidatePath found valid is not valid now. It checks
// what time and lists can change: the validity of each certificate and its revocation.
// Signatures, names and constraints stay as they were. path is the end entity first and
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

// SignedBy returns the one of the certificates, CAs or CRL issuers, that has the list's
// issuer as its subject and whose key signed the list; nil if there is none.
func (l *CRL) SignedBy(certificates []*x509.Certificate) *x509.Certificate {
	for _, c := range certificates {
		if sameName(l.list.RawIssuer, c.RawSubject) && l.signedBy(c) {
			return c
		}
	}
	return nil
}

// Scope names what the list speaks of, beside its issuer: lists of one issuer with one
// scope follow each other (RFC 5280, 5.2.3), all others stand beside each other.
func (l *CRL) Scope() string {
	s := &l.scope
	names := slices.Sorted(slices.Values(s.names))
	return strings.Join([]string{
		strconv.FormatBool(l.base != nil), strconv.FormatBool(s.onlyUser), strconv.FormatBool(s.onlyCA), strconv.FormatBool(s.onlyAttr),
		strconv.FormatBool(s.indirect), strconv.Itoa(s.reasons), hex.EncodeToString([]byte(strings.Join(names, "\x00"))),
	}, " ")
}

// Same reports whether both lists were signed over the same octets.
func (l *CRL) Same(other *CRL) bool {
	return string(l.list.RawTBSRevocationList) == string(other.list.RawTBSRevocationList)
}

// Replaces refuses with Conflict a list that may not take the place of old, a list of the
// same issuer and scope: its number must be higher, and it must not have been issued
// earlier (RFC 5280, 5.2.3). Otherwise an old list would make good again what a newer one
// revoked.
func (l *CRL) Replaces(old *CRL) error {
	if l.list.Number.Cmp(old.list.Number) > 0 && !l.list.ThisUpdate.Before(old.list.ThisUpdate) {
		return nil
	}
	const form = "2006-01-02T15:04:05Z"
	return countersign.Errorf(countersign.Conflict, "the CRL of %s with number %d, issued at %s, does not follow the one on record, number %d of %s",
		l.IssuerName(), l.list.Number, l.list.ThisUpdate.UTC().Format(form), old.list.Number, old.list.ThisUpdate.UTC().Format(form)).
		WithNext("load the newest list that the CA publishes; if the CA began to count anew, replace all lists of the authority on your word")
}

// IssuerName is the list's issuer for people, as RFC 4514 writes it.
func (l *CRL) IssuerName() string { return l.list.Issuer.String() }

// DER returns the list as it was read.
func (l *CRL) DER() []byte { return l.list.Raw }
