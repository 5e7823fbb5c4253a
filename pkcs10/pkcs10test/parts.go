package pkcs10test

import (
	"fmt"
	"strings"

	"github.com/countersign-iot/countersign"
)

// subjects tries the types of strings and the forms of names.
func (m *maker) subjects() {
	subject := func(parts ...[]byte) []byte {
		return m.build(func(r *request) { r.subject = seq(parts...) })
	}
	cn := func(tag byte, text string) []byte { return set(pair(commonName, tag, text)) }
	id := func() []byte { return cn(utf8String, m.device()) }

	for name, tag := range map[string]byte{
		"PrintableString": printableString, "T61String": t61String, "IA5String": ia5String, "VisibleString": visibleString,
		"GeneralString": generalString, "NumericString": numericString,
	} {
		m.good("CN as "+name, subject(cn(tag, m.device())))
	}
	m.good("CN as BMPString", subject(cn(bmpString, widened(m.device(), 2))))
	m.good("CN as UniversalString", subject(cn(universalString, widened(m.device(), 4))))
	m.good("the same CN twice", subject(id(), id()))
	m.good("CN beside serialNumber in one RDN", subject(set(pair(commonName, utf8String, m.device()), pair(serialNumber, printableString, "4711_a"))))
	m.good("an RDN of nothing", subject(set(), id()))
	m.good("O as half a BMPString", subject(set(pair(organization, bmpString, "\x00A\x00")), id()))
	m.good("O as T61String in Latin-1", subject(set(pair(organization, t61String, "M\xfcller & S\xf6hne")), id()))
	m.good("O as INTEGER", subject(set(seq(oid(2, 5, 4, organization), []byte{2, 1, 7})), id()))
	m.good("O as UniversalString of no character", subject(set(pair(organization, universalString, "\x7f\xff\xff\xff")), id()))
	m.good("O of nothing", subject(set(pair(organization, utf8String, "")), id()))
	m.good("O of 20,000 octets", subject(set(pair(organization, utf8String, strings.Repeat("x", 20000))), id()))
	m.good("C of five letters in lower case", subject(set(pair(country, printableString, "swiss")), id()))
	m.good("an attribute of a private type", subject(set(seq(unknown, seq(null))), id()))
	m.good("serialNumber with a plus and a hash", subject(set(pair(serialNumber, printableString, "+#4711")), id()))
	var units [][]byte
	for i := range 100 {
		units = append(units, set(pair(unit, utf8String, fmt.Sprint(i))))
	}
	m.good("100 units", subject(append(units, id())...))

	for len(units) <= 256 {
		units = append(units, set(pair(unit, utf8String, "x")))
	}
	m.malformed("257 units", subject(units...), "more than 256 attributes")
	m.malformed("CN of broken UTF-8", subject(cn(utf8String, "pump-\xff")), "common name of the certification request is malformed: it is not UTF-8")
	m.malformed("CN as half a BMPString", subject(cn(bmpString, "\x00p\x00")), "part of a character")
	m.malformed("CN as OCTET STRING", subject(cn(octetString, "pump-7")), "not a string")
	m.malformed("two CNs in one RDN", subject(set(pair(commonName, utf8String, "a-1"), pair(commonName, utf8String, "a-2"))), `two common names, "a-1" and "a-2"`)
	m.later("CN with a zero octet", subject(cn(utf8String, "pump-7\x00.example")), countersign.BadRequest, `"pump-7\x00.example"`)
	m.later("CN with a blank", subject(cn(printableString, "pump 7")), countersign.BadRequest, `"pump 7"`)
	m.later("CN of 129 characters", subject(cn(utf8String, strings.Repeat("x", 129))), countersign.BadRequest, "1 to 128")
	m.later("an empty subject", subject(), countersign.BadRequest, "names no device")
	m.malformed("a subject of strings", subject(der(utf8String, []byte("pump-7"))), "subject of the certification request is malformed")
}

// attributes tries attributes that are unused, unknown or not as they should be.
func (m *maker) attributes() {
	with := func(attributes ...[]byte) []byte {
		return m.build(func(r *request) { r.attributes = attributes })
	}
	text := func(tag byte, s string) []byte { return der(tag, []byte(s)) }

	m.good("no attributes", with())
	m.good("no attributes field", m.build(func(r *request) { r.noField = true }))
	m.good("an unknown attribute", with(attribute(unknown, text(utf8String, "a"), text(octetString, "b"))))
	m.good("an unknown attribute twice", with(attribute(unknown, null), attribute(unknown, null)))
	m.good("an unknown attribute of nothing", with(attribute(unknown)))
	m.good("an unknown attribute without its SET", with(seq(unknown)))
	m.good("an unknown attribute with a tag of two octets", with(attribute(unknown, []byte{0x5f, 0x81, 0x01, 1, 0})))
	m.good("challengePassword as BMPString", with(attribute(challengePassword, text(bmpString, "\x00a"))))
	m.good("challengePassword as OCTET STRING", with(attribute(challengePassword, text(octetString, "a"))))
	m.good("challengePassword of broken UTF-8", with(attribute(challengePassword, text(utf8String, "\xff"))))
	m.good("challengePassword of nothing", with(attribute(challengePassword)))
	m.good("challengePassword of 5,000 octets", with(attribute(challengePassword, text(utf8String, strings.Repeat("x", 5000)))))
	m.good("unstructuredName with an umlaut as IA5String", with(attribute(oid(1, 2, 840, 113549, 1, 9, 2), text(ia5String, "M\xfcller"))))
	m.good("what Windows adds", with(
		attribute(oid(1, 3, 6, 1, 4, 1, 311, 13, 2, 3), text(ia5String, "10.0.19041.2")),
		attribute(oid(1, 3, 6, 1, 4, 1, 311, 21, 20), seq([]byte{2, 1, 5}, text(utf8String, "host"))),
		attribute(oid(1, 3, 6, 1, 4, 1, 311, 2, 1, 14), seq(seq(oid(2, 5, 29, 15), der(octetString, []byte{3, 2, 5, 0xa0})))),
	))
	m.good("60 attributes", with(many(60)...))
	m.good("data behind the attributes", m.build(func(r *request) { r.extra = der(0xa1, null) }))

	m.malformed("65 attributes", with(many(65)...), "more than 64 attributes")
	m.malformed("an attribute without its type", with(seq(set(null))), "attribute 1")
	m.malformed("an attribute that ends early", with(seq(challengePassword, []byte{0x31, 5, 0})), "attribute 1 of the certification request is malformed")
	m.malformed("attributes as SET", m.build(func(r *request) { r.noField, r.extra = true, set() }), "list of attributes")
}

func many(n int) (list [][]byte) {
	for i := range n {
		list = append(list, attribute(oid(1, 3, 6, 1, 4, 1, 99999, i), null))
	}
	return list
}

// extensions tries what requests ask for and never get.
func (m *maker) extensions() {
	extension := func(id []byte, critical bool, value ...[]byte) []byte {
		if critical {
			return seq(id, []byte{1, 1, 0xff}, der(octetString, value...))
		}
		return seq(id, der(octetString, value...))
	}
	with := func(extensions ...[]byte) []byte {
		return m.build(func(r *request) { r.attributes = [][]byte{attribute(extensionRequest, seq(extensions...))} })
	}
	names := func(names ...[]byte) []byte { return extension(subjectAltName, false, seq(names...)) }

	m.good("a critical extension that is unknown", with(extension(unknown, true, null)))
	m.good("an extension of nothing", with(extension(unknown, false)))
	m.good("an unknown extension twice", with(extension(unknown, false, null), extension(unknown, false, null)))
	m.good("CA: TRUE", with(extension(oid(2, 5, 29, 19), true, seq([]byte{1, 1, 0xff}))))
	m.good("keyUsage that is malformed", with(extension(oid(2, 5, 29, 15), true, []byte{3, 1})))
	m.good("no extensions", with())
	m.good("critical written out as FALSE", with(seq(unknown, []byte{1, 1, 0}, der(octetString, null))))
	m.malformed("extensionRequest twice", m.build(func(r *request) {
		one := attribute(extensionRequest, seq(extension(unknown, false, null)))
		r.attributes = [][]byte{one, one}
	}), "extensionRequest twice")
	m.malformed("extensionRequest of two values", m.build(func(r *request) {
		r.attributes = [][]byte{attribute(extensionRequest, seq(), seq())}
	}), "extensionRequest of the certification request has 2 values")
	m.malformed("subjectAltName twice", with(names(der(0x82, []byte("a.example"))), names(der(0x82, []byte("b.example")))), "subjectAltName twice")
	m.malformed("extensions that end early", with([]byte{0x30, 9, 6}), "extensionRequest")
	m.malformed("65 extensions", with(func() (list [][]byte) {
		for range 65 {
			list = append(list, extension(unknown, false, null))
		}
		return list
	}()...), "more than 64 extensions")
}

// altNames tries alternative names, which are unused
// whatever they are.
func (m *maker) altNames() {
	with := func(names ...[]byte) []byte {
		return m.build(func(r *request) {
			value := der(octetString, seq(names...))
			r.attributes = [][]byte{attribute(extensionRequest, seq(seq(subjectAltName, value)))}
		})
	}
	m.good("a dNSName", with(der(0x82, []byte("pump-7.example"))))
	m.good("a dNSName that is none", with(der(0x82, []byte("pump_7..example "))))
	m.good("an iPAddress of five octets", with(der(0x87, []byte{1, 2, 3, 4, 5})))
	m.good("a URI that is none", with(der(0x86, []byte("http://[::1"))))
	m.good("an otherName", with(der(0xa0, oid(1, 3, 6, 1, 4, 1, 311, 20, 2, 3), der(0xa0, der(utf8String, []byte("pump@example"))))))
	m.good("a directoryName", with(der(0xa4, named("other"))))
	m.good("an rfc822Name with an umlaut", with(der(0x81, []byte("p\xfcmp@example"))))
	m.good("no name", with())
}
