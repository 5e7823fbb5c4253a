package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	"pgregory.net/rapid"

	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// tbsOf returns the TBSCertificate of a certificate.
func tbsOf(t kit.TB, der []byte) []byte {
	t.Helper()
	outer := cryptobyte.String(der)
	var cert, tbs cryptobyte.String
	if !outer.ReadASN1(&cert, cbasn1.SEQUENCE) || !cert.ReadASN1Element(&tbs, cbasn1.SEQUENCE) {
		t.Fatalf("no certificate: %x", der)
	}
	return tbs
}

// subjectKeys are public keys of each type that a device may have.
func subjectKeys() map[string]crypto.PublicKey {
	keys := map[string]crypto.PublicKey{}
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		keys[c.Params().Name] = &kit.Must(ecdsa.GenerateKey(c, rand.Reader)).PublicKey
	}
	for name, bits := range map[string]uint{"RSA-2048": 2048, "RSA-3071": 3071, "RSA-4096": 4096} {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		keys[name] = &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
	}
	keys["RSA with a long exponent"] = &rsa.PublicKey{N: keys["RSA-2048"].(*rsa.PublicKey).N, E: 1<<31 - 1}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	keys["Ed25519"] = kit.Must(key, err).Public()
	return keys
}

// signers are keys of each type that an authority may have.
func signers() map[string]crypto.Signer {
	keys := map[string]crypto.Signer{"RSA-2048": kit.Must(rsa.GenerateKey(rand.Reader, 2048))}
	for _, c := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		keys[c.Params().Name] = kit.Must(ecdsa.GenerateKey(c, rand.Reader))
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	keys["Ed25519"] = kit.Must(key, err)
	return keys
}

// issuerFor returns the certificate of an authority with a key.
func issuerFor(t kit.TB, key crypto.Signer) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Sample Issuing", Organization: []string{"Sample & Söhne"}, Country: []string{"DE"}},
		NotBefore: start, NotAfter: start.AddDate(3, 0, 0), IsCA: true, BasicConstraintsValid: true, SubjectKeyId: bytes.Repeat([]byte{0xa5}, 20),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return kit.Must(x509.ParseCertificate(kit.Must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key))))
}

func TestKeysAreEncodedAsTheStandardLibraryDoes(t *testing.T) {
	keys := subjectKeys()
	keys["P-224"] = &kit.Must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).PublicKey // of an authority that is registered
	for name, pub := range keys {
		want, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ca.EncodeKey(pub); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, %v, want %x", name, got, err, want)
		}
	}
	for name, pub := range map[string]crypto.PublicKey{
		"off the curve": &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}, //nolint:staticcheck // a key that no library makes
		"no key":        nil, "a private key": kit.Key(t),
	} {
		if got, err := ca.EncodeKey(pub); err == nil {
			t.Errorf("%s: got %x", name, got)
		}
	}
}

// TestShippedProfilesAreEncodedAsTheStandardLibraryDoes holds each profile, in each form
// that an order may bring it to, for each type of key against x509.CreateCertificate.
func TestShippedProfilesAreEncodedAsTheStandardLibraryDoes(t *testing.T) {
	h := found(t, storetest.Open(t))
	issuer, key := h.certificateOf(t, ca.IssuingID), kit.Must(h.Keys.Open(ca.IssuingKeyURI, nil))
	orders := map[string]func(*ca.Order){
		"plain":    func(*ca.Order) {},
		"long id":  func(o *ca.Order) { o.Device = strings.Repeat("d", 128) },
		"UTF-8 id": func(o *ca.Order) { o.Device = "pump_1" },
		"SPIFFE":   func(o *ca.Order) { o.Fleet.TrustDomain = "example.net" },
		"bare":     func(o *ca.Order) { o.Profile.NoStatus, o.Profile.OmitURI = true, true },
		"all usages": func(o *ca.Order) {
			o.Profile.KeyUsage = []string{"digitalSignature", "keyEncipherment", "keyAgreement"}
			o.Profile.ExtKeyUsage = []string{"clientAuth", "serverAuth"}
		},
		"past 2050": func(o *ca.Order) { o.Profile.NoExpiry, o.Profile.Validity = true, 0 },
	}
	for _, profile := range kit.Must(ca.Profiles(t.Context(), h.db)) {
		for name, change := range orders {
			for kind, pub := range subjectKeys() {
				o := h.order(t, profile.Name, "pump-1")
				o.PublicKey = pub
				change(&o)
				plan := kit.Must(h.Plan(t.Context(), o))
				want := tbsOf(t, kit.Must(x509.CreateCertificate(rand.Reader, plan.Template(), issuer, pub, key)))
				if !ca.Encodable(plan.Template()) {
					t.Errorf("%s, %s, %s: it is left to the standard library", profile.Name, name, kind)
				}
				issued := kit.Must(h.Sign(plan))
				if got := tbsOf(t, issued.DER); !bytes.Equal(got, want) {
					t.Errorf("%s, %s, %s:\ngot  %x\nwant %x", profile.Name, name, kind, got, want)
				}
				if err := parse(t, issued.DER).CheckSignatureFrom(issuer); err != nil {
					t.Errorf("%s, %s, %s: %v", profile.Name, name, kind, err)
				}
			}
		}
	}
}

// TestServiceCertificatesAreEncodedAsTheStandardLibraryDoes encodes the certificates of
// the authority's own services again, from what they hold.
func TestServiceCertificatesAreEncodedAsTheStandardLibraryDoes(t *testing.T) {
	h := found(t, storetest.Open(t))
	issuer, key := h.certificateOf(t, ca.IssuingID), kit.Must(h.Keys.Open(ca.IssuingKeyURI, nil))
	pub := &kit.Key(t).PublicKey
	server, _, err := h.IssueServer(t.Context(), ca.IssuingID, []string{"ca.example.net", "localhost", "127.0.0.1", "::1"}, pub)
	if err != nil {
		t.Fatal(err)
	}
	introducer, _, err := h.IssueIntroducer(t.Context(), ca.IssuingID, pub)
	if err != nil {
		t.Fatal(err)
	}
	claim := kit.Must(h.IssueClaim(t.Context(), ca.IssuingID, "line 4", start.Add(time.Hour), pub))
	for name, der := range map[string][]byte{"server": server[0], "introducer": introducer[0], "claim": claim.DER, "responder": h.responder(t).Raw} {
		tmpl := parse(t, der)
		tmpl.SignatureAlgorithm = x509.UnknownSignatureAlgorithm
		for _, x := range tmpl.Extensions {
			if x.Id.String() == "1.3.6.1.5.5.7.48.1.5" { // id-pkix-ocsp-nocheck, which has no field
				tmpl.ExtraExtensions = append(tmpl.ExtraExtensions, x)
			}
		}
		want := tbsOf(t, kit.Must(x509.CreateCertificate(rand.Reader, tmpl, issuer, tmpl.PublicKey, key)))
		if got := tbsOf(t, der); !bytes.Equal(got, want) || !ca.Encodable(tmpl) {
			t.Errorf("%s:\ngot  %x\nwant %x", name, got, want)
		}
	}
}

// TestWholeCertificatesAreThoseOfTheStandardLibrary compares certificates with their
// signatures, under keys whose signatures are always the same; of the others what is signed.
func TestWholeCertificatesAreThoseOfTheStandardLibrary(t *testing.T) {
	pub := &kit.Key(t).PublicKey
	for kind, key := range signers() {
		issuer := issuerFor(t, key)
		for name, change := range map[string]func(*x509.Certificate){
			"device":              func(*x509.Certificate) {},
			"left to the library": func(tmpl *x509.Certificate) { tmpl.PermittedDNSDomains = []string{"example.net"} },
		} {
			tmpl := &x509.Certificate{
				SerialNumber: big.NewInt(1 << 40), Subject: pkix.Name{CommonName: "pump-1"}, NotBefore: start, NotAfter: start.AddDate(0, 1, 0),
				KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, SubjectKeyId: []byte{1, 2, 3},
			}
			change(tmpl)
			certify := kit.Must(ca.Certifier(key))
			got := kit.Must(certify(tmpl, issuer, pub))
			want := kit.Must(x509.CreateCertificate(rand.Reader, tmpl, issuer, pub, key))
			if _, isECDSA := key.(*ecdsa.PrivateKey); isECDSA {
				if err := parse(t, got).CheckSignatureFrom(issuer); err != nil {
					t.Errorf("%s, %s: %v", kind, name, err)
				}
				got, want = tbsOf(t, got), tbsOf(t, want)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s, %s:\ngot  %x\nwant %x", kind, name, got, want)
			}
		}
	}
}

// TestEncoderKnowsEachFieldOfATemplate wants a decision about each field that a release
// of Go adds to x509.Certificate: it is written, or makes the template not encodable, or
// x509.CreateCertificate does not read it.
func TestEncoderKnowsEachFieldOfATemplate(t *testing.T) {
	written := strings.Fields(`RawSubject SerialNumber Subject NotBefore NotAfter KeyUsage ExtraExtensions ExtKeyUsage UnknownExtKeyUsage BasicConstraintsValid
		SubjectKeyId AuthorityKeyId OCSPServer IssuingCertificateURL DNSNames EmailAddresses IPAddresses URIs CRLDistributionPoints`)
	left := map[string]any{
		"SignatureAlgorithm": x509.ECDSAWithSHA384, "IsCA": true, "MaxPathLen": 1, "MaxPathLenZero": true,
		"Policies": []x509.OID{{}}, "PolicyIdentifiers": []asn1.ObjectIdentifier{{1, 2, 3}},
		"PermittedDNSDomains": []string{""}, "ExcludedDNSDomains": []string{""}, "PermittedIPRanges": []*net.IPNet{nil}, "ExcludedIPRanges": []*net.IPNet{nil},
		"PermittedEmailAddresses": []string{""}, "ExcludedEmailAddresses": []string{""}, "PermittedURIDomains": []string{""}, "ExcludedURIDomains": []string{""},
	}
	unread := strings.Fields(`Raw RawTBSCertificate RawSubjectPublicKeyInfo RawIssuer RawSignatureAlgorithm Signature PublicKeyAlgorithm PublicKey Version Issuer Extensions
		UnhandledCriticalExtensions PermittedDNSDomainsCritical InhibitAnyPolicy InhibitAnyPolicyZero InhibitPolicyMapping InhibitPolicyMappingZero
		RequireExplicitPolicy RequireExplicitPolicyZero PolicyMappings`)
	for f := range reflect.TypeFor[x509.Certificate]().Fields() {
		value, isLeft := left[f.Name]
		if isLeft {
			tmpl := &x509.Certificate{NotBefore: start, NotAfter: start}
			reflect.ValueOf(tmpl).Elem().FieldByName(f.Name).Set(reflect.ValueOf(value))
			if ca.Encodable(tmpl) {
				t.Errorf("a template with %s seems to be encodable", f.Name)
			}
		} else if !slices.Contains(written, f.Name) && !slices.Contains(unread, f.Name) {
			t.Errorf("x509.Certificate has a field %s, which the encoder does not know", f.Name)
		}
	}
}

// anyText draws text that needs each type of string, and some that is not UTF-8.
func anyText() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.StringMatching(`[A-Za-z0-9 '()+,./:=?-]{0,20}`), rapid.StringMatching(`[ -~]{0,20}`), rapid.String(),
		rapid.SampledFrom([]string{"", "*.example.net", "a&b", "a@b", "pump_1", "Söhne", "世界", "\xff", strings.Repeat("x", 200), strings.Repeat("y", 300)}))
}

// anyValue draws the value of an attribute.
func anyValue(t *rapid.T) any {
	return rapid.OneOf(anyText().AsAny(), rapid.SampledFrom([]any{
		7,
		[]byte{1, 2},
		asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte("ia5")},
		asn1.RawValue{Tag: asn1.TagT61String, Bytes: []byte{0xe4}},
		asn1.RawValue{Tag: asn1.TagBMPString, Bytes: []byte{0, 'a'}},
		asn1.RawValue{Tag: asn1.TagNumericString, Bytes: []byte("12")},
		nil,
	})).Draw(t, "value")
}

func anySubject(t *rapid.T) (n pkix.Name) {
	some := func(what string) []string { return rapid.SliceOfN(anyText(), 0, 2).Draw(t, what) }
	for _, part := range []*[]string{&n.Country, &n.Organization, &n.OrganizationalUnit, &n.Locality, &n.Province, &n.StreetAddress, &n.PostalCode} {
		if rapid.IntRange(0, 4).Draw(t, "has part") == 0 {
			*part = some("part")
		}
	}
	if rapid.Bool().Draw(t, "named") {
		n.CommonName, n.SerialNumber = anyText().Draw(t, "common name"), anyText().Draw(t, "serialNumber")
	}
	if rapid.IntRange(0, 3).Draw(t, "more names") == 0 {
		n.ExtraNames = []pkix.AttributeTypeAndValue{{Type: anyOID(t), Value: anyValue(t)}}
	}
	return n
}

func anyOID(t *rapid.T) asn1.ObjectIdentifier {
	return rapid.SampledFrom([]asn1.ObjectIdentifier{
		{2, 5, 4, 3}, {1, 2, 840, 113549, 1, 9, 1}, {2, 999, 1 << 30}, {0, 39}, {2, 5, 29, 15}, {2, 5, 29, 17}, {2, 5, 29, 35}, {2, 5, 29, 31}, {1, 40}, {1}, {3, 1},
	}).Draw(t, "oid")
}

func anyTime(t *rapid.T, what string) time.Time {
	at := rapid.OneOf(
		rapid.Int64Range(time.Date(1940, 1, 1, 0, 0, 0, 0, time.UTC).Unix(), time.Date(2060, 1, 1, 0, 0, 0, 0, time.UTC).Unix()),
		rapid.SampledFrom([]int64{
			time.Date(1949, 12, 31, 23, 59, 59, 0, time.UTC).Unix(), time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC).Unix(),
			time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC).Unix(), time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC).Unix(),
			time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).Unix(), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC).Unix(),
		})).Draw(t, what)
	zone := rapid.SampledFrom([]int{0, 3600, -11 * 3600, 5*3600 + 1800}).Draw(t, "zone")
	return time.Unix(at, rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).In(time.FixedZone("", zone))
}

// anyTemplate draws a template that may have each field that the encoder writes.
func anyTemplate(t *rapid.T) *x509.Certificate {
	texts := func(what string) []string {
		if rapid.Bool().Draw(t, what+" are there") {
			return rapid.SliceOfN(anyText(), 0, 3).Draw(t, what)
		}
		return nil
	}
	id := func(what string) []byte { return rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, what) }
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "serial")),
		Subject:      anySubject(t), NotBefore: anyTime(t, "from"), NotAfter: anyTime(t, "to"),
		KeyUsage: x509.KeyUsage(rapid.IntRange(0, 1<<10).Draw(t, "key usage")), BasicConstraintsValid: rapid.Bool().Draw(t, "basic constraints"),
		SubjectKeyId: id("subject key id"), AuthorityKeyId: id("authority key id"),
		OCSPServer: texts("ocsp"), IssuingCertificateURL: texts("issuers"), CRLDistributionPoints: texts("crl"),
		DNSNames: texts("dns"), EmailAddresses: texts("email"),
		MaxPathLen: rapid.SampledFrom([]int{0, 0, 0, -1}).Draw(t, "path"),
	}
	tmpl.ExtKeyUsage = rapid.SliceOfN(rapid.SampledFrom([]x509.ExtKeyUsage{
		x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageOCSPSigning, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageAny, 99,
	}), 0, 2).Draw(t, "purposes")
	if rapid.IntRange(0, 3).Draw(t, "unknown purposes") == 0 {
		tmpl.UnknownExtKeyUsage = []asn1.ObjectIdentifier{anyOID(t)}
	}
	for _, n := range rapid.SliceOfN(rapid.SampledFrom([]int{4, 16, 0, 3, 16}), 0, 3).Draw(t, "addresses") {
		tmpl.IPAddresses = append(tmpl.IPAddresses, rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "address"))
	}
	if rapid.Bool().Draw(t, "mapped address") {
		tmpl.IPAddresses = append(tmpl.IPAddresses, net.IPv4(192, 0, 2, 1))
	}
	for range rapid.IntRange(0, 2).Draw(t, "uris") {
		tmpl.URIs = append(tmpl.URIs, rapid.SampledFrom([]*url.URL{
			{Scheme: "urn", Opaque: "countersign:device:default:pump-1"}, {Scheme: "spiffe", Host: "example.net", Path: "/ä/b"}, {Scheme: "urn", Opaque: "ä"}, {},
		}).Draw(t, "uri"))
	}
	if rapid.IntRange(0, 2).Draw(t, "extra") == 0 {
		tmpl.ExtraExtensions = []pkix.Extension{{Id: anyOID(t), Critical: rapid.Bool().Draw(t, "critical"), Value: id("value")}}
	}
	return tmpl
}

// TestAnyTemplateIsEncodedAsTheStandardLibraryDoes draws templates: where the encoder
// writes one, what is signed is that of x509.CreateCertificate, octet for octet, and where
// that returns an error the encoder does too.
func TestAnyTemplateIsEncodedAsTheStandardLibraryDoes(t *testing.T) {
	key := kit.Key(t)
	issuer := issuerFor(t, key)
	keys := subjectKeys()
	kinds := []string{"P-256", "Ed25519", "RSA-2048"}
	encoded, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		tmpl, above := anyTemplate(t), *issuer
		switch rapid.IntRange(0, 5).Draw(t, "issuer") {
		case 0:
			above.SubjectKeyId = nil
		case 1:
			tmpl.RawSubject = issuer.RawSubject // its own issuer, as it seems
		}
		pub := keys[rapid.SampledFrom(kinds).Draw(t, "key")]
		want, wantErr := x509.CreateCertificate(rand.Reader, tmpl, &above, pub, key)
		if !ca.Encodable(tmpl) {
			return
		}
		got, err := ca.EncodeTBS(tmpl, &above, pub, key.Public())
		switch {
		case (err == nil) != (wantErr == nil):
			t.Fatalf("got error %v, want %v", err, wantErr)
		case err != nil:
			refused++
		case !bytes.Equal(got, tbsOf(t, want)):
			t.Fatalf("got\n%x, want\n%x", got, tbsOf(t, want))
		default:
			encoded++
		}
	})
	if encoded == 0 {
		t.Errorf("no template was encoded, %d were refused", refused)
	}
}

func TestSerialsOutsideTheStandardAreNotSigned(t *testing.T) {
	octets := func(n int, first byte) *big.Int {
		return new(big.Int).SetBytes(append([]byte{first}, make([]byte, n-1)...))
	}
	certify := kit.Must(ca.Certifier(kit.Key(t)))
	for _, tt := range []struct {
		name   string
		serial *big.Int
		good   bool
	}{
		{"none", nil, false},
		{"zero", big.NewInt(0), false},
		{"negative", big.NewInt(-1), false},
		{"one", big.NewInt(1), true},
		{"one octet with the high bit", octets(1, 0x80), true},
		{"19 octets with the high bit", octets(19, 0xff), true},
		{"20 octets", octets(20, 0x7f), true},
		{"20 octets with the high bit, which are 21 on the wire", octets(20, 0x80), false},
		{"21 octets", octets(21, 1), false},
	} {
		if err := ca.CheckSerial(tt.serial); (err == nil) != tt.good {
			t.Errorf("%s: got %v", tt.name, err)
		}
		// Neither does the standard library draw one.
		der, err := certify(&x509.Certificate{SerialNumber: tt.serial, IsCA: true}, &x509.Certificate{}, &kit.Key(t).PublicKey)
		if !tt.good && err == nil {
			t.Errorf("%s: it was signed: %x", tt.name, der)
		}
	}
}
