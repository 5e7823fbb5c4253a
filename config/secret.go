package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
)

// maxSecret bounds the file of a secret: the longest are PEM keys and URLs, well
// under this; a device file in its place must not fill the memory.
const maxSecret = 64 << 10

// errNoReference words a value that is neither file: nor env:. It leaves the
// value out, which may be the secret itself.
var errNoReference = errors.New("not a reference: write file:/path or env:NAME")

// Secret refers to a secret: file:/path or env:NAME. It prints as its reference;
// a value that was put in its place by mistake is never printed.
type Secret string

// Resolve reads the secret, without the newline at its end. An empty Secret
// is an empty value.
func (s Secret) Resolve() (string, error) {
	if s == "" {
		return "", nil
	}
	kind, rest, err := s.split()
	if err != nil {
		return "", err
	}
	if kind == "env" {
		v, ok := os.LookupEnv(rest)
		if !ok || v == "" {
			return "", fmt.Errorf("couldn't read secret: environment variable %s is not set", rest)
		}
		return v, nil
	}
	return readSecret(rest)
}

func (s Secret) split() (kind, rest string, err error) {
	kind, rest, ok := strings.Cut(string(s), ":")
	if !ok || rest == "" || kind != "file" && kind != "env" {
		return "", "", errNoReference
	}
	return kind, rest, nil
}

func readSecret(path string) (string, error) {
	f, err := os.Open(path) //nolint:gosec // the path is the operator's own
	if err != nil {
		return "", fmt.Errorf("couldn't read secret: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("couldn't read secret: %w", err)
	}
	if len(b) > maxSecret {
		return "", fmt.Errorf("couldn't read secret: %s holds more than %d bytes", path, maxSecret)
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) == 0 {
		return "", fmt.Errorf("couldn't read secret: %s is empty", path)
	}
	return string(b), nil
}

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	if _, _, err := s.split(); err != nil {
		return "[hidden]"
	}
	return string(s)
}

// GoString keeps %#v from printing what String hides.
func (s Secret) GoString() string { return fmt.Sprintf("config.Secret(%q)", s.String()) }

// MarshalText keeps encoders from writing what String hides.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue keeps slog from writing what String hides.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Database is where the database is: empty, a URL without a password, or a
// Secret that refers to a URL.
type Database string

// Resolve returns the URL; empty means the embedded database.
func (d Database) Resolve() (string, error) {
	if !d.isReference() {
		return string(d), nil
	}
	u, err := Secret(d).Resolve()
	if err != nil {
		return "", err
	}
	if !isPostgres(u) {
		return "", errors.New("couldn't use database: what it refers to is no postgres:// URL")
	}
	return u, nil
}

func (d Database) isReference() bool {
	_, _, err := Secret(d).split()
	return err == nil
}

// String is d without a password that should not be there.
func (d Database) String() string {
	if d == "" || d.isReference() {
		return string(d)
	}
	u, err := url.Parse(string(d))
	if err != nil || !isPostgres(string(d)) {
		return "[hidden]"
	}
	q := u.Query()
	if q.Has("password") {
		q.Set("password", "xxxxx")
		u.RawQuery = q.Encode()
	}
	return u.Redacted()
}

// GoString keeps %#v from printing what String hides.
func (d Database) GoString() string { return fmt.Sprintf("config.Database(%q)", d.String()) }

// MarshalText keeps encoders from writing what String hides.
func (d Database) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// LogValue keeps slog from writing what String hides.
func (d Database) LogValue() slog.Value { return slog.StringValue(d.String()) }

func isPostgres(s string) bool {
	return strings.HasPrefix(s, "postgres://") || strings.HasPrefix(s, "postgresql://")
}
