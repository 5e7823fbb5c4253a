package attest_test

import (
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/test/kit"
)

// TestOpenSSLAgrees has "openssl verify" judge the same chains. A case in which
// it is meant to differ has the reason, and must still differ.
func TestOpenSSLAgrees(t *testing.T) {
	kit.Programs(t, "openssl")
	for _, c := range allCases() {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.bend(w)
			b, err := w.build()
			if err != nil && len(b.lists) == 0 {
				t.Fatal(err)
			}
			ok, said := opensslVerify(t, w, b)
			if agrees := ok == (c.want == valid); agrees != (c.openssl == "") {
				t.Errorf("openssl, RFC 5280, %s: got valid %v, want %q here and a difference for %q\n%s", c.section, ok, c.want, c.openssl, said)
			}
		})
	}
}

func opensslVerify(t *testing.T, w *world, b built) (ok bool, said string) {
	t.Helper()
	dir := t.TempDir()
	write := func(file, kind string, ders ...[]byte) string {
		var text []byte
		for _, der := range ders {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
		}
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{
		"verify", "-x509_strict", "-purpose", "sslclient", "-extended_crl", "-use_deltas", "-partial_chain", "-policy_check",
		"-no-CAstore", "-no-CApath", "-attime", strconv.FormatInt(today.Unix(), 10),
		"-CAfile", write("anchor.pem", "CERTIFICATE", b.anchor.Certificate.Raw),
	}
	var others [][]byte
	for _, c := range b.chain[1:] {
		others = append(others, c.Raw)
	}
	for _, c := range b.anchor.Intermediates {
		others = append(others, c.Raw)
	}
	if len(others) > 0 {
		args = append(args, "-untrusted", write("others.pem", "CERTIFICATE", others...))
	}
	if w.require || len(b.lists) > 0 {
		args = append(args, "-crl_check_all")
	}
	if len(w.lists) > 0 {
		var lists [][]byte
		for _, l := range w.lists {
			lists = append(lists, l.sign(t))
		}
		args = append(args, "-CRLfile", write("lists.pem", "X509 CRL", lists...))
	}
	if len(w.o.Policies) == 0 {
		args = append(args, "-policy", "2.5.29.32.0") // anyPolicy
	}
	for _, p := range w.o.Policies {
		args = append(args, "-explicit_policy", "-policy", p.String())
	}
	args = append(args, write("device.pem", "CERTIFICATE", b.chain[0].Raw))
	out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
	return err == nil, strings.TrimSpace(string(out))
}
