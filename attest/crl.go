package attest

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/countersign-iot/countersign"
)

const (
	// MaxCRL is the largest list, DER: a million revoked serials with dates and
	// reasons are about 45 MiB.
	MaxCRL = 64 << 20
	// maxListNames bounds the names in one distribution point.
	maxListNames = 64

	// maxIssuerEntries bounds the entries of an indirect list that name their
	// issuer: each keeps a name.
	maxIssuerEntries = 100_000

	reasonBits = 9     // bits of ReasonFlags (RFC 5280, 4.2.1.13), bit 0 unused
	allReasons = 0x1fe // reasons 1 to 8
)

var (
	oidDeltaCRL          = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidIssuingDistPoint  = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidCertificateIssuer = asn1.ObjectIdentifier{2, 5, 29, 29}
	oidReasonCode        = asn1.ObjectIdentifier{2, 5, 29, 21}
	oidCRLNumber         = asn1.ObjectIdentifier{2, 5, 29, 20}
)

// CRL is a certificate revocation list, complete or delta (RFC 5280, 5), indexed
// for look-ups. It is safe for concurrent use.
type CRL struct {
	list    *x509.RevocationList
	entries []entry // by serial
	scope   scope
	base    *big.Int // of a delta: the number of the list that it starts from; nil: complete

	mu     sync.Mutex
	signer [sha256.Size]byte // key that is known to have signed it
}

// entry is one revoked certificate.
type entry struct {
	serial *big.Int
	reason countersign.ReasonCode
	at     time.Time
	issuer []byte // raw name, in an indirect list; nil: the list's issuer
}

// scope is issuingDistributionPoint (RFC 5280, 5.2.5).
type scope struct {
	names    []string // canonical, of the distribution point; empty: any
	onlyUser bool
	onlyCA   bool
	onlyAttr bool
	reasons  int // ReasonFlags as bits; 0: all
	indirect bool
}

// text returns one string for equal scopes.
func (s *scope) text() string {
	names := slices.Sorted(slices.Values(s.names))
	return fmt.Sprint(s.onlyUser, s.onlyCA, s.onlyAttr, s.indirect, s.reasons, " ") + hex.EncodeToString([]byte(strings.Join(names, "\x00")))
}

// ParseCRL parses a list, DER, and all of its extensions. It does not check the
// signature. Errors have code BadRequest or TooLarge.
func ParseCRL(der []byte) (*CRL, error) {
	if len(der) > MaxCRL {
		return nil, countersign.Errorf(countersign.TooLarge, "CRL is larger than %d octets", MaxCRL)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, badCRL("cannot be read").WithCause(err)
	}
	if len(list.Raw) != len(der) {
		return nil, badCRL("has data after its end")
	}
	if !slices.Contains(acceptedSignatures, list.SignatureAlgorithm) {
		return nil, badCRL("is signed with %s, which is not accepted", list.SignatureAlgorithm)
	}
	l := &CRL{list: list}
	if err := l.readExtensions(); err != nil {
		return nil, err
	}
	return l, l.readEntries()
}

func badCRL(format string, args ...any) *countersign.Error {
	return countersign.Errorf(countersign.BadRequest, "CRL "+format, args...).
		WithNext("load the list that the CA publishes, DER, X.509 version 2")
}

func (l *CRL) readExtensions() error {
	for i, e := range l.list.Extensions {
		if slices.ContainsFunc(l.list.Extensions[:i], func(o pkix.Extension) bool { return o.Id.Equal(e.Id) }) {
			return badCRL("has extension %s twice", e.Id)
		}
		switch {
		case e.Id.Equal(oidIssuingDistPoint):
			s, ok := readScope(e.Value, l.list.RawIssuer)
			if !ok {
				return badCRL("has a malformed issuingDistributionPoint")
			}
			l.scope = s
		case e.Id.Equal(oidDeltaCRL):
			value := cryptobyte.String(e.Value)
			l.base = new(big.Int)
			if !value.ReadASN1Integer(l.base) || !value.Empty() || l.base.Sign() < 0 {
				return badCRL("has a malformed deltaCRLIndicator")
			}
		case e.Id.Equal(oidCRLNumber), e.Id.Equal(oidAuthorityKeyID):
			if e.Critical {
				return badCRL("has extension %s critical, which it must not be", e.Id)
			}
		case e.Critical:
			return badCRL("has the critical extension %s, which is not known here", e.Id)
		}
	}
	if l.list.Number == nil {
		return badCRL("has no number")
	}
	return nil
}

func (l *CRL) readEntries() error {
	l.entries = make([]entry, 0, len(l.list.RevokedCertificateEntries))
	var issuer []byte
	named := 0
	for _, r := range l.list.RevokedCertificateEntries {
		reason := countersign.ReasonCode(r.ReasonCode)
		for _, e := range r.Extensions {
			switch {
			case e.Id.Equal(oidReasonCode):
			case e.Id.Equal(oidCertificateIssuer):
				name, ok := directoryIn(e.Value)
				if named++; !ok || !l.scope.indirect || named > maxIssuerEntries {
					return badCRL("has a certificateIssuer that is malformed or out of place")
				}
				issuer = name // it applies until the next one (RFC 5280, 5.3.3)
			case e.Critical:
				return badCRL("has an entry with the critical extension %s, which is not known here", e.Id)
			}
		}
		l.entries = append(l.entries, entry{r.SerialNumber, reason, r.RevocationTime, issuer})
	}
	slices.SortStableFunc(l.entries, func(a, b entry) int { return a.serial.Cmp(b.serial) })
	l.list.RevokedCertificateEntries = nil // kept in entries, in less memory
	return nil
}

// find returns the entry for a serial of an issuer.
func (l *CRL) find(issuer []byte, serial *big.Int) (entry, bool) {
	i, _ := slices.BinarySearchFunc(l.entries, serial, func(e entry, s *big.Int) int { return e.serial.Cmp(s) })
	for ; i < len(l.entries) && l.entries[i].serial.Cmp(serial) == 0; i++ {
		by := l.entries[i].issuer
		if by == nil {
			by = l.list.RawIssuer
		}
		if sameName(by, issuer) {
			return l.entries[i], true
		}
	}
	return entry{}, false
}

// isBy reports whether the list has the subject of c as its issuer and was signed by its key.
func (l *CRL) isBy(c *x509.Certificate) bool {
	return sameName(l.list.RawIssuer, c.RawSubject) && l.signedBy(c)
}

// signedBy checks the list's signature with the key of c, once per key.
func (l *CRL) signedBy(c *x509.Certificate) bool {
	if c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return false
	}
	key := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.signer == key {
		return true
	}
	if checkKey(c, nil) != nil || c.CheckSignature(l.list.SignatureAlgorithm, l.list.RawTBSRevocationList, l.list.Signature) != nil {
		return false
	}
	l.signer = key
	return true
}

// current reports whether now is between thisUpdate and nextUpdate, which must be there (RFC 5280, 5.1.2.5).
func (l *CRL) current(now time.Time) bool {
	return !now.Before(l.list.ThisUpdate) && !l.list.NextUpdate.IsZero() && !now.After(l.list.NextUpdate)
}

// Number returns the CRL number.
func (l *CRL) Number() *big.Int { return new(big.Int).Set(l.list.Number) }

// ThisUpdate returns when the list was issued.
func (l *CRL) ThisUpdate() time.Time { return l.list.ThisUpdate }

// sortNewest sorts complete lists, the newest first.
func sortNewest(lists []*CRL) {
	slices.SortStableFunc(lists, func(a, b *CRL) int {
		return cmp.Or(b.list.Number.Cmp(a.list.Number), b.list.ThisUpdate.Compare(a.list.ThisUpdate))
	})
}

func readScope(der, issuer []byte) (scope, bool) {
	var point cryptobyte.String
	var named bool
	var s scope
	seq, ok := sequence(der)
	if !ok || seq.Empty() || !seq.ReadOptionalASN1(&point, &named, tag0) {
		return s, false
	}
	if named {
		if s.names, ok = readPointName(point, issuer); !ok {
			return s, false
		}
	}
	ok = readFlag(&seq, 1, &s.onlyUser) && readFlag(&seq, 2, &s.onlyCA) && readReasons(&seq, 3, &s.reasons) &&
		readFlag(&seq, 4, &s.indirect) && readFlag(&seq, 5, &s.onlyAttr)
	return s, ok && seq.Empty()
}

func readFlag(s *cryptobyte.String, n uint8, to *bool) bool {
	var value cryptobyte.String
	var there bool
	ok := s.ReadOptionalASN1(&value, &there, cbasn1.Tag(n).ContextSpecific()) && (!there || len(value) == 1)
	*to = ok && there && value[0] == 0xff
	return ok
}

func readReasons(s *cryptobyte.String, n uint8, to *int) bool {
	var value cryptobyte.String
	var there bool
	if ok := s.ReadOptionalASN1(&value, &there, cbasn1.Tag(n).ContextSpecific()); !ok || !there {
		return ok
	}
	if len(value) < 2 || len(value) > 3 || value[0] > 7 {
		return false
	}
	flags := asn1.BitString{Bytes: value[1:], BitLength: (len(value)-1)*8 - int(value[0])}
	for bit := range reasonBits {
		*to |= flags.At(bit) << bit
	}
	return *to&allReasons != 0
}

// readPointName converts a DistributionPointName to canonical names. A name relative
// to the issuer is completed with it.
func readPointName(point cryptobyte.String, issuer []byte) ([]string, bool) {
	if point.PeekASN1Tag(tag1) {
		var set cryptobyte.String
		base, ok := canonicalName(issuer)
		if !ok || !point.ReadASN1(&set, tag1) || !point.Empty() {
			return nil, false
		}
		rdn, ok := canonicalRDN(set)
		return []string{canonicalDirectory(append(base, rdn))}, ok
	}
	var list cryptobyte.String
	if !point.ReadASN1(&list, tag0) || !point.Empty() || list.Empty() {
		return nil, false
	}
	all, ok := generalNames(list, maxListNames)
	names := make([]string, len(all))
	for i, n := range all {
		names[i] = n.canonical()
	}
	return names, ok
}
