package est

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/test/kit"
)

// The foreign clients of this file are judged by the files they write: some exit
// 0 although the server refused.

// device is a folder of pump-7 with key.pem and req.der as a foreign client wants them.
type device struct {
	dir string
	key crypto.Signer
}

func newDevice(t *testing.T) device {
	t.Helper()
	d := device{dir: t.TempDir(), key: kit.Key(t)}
	der, err := x509.MarshalPKCS8PrivateKey(d.key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, d.file("key.pem"), "PRIVATE KEY", der)
	csr := kit.CSR(t, d.key, "pump-7")
	if err := os.WriteFile(d.file("req.der"), csr, 0o600); err != nil {
		t.Fatal(err)
	}
	writePEM(t, d.file("req.pem"), "CERTIFICATE REQUEST", csr)
	if err := os.WriteFile(d.file("req.b64"), []byte(base64.StdEncoding.EncodeToString(csr)), 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d device) file(name string) string { return filepath.Join(d.dir, name) }

// run gives stdout and everything else the program said.
func (d device) run(t *testing.T, argv ...string) (stdout []byte, said string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = d.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	said = stderr.String()
	if err != nil {
		said += err.Error()
	}
	return stdout, said
}

func (d device) checkCert(t *testing.T, s *server, der []byte, said string) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("no certificate came: %v\n%s\n%s", err, said, s.log)
	}
	if err := cert.CheckSignatureFrom(s.issuing); err != nil {
		t.Error(err)
	}
	return cert
}

func TestStrongSwanGetsCACerts(t *testing.T) {
	pki, s := kit.Program(t, "pki"), startServer(t)
	for _, label := range []string{"", "/pumps"} {
		d := newDevice(t)
		_, said := d.run(t, pki, "--estca", "--url", s.url+label, "--cacert", s.roots, "--caout", "ca.pem", "--outform", "pem", "--force")
		files, _ := filepath.Glob(d.file("ca*.pem"))
		if len(files) != 2 {
			t.Errorf("pki --estca%s: got files %v, want one for each authority\n%s\n%s", label, files, said, s.log)
		}
	}
}

func TestStrongSwanEnrollsAndReenrolls(t *testing.T) {
	pki, s := kit.Program(t, "pki"), startServer(t)
	d := newDevice(t)
	der, said := d.run(t, pki, "--est", "--url", s.url+"/pumps", "--in", "req.der", "--cacert", s.roots, "--userpass", "pump:"+goodToken)
	cert := d.checkCert(t, s, der, said)
	if req := s.last(t); req.Fleet != "pumps" || req.Evidence.Token != goodToken {
		t.Errorf("got fleet %q, token %q", req.Fleet, req.Evidence.Token)
	}
	writePEM(t, d.file("cert.pem"), "CERTIFICATE", cert.Raw)

	next := newDevice(t)
	der, said = d.run(t, pki, "--est", "--url", s.url, "--in", next.file("req.der"), "--cacert", s.roots, "--cert", "cert.pem", "--key", "key.pem")
	if again := d.checkCert(t, s, der, said); again.Equal(cert) {
		t.Error("pki --est with the old certificate: got the same certificate, want the next")
	}
	if req := s.last(t); len(req.Evidence.Peer) == 0 || !req.Evidence.Peer[0].Equal(cert) {
		t.Error("the desk did not see the current certificate")
	}
}

func TestStrongSwanIsRefusedWithWrongToken(t *testing.T) {
	pki, s := kit.Program(t, "pki"), startServer(t)
	d := newDevice(t)
	out, said := d.run(t, pki, "--est", "--url", s.url, "--in", "req.der", "--cacert", s.roots, "--userpass", "pump:cset_bad_credential")
	if len(out) != 0 || !strings.Contains(said, "401") {
		t.Errorf("got %d octets, want none and a word about 401\n%s", len(out), said)
	}
}

func TestCurlAndOpenSSLEnrollAndReenroll(t *testing.T) {
	curl, openssl, s := kit.Program(t, "curl"), kit.Program(t, "openssl"), startServer(t)
	d := newDevice(t)
	enroll := func(operation, in string, more ...string) {
		t.Helper()
		argv := append([]string{
			curl, "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", "--cacert", s.roots, "--output", "answer.b64",
			"--header", "Content-Type: application/pkcs10", "--data-binary", "@" + in,
		}, more...)
		_, said := d.run(t, append(argv, s.url+pathPrefix+operation)...)
		_, more64 := d.run(t, openssl, "base64", "-d", "-in", "answer.b64", "-out", "answer.der")
		_, p7 := d.run(t, openssl, "pkcs7", "-inform", "DER", "-in", "answer.der", "-print_certs", "-out", "cert.pem")
		der, x := d.run(t, openssl, "x509", "-in", "cert.pem", "-outform", "DER")
		d.checkCert(t, s, der, said+more64+p7+x)
	}
	for _, in := range []string{"req.b64", "req.pem", "req.der"} {
		enroll("simpleenroll", in, "--user", "any:"+goodToken)
		enroll("simpleenroll", in, "--anyauth", "--user", "any:"+goodToken)
		enroll("simpleenroll", in, "--header", "Authorization: Bearer "+goodToken)
	}
	enroll("simplereenroll", "req.b64", "--cert", "cert.pem", "--key", "key.pem")
	if req := s.last(t); len(req.Evidence.Peer) != 1 || req.Evidence.Peer[0].Subject.CommonName != "pump-7" {
		t.Errorf("simplereenroll: got %d peers, want the current certificate", len(req.Evidence.Peer))
	}
}

func TestCurlReadsRefusal(t *testing.T) {
	curl, s := kit.Program(t, "curl"), startServer(t)
	d := newDevice(t)
	out, _ := d.run(t, curl, "--silent", "--noproxy", "*", "--cacert", s.roots, "--user", "x:cset_credential_spent",
		"--header", "Content-Type: application/pkcs10", "--data", "@req.b64", "--write-out", "%{http_code}", s.url+pathPrefix+"simpleenroll")
	if want := "refused as credential_spent: try another.\n401"; string(out) != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestOpenSSLReadsCSRAttrs(t *testing.T) {
	curl, openssl, s := kit.Program(t, "curl"), kit.Program(t, "openssl"), startServer(t)
	d := newDevice(t)
	_, said := d.run(t, curl, "--silent", "--noproxy", "*", "--cacert", s.roots, "--output", "a.b64", s.url+pathPrefix+"csrattrs")
	_, said64 := d.run(t, openssl, "base64", "-d", "-in", "a.b64", "-out", "a.der")
	out, more := d.run(t, openssl, "asn1parse", "-inform", "DER", "-in", "a.der")
	for _, want := range []string{"id-ecPublicKey", "prime256v1", "ecdsa-with-SHA256"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("openssl asn1parse: got %s, want %s in it\n%s", out, want, said+said64+more)
		}
	}
}

// TestOpenSSLBindsRequestToItsSession has openssl export the channel binding,
// make the request with it, and send it over the same connection.
func TestOpenSSLBindsRequestToItsSession(t *testing.T) {
	openssl, s := kit.Program(t, "openssl"), startServer(t)
	s.door.RequireBinding = true
	d := newDevice(t)
	cmd := exec.CommandContext(t.Context(), openssl, "s_client", "-connect", strings.TrimPrefix(s.url, "https://"), "-CAfile", s.roots,
		"-keymatexport", exporterLabel, "-keymatexportlen", strconv.Itoa(exporterLength), "-ign_eof", "-verify_return_error")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	var material []byte
	for material == nil {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("openssl s_client said no keying material: %v", err)
		}
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "Keying material: "); ok {
			if material, err = hex.DecodeString(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	conf := "[req]\nprompt=no\ndistinguished_name=dn\nattributes=at\n[dn]\nCN=pump-7\n[at]\nchallengePassword=" +
		base64.StdEncoding.EncodeToString(material) + "\n"
	if err := os.WriteFile(d.file("req.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	csr, said := d.run(t, openssl, "req", "-new", "-key", "key.pem", "-config", "req.conf", "-outform", "DER")
	body := base64.StdEncoding.EncodeToString(csr)
	if _, err := fmt.Fprintf(in, "POST %ssimpleenroll HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		pathPrefix, goodToken, len(body), body); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(string(answer), "HTTP/1.1 200 OK") || !s.last(t).Bound {
		t.Errorf("got %s, want 200 for a bound request\n%s\n%s", answer, said, s.log)
	}
}
