// Package interop tests the program as it is released: scripts in testdata drive
// it with foreign clients that speak for themselves, and the crash tests kill it
// and fill its disk. All of it runs on loopback.
package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// givenBinary tests a program that was built elsewhere, such as a release.
const givenBinary = "COUNTERSIGN_BINARY"

// moduleRoot is where the module's files are.
const moduleRoot = "../.."

// program is the path of the program under test, made once for all tests.
var program string

func TestMain(m *testing.M) {
	code, err := withProgram(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "couldn't prepare the program under test:", err)
		code = 1
	}
	os.Exit(code)
}

func withProgram(run func() int) (code int, err error) {
	dir, err := os.MkdirTemp("", "countersign-interop-")
	if err != nil {
		return 1, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = filepath.Join(dir, "countersign")
	if given := os.Getenv(givenBinary); given != "" {
		given, err := filepath.Abs(given)
		if err != nil {
			return 1, err
		}
		if err := os.Symlink(given, program); err != nil {
			return 1, err
		}
		return run(), nil
	}
	build := exec.Command("go", "build", "-o", program, "./cmd/countersign")
	build.Dir = moduleRoot
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return run(), nil
}
