package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTheUnitFileIsOneThatSystemdReads has systemd check the unit, with a program that
// is on this machine in the place of the installed one.
func TestTheUnitFileIsOneThatSystemdReads(t *testing.T) {
	peers(t, "systemd-analyze")
	unit, err := os.ReadFile(filepath.Join(moduleRoot, "deploy", "countersign.service"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "countersign.service")
	text := strings.ReplaceAll(string(unit), "/usr/bin/countersign", program)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "countersign.service:") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
