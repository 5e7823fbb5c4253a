package hook

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	// crlEvery is how often the file is compared with what is published, in case a
	// notice was lost.
	crlEvery = 30 * time.Second
	// maxPID bounds the file that holds one number.
	maxPID = 64
)

// CRLFile keeps a file of CRLs up to date for a program that reads it at SIGHUP, such as
// Mosquitto with crlfile.
type CRLFile struct {
	Path string
	PID  string // path of the program's pid file; empty: no signal is sent
	// Lists returns the newest CRLs in DER. A function, because the authority belongs to
	// a keeper, which no door may know.
	Lists func(context.Context) ([][]byte, error)
	Log   *slog.Logger

	fresh   chan struct{}
	written []byte
}

// NewCRLFile returns a CRLFile with these fields.
func NewCRLFile(f CRLFile) *CRLFile {
	f.fresh = make(chan struct{}, 1)
	return &f
}

// Published makes Run write the file again. It does not block.
func (f *CRLFile) Published() {
	select {
	case f.fresh <- struct{}{}:
	default:
	}
}

// Run keeps the file up to date until ctx ends.
func (f *CRLFile) Run(ctx context.Context) error {
	tick := time.NewTicker(crlEvery)
	defer tick.Stop()
	for {
		if err := f.Write(ctx); err != nil && ctx.Err() == nil {
			f.Log.ErrorContext(ctx, "file of crls not written", "path", f.Path, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.fresh:
		case <-tick.C:
		}
	}
}

// Write writes the file if it would change, and then signals the program. A program
// that was not running reads it at its start.
func (f *CRLFile) Write(ctx context.Context) error {
	lists, err := f.Lists(ctx)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, der := range lists {
		if err := pem.Encode(&text, &pem.Block{Type: "X509 CRL", Bytes: der}); err != nil {
			return err
		}
	}
	if text.Len() == 0 || bytes.Equal(text.Bytes(), f.written) {
		return nil
	}
	if err := replaceFile(f.Path, text.Bytes()); err != nil {
		return err
	}
	if err := f.signal(); err != nil {
		return err // and again at the next look: written stays as it was
	}
	f.written = bytes.Clone(text.Bytes())
	return nil
}

// replaceFile replaces the file at once, so that no reader sees half of it.
func replaceFile(path string, text []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".crl-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.Write(text)
	if err == nil {
		err = tmp.Chmod(0o644) // its content is public, and the reader runs as another user
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func (f *CRLFile) signal() error {
	if f.PID == "" {
		return nil
	}
	pid, err := readPID(f.PID)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid)
	if err == nil {
		err = p.Signal(syscall.SIGHUP)
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("couldn't signal process %d about the new file: %w", pid, err)
	}
	return nil
}

func readPID(path string) (int, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }()
	text, err := io.ReadAll(io.LimitReader(file, maxPID))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil || pid < 2 { // 0 and below are groups of processes, 1 is init
		return 0, fmt.Errorf("%s has no process id", path)
	}
	return pid, nil
}
