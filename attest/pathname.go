package attest

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// The constructed context-specific tags.
const (
	tag0 = cbasn1.Tag(0x80 | 0x20)
	tag1 = tag0 + 1
	tag2 = tag0 + 2
)

// Tags of GeneralName (RFC 5280, 4.2.1.6).
const (
	tagOtherName = 0
	tagEmail     = 1
	tagDNS       = 2
	tagDirectory = 4
	tagURI       = 6
	tagIP        = 7
)

// maxNames bounds the names of one certificate and the constraints of one CA,
// whose product is what they cost to compare.
const maxNames = 256

var oidEmailAddress = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}

func quote(s string) string { return strconv.Quote(s) }

// sameName compares distinguished names as RFC 5280, 7.1 requires: without regard to
// case, to white space at the ends or repeated, or to the kind of string.
func sameName(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, okX := canonicalName(a)
	y, okY := canonicalName(b)
	return okX && okY && slices.Equal(x, y)
}

func emptyName(raw []byte) bool {
	rdns, ok := canonicalName(raw)
	return !ok || len(rdns) == 0
}

// selfIssued reports whether issuer and subject are the same name (RFC 5280, 3.2).
func selfIssued(c *x509.Certificate) bool { return sameName(c.RawIssuer, c.RawSubject) }

// sequence returns the content of der, which must be one SEQUENCE and nothing else.
func sequence(der []byte) (content cryptobyte.String, ok bool) {
	input := cryptobyte.String(der)
	ok = input.ReadASN1(&content, cbasn1.SEQUENCE) && input.Empty()
	return content, ok
}

// canonicalName returns one string for each RDN of a name, equal for equal RDNs.
func canonicalName(raw []byte) (rdns []string, ok bool) {
	name, ok := sequence(raw)
	if !ok {
		return nil, false
	}
	for !name.Empty() {
		var set cryptobyte.String
		if !name.ReadASN1(&set, cbasn1.SET) {
			return nil, false
		}
		rdn, ok := canonicalRDN(set)
		if !ok {
			return nil, false
		}
		rdns = append(rdns, rdn)
	}
	return rdns, true
}

func canonicalRDN(set cryptobyte.String) (string, bool) {
	var attributes []string
	for !set.Empty() {
		var pair, oid, value cryptobyte.String
		var tag cbasn1.Tag
		if !set.ReadASN1(&pair, cbasn1.SEQUENCE) || !pair.ReadASN1(&oid, cbasn1.OBJECT_IDENTIFIER) ||
			!pair.ReadAnyASN1(&value, &tag) || !pair.Empty() {
			return "", false
		}
		text, isText := directoryString(tag, value)
		if isText {
			text = "s" + strings.ToLower(strings.Join(strings.Fields(text), " "))
		} else {
			text = string([]byte{'#', byte(tag)}) + string(value)
		}
		attributes = append(attributes, strconv.Quote(string(oid))+strconv.Quote(text))
	}
	slices.Sort(attributes) // an RDN is a set
	return strings.Join(attributes, "+"), len(attributes) > 0
}

// directoryString decodes the kinds of string whose character set is known. TeletexString
// has no reliable one and is compared octet by octet.
func directoryString(tag cbasn1.Tag, value []byte) (string, bool) {
	const universalString, bmpString = cbasn1.Tag(28), cbasn1.Tag(30)
	switch tag {
	case cbasn1.UTF8String, cbasn1.PrintableString, cbasn1.IA5String:
		return string(value), utf8.Valid(value)
	case bmpString:
		if len(value)%2 != 0 {
			return "", false
		}
		units := make([]uint16, 0, len(value)/2)
		for ; len(value) > 0; value = value[2:] {
			units = append(units, binary.BigEndian.Uint16(value))
		}
		return string(utf16.Decode(units)), true
	case universalString:
		if len(value)%4 != 0 {
			return "", false
		}
		var runes []rune
		for ; len(value) > 0; value = value[4:] {
			runes = append(runes, rune(binary.BigEndian.Uint32(value))) //nolint:gosec // out of range becomes U+FFFD
		}
		return string(runes), true
	}
	return "", false
}

// generalName is one GeneralName: its tag number and its content.
type generalName struct {
	tag   int
	value []byte
}

// readGeneralName reads one name from s.
func readGeneralName(s *cryptobyte.String) (generalName, bool) {
	var value cryptobyte.String
	var tag cbasn1.Tag
	if !s.ReadAnyASN1(&value, &tag) || tag&0xc0 != 0x80 {
		return generalName{}, false
	}
	return generalName{int(tag & 0x1f), value}, true
}

// generalNames reads all names of a list, which may have so many.
func generalNames(list cryptobyte.String, most int) (names []generalName, ok bool) {
	for !list.Empty() {
		n, ok := readGeneralName(&list)
		if !ok || len(names) == most {
			return nil, false
		}
		names = append(names, n)
	}
	return names, true
}

// altNames reads the subjectAltName of a certificate, of all forms.
func altNames(c *x509.Certificate) ([]generalName, bool) {
	if !has(c, oidSubjectAltName) {
		return nil, true
	}
	_, value := extension(c, oidSubjectAltName)
	list, ok := sequence(value)
	if !ok || list.Empty() {
		return nil, false
	}
	return generalNames(list, maxNames)
}

// constrainedNames returns all names to which constraints apply (RFC 5280, 6.1.3
// (b) and 4.2.1.10): subject, alternative names and, where these are missing,
// the mailboxes of the subject.
func constrainedNames(c *x509.Certificate) ([]generalName, bool) {
	names, ok := altNames(c)
	if !ok {
		return nil, false
	}
	if !has(c, oidSubjectAltName) {
		for _, a := range c.Subject.Names {
			if mailbox, isText := a.Value.(string); a.Type.Equal(oidEmailAddress) && isText {
				names = append(names, generalName{tagEmail, []byte(mailbox)})
			}
		}
	}
	if !emptyName(c.RawSubject) {
		names = append(names, generalName{tagDirectory, c.RawSubject})
	}
	return names, true
}

// constraints are the subtrees of one CA.
type constraints struct {
	permitted []generalName
	excluded  []generalName
}

// readConstraints reads nameConstraints (RFC 5280, 4.2.1.10), strictly: if a part of it
// is not understood, the path is refused.
func readConstraints(c *x509.Certificate) (constraints, error) {
	_, value := extension(c, oidNameConstraints)
	var permitted, excluded cryptobyte.String
	var any1, any2 bool
	outer, ok := sequence(value)
	if !ok || !outer.ReadOptionalASN1(&permitted, &any1, tag0) || !outer.ReadOptionalASN1(&excluded, &any2, tag1) ||
		!outer.Empty() || any1 && permitted.Empty() || any2 && excluded.Empty() || !any1 && !any2 {
		return constraints{}, badPath("%s has malformed name constraints", nameOf(c))
	}
	var n constraints
	for _, list := range []struct {
		from cryptobyte.String
		to   *[]generalName
	}{{permitted, &n.permitted}, {excluded, &n.excluded}} {
		for !list.from.Empty() {
			var subtree cryptobyte.String
			if !list.from.ReadASN1(&subtree, cbasn1.SEQUENCE) {
				return constraints{}, badPath("%s has malformed name constraints", nameOf(c))
			}
			base, ok := readGeneralName(&subtree)
			if !ok || !subtree.Empty() { // RFC 5280 allows no minimum and no maximum
				return constraints{}, badPath("%s has name constraints with distances", nameOf(c))
			}
			if err := checkConstraint(c, base); err != nil {
				return constraints{}, err
			}
			if *list.to = append(*list.to, base); len(*list.to) > maxNames {
				return constraints{}, badPath("%s has more than %d name constraints", nameOf(c), maxNames)
			}
		}
	}
	return n, nil
}

// checkConstraint reports why a constraint cannot be evaluated.
func checkConstraint(c *x509.Certificate, base generalName) error {
	switch base.tag {
	case tagEmail:
		if _, _, ok := splitMailbox(base.value); !ok && bytes.ContainsRune(base.value, '@') {
			return badPath("%s constrains mailboxes to one that is malformed", nameOf(c))
		}
		return nil
	case tagURI, tagIP:
		return nil
	case tagDNS:
		if bytes.HasPrefix(base.value, []byte(".")) {
			return badPath("%s constrains DNS names with a leading period, which only URIs may have", nameOf(c))
		}
		return nil
	case tagDirectory:
		if _, ok := canonicalName(base.value); ok {
			return nil
		}
		return badPath("%s has a malformed directoryName constraint", nameOf(c))
	}
	return badPath("%s constrains a form of name that is not processed here", nameOf(c))
}

// checkNameConstraints applies the constraints of each CA to the names of the
// certificates below it. Those on DNS names and addresses are left to crypto/x509.
func checkNameConstraints(path []*x509.Certificate) error {
	for i := len(path) - 1; i > 0; i-- {
		if !has(path[i], oidNameConstraints) {
			continue
		}
		limits, err := readConstraints(path[i])
		if err != nil {
			return err
		}
		for j, c := range path[:i] {
			if j > 0 && selfIssued(c) { // RFC 5280, 6.1.3 (b)
				continue
			}
			names, ok := constrainedNames(c)
			if !ok {
				return badPath("%s has a malformed subjectAltName or more than %d names in it", nameOf(c), maxNames)
			}
			if bad := slices.IndexFunc(names, func(n generalName) bool { return !limits.allow(n) }); bad >= 0 {
				return badPath("%s has a name outside the name constraints of %s", nameOf(c), nameOf(path[i]))
			}
		}
	}
	return nil
}

// allow decides one name against all constraints of its form.
func (l constraints) allow(n generalName) bool {
	var match func(constraint, name []byte) (within, decidable bool)
	switch n.tag {
	case tagDirectory:
		match = withinDirectory
	case tagEmail:
		match = withinMailbox
	case tagURI:
		match = withinURI
	default:
		return true
	}
	permitted, constrained := false, false
	for _, p := range l.permitted {
		if p.tag != n.tag {
			continue
		}
		within, decidable := match(p.value, n.value)
		constrained, permitted = true, permitted || within && decidable
	}
	for _, e := range l.excluded {
		if e.tag != n.tag {
			continue
		}
		if within, decidable := match(e.value, n.value); within || !decidable {
			return false
		}
	}
	return permitted || !constrained
}

func withinDirectory(constraint, name []byte) (within, decidable bool) {
	base, ok1 := canonicalName(constraint)
	full, ok2 := canonicalName(name)
	if !ok1 || !ok2 {
		return false, false
	}
	return len(base) <= len(full) && slices.Equal(base, full[:len(base)]), true
}

// withinMailbox reports whether a mailbox is within a constraint, which is a mailbox, a
// host, or a domain with a period before it.
func withinMailbox(constraint, name []byte) (within, decidable bool) {
	local, host, ok := splitMailbox(name)
	if !ok {
		return false, false
	}
	if wantLocal, wantHost, isMailbox := splitMailbox(constraint); isMailbox {
		return wantLocal == local && equalFoldASCII(wantHost, host), true
	}
	return withinHost(string(constraint), host), true
}

// splitMailbox reads a Mailbox (RFC 5321, 4.1.2) as far as constraints need it. Only a
// quoted local part may have an @: in a@b@c one program takes b as the host, another c.
func splitMailbox(mailbox []byte) (local, host string, ok bool) {
	if i := bytes.LastIndexByte(mailbox, '@'); i >= 0 {
		local, host, ok = string(mailbox[:i]), string(mailbox[i+1:]), true
	}
	quoted := len(local) > 2 && local[0] == '"' && local[len(local)-1] == '"'
	isHost := host != "" && !strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),:;<>@\`, r) })
	return local, host, ok && isHost && local != "" && (quoted || !strings.ContainsAny(local, "@\" "))
}

// withinURI reports whether a URI is within a constraint, which is a host, or a domain
// with a period before it. A URI whose host is not a name cannot be evaluated (RFC 5280,
// 4.2.1.10).
func withinURI(constraint, name []byte) (within, decidable bool) {
	u, err := url.Parse(string(name))
	if err != nil {
		return false, false
	}
	host := strings.TrimSuffix(u.Hostname(), ".")
	if host == "" || strings.ContainsAny(host, ":%") || looksNumeric(host) {
		return false, false
	}
	return withinHost(string(constraint), host), true
}

// looksNumeric reports whether the last label is a number, so that the host is an IPv4 address of some spelling.
func looksNumeric(host string) bool {
	last := host[strings.LastIndexByte(host, '.')+1:]
	_, err := strconv.ParseUint(last, 0, 64)
	return err == nil
}

func withinHost(constraint, host string) bool {
	if constraint == "" {
		return true
	}
	if strings.HasPrefix(constraint, ".") {
		return len(host) > len(constraint) && equalFoldASCII(host[len(host)-len(constraint):], constraint)
	}
	return equalFoldASCII(host, constraint)
}
