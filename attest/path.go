package attest

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/weakkey"
)

const (
	// maxPresented is how many certificates a device may send. Factory chains
	// have two to four; twice the longest known leaves room for cross-certificates.
	maxPresented = 10
	// maxChainBytes bounds their DER: ten certificates with RSA-4096 keys are under 24 KiB.
	maxChainBytes = 64 << 10
	// maxPaths bounds the paths that are tried, and maxSteps the certificates that
	// are considered to find them: mutual cross-certificates would otherwise make
	// the search exponential.
	maxPaths = 16
	maxSteps = 2000
)

// Anchor is a registered external CA with what is known below it.
type Anchor struct {
	Certificate   *x509.Certificate
	Intermediates []*x509.Certificate // known CAs and CRL issuers below it, for devices that send too little
	CRLs          []*CRL              // of it and of any CA below
	// RequireCRL refuses a path if there is no list for one of its certificates.
	// Without it that certificate counts as good; a list that is present always counts.
	RequireCRL bool
	// Legacy allows for this anchor what PathOptions.AllowLegacy does, and an anchor with
	// the serial number 0.
	Legacy bool
	// WeakKeys lists keys that no certificate of a path may have; nil: what is built in.
	WeakKeys *weakkey.Blocklist
	// AllowCritical are the critical extensions that the caller checks itself.
	AllowCritical []asn1.ObjectIdentifier
}

// PathOptions are the purpose and the conditions of a path.
type PathOptions struct {
	Now time.Time
	// EKU are the extended key usages of which the path must allow one; empty:
	// clientAuth. ExtKeyUsageAny leaves the check to the caller.
	EKU []x509.ExtKeyUsage
	// AllowNoEKU accepts an end entity without an extended key usage, as most IDevIDs are.
	AllowNoEKU bool
	// AllowLegacy accepts what RFC 5280 forbids CAs to issue but does not require
	// relying parties to refuse: no key identifiers, and an anchor whose
	// basicConstraints are not critical or whose serial number is 0.
	AllowLegacy bool
	// Policies, if any, are those of which the path must be valid for one (RFC
	// 5280, 6.1.1, user-initial-policy-set with an explicit policy required).
	Policies []x509.OID
}

// Path is a valid certification path.
type Path struct {
	Certificates []*x509.Certificate // end entity first, anchor last
	Anchor       int                 // index of the anchor
	Revocation   bool                // every link but the anchor was found good on a current list
}

// ValidatePath finds a valid path (RFC 5280, section 6) from chain[0], the end
// entity, to one of the anchors. The other certificates of the chain may come in
// any order, twice, or be unrelated. Errors have code Unauthenticated for no
// chain, Misconfigured for what is wrong with the certificates, CertUnknown where no anchor is reached, TooLarge,
// WeakKey, CertExpired, CertNotYetValid, CertIsRevoked, CertIsHeld, or
// Unavailable where a required list is missing.
func ValidatePath(chain []*x509.Certificate, anchors []Anchor, o PathOptions) (Path, error) {
	if err := checkSizes(chain); err != nil {
		return Path{}, err
	}
	leaf := chain[0]
	if err := checkEndEntity(leaf, o); err != nil {
		return Path{}, err
	}
	var refused error
	for i := range anchors {
		v := &validator{anchor: &anchors[i], o: o, steps: maxSteps}
		v.known = distinct(chain[1:], anchors[i].Intermediates)
		path, err := v.validate(leaf, endEntity)
		if err == nil {
			path.Anchor = i
			return path, nil
		}
		// The error of an anchor that the chain does not lead to is not the cause.
		if refused == nil || countersign.CodeOf(refused) == countersign.CertUnknown {
			refused = err
		}
	}
	if refused == nil {
		refused = noPath()
	}
	return Path{}, refused
}

func checkSizes(chain []*x509.Certificate) error {
	if len(chain) == 0 || slices.Contains(chain, nil) {
		return countersign.Errorf(countersign.Unauthenticated, "no certificate was presented")
	}
	total := 0
	for _, c := range chain {
		total += len(c.Raw)
	}
	if len(chain) > maxPresented || total > maxChainBytes {
		return countersign.Errorf(countersign.TooLarge, "the chain has more than %d certificates or %d octets", maxPresented, maxChainBytes).
			WithNext("send the device's certificate and the CAs above it, nothing else")
	}
	return nil
}

func distinct(lists ...[]*x509.Certificate) []*x509.Certificate {
	var all []*x509.Certificate
	for _, c := range slices.Concat(lists...) {
		if !slices.ContainsFunc(all, c.Equal) {
			all = append(all, c)
		}
	}
	return all
}

func noPath() error {
	return countersign.Errorf(countersign.CertUnknown, "the certificate chain does not lead to a registered CA").
		WithNext("register the manufacturer's CA, or have the device send its intermediate certificates")
}

// role is what a path's first certificate is for.
type role int

const (
	endEntity role = iota
	listIssuer
)

// validator looks for a path to one anchor.
type validator struct {
	anchor *Anchor
	o      PathOptions
	known  []*x509.Certificate // besides the end entity and the anchor
	steps  int                 // certificates that may still be looked at
	asking []*x509.Certificate // issuers of lists whose own path is being validated
}

// validate tries the paths from a certificate to the anchor and returns the first
// valid one, or the error of the first.
func (v *validator) validate(from *x509.Certificate, as role) (Path, error) {
	var found [][]*x509.Certificate
	v.extend([]*x509.Certificate{from}, &found)
	refused := noPath()
	for i, certs := range found {
		checked, err := v.check(certs, as)
		if err == nil {
			return Path{Certificates: certs, Revocation: checked}, nil
		}
		if i == 0 {
			refused = err
		}
	}
	return Path{}, refused
}

// extend completes the path with every chain of issuers up to the anchor, by
// name and key identifier alone: signatures are for later.
func (v *validator) extend(path []*x509.Certificate, found *[][]*x509.Certificate) {
	last := path[len(path)-1]
	if last.Equal(v.anchor.Certificate) {
		return
	}
	if issued(v.anchor.Certificate, last) && len(*found) < maxPaths {
		*found = append(*found, append(slices.Clone(path), v.anchor.Certificate))
	}
	if len(path) > maxPresented {
		return
	}
	for _, c := range v.known {
		if v.steps--; v.steps < 0 || len(*found) >= maxPaths {
			return
		}
		if issued(c, last) && !slices.ContainsFunc(path, c.Equal) && !c.Equal(v.anchor.Certificate) {
			v.extend(append(slices.Clone(path), c), found)
		}
	}
}

// issued reports whether issuer may have signed cert (RFC 5280, 6.1.3 (a)(4) and 4.2.1.1).
func issued(issuer, cert *x509.Certificate) bool {
	if len(cert.AuthorityKeyId) > 0 && len(issuer.SubjectKeyId) > 0 &&
		!bytes.Equal(cert.AuthorityKeyId, issuer.SubjectKeyId) {
		return false
	}
	return sameName(issuer.RawSubject, cert.RawIssuer)
}

// check validates a path whose certificates fit together by name. It reports
// whether the lists cover each certificate and revoke none.
func (v *validator) check(path []*x509.Certificate, as role) (revocation bool, err error) {
	for i, c := range path {
		if err := v.checkCertificate(c, i, path); err != nil {
			return false, err
		}
	}
	// Signatures come first: the cost of names and constraints multiplies, and only
	// CAs below an anchor may cause it.
	if err := v.verify(path, as); err != nil {
		return false, err
	}
	if err := checkNameConstraints(path); err != nil {
		return false, err
	}
	return v.checkRevocation(path)
}

// verify lets crypto/x509 check signatures, policies, nesting of extended key
// usage and constraints on DNS names and addresses. What was checked before, by
// rules that differ, is removed from the copies that are passed to it.
func (v *validator) verify(path []*x509.Certificate, as role) error {
	copies := make([]*x509.Certificate, len(path))
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for i, original := range path {
		c := *original
		c.MaxPathLen, c.MaxPathLenZero = -1, false
		c.UnhandledCriticalExtensions, c.URIs, c.EmailAddresses = nil, nil, nil
		if i > 0 && selfIssued(original) {
			c.DNSNames, c.IPAddresses = nil, nil // RFC 5280, 6.1.3 (b): exempt
		}
		if i < len(path)-1 {
			c.RawIssuer = path[i+1].RawSubject
		}
		if c.NotBefore.After(v.o.Now) { // checkTime allows it to be a little ahead
			c.NotBefore = v.o.Now
		}
		copies[i] = &c
	}
	last := len(copies) - 1
	roots.AddCert(copies[last])
	for _, c := range copies[1:last] {
		between.AddCert(c)
	}
	usages := v.o.EKU
	switch {
	case as == listIssuer:
		usages = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	case len(usages) == 0:
		usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	if len(v.o.Policies) > 0 && as == endEntity {
		copies[last-1].RequireExplicitPolicyZero = true
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: v.o.Now, KeyUsages: usages}
	if as == endEntity {
		options.CertificatePolicies = v.o.Policies
	}
	chains, err := copies[0].Verify(options)
	if err != nil {
		return badPath("the certificate chain is not valid: %v", err).WithCause(err)
	}
	if !slices.ContainsFunc(chains, func(c []*x509.Certificate) bool { return slices.Equal(c, copies) }) {
		return badPath("the certificate chain is not valid in this order")
	}
	return nil
}

func badPath(format string, args ...any) *countersign.Error {
	return countersign.Errorf(countersign.Misconfigured, format, args...).
		WithNext("ask the manufacturer for a certificate chain that conforms to RFC 5280")
}
