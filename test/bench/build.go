package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// buildTimeout bounds the build of one peer: step-ca with all it depends on takes ten
// minutes of one busy core.
const buildTimeout = 30 * time.Minute

// source is a peer that is built from a pinned version of its source.
type source struct {
	name    string // of its program
	module  string // package path of its main
	version string
}

// stepCASource is step-ca.
func stepCASource() source {
	return source{"step-ca", "github.com/smallstep/certificates/cmd/step-ca", "v0.30.2"}
}

// String names it in the report.
func (s source) String() string { return s.name + " " + s.version }

// folder is where its program is kept from one run to the next, for each version of Go.
func (s source) folder() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a folder for %s: %w", s, err)
	}
	return filepath.Join(cache, "countersign-bench", s.name+"-"+s.version+"-"+runtime.Version()), nil
}

// installed returns the path of its program; empty if it is not built yet.
func (s source) installed() string {
	dir, err := s.folder()
	if err != nil {
		return ""
	}
	program := filepath.Join(dir, path.Base(s.module))
	if _, err := os.Stat(program); err != nil {
		return ""
	}
	return program
}

// install returns the path of its program and builds that first if it is missing. An error
// names the command that failed.
func (s source) install(ctx context.Context) (string, error) {
	if program := s.installed(); program != "" {
		return program, nil
	}
	dir, err := s.folder()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	made, err := os.MkdirTemp(filepath.Dir(dir), s.name+"-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(made) }() // it has moved if all went well
	ctx, stop := context.WithTimeout(ctx, buildTimeout)
	defer stop()
	what := s.module + "@" + s.version
	cmd := exec.CommandContext(ctx, "go", "install", what) //nolint:gosec // pinned above
	cmd.Dir = made                                         // outside of our module, whose versions are not the peer's
	cmd.Env = append(os.Environ(), "GOBIN="+made, "GOFLAGS=-mod=mod", "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		return "", fmt.Errorf("CGO_ENABLED=0 GOFLAGS=-mod=mod go install %s: %w: %s", what, err, lines[len(lines)-1])
	}
	if err := os.Rename(made, dir); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return filepath.Join(dir, path.Base(s.module)), nil
}
