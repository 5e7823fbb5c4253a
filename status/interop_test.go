package status

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ocsp"

	"github.com/countersign-iot/countersign/test/kit"
)

// folder has the input files of the openssl program.
type folder string

func (f folder) writePEM(t *testing.T, name string, cert *x509.Certificate) {
	t.Helper()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	if err := os.WriteFile(filepath.Join(string(f), name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// run returns the output of the program, with its exit status at the end if it is not 0.
func (f folder) run(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = string(f)
	out, err := cmd.CombinedOutput()
	if err != nil {
		out = append(out, err.Error()...)
	}
	return string(out)
}

func TestOpenSSLAsksOCSP(t *testing.T) {
	openssl, a := kit.Program(t, "openssl"), newAuthority(t)
	u, f := start(t, a)+"/ocsp", folder(t.TempDir())
	good, bad := a.issue(t, 100), a.issue(t, 101)
	a.revoke(bad)
	f.writePEM(t, "ca.pem", a.cert)
	f.writePEM(t, "good.pem", good)
	f.writePEM(t, "bad.pem", bad)
	for name, tt := range map[string]struct {
		args []string
		want []string
	}{
		"with nonce":                         {[]string{"-cert", "good.pem"}, []string{"Response verify OK", "good.pem: good"}},
		"without nonce":                      {[]string{"-no_nonce", "-cert", "good.pem"}, []string{"Response verify OK", "good.pem: good"}},
		"SHA-1 by name":                      {[]string{"-sha1", "-cert", "bad.pem"}, []string{"bad.pem: revoked", "Reason: keyCompromise"}},
		"several":                            {[]string{"-cert", "good.pem", "-cert", "bad.pem", "-serial", "0x77"}, []string{"good.pem: good", "bad.pem: revoked", "0x77: unknown"}},
		"our issuer by a hash we don't know": {[]string{"-sha256", "-cert", "good.pem"}, []string{"unauthorized (6)"}},
	} {
		argv := append([]string{openssl, "ocsp", "-issuer", "ca.pem", "-CAfile", "ca.pem", "-url", u}, tt.args...)
		out := f.run(t, argv...)
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("openssl ocsp %s: got %s, want %q in it", name, out, want)
			}
		}
		if strings.Contains(out, "WARNING") { // the nonce is not repeated
			t.Errorf("openssl ocsp %s: got %s, want no warning", name, out)
		}
	}
}

func TestCurlAsksOCSPByGet(t *testing.T) {
	curl, a := kit.Program(t, "curl"), newAuthority(t)
	u, f := start(t, a)+"/ocsp/", folder(t.TempDir())
	cert := a.issue(t, 100)
	req := base64.StdEncoding.EncodeToString(request(t, a, cert, nil))
	for _, path := range []string{req, url.QueryEscape(req)} {
		said := f.run(t, curl, "--silent", "--show-error", "--fail", "--noproxy", "*", "--output", "answer.der", u+path)
		der, err := os.ReadFile(filepath.Join(string(f), "answer.der"))
		if err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		if res, err := ocsp.ParseResponseForCert(der, cert, a.cert); err != nil || res.Status != ocsp.Good {
			t.Errorf("got %v, %v, want good", res, err)
		}
	}
}

func TestOpenSSLChecksCRL(t *testing.T) {
	openssl, curl, a := kit.Program(t, "openssl"), kit.Program(t, "curl"), newAuthority(t)
	u, f := start(t, a), folder(t.TempDir())
	good, bad := a.issue(t, 100), a.issue(t, 101)
	a.revoke(bad)
	f.writePEM(t, "good.pem", good)
	f.writePEM(t, "bad.pem", bad)
	said := f.run(t, curl, "--silent", "--show-error", "--fail", "--noproxy", "*", "-o", "list.crl", u+"/crl/issuing/0.crl", "-o", "ca.cer", u+"/ca/issuing.cer")
	said += f.run(t, openssl, "x509", "-inform", "DER", "-in", "ca.cer", "-out", "ca.pem")
	said += f.run(t, openssl, "crl", "-inform", "DER", "-in", "list.crl", "-CAfile", "ca.pem", "-out", "list.pem")
	for name, want := range map[string]string{"good.pem": "good.pem: OK", "bad.pem": "certificate revoked"} {
		if out := f.run(t, openssl, "verify", "-crl_check", "-CAfile", "ca.pem", "-CRLfile", "list.pem", name); !strings.Contains(out, want) {
			t.Errorf("openssl verify -crl_check %s: got %s, want %q\n%s", name, out, want, said)
		}
	}
}
