package est

import (
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidTemplate          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 61} // id-aa-certificationRequestInfoTemplate
	oidExtensionTemplate = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 62} // id-aa-extensionReqTemplate
	oidExtensionRequest  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}        // RFC 2985, 5.4.2

	// The module's tags are IMPLICIT, as those of PKCS #10.
	tagSubjectPKInfo = cbasn1.Tag(0).ContextSpecific().Constructed()
	tagAttributes    = cbasn1.Tag(1).ContextSpecific().Constructed()
)

// Template is a request with blanks that the client fills in (RFC 9908, 3.4). It
// says more than a list can: a name, in part, and extensions without their
// value.
type Template struct {
	Subject    []NameTemplate
	Key        string // kind of key as in [Want]; empty: any
	Extensions []ExtensionTemplate
}

// NameTemplate is one attribute of the subject, alone in its RDN.
type NameTemplate struct {
	ID    asn1.ObjectIdentifier
	Value []byte // DER of the value; nil: the client fills it in
}

// ExtensionTemplate is one extension to ask for.
type ExtensionTemplate struct {
	ID       asn1.ObjectIdentifier
	Critical bool
	Value    []byte // extnValue; nil: the client fills it in
}

// Attr returns the template as an entry of CSRAttrs. A key of a kind that
// [Want] does not know is an error.
func (t Template) Attr() (AttrOrOID, error) {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(info *cryptobyte.Builder) {
		info.AddASN1Int64(0) // version
		if len(t.Subject) > 0 {
			info.AddASN1(cbasn1.SEQUENCE, t.addSubject)
		}
		if t.Key != "" {
			info.AddASN1(tagSubjectPKInfo, func(spki *cryptobyte.Builder) {
				k, ok := kinds[t.Key]
				if !ok {
					spki.SetError(fmt.Errorf("unknown kind of key %q", t.Key))
					return
				}
				// No subjectPublicKey: it is for the size of an RSA key, and ours is open.
				spki.AddASN1(cbasn1.SEQUENCE, k.addAlgorithm)
			})
		}
		// Not OPTIONAL: empty if there is none.
		info.AddASN1(tagAttributes, func(attrs *cryptobyte.Builder) {
			if len(t.Extensions) > 0 {
				addExtensionTemplates(attrs, t.Extensions)
			}
		})
	})
	der, err := b.Bytes()
	if err != nil {
		return AttrOrOID{}, fmt.Errorf("couldn't encode template: %w", err)
	}
	return AttrOrOID{ID: oidTemplate, Values: [][]byte{der}}, nil
}

func (t Template) addSubject(b *cryptobyte.Builder) {
	for _, n := range t.Subject {
		b.AddASN1(cbasn1.SET, func(rdn *cryptobyte.Builder) {
			rdn.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(n.ID)
				b.AddBytes(n.Value)
			})
		})
	}
}

func addExtensionTemplates(attrs *cryptobyte.Builder, extensions []ExtensionTemplate) {
	var list cryptobyte.Builder
	list.AddASN1(cbasn1.SEQUENCE, func(list *cryptobyte.Builder) {
		for _, e := range extensions {
			list.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(e.ID)
				if e.Critical {
					b.AddASN1Boolean(true)
				}
				if e.Value != nil {
					b.AddASN1OctetString(e.Value)
				}
			})
		}
	})
	der, err := list.Bytes()
	if err != nil {
		attrs.SetError(err)
		return
	}
	AttrOrOID{ID: oidExtensionTemplate, Values: [][]byte{der}}.add(attrs)
}

// Template returns the template of the list, nil if it has none. A client that
// finds one goes by it and skips the other entries (RFC 9908, 4).
func (a CSRAttrs) Template() (*Template, error) {
	for _, e := range a {
		if !e.ID.Equal(oidTemplate) {
			continue
		}
		if len(e.Values) != 1 {
			return nil, errTemplate
		}
		return parseTemplate(e.Values[0])
	}
	return nil, nil
}

var errTemplate = errors.New("couldn't parse template of a request: malformed DER")

func parseTemplate(der []byte) (*Template, error) {
	in := cryptobyte.String(der)
	var info, subject, spki, attrs cryptobyte.String
	var version int
	var hasSubject, hasSPKI bool
	if !in.ReadASN1(&info, cbasn1.SEQUENCE) || !in.Empty() ||
		!info.ReadASN1Integer(&version) || version != 0 ||
		!info.ReadOptionalASN1(&subject, &hasSubject, cbasn1.SEQUENCE) ||
		!info.ReadOptionalASN1(&spki, &hasSPKI, tagSubjectPKInfo) ||
		!info.ReadASN1(&attrs, tagAttributes) || !info.Empty() {
		return nil, errTemplate
	}
	t := new(Template)
	if !t.readSubject(&subject) || !t.readAttributes(&attrs) {
		return nil, errTemplate
	}
	if hasSPKI {
		var algorithm cryptobyte.String
		if !spki.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) {
			return nil, errTemplate
		}
		var known bool
		if t.Key, known = kindOf(algorithm); !known {
			return nil, fmt.Errorf("couldn't parse template of a request: its kind of key is unknown here: %x", []byte(algorithm))
		}
	}
	return t, nil
}

func (t *Template) readSubject(subject *cryptobyte.String) bool {
	for !subject.Empty() {
		var rdn, attr cryptobyte.String
		var n NameTemplate
		if !subject.ReadASN1(&rdn, cbasn1.SET) ||
			!rdn.ReadASN1(&attr, cbasn1.SEQUENCE) || !rdn.Empty() ||
			!attr.ReadASN1ObjectIdentifier(&n.ID) ||
			len(t.Subject) == maxCSRAttrs {
			return false
		}
		if !attr.Empty() {
			var value cryptobyte.String
			var tag cbasn1.Tag
			if !attr.ReadAnyASN1Element(&value, &tag) || !attr.Empty() {
				return false
			}
			n.Value = value
		}
		t.Subject = append(t.Subject, n)
	}
	return true
}

// readAttributes reads the extensions, in either form, and skips what else a
// request may hold.
func (t *Template) readAttributes(attrs *cryptobyte.String) bool {
	for !attrs.Empty() {
		var a AttrOrOID
		if !readAttr(attrs, &a) {
			return false
		}
		if !a.ID.Equal(oidExtensionTemplate) && !a.ID.Equal(oidExtensionRequest) {
			continue
		}
		// RFC 9908, 3.4: one value, and one of the two attributes once.
		if len(a.Values) != 1 || t.Extensions != nil || !t.readExtensions(a.Values[0]) {
			return false
		}
	}
	return true
}

func (t *Template) readExtensions(der cryptobyte.String) bool {
	var list cryptobyte.String
	if !der.ReadASN1(&list, cbasn1.SEQUENCE) || !der.Empty() || list.Empty() {
		return false
	}
	for !list.Empty() {
		var seq, value cryptobyte.String
		var e ExtensionTemplate
		var hasValue bool
		if !list.ReadASN1(&seq, cbasn1.SEQUENCE) ||
			!seq.ReadASN1ObjectIdentifier(&e.ID) ||
			seq.PeekASN1Tag(cbasn1.BOOLEAN) && !seq.ReadASN1Boolean(&e.Critical) ||
			!seq.ReadOptionalASN1(&value, &hasValue, cbasn1.OCTET_STRING) || !seq.Empty() ||
			len(t.Extensions) == maxCSRAttrs {
			return false
		}
		if hasValue {
			e.Value = append([]byte{}, value...) // not nil where empty
		}
		t.Extensions = append(t.Extensions, e)
	}
	return true
}
