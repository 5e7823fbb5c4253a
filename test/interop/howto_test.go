package interop

import (
	"encoding/base32"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/test/kit"
)

// howTo finds a marked block of docs/enrollment.md, or the heading above some.
var howTo = regexp.MustCompile("(?ms)^### ([^\n]+)$|<!-- test: ([^>]+) -->\n```console\n(.*?)```")

// howTos gives the marked blocks of each section, joined: what a reader pastes
// into one shell. The one before the first section prepares all of them.
func howTos(t *testing.T) (prepare string, sections []string, blocks map[string]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot, "docs", "enrollment.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks = map[string]string{}
	section := ""
	for _, m := range howTo.FindAllStringSubmatch(string(text), -1) {
		switch {
		case m[1] != "":
			section = m[1]
		case section == "":
			prepare += m[3]
		default:
			if blocks[section] == "" {
				sections = append(sections, section)
			}
			blocks[section] += m[3]
		}
	}
	return prepare, sections, blocks
}

// TestEnrollmentHowTosWork pastes docs/enrollment.md, section by section, and
// looks at what is on record then. Only the ports are others.
func TestEnrollmentHowTosWork(t *testing.T) {
	t.Parallel()
	kit.Programs(t, "bash", "openssl", "curl", "jq")
	want := map[string]struct{ device, method string }{
		"token": {"pump-1", "token"}, "factory": {"pump-22", "factory"}, "claim": {"pump-0007", "claim"}, "idevid": {"pump-41", "idevid"},
		"thumbprint": {"pump-51", "thumbprint"}, "key": {"pump-61", "key"}, "group": {"pump-71", "group"}, "tpm": {"pump-81", "tpm"},
		"certificate": {"pump-1", "certificate"}, "Approval": {"pump-91", "token"},
	}
	dir := shortDir(t)
	if err := os.Symlink(program, filepath.Join(dir, "countersign")); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, ".countersign")
	s := startSite(t, data, "dev", "--dir", data, "--ports", "0")
	ports := strings.NewReplacer("8443", portIn(t, s.ends.Enroll), "8080", portIn(t, s.ends.API))
	prepare, sections, blocks := howTos(t)
	for _, section := range sections {
		t.Run(section, func(t *testing.T) {
			if section == "tpm" {
				kit.Programs(t, "swtpm", "swtpm_setup", "swtpm_ioctl", "tpm2_createek", "tpm2_certifycreation")
				tpmProvider(t)
				t.Cleanup(func() { // it is a daemon by then
					_ = exec.Command("swtpm_ioctl", "--unix", filepath.Join(dir, "tpm", "s.ctrl"), "-s").Run()
				})
			}
			said := pasted(t, dir, ports.Replace(prepare+blocks[section]))
			if section == "tpm" {
				chipHasID(t, filepath.Join(dir, "ek.pub"), said)
			}
			if w, ok := want[section]; ok {
				enrolledBy(t, s, w.device, w.method)
			}
			delete(want, section)
		})
	}
	if len(want) > 0 {
		t.Errorf("there is no how-to for %v", want)
	}
}

// chipHasID wants the id of a chip, as the reader computes it, to be ours.
func chipHasID(t *testing.T, file, said string) {
	t.Helper()
	public, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := attest.EKHash(public, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:])); !strings.HasSuffix(strings.TrimSpace(said), want) {
		t.Errorf("the id of the chip: got %q at the end, want %s", said, want)
	}
}

// enrolledBy wants the device's newest certificate to be earned by a method.
func enrolledBy(t *testing.T, s *site, device, method string) {
	t.Helper()
	var newest api.Certificate
	for c, err := range s.admin.Certificates(t.Context(), api.CertificateFilter{Device: device}) {
		if err != nil {
			t.Fatal(err)
		}
		if !c.IssuedAt.Before(newest.IssuedAt) {
			newest = c
		}
	}
	if newest.Method != method {
		t.Errorf("certificate of %s: got method %q (%s), want %q", device, newest.Method, newest.State, method)
	}
}
