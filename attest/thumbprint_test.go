package attest_test

import (
	"encoding/pem"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/test/kit"
)

const digits = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

func separated(s, by string) string {
	var b strings.Builder
	for i := 0; i < len(s); i += 2 {
		if i > 0 {
			b.WriteString(by)
		}
		b.WriteString(s[i : i+2])
	}
	return b.String()
}

func TestParseThumbprintReadsWhatPeopleWrite(t *testing.T) {
	for _, s := range []string{
		digits, strings.ToUpper(digits), separated(digits, ":"), separated(digits, " "), " " + digits + "\n",
		"SHA256 Fingerprint=" + strings.ToUpper(separated(digits, ":")), "sha256 Fingerprint=" + separated(digits, ":"),
	} {
		got, err := attest.ParseThumbprint(s)
		if err != nil || got.String() != digits {
			t.Errorf("ParseThumbprint(%q): got %s, %v, want %s", s, got, err, digits)
		}
	}
	for _, s := range []string{
		"", digits[2:], digits + "00", digits[:40], "SHA1 Fingerprint=" + digits, "x=" + digits, strings.Repeat("00", 32),
		digits[:63] + "g", digits[:63], ":" + digits, separated(digits, "::"), digits[:32] + ":" + digits[32:],
		separated(digits[:32], ":") + " " + separated(digits[32:], " "), strings.Repeat(digits, 9),
	} {
		if got, err := attest.ParseThumbprint(s); countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("ParseThumbprint(%q): got %s, %v, want bad_request", s, got, err)
		}
	}
}

func TestThumbprintsVerifySelfSignedCertificates(t *testing.T) {
	for _, tt := range []struct {
		name string
		bend func(*world)
		want countersign.Code
	}{
		{"self-signed", func(*world) {}, ""},
		{"expired", func(w *world) { w.leaf.template.NotAfter = today.Add(-time.Second) }, countersign.CertExpired},
		{"begins as far ahead as clocks may differ", func(w *world) { w.leaf.template.NotBefore = today.Add(countersign.ClockSkew) }, ""},
		{"not yet valid", func(w *world) { w.leaf.template.NotBefore = today.Add(countersign.ClockSkew + time.Second) }, countersign.CertNotYetValid},
		{"signed by a CA", func(w *world) { w.leaf.by = w.mid }, badPath},
		{"signature broken", func(w *world) { w.leaf.forged = true }, badPath},
	} {
		w := newWorld(t)
		w.leaf.by = nil
		tt.bend(w)
		cert := w.leaf.sign(t)
		other := attest.Thumbprint{1}
		for slot, prints := range map[attest.KeySlot]attest.Thumbprints{
			attest.Primary:   {Primary: attest.ThumbprintOf(cert), Secondary: other},
			attest.Secondary: {Primary: other, Secondary: attest.ThumbprintOf(cert)},
		} {
			got, err := prints.Verify(cert, today)
			if code := countersign.CodeOf(err); code != tt.want || tt.want == "" && got != slot {
				t.Errorf("%s, %s: got slot %q and %v, want %q", tt.name, slot, got, err, tt.want)
			}
		}
		for _, prints := range []attest.Thumbprints{{}, {Primary: other}} {
			if _, err := prints.Verify(cert, today); countersign.CodeOf(err) != countersign.CertUnknown {
				t.Errorf("%s, thumbprint not registered: got %v, want certificate_unknown", tt.name, err)
			}
		}
	}
}

func TestThumbprintIsOpenSSLs(t *testing.T) {
	kit.Programs(t, "openssl")
	cert := newWorld(t).root.sign(t)
	cmd := exec.CommandContext(t.Context(), "openssl", "x509", "-noout", "-fingerprint", "-sha256")
	cmd.Stdin = strings.NewReader(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := attest.ParseThumbprint(string(out)); err != nil || got != attest.ThumbprintOf(cert) {
		t.Errorf("thumbprint as openssl prints it, %q: got %s, %v, want %s", out, got, err, attest.ThumbprintOf(cert))
	}
}

func FuzzParseThumbprint(f *testing.F) {
	f.Add(digits)
	f.Add("SHA256 Fingerprint=" + separated(digits, ":"))
	f.Fuzz(func(t *testing.T, s string) {
		p, err := attest.ParseThumbprint(s)
		if err != nil {
			return
		}
		if again, err := attest.ParseThumbprint(p.String()); err != nil || again != p {
			t.Errorf("ParseThumbprint(%q): got %s, %v the second time", s, again, err)
		}
	})
}
