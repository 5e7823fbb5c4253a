package est

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSAN        = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage   = asn1.ObjectIdentifier{2, 5, 29, 15}
)

func fullTemplate() Template {
	return Template{
		Subject: []NameTemplate{
			{ID: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: []byte{0x0c, 4, 'A', 'c', 'm', 'e'}},
			{ID: oidCommonName},
		},
		Key:        "P-384",
		Extensions: []ExtensionTemplate{{ID: oidSAN}, {ID: oidKeyUsage, Critical: true, Value: []byte{0x03, 2, 7, 0x80}}},
	}
}

func TestTemplateReachesClient(t *testing.T) {
	s := startServer(t)
	for name, want := range map[string]Template{
		"full": fullTemplate(), "nothing": {}, "RSA": {Key: "RSA"}, "Ed25519": {Key: "Ed25519"},
		"empty value": {Extensions: []ExtensionTemplate{{ID: oidSAN, Value: []byte{}}}},
	} {
		attr, err := want.Attr()
		if err != nil {
			t.Fatal(err)
		}
		s.want(append(Want("P-384"), attr))
		attrs, err := s.client(t, nil, nil).CSRAttrs(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := attrs.Template()
		if err != nil || got == nil {
			t.Errorf("%s: Template: got %v, %v, want one", name, got, err)
			continue
		}
		if d := cmp.Diff(want, *got); d != "" {
			t.Errorf("%s: Template (-want +got):\n%s", name, d)
		}
	}
	if got, err := Want("P-256").Template(); got != nil || err != nil {
		t.Errorf("Template of a list without one: got %v, %v, want none", got, err)
	}
}

// TestTemplateIsEncodedAsInTheRFC pins the octets, for we write and read with the
// same hand.
func TestTemplateIsEncodedAsInTheRFC(t *testing.T) {
	tmpl := Template{Subject: []NameTemplate{{ID: oidCommonName}}, Key: "P-256", Extensions: []ExtensionTemplate{{ID: oidSAN}}}
	attr, err := tmpl.Attr()
	if err != nil {
		t.Fatal(err)
	}
	got, err := CSRAttrs{attr}.encode()
	if err != nil {
		t.Fatal(err)
	}
	const want = "3054" + // CsrAttrs
		"3052" + "060b2a864886f70d010910023d" + "3143" + // id-aa-certificationRequestInfoTemplate
		"3041" + "020100" + // version v1
		"3009" + "3107" + "3005" + "0603550403" + // subject: commonName without value
		"a015" + "3013" + "06072a8648ce3d0201" + "06082a8648ce3d030107" + // subjectPKInfo [0]: P-256 without key
		"a11a" + "3018" + "060b2a864886f70d010910023e" + "3109" + // attributes [1]: id-aa-extensionReqTemplate
		"3007" + "3005" + "0603551d11"
	if hex.EncodeToString(got) != want {
		t.Errorf("encode: got %x, want %s", got, want)
	}
}

func TestTemplateRefusesUnknownKey(t *testing.T) {
	if got, err := (Template{Key: "P-224"}).Attr(); err == nil {
		t.Errorf("Attr: got %v, want an error", got)
	}
}

func TestParseTemplateRefuses(t *testing.T) {
	attr, err := fullTemplate().Attr()
	if err != nil {
		t.Fatal(err)
	}
	good := attr.Values[0]
	for name, der := range map[string][]byte{
		"nothing":       nil,
		"truncated":     good[:len(good)-1],
		"trailing data": append(bytes.Clone(good), 0),
		"version 1":     bytes.Replace(good, []byte{2, 1, 0}, []byte{2, 1, 1}, 1),
		"no attributes": {0x30, 3, 2, 1, 0},
		"another curve": bytes.Replace(good, []byte{0x2b, 0x81, 4, 0, 34}, []byte{0x2b, 0x81, 4, 0, 33}, 1),
		"FALSE":         bytes.Replace(good, []byte{1, 1, 0xff}, []byte{1, 1, 0x55}, 1),
	} {
		if got, err := parseTemplate(der); err == nil {
			t.Errorf("parseTemplate of %s: got %v, want an error", name, got)
		}
	}
	if got, err := (CSRAttrs{{ID: oidTemplate, Values: [][]byte{good, good}}}).Template(); err == nil {
		t.Errorf("Template of two values: got %v, want an error", got)
	}
}

func TestWantAsksForTheFirstKnownKind(t *testing.T) {
	ids := func(a CSRAttrs) (ids []string) {
		for _, e := range a {
			ids = append(ids, e.ID.String())
		}
		return ids
	}
	for want, keys := range map[string][]string{
		"1.2.840.10045.2.1 1.2.840.10045.4.3.2":      {"P-256", "RSA"},
		"1.2.840.10045.2.1 1.2.840.10045.4.3.3":      {"ML-DSA-44", "P-384"},
		"1.3.101.112":                                {"Ed25519"},
		"1.2.840.113549.1.1.1 1.2.840.113549.1.1.11": {"RSA", "P-256"},
		"": {"unheard of"},
	} {
		got := ""
		for i, id := range ids(Want(keys...)) {
			if i > 0 {
				got += " "
			}
			got += id
		}
		if got != want {
			t.Errorf("Want(%v): got %q, want %q", keys, got, want)
		}
	}
}

func FuzzParseCSRAttrs(f *testing.F) {
	attr, err := fullTemplate().Attr()
	if err != nil {
		f.Fatal(err)
	}
	for _, a := range []CSRAttrs{Want("P-256"), Want("RSA"), {attr}} {
		der, err := a.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		attrs, err := parseCSRAttrs(der)
		if err != nil {
			return
		}
		again, err := attrs.encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseCSRAttrs(again); err != nil || !cmp.Equal(attrs, got) {
			t.Errorf("parse, encode, parse: got %v, %v, want %v", got, err, attrs)
		}
		tmpl, err := attrs.Template()
		if err != nil || tmpl == nil {
			return
		}
		attr, err := tmpl.Attr()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := (CSRAttrs{attr}).Template(); err != nil || !cmp.Equal(tmpl, got) {
			t.Errorf("parse, encode, parse: got %v, %v, want %v", got, err, tmpl)
		}
	})
}
