package pkcs10

import (
	"bytes"
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

	"github.com/countersign-iot/countersign/test/kit"
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
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(attrs) })
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

func tlv(tag byte, content string) []byte {
	return append([]byte{tag, byte(len(content))}, content...)
}

func challenge(t testing.TB, req *Request) string {
	t.Helper()
	text, err := req.Challenge()
	if err != nil {
		t.Fatal(err)
	}
	return text
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
	if len(req.Attributes) != 1 || len(req.Extensions) != 1 || challenge(t, req) != "" {
		t.Errorf("Parse: got %d attributes, %d extensions, challenge %q, want 1, 1, none", len(req.Attributes), len(req.Extensions), challenge(t, req))
	}
}

func TestParseReadsChallengePasswordInEveryForm(t *testing.T) {
	for name, value := range map[string][]byte{
		"UTF8String":      tlv(0x0c, "sésame"),
		"UniversalString": tlv(0x1c, "\x00\x00\x00s\x00\x00\x00\xe9\x00\x00\x00s\x00\x00\x00a\x00\x00\x00m\x00\x00\x00e"),
		"T61String":       tlv(0x14, "s\xe9same"),
		"BMPString":       tlv(0x1e, "\x00s\x00\xe9\x00s\x00a\x00m\x00e"),
		"PrintableString": tlv(0x13, "sesame"),
		"IA5String":       tlv(0x16, "sesame"),
	} {
		req, err := Parse(makeCSR(t, attribute(oidChallengePassword, value)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := strings.ReplaceAll(challenge(t, req), "é", "e"); got != "sesame" {
			t.Errorf("%s: got challenge %q, want sesame", name, got)
		}
	}
}

func TestParseKeepsUnknownAttributes(t *testing.T) {
	id := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}
	values := [][]byte{tlv(0x0c, "a"), tlv(0x04, "b")}
	req, err := Parse(makeCSR(t, attribute(id, values...)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := req.Attribute(id)
	if got == nil || err != nil {
		t.Fatalf("Attribute: got %v, %v, want the attribute of the request", got, err)
	}
	if d := cmp.Diff(values, got.Values); d != "" {
		t.Errorf("values (-want +got):\n%s", d)
	}
	if got, err := req.Attribute(oidChallengePassword); got != nil || err != nil {
		t.Error("Attribute of a type that is not there: got one, want nil")
	}
}

func TestParseReadsOpenSSLRequest(t *testing.T) {
	openssl := kit.Program(t, "openssl")
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
	if challenge(t, req) != "sesame" || req.Subject.SerialNumber != "4711" || len(req.Attributes) != 3 || req.DNSNames[0] != "pump-7.example" {
		t.Errorf("Parse: got challenge %q, serial %q, %d attributes, names %v", challenge(t, req), req.Subject.SerialNumber, len(req.Attributes), req.DNSNames)
	}
}

func TestChallengeIsRefusedWhereThereAreTwo(t *testing.T) {
	one := attribute(oidChallengePassword, tlv(0x0c, "a"))
	for name, attributes := range map[string][]byte{
		"two attributes": append(one, attribute(oidChallengePassword, tlv(0x0c, "b"))...),
		"two values":     attribute(oidChallengePassword, tlv(0x0c, "a"), tlv(0x0c, "b")),
	} {
		req, err := Parse(makeCSR(t, attributes))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := req.Challenge(); err == nil || text != "" {
			t.Errorf("Challenge of %s: got %q, %v, want an error", name, text, err)
		}
	}
	for name, value := range map[string][]byte{"OCTET STRING": tlv(0x04, "a"), "broken UTF-8": tlv(0x0c, "\xff"), "half a unit": tlv(0x1e, "abc")} {
		req, err := Parse(makeCSR(t, attribute(oidChallengePassword, value)))
		if err != nil {
			t.Fatal(err)
		}
		if got := challenge(t, req); got != "" {
			t.Errorf("Challenge of %s: got %q, want none", name, got)
		}
	}
}

func TestParseKeepsNamesOfAnyForm(t *testing.T) {
	names := enclose(t, 0x30, tlv(0x82, "p\xc3\xbcmp.local"), tlv(0x82, "p\xfcmp.local"), tlv(0x86, "http://[::1"), tlv(0x81, "a@b@c"), tlv(0x87, "\x01\x02\x03\x04\x05"))
	san := enclose(t, 0x30, enclose(t, 0x30, enclose(t, 0x06, []byte{0x55, 0x1d, 0x11}), enclose(t, 0x04, names)))
	req, err := Parse(makeCSR(t, attribute(oidExtensionRequest, san)))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"pümp.local", "pümp.local"}, req.DNSNames); d != "" {
		t.Errorf("dNSNames (-want +got):\n%s", d)
	}
	if len(req.URIs) != 1 || req.URIs[0] != "http://[::1" || len(req.EmailAddresses) != 1 || len(req.IPAddresses) != 1 {
		t.Errorf("other names: got %v, %v, %v, want one of each", req.URIs, req.EmailAddresses, req.IPAddresses)
	}
}

func enclose(t testing.TB, tag byte, parts ...[]byte) []byte {
	t.Helper()
	body := bytes.Join(parts, nil)
	if len(body) > 127 {
		t.Fatal("too long for the test")
	}
	return tlv(tag, string(body))
}
