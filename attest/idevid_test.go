package attest_test

import (
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"testing"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
)

// module is an otherName with HardwareModuleName.
func module(w *world, serial string) []byte {
	kind := marshal(w.t, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 2})
	value := tlv(0x30, kind, tlv(0x04, []byte(serial)))
	return tlv(0xa0, marshal(w.t, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4}), tlv(0xa0, value))
}

func names(w *world, of ...[]byte) { w.leaf.extend(oidSAN, true, tlv(0x30, of...)) }

func TestDeviceIDReadsTheFieldThatIsSet(t *testing.T) {
	two := func(w *world, n ...int) {
		w.leaf.template.Subject.ExtraNames = []pkix.AttributeTypeAndValue{{Type: n, Value: "pump-7"}, {Type: n, Value: "pump-8"}}
	}
	for _, tt := range []struct {
		name string
		rule attest.IDRule
		bend func(*world)
		want string // empty: refused
	}{
		{"common name", attest.IDRule{Field: attest.IDCommonName}, func(*world) {}, "pump-7"},
		{"two common names", attest.IDRule{Field: attest.IDCommonName}, func(w *world) { two(w, 2, 5, 4, 3) }, ""},
		{"common name with a space", attest.IDRule{Field: attest.IDCommonName}, func(w *world) { w.leaf.template.Subject.CommonName = "pump 7" }, ""},
		{"common name that ends in NUL", attest.IDRule{Field: attest.IDCommonName}, func(w *world) { w.leaf.template.Subject.CommonName = "pump-7\x00" }, ""},
		{"common name with a letter that looks like one", attest.IDRule{Field: attest.IDCommonName}, func(w *world) { w.leaf.template.Subject.CommonName = "рump-7" }, ""},
		{"serial number", attest.IDRule{Field: attest.IDSerialNumber}, func(w *world) { w.leaf.template.Subject.SerialNumber = "SN:0017" }, "SN:0017"},
		{"no serial number", attest.IDRule{Field: attest.IDSerialNumber}, func(*world) {}, ""},
		{"two serial numbers", attest.IDRule{Field: attest.IDSerialNumber}, func(w *world) { two(w, 2, 5, 4, 5) }, ""},
		{"DNS name", attest.IDRule{Field: attest.IDDNSName, Suffix: ".example.com"}, func(w *world) { w.leaf.template.DNSNames = []string{"pump-7.example.com"} }, "pump-7"},
		{"DNS name of another domain", attest.IDRule{Field: attest.IDDNSName, Suffix: ".example.com"}, func(w *world) { w.leaf.template.DNSNames = []string{"pump-7.example.org"} }, ""},
		{"two DNS names", attest.IDRule{Field: attest.IDDNSName}, func(w *world) { w.leaf.template.DNSNames = []string{"a.example.com", "b.example.com"} }, ""},
		{"the suffix alone", attest.IDRule{Field: attest.IDDNSName, Suffix: "example.com"}, func(w *world) { w.leaf.template.DNSNames = []string{"example.com"} }, ""},
		{"URI", attest.IDRule{Field: attest.IDURI, Prefix: "urn:dev:ops:"}, func(w *world) { uri(w, "urn:dev:ops:32473-pump-7") }, "32473-pump-7"},
		{"URI with slashes", attest.IDRule{Field: attest.IDURI}, func(w *world) { uri(w, "spiffe://example.com/pump-7") }, ""},
		{"mailbox", attest.IDRule{Field: attest.IDEmail, Suffix: "@example.com"}, func(w *world) { w.leaf.template.EmailAddresses = []string{"pump-7@example.com"} }, "pump-7"},
		{"hardware serial", attest.IDRule{Field: attest.IDHWSerial}, func(w *world) { names(w, module(w, "A-17")) }, "A-17"},
		{"hardware serial that is no text", attest.IDRule{Field: attest.IDHWSerial}, func(w *world) { names(w, module(w, "\xff\x01")) }, ""},
		{"hardware module", attest.IDRule{Field: attest.IDHWModule}, func(w *world) { names(w, module(w, "\xff\x01")) }, "1.3.6.1.4.1.32473.2:ff01"},
		{"two hardware modules", attest.IDRule{Field: attest.IDHWModule}, func(w *world) { names(w, module(w, "1"), module(w, "2")) }, ""},
		{"hardware module without serial", attest.IDRule{Field: attest.IDHWModule}, func(w *world) { names(w, module(w, "")) }, ""},
		{"malformed hardware module", attest.IDRule{Field: attest.IDHWModule}, func(w *world) {
			m := module(w, "17")
			m[len(m)-4] = 0x0c // UTF8String for OCTET STRING
			names(w, m)
		}, ""},
		{"other otherName", attest.IDRule{Field: attest.IDHWModule}, func(w *world) {
			names(w, tlv(0xa0, marshal(w.t, oidUnknown), tlv(0xa0, []byte{5, 0})), module(w, "17"))
		}, "1.3.6.1.4.1.32473.2:3137"},
		{"unknown field", attest.IDRule{Field: "subject"}, func(*world) {}, ""},
	} {
		w := newWorld(t)
		tt.bend(w)
		got, err := tt.rule.DeviceID(w.leaf.sign(t))
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
		code := countersign.CodeOf(err)
		if err != nil && code != badPath && tt.rule.Field != "subject" {
			t.Errorf("%s: got code %q, want bad_credential", tt.name, code)
		}
	}
}

func TestDeviceIDOfKeyIsItsHash(t *testing.T) {
	cert := newWorld(t).leaf.sign(t)
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	got, err := attest.IDRule{Field: attest.IDKeyHash}.DeviceID(cert)
	if want := hex.EncodeToString(sum[:]); err != nil || got != want {
		t.Errorf("DeviceID: got %q, %v, want %q", got, err, want)
	}
}

func FuzzParseCRL(f *testing.F) {
	w := newWorld(f)
	for _, l := range []*list{listed(w).revoke(77, 1), indirect(newWorld(f)).revoke(1, 6)} {
		f.Add(l.sign(f))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		l, err := attest.ParseCRL(der)
		if err != nil {
			if code := countersign.CodeOf(err); code != countersign.BadRequest {
				t.Errorf("ParseCRL: got code %q", code)
			}
			return
		}
		if l.Number() == nil || len(l.Issuer()) == 0 {
			t.Errorf("ParseCRL: took a list without number or issuer: %x", der)
		}
	})
}

// FuzzExtensions signs any content of the extensions that this package reads
// itself, so that it comes through to where it is read. Whatever they are, a
// certificate that is revoked by its serial must not pass.
func FuzzExtensions(f *testing.F) {
	w := newWorld(f)
	dn := tlv(0xa4, marshal(f, name("x").ToRDNSequence()))
	f.Add(tlv(0x30, module(w, "17"), dn), subtree(0xa0, 0x82, []byte("example.com")), tlv(0x30, tlv(0x30, tlv(0xa2, dn))), []byte{0x30, 3, 0x81, 1, 0xff})
	f.Add(tlv(0x30, tlv(0x86, []byte("https://a.b/"))), subtree(0xa1, 0x86, []byte(".b")), tlv(0x30, tlv(0x30, fullName("http://a/"))), idp(fullName("http://a/")))
	f.Fuzz(func(t *testing.T, san, constraints, points, scope []byte) {
		w := newWorld(t)
		w.leaf.extend(oidSAN, true, san)
		w.leaf.extend(oidCDP, false, points)
		w.mid.extend(oidNC, true, constraints)
		if _, err := w.leaf.trySign(); err != nil {
			return // no certificate can be made of it
		}
		listed(w).revoke(77, 1).extend(oidIDP, scope)
		for _, field := range []attest.IDField{attest.IDHWModule, attest.IDURI} {
			if id, err := (attest.IDRule{Field: field}).DeviceID(w.leaf.sign(t)); err == nil && countersign.CheckDeviceID(id) != nil {
				t.Errorf("DeviceID: got %q, which is none", id)
			}
		}
		b, err := w.build()
		if err != nil {
			return // as above
		}
		if _, err := attest.ValidatePath(b.chain, []attest.Anchor{b.anchor}, w.o); err == nil {
			t.Errorf("ValidatePath: took a revoked certificate")
		}
	})
}
