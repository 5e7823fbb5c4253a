package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/weakkey"
)

const (
	minRSABits = 2048
	// maxRSABits bounds the cost to verify an unknown client's chain: 8192 bits take half a millisecond.
	maxRSABits = 8192
	// maxSerialOctets is the bound of RFC 5280, 4.1.2.2.
	maxSerialOctets = 20
)

var (
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidNameConstraints  = asn1.ObjectIdentifier{2, 5, 29, 30}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidAuthorityKeyID   = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}

	// processed are the extensions that this package reads and crypto/x509 may
	// report as unhandled because of their content.
	processed = []asn1.ObjectIdentifier{oidSubjectAltName, oidNameConstraints}

	// acceptedSignatures leaves out MD5, SHA-1 and DSA, which crypto/x509 would
	// refuse too if it were called, and what it does not know.
	acceptedSignatures = []x509.SignatureAlgorithm{
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519,
	}
)

// checkEndEntity reports why a certificate cannot be a device's.
func checkEndEntity(c *x509.Certificate, o PathOptions) error {
	critical, names := extension(c, oidSubjectAltName)
	switch {
	case c.IsCA || c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return badPath("the device's certificate is one of a CA")
	case sameName(c.RawIssuer, c.RawSubject) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil:
		return badPath("the device's certificate is self-signed").WithNext("register its thumbprint instead")
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return badPath("the device's certificate has a keyUsage without digitalSignature")
	case has(c, oidNameConstraints):
		return badPath("the device's certificate has name constraints, which only a CA may")
	case emptyName(c.RawSubject) && (names == nil || !critical):
		return badPath("the device's certificate has neither subject nor critical subjectAltName")
	case has(c, oidExtKeyUsage) && len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0:
		return badPath("the device's certificate has an empty extended key usage")
	case !has(c, oidExtKeyUsage) && !o.AllowNoEKU && !slices.Contains(o.EKU, x509.ExtKeyUsageAny):
		return badPath("the device's certificate names no extended key usage").
			WithNext("ask the manufacturer for certificates with the extended key usage clientAuth")
	}
	return nil
}

// checkCertificate reports why the i-th certificate of the path cannot be at that place.
func (v *validator) checkCertificate(c *x509.Certificate, i int, path []*x509.Certificate) error {
	if err := checkTime(c, v.o.Now); err != nil {
		return err
	}
	isAnchor := i == len(path)-1
	if err := v.checkForm(c, isAnchor); err != nil {
		return err
	}
	if !isAnchor {
		if err := checkAlgorithms(c); err != nil {
			return err
		}
	}
	if err := checkKey(c, v.anchor.WeakKeys); err != nil {
		return err
	}
	if i > 0 {
		return v.checkCA(c, path[1:i], isAnchor)
	}
	return nil
}

// checkForm checks a certificate against RFC 5280, 4.1 and 4.2.
func (v *validator) checkForm(c *x509.Certificate, isAnchor bool) error {
	for _, oid := range c.UnhandledCriticalExtensions {
		if !slices.ContainsFunc(processed, oid.Equal) && !slices.ContainsFunc(v.anchor.AllowCritical, oid.Equal) {
			return badPath("%s has the critical extension %s, which is not known here", nameOf(c), oid).
				WithNext("ask the manufacturer for certificates without it, or with it marked as not critical")
		}
	}
	serial := c.SerialNumber
	switch {
	case c.Version != 3:
		return badPath("%s is of version %d, not 3", nameOf(c), c.Version)
	case serial.Sign() < 0 || len(serial.Bytes()) > maxSerialOctets || serial.Sign() == 0 && !isAnchor:
		return badPath("%s has a serial number that is not positive or longer than %d octets", nameOf(c), maxSerialOctets)
	case serial.Sign() == 0 && !v.legacy():
		return badPath("%s has the serial number 0", nameOf(c)).WithNext(nextLegacy)
	case emptyName(c.RawIssuer):
		return badPath("%s names no issuer", nameOf(c))
	case has(c, oidKeyUsage) && c.KeyUsage == 0: // RFC 5280, 4.2.1.3: at least one bit; crypto/x509 treats it as absent
		return badPath("%s has a keyUsage without any use", nameOf(c))
	case len(c.AuthorityKeyId) == 0 && !isAnchor && !v.legacy():
		return badPath("%s has no authorityKeyIdentifier", nameOf(c)).WithNext(nextLegacy)
	}
	return nil
}

// nextLegacy is the next step for a chain that is sound but does not conform to the profile.
const nextLegacy = "if the manufacturer has no better chain, register its CA with the option legacy"

func (v *validator) legacy() bool { return v.o.AllowLegacy || v.anchor.Legacy }

// checkCA reports why c cannot have issued the one before it, with these CAs between it and the end entity.
func (v *validator) checkCA(c *x509.Certificate, below []*x509.Certificate, isAnchor bool) error {
	critical, _ := extension(c, oidBasicConstraints)
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return badPath("%s is not a CA but has signed a certificate", nameOf(c))
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return badPath("%s has a keyUsage without keyCertSign", nameOf(c))
	case isAnchor && !critical && !v.legacy():
		return badPath("%s has basicConstraints that are not critical", nameOf(c)).WithNext(nextLegacy)
	case emptyName(c.RawSubject):
		return badPath("a CA of the chain has no subject")
	case len(c.SubjectKeyId) == 0 && !v.legacy():
		return badPath("%s has no subjectKeyIdentifier", nameOf(c)).WithNext(nextLegacy)
	}
	if c.MaxPathLen < 0 {
		return nil
	}
	depth := 0
	for _, b := range below { // RFC 5280, 6.1.4 (l): self-issued ones are not counted
		if !selfIssued(b) {
			depth++
		}
	}
	if depth > c.MaxPathLen {
		return badPath("%s allows %d CAs below it, and there are %d", nameOf(c), c.MaxPathLen, depth)
	}
	return nil
}

// checkTime is RFC 5280, 6.1.3 (a)(2). Both ends belong to the validity period;
// the start may be ahead of our clock by countersign.ClockSkew.
// An end of 99991231235959Z, for a device that has none, is a date like any other.
func checkTime(c *x509.Certificate, now time.Time) error {
	if now.Add(countersign.ClockSkew).Before(c.NotBefore) {
		return countersign.Errorf(countersign.CertNotYetValid, "%s is not valid before %s", nameOf(c), c.NotBefore.UTC().Format(time.RFC3339)).
			WithNext("check the clocks of the server and of the issuer of the certificate")
	}
	if now.After(c.NotAfter) {
		return countersign.Errorf(countersign.CertExpired, "%s expired at %s", nameOf(c), c.NotAfter.UTC().Format(time.RFC3339)).
			WithNext("replace the certificate")
	}
	return nil
}

func checkAlgorithms(c *x509.Certificate) error {
	if !slices.Contains(acceptedSignatures, c.SignatureAlgorithm) {
		return badPath("%s is signed with %s, which is not accepted", nameOf(c), c.SignatureAlgorithm).
			WithNext("have it issued again with SHA-256 or stronger")
	}
	return nil
}

// checkKey refuses a certificate's key by its type, by its size, or because it is known
// to be weak.
func checkKey(c *x509.Certificate, known *weakkey.Blocklist) error {
	if !acceptedKey(c.PublicKey) {
		return countersign.Errorf(countersign.WeakKey, "%s has a key of a type or size that is not accepted", nameOf(c)).
			WithNext("use P-256, P-384, P-521, Ed25519 or RSA from 2048 bits")
	}
	if err := known.Check(c.PublicKey); err != nil {
		e := countersign.Public(err)
		return countersign.Errorf(e.Code, "%s: %s", nameOf(c), e.Message).WithNext(e.Next).WithCause(err)
	}
	return nil
}

func acceptedKey(pub crypto.PublicKey) bool {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		n := k.N.BitLen()
		return n >= minRSABits && n <= maxRSABits && k.E > 2 && k.E%2 == 1
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521()
	case ed25519.PublicKey:
		return true
	}
	return false
}

// extension returns an extension of c; value is nil only if there is none.
func extension(c *x509.Certificate, oid asn1.ObjectIdentifier) (critical bool, value []byte) {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return e.Critical, append([]byte{}, e.Value...)
		}
	}
	return false, nil
}

func has(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oid) })
}

// nameOf returns how a refusal names a certificate of the chain.
func nameOf(c *x509.Certificate) string {
	const longest = 80 // an unverified name goes into logs and answers
	name := []rune(c.Subject.String())
	if len(name) > longest {
		name = append(name[:longest], '…')
	}
	return "certificate " + quote(string(name))
}
