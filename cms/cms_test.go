package cms

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign/test/kit"
)

func makeCert(t testing.TB, cn string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestParseGivesWhatWasEncodedInOrder(t *testing.T) {
	certs := [][]byte{makeCert(t, "zulu"), makeCert(t, "alpha"), makeCert(t, "mike")}
	der, err := EncodeCertsOnly(certs...)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCertsOnly(der)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(certs, got); d != "" {
		t.Errorf("ParseCertsOnly (-want +got):\n%s", d)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, certs := range map[string][][]byte{
		"nothing":       {},
		"too many":      bytes.SplitAfter(bytes.Repeat([]byte{0x30, 0}, MaxCertificates+1), []byte{0}),
		"no DER":        {[]byte("certificate")},
		"trailing data": {{0x30, 0, 0}},
		"too large":     {append([]byte{0x30, 0x83, MaxSize >> 16, MaxSize >> 8 & 0xff, MaxSize & 0xff}, make([]byte, MaxSize)...)},
	} {
		if der, err := EncodeCertsOnly(certs...); err == nil || !strings.HasPrefix(err.Error(), "couldn't encode ") {
			t.Errorf("EncodeCertsOnly of %s: got %d octets, %v, want an error", name, len(der), err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good, err := EncodeCertsOnly(makeCert(t, "a"))
	if err != nil {
		t.Fatal(err)
	}
	many, err := EncodeCertsOnly(bytes.Repeat([]byte{0x30, 0}, 1))
	if err != nil {
		t.Fatal(err)
	}
	none := bytes.Replace(many, []byte{0xa0, 2, 0x30, 0}, []byte{0xa0, 2, 0xa1, 0}, 1) // another form of certificate
	if bytes.Equal(none, many) {
		t.Fatal("the set was not found")
	}
	for name, der := range map[string][]byte{
		"nothing":             nil,
		"truncated":           good[:len(good)-1],
		"trailing data":       append(bytes.Clone(good), 0),
		"other content type":  bytes.Replace(good, []byte{0x0d, 1, 7, 2}, []byte{0x0d, 1, 7, 3}, 1),
		"no X.509":            none,
		"a bare certificate":  makeCert(t, "b"),
		"more than the limit": make([]byte, MaxSize+1),
	} {
		if certs, err := ParseCertsOnly(der); err == nil {
			t.Errorf("ParseCertsOnly of %s: got %d certificates, want an error", name, len(certs))
		}
	}
}

func TestParseBoundsCount(t *testing.T) {
	set := bytes.Repeat([]byte{0x30, 0}, MaxCertificates+1)
	if got, err := readCertificates(set); err == nil {
		t.Errorf("readCertificates: got %d, want an error over %d", len(got), MaxCertificates)
	}
}

func TestOpenSSLReadsAndWritesTheSame(t *testing.T) {
	openssl := kit.Program(t, "openssl")
	der, err := EncodeCertsOnly(makeCert(t, "pump-7"), makeCert(t, "issuing"))
	if err != nil {
		t.Fatal(err)
	}
	pem := run(t, der, openssl, "pkcs7", "-inform", "DER", "-print_certs")
	for _, cn := range []string{"CN = pump-7", "CN = issuing"} {
		if !strings.Contains(string(pem), cn) {
			t.Errorf("openssl pkcs7 -print_certs: got %s, want %s in it", pem, cn)
		}
	}
	file := t.TempDir() + "/certs.pem"
	if err := os.WriteFile(file, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	theirs := run(t, nil, openssl, "crl2pkcs7", "-nocrl", "-certfile", file, "-outform", "DER")
	got, err := ParseCertsOnly(theirs)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := ParseCertsOnly(der)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("ParseCertsOnly of openssl's message (-want +got):\n%s", d)
	}
}

func FuzzParseCertsOnly(f *testing.F) {
	good, err := EncodeCertsOnly(makeCert(f, "a"), makeCert(f, "b"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Fuzz(func(t *testing.T, der []byte) {
		certs, err := ParseCertsOnly(der)
		if err != nil {
			return
		}
		again, err := EncodeCertsOnly(certs...)
		if err != nil {
			t.Fatalf("encode what was parsed: %v", err)
		}
		got, err := ParseCertsOnly(again)
		if err != nil || !cmp.Equal(certs, got) {
			t.Errorf("parse, encode, parse: got %x, %v, want %x", got, err, certs)
		}
	})
}

func run(t *testing.T, stdin []byte, argv ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return out
}
