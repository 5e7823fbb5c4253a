package command

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/countersign-iot/countersign/pkcs10"
)

// readRequest reads a certification request from a file in any form that a device
// may send, and returns it in PEM, which the API takes.
func readRequest(env *Env, path string) (string, error) {
	b, err := env.readInput(path)
	if err != nil {
		return "", err
	}
	der, err := pkcs10.Decode(b)
	if err == nil {
		_, err = pkcs10.Parse(der)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// isRequest reports whether b holds a certification request.
func isRequest(b []byte) bool {
	der, err := pkcs10.Decode(b)
	if err == nil {
		_, err = pkcs10.Parse(der)
	}
	return err == nil
}

// open opens a file that a flag names; - is standard input.
func open(env *Env, name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(env.In), nil
	}
	f, err := os.Open(name) //nolint:gosec // the operator's own file
	if err != nil {
		return nil, &usageError{err.Error()}
	}
	return f, nil
}

// maxFile bounds a file that goes into a request: the largest is a
// manufacturer's revocation list.
const maxFile = 8 << 20

// readInput reads a file that a flag names; - is standard input.
func (env *Env) readInput(name string) ([]byte, error) {
	f, err := open(env, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("couldn't read %s: %w", name, err)
	}
	if len(b) > maxFile {
		return nil, usagef("%s is larger than %d bytes", name, maxFile)
	}
	return b, nil
}

// writeNew writes a secret into a file that was not there.
func writeNew(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the operator's own file
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// freshFolder makes a folder, and sees that nothing in it would be overwritten.
func freshFolder(dir string, names ...string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, n := range names {
		if _, err := os.Lstat(filepath.Join(dir, n)); !errors.Is(err, fs.ErrNotExist) {
			return usagef("%s is there already: choose another folder", filepath.Join(dir, n))
		}
	}
	return nil
}

// text reads a file as text; no name is no text.
func text(env *Env, file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := env.readInput(file)
	return string(b), err
}

// files reads files; the list is empty, not nil, if none is named.
func files(env *Env, names []string) ([][]byte, error) {
	out := [][]byte{}
	for _, name := range names {
		b, err := env.readInput(name)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// textFiles reads files as text.
func textFiles(env *Env, names []string) (out []string, err error) {
	all, err := files(env, names)
	for _, b := range all {
		out = append(out, string(b))
	}
	return out, err
}
