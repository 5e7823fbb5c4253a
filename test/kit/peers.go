package kit

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
)

// RequirePeers is the variable that CI sets to 1: a test fails for what it would be
// skipped for.
const RequirePeers = "COUNTERSIGN_REQUIRE_PEERS"

// Skipper is a test that can be skipped.
type Skipper interface {
	Helper()
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Missing skips a test for what this machine lacks, and fails it where nothing may be
// lacking. It is the only way in which a test of this module is skipped.
func Missing(t Skipper, format string, args ...any) {
	t.Helper()
	if os.Getenv(RequirePeers) == "1" {
		t.Fatalf(format+", and "+RequirePeers+"=1 allows no skip", args...)
	}
	t.Skipf(format, args...)
}

// Program returns the path of a program of another project that a test runs. Where it is not
// installed, the test is one for Missing.
func Program(t Skipper, name string) string {
	t.Helper()
	path, err := Find(name)
	if err != nil {
		Missing(t, "%s is not installed", name)
	}
	return path
}

// Programs is Program for several, whose paths are not needed.
func Programs(t Skipper, names ...string) {
	t.Helper()
	for _, name := range names {
		Program(t, name)
	}
}

// Find returns the path of a program or file. Those of servers are in /usr/sbin, which is not in
// every PATH.
func Find(name string) (string, error) {
	if filepath.IsAbs(name) { // or a file that is no program, such as a library
		_, err := os.Stat(name)
		return name, err
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if server, other := exec.LookPath(filepath.Join("/usr/sbin", name)); other == nil {
			return server, nil
		}
	}
	return path, err
}

// SmallDisk mounts a file system of a size, such as 16m, on dir until the test has ended.
// Where that is not allowed, the test is one for Missing.
func SmallDisk(t interface {
	TB
	Skipper
	Cleanup(end func())
}, dir, size string,
) {
	t.Helper()
	out, err := exec.CommandContext(context.Background(), "mount", "-t", "tmpfs", "-o", "mode=0700,size="+size, "countersign-test", dir).CombinedOutput() //nolint:gosec // of a test
	if err != nil {
		Missing(t, "a small disk cannot be mounted here: %v: %s", err, bytes.TrimSpace(out))
	}
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "umount", dir).CombinedOutput(); err != nil { //nolint:gosec // of a test
			t.Errorf("umount: %s", out)
		}
	})
}
