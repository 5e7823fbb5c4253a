package attest

import (
	"cmp"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
)

// maxListIssuers bounds the recursion when the path of a list's issuer needs lists
// by other issuers.
const maxListIssuers = 3

var oidDistributionPoints = asn1.ObjectIdentifier{2, 5, 29, 31}

// distPoint is one CRL distribution point of a certificate (RFC 5280, 4.2.1.13).
type distPoint struct {
	names   []string // canonical; empty if the point names only an issuer
	reasons int      // ReasonFlags as bits; 0: all
	issuers [][]byte // raw directory names of cRLIssuer; empty: the certificate's issuer
}

// canonical returns one string for equal names.
func (n generalName) canonical() string {
	if n.tag == tagDirectory {
		if rdns, ok := canonicalName(n.value); ok {
			return canonicalDirectory(rdns)
		}
	}
	return strconv.Itoa(n.tag) + ":" + hex.EncodeToString(n.value)
}

func canonicalDirectory(rdns []string) string { return "dn:" + strings.Join(rdns, ",") }

// directoryIn returns the first directoryName of a GeneralNames.
func directoryIn(der []byte) ([]byte, bool) {
	list, ok := sequence(der)
	if !ok {
		return nil, false
	}
	names, ok := directories(list)
	if !ok || len(names) == 0 {
		return nil, false
	}
	return names[0], true
}

func directories(list cryptobyte.String) (names [][]byte, ok bool) {
	all, ok := generalNames(list, maxListNames)
	for _, n := range all {
		if n.tag == tagDirectory {
			names = append(names, n.value)
		}
	}
	return names, ok
}

// distPoints reads cRLDistributionPoints. For a certificate without them it is the
// issuer's name (RFC 5280, 6.3.3).
func distPoints(c *x509.Certificate) ([]distPoint, bool) {
	_, value := extension(c, oidDistributionPoints)
	implied := distPoint{names: []string{generalName{tagDirectory, c.RawIssuer}.canonical()}}
	if value == nil {
		return []distPoint{implied}, true
	}
	list, ok := sequence(value)
	if !ok || list.Empty() {
		return nil, false
	}
	var points []distPoint
	for !list.Empty() {
		var seq cryptobyte.String
		if !list.ReadASN1(&seq, cbasn1.SEQUENCE) || len(points) >= maxListNames {
			return nil, false
		}
		p, ok := readDistPoint(seq, c.RawIssuer)
		if !ok {
			return nil, false
		}
		points = append(points, p)
	}
	return append(points, implied), true
}

func readDistPoint(seq cryptobyte.String, issuer []byte) (p distPoint, ok bool) {
	var name, issuers cryptobyte.String
	var named, foreign bool
	if !seq.ReadOptionalASN1(&name, &named, tag0) || !readReasons(&seq, 1, &p.reasons) ||
		!seq.ReadOptionalASN1(&issuers, &foreign, tag2) || !seq.Empty() {
		return p, false
	}
	if foreign {
		if p.issuers, ok = directories(issuers); !ok || len(p.issuers) == 0 {
			return p, false
		}
		issuer = p.issuers[0]
	}
	if named {
		if p.names, ok = readPointName(name, issuer); !ok {
			return p, false
		}
	}
	return p, named || foreign
}

// checkRevocation checks each certificate of the path against the lists, from the top.
func (v *validator) checkRevocation(path []*x509.Certificate) (all bool, err error) {
	all = true
	for i := len(path) - 2; i >= 0; i-- {
		known, err := v.checkStatus(path[i], path[i+1])
		if err != nil {
			return false, err
		}
		all = all && known
	}
	return all, nil
}

// checkStatus checks one certificate against the lists (RFC 5280, 6.3). It reports
// whether they cover it, and returns an error if it is revoked, or if they do not
// cover it and must.
func (v *validator) checkStatus(c, issuer *x509.Certificate) (known bool, err error) {
	points, ok := distPoints(c)
	if !ok {
		return false, badPath("%s has malformed cRLDistributionPoints", nameOf(c))
	}
	var lists []*CRL
	for _, l := range v.anchor.CRLs {
		if speaksOf(l, c, points) {
			lists = append(lists, l)
		}
	}
	if len(lists) == 0 && !v.anchor.RequireCRL {
		return false, nil
	}
	sortNewest(lists)
	covered, why := 0, "no list is known"
	for _, l := range lists {
		if l.base != nil {
			continue
		}
		reasons := l.reasonsFor(c, points)
		if reasons&^covered == 0 {
			continue
		}
		if !v.authentic(l, issuer) {
			why = "a list has a signature that cannot be verified"
			continue
		}
		if err := v.revokedBy(l, c, issuer, lists); err != nil {
			return false, err
		}
		if !l.current(v.o.Now) {
			why = "the list is out of date"
			continue
		}
		if covered |= reasons; covered == allReasons {
			return true, nil
		}
		why = "the lists do not cover all reasons"
	}
	return false, countersign.Errorf(countersign.Unavailable, "whether %s is revoked cannot be determined: %s", nameOf(c), why).
		WithNext("load the current list of the CA that issued it")
}

// speaksOf reports whether the list's issuer may revoke c.
func speaksOf(l *CRL, c *x509.Certificate, points []distPoint) bool {
	if sameName(l.list.RawIssuer, c.RawIssuer) {
		return true
	}
	return l.scope.indirect && slices.ContainsFunc(points, func(p distPoint) bool { return p.by(l) })
}

// by reports whether the point names the list's issuer.
func (p distPoint) by(l *CRL) bool {
	return slices.ContainsFunc(p.issuers, func(name []byte) bool { return sameName(name, l.list.RawIssuer) })
}

// reasonsFor returns the reasons that the list covers for c; none if c is out
// of its scope (RFC 5280, 6.3.3 (b) and (d)).
func (l *CRL) reasonsFor(c *x509.Certificate, points []distPoint) int {
	if l.scope.onlyAttr || l.scope.onlyUser && c.IsCA || l.scope.onlyCA && !c.IsCA {
		return 0
	}
	own := cmp.Or(l.scope.reasons, allReasons) & allReasons
	foreign := !sameName(l.list.RawIssuer, c.RawIssuer)
	covered := 0
	for _, p := range points {
		out := foreign
		if len(p.issuers) > 0 {
			out = !p.by(l) || foreign && !l.scope.indirect
		}
		if !out && l.inScope(p) {
			covered |= own & cmp.Or(p.reasons, allReasons)
		}
	}
	return covered
}

// inScope reports whether the list's own distribution point is p.
func (l *CRL) inScope(p distPoint) bool {
	if len(l.scope.names) == 0 {
		return true
	}
	names := p.names
	if len(names) == 0 {
		for _, raw := range p.issuers {
			names = append(names, generalName{tagDirectory, raw}.canonical())
		}
	}
	return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(l.scope.names, n) })
}

// authentic reports whether the list was signed by the issuer of the
// certificate, or by another key under the list's name for which there is a
// valid path to the same anchor (RFC 5280, 6.3.3 (f)).
func (v *validator) authentic(l *CRL, issuer *x509.Certificate) bool {
	if l.SignedBy([]*x509.Certificate{issuer, v.anchor.Certificate}) != nil {
		return true
	}
	for _, c := range v.known {
		if c.Equal(issuer) || !l.isBy(c) || len(v.asking) >= maxListIssuers || slices.ContainsFunc(v.asking, c.Equal) {
			continue
		}
		w := &validator{anchor: v.anchor, o: v.o, known: v.known, steps: v.steps, asking: append(slices.Clone(v.asking), c)}
		if _, err := w.validate(c, listIssuer); err == nil {
			return true
		}
	}
	return false
}

// revokedBy looks c up in a complete list and in the deltas to it (RFC 5280, 5.2.4).
func (v *validator) revokedBy(l *CRL, c, issuer *x509.Certificate, lists []*CRL) error {
	found, revoked := l.find(c.RawIssuer, c.SerialNumber)
	for _, d := range lists {
		newer := d.base != nil && d.base.Cmp(l.list.Number) <= 0 && d.list.Number.Cmp(l.list.Number) > 0
		if !newer || !sameName(d.list.RawIssuer, l.list.RawIssuer) || d.scope.text() != l.scope.text() || !d.current(v.o.Now) || !v.authentic(d, issuer) {
			continue
		}
		if e, ok := d.find(c.RawIssuer, c.SerialNumber); ok {
			found, revoked = e, true
		}
		break // sorted: the newest is complete
	}
	if !revoked || found.reason == countersign.RemoveFromCRL {
		return nil
	}
	code := countersign.CertIsRevoked
	if found.reason == countersign.CertificateHold {
		code = countersign.CertIsHeld
	}
	return countersign.Errorf(code, "%s is revoked by its CA: %s", nameOf(c), found.reason).
		WithNext("ask the manufacturer why")
}
