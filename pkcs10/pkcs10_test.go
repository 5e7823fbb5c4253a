package pkcs10

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

func makeKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// makeCSR signs a request with attrs as content of its attributes field, so that
// a test can write what crypto/x509 would not.
func makeCSR(t testing.TB, attrs []byte) []byte {
	t.Helper()
	key := makeKey(t)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	subject, err := asn1.Marshal(pkix.Name{CommonName: "pump-7"}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	var info cryptobyte.Builder
	info.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(tagAttributes, func(b *cryptobyte.Builder) { b.AddBytes(attrs) })
	})
	tbs := info.BytesOrPanic()
	sum := sha256.Sum256(tbs)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2})
		})
		b.AddASN1BitString(sig)
	})
	return b.BytesOrPanic()
}

// attribute encodes one attribute whose values are the given elements.
func attribute(id asn1.ObjectIdentifier, values ...[]byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(id)
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			for _, v := range values {
				b.AddBytes(v)
			}
		})
	})
	return b.BytesOrPanic()
}

func element(tag byte, content string) []byte {
	return append([]byte{tag, byte(len(content))}, content...)
}

func TestParseReadsNamesAndKey(t *testing.T) {
	key := makeKey(t)
	uri, _ := url.Parse("urn:countersign:device:default:pump-7")
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "pump-7"}, URIs: []*url.URL{uri}, DNSNames: []string{"pump-7.example"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	req, err := Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := req.CheckSignature(); err != nil {
		t.Error(err)
	}
	if req.Subject.CommonName != "pump-7" || len(req.URIs) != 1 || req.DNSNames[0] != "pump-7.example" || !key.PublicKey.Equal(req.PublicKey) {
		t.Errorf("Parse: got %v %v %v, want the names and key of the request", req.Subject, req.URIs, req.DNSNames)
	}
	if len(req.Attributes) != 1 || len(req.Extensions) != 1 || req.ChallengePassword != "" {
		t.Errorf("Parse: got %d attributes, %d extensions, challenge %q, want 1, 1, none", len(req.Attributes), len(req.Extensions), req.ChallengePassword)
	}
}

func TestParseReadsChallengePasswordInEveryForm(t *testing.T) {
	for name, value := range map[string][]byte{
		"UTF8String":      element(0x0c, "sésame"),
		"BMPString":       element(0x1e, "\x00s\x00\xe9\x00s\x00a\x00m\x00e"),
		"PrintableString": element(0x13, "sesame"),
		"IA5String":       element(0x16, "sesame"),
	} {
		req, err := Parse(makeCSR(t, attribute(oidChallengePassword, value)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := strings.ReplaceAll(req.ChallengePassword, "é", "e"); got != "sesame" {
			t.Errorf("%s: got challenge %q, want sesame", name, req.ChallengePassword)
		}
	}
}

func TestParseKeepsUnknownAttributes(t *testing.T) {
	id := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}
	values := [][]byte{element(0x0c, "a"), element(0x04, "b")}
	req, err := Parse(makeCSR(t, attribute(id, values...)))
	if err != nil {
		t.Fatal(err)
	}
	got := req.Attribute(id)
	if got == nil {
		t.Fatal("Attribute: got nil, want the attribute of the request")
	}
	if d := cmp.Diff(values, got.Values); d != "" {
		t.Errorf("values (-want +got):\n%s", d)
	}
	if req.Attribute(oidChallengePassword) != nil {
		t.Error("Attribute of a type that is not there: got one, want nil")
	}
}

func TestParseRefuses(t *testing.T) {
	challenge := attribute(oidChallengePassword, element(0x0c, "a"))
	var many []byte
	for i := range MaxAttributes + 1 {
		many = append(many, attribute(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, i}, element(0x0c, "a"))...)
	}
	for name, der := range map[string][]byte{
		"nothing":                     nil,
		"text":                        []byte("-----BEGIN CERTIFICATE REQUEST-----"),
		"trailing data":               append(makeCSR(t, nil), 0),
		"over the size limit":         make([]byte, MaxSize+1),
		"one type twice":              makeCSR(t, append(challenge, challenge...)),
		"too many attributes":         makeCSR(t, many),
		"an attribute without type":   makeCSR(t, []byte{0x30, 2, 0x31, 0}),
		"an attribute without value":  makeCSR(t, attribute(oidChallengePassword)),
		"a challenge of two values":   makeCSR(t, attribute(oidChallengePassword, element(0x0c, "a"), element(0x0c, "b"))),
		"a challenge that is no text": makeCSR(t, attribute(oidChallengePassword, element(0x04, "a"))),
		"a challenge of broken UTF-8": makeCSR(t, attribute(oidChallengePassword, element(0x0c, "\xff"))),
		"a challenge of half a unit":  makeCSR(t, attribute(oidChallengePassword, element(0x1e, "abc"))),
		"a challenge of 256 letters":  makeCSR(t, attribute(oidChallengePassword, append([]byte{0x0c, 0x82, 1, 0}, strings.Repeat("a", 256)...))),
	} {
		if req, err := Parse(der); err == nil {
			t.Errorf("Parse of %s: got %v, want an error", name, req.Subject)
		}
	}
}

func TestCheckSignatureRefusesAnotherKeysSignature(t *testing.T) {
	der := makeCSR(t, nil)
	der[len(der)-1] ^= 1
	req, err := Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := req.CheckSignature(); err == nil {
		t.Error("CheckSignature of a changed signature: got nil, want an error")
	}
}

func TestParseReadsOpenSSLRequest(t *testing.T) {
	openssl := peer(t, "openssl")
	dir := t.TempDir()
	conf := "[req]\nprompt=no\ndistinguished_name=dn\nattributes=at\nreq_extensions=ext\n[dn]\nCN=pump-7\nserialNumber=4711\n" +
		"[at]\nchallengePassword=sesame\nunstructuredName=hall 3\n[ext]\nsubjectAltName=DNS:pump-7.example\n"
	if err := os.WriteFile(dir+"/req.conf", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), openssl, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", dir+"/key.pem", "-config", dir+"/req.conf")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl req: %v", err)
	}
	block, _ := pem.Decode(out)
	req, err := Parse(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := req.CheckSignature(); err != nil {
		t.Error(err)
	}
	if req.ChallengePassword != "sesame" || req.Subject.SerialNumber != "4711" || len(req.Attributes) != 3 || req.DNSNames[0] != "pump-7.example" {
		t.Errorf("Parse: got challenge %q, serial %q, %d attributes, names %v", req.ChallengePassword, req.Subject.SerialNumber, len(req.Attributes), req.DNSNames)
	}
}

func FuzzParseCSR(f *testing.F) {
	f.Add(makeCSR(f, nil))
	f.Add(makeCSR(f, attribute(oidChallengePassword, element(0x0c, "a"))))
	f.Add(makeCSR(f, attribute(oidChallengePassword, element(0x1e, "\x00a"))))
	f.Fuzz(func(t *testing.T, der []byte) {
		req, err := Parse(der)
		if err != nil {
			return
		}
		_ = req.CheckSignature() // must not panic on any key
		if len(req.Attributes) > MaxAttributes {
			t.Errorf("Parse: got %d attributes, want at most %d", len(req.Attributes), MaxAttributes)
		}
		for _, a := range req.Attributes {
			if len(a.Values) == 0 {
				t.Errorf("attribute %v has no value", a.Type)
			}
		}
	})
}

// peer gives the path of a program, or skips unless peers are required.
func peer(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("COUNTERSIGN_REQUIRE_PEERS") == "1" {
		t.Fatalf("%s is required: %v", name, err)
	}
	t.Skipf("%s is not installed", name)
	return ""
}
