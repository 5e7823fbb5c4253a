package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// TestOpenNamesTheCause opens databases that cannot be used: the reader must learn why.
func TestOpenNamesTheCause(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "text.db")
	if err := os.WriteFile(text, []byte(strings.Repeat("no database at all\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct{ url, want string }{
		"not a database":  {"sqlite:" + text, "not a SQLite database"},
		"no such folder":  {"sqlite:" + filepath.Join(dir, "missing", "x.db"), "no such file or directory"},
		"nobody listens":  {"postgres://u@127.0.0.1:1/x?sslmode=disable", "the connection was refused"},
		"no such host":    {"postgres://u@countersign.invalid:5432/x?sslmode=disable", "cannot be resolved"},
		"no such catalog": {"", "no database of that name"},
	}
	u, err := url.Parse(storetest.PostgresURL(t))
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/there-is-none"
	c := cases["no such catalog"]
	c.url = u.String()
	cases["no such catalog"] = c
	for name, tt := range cases {
		db, err := store.Open(t.Context(), store.Options{URL: tt.url, Now: time.Now})
		if err == nil {
			t.Errorf("%s: opened", name)
			_ = db.Close()
			continue
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %q, want a word of %q", name, err, tt.want)
		}
		if e, ok := errors.AsType[*countersign.Error](err); ok && (e.Next == "" || strings.Contains(e.Message, "127.0.0.1")) {
			t.Errorf("%s: got next %q and message %q", name, e.Next, e.Message)
		}
	}
}

// TestDownBecauseNamesEachCause has what the system says of files and servers that
// cannot be used: an operator must not be sent to look at something else.
func TestDownBecauseNamesEachCause(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"permission denied":                           &fs.PathError{Op: "open", Path: "x.db", Err: syscall.EACCES},
		"the connection was refused":                  &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
		"the name of its server cannot be resolved":   &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "db"}},
		"its server does not answer":                  context.DeadlineExceeded,
		"PostgreSQL refuses the user or its password": &pgconn.PgError{Code: "28P01"},
		"PostgreSQL has no database of that name":     &pgconn.PgError{Code: "3D000"},
		"PostgreSQL has too many connections":         &pgconn.PgError{Code: "53300"},
		"PostgreSQL is starting or stopping":          &pgconn.PgError{Code: "57P03"},
		"the connection to it was lost":               io.ErrUnexpectedEOF,
	} {
		if what, next := store.DownBecause(fmt.Errorf("open: %w", err)); what != want || next == "" {
			t.Errorf("%v: got %q, next %q, want %q", err, what, next, want)
		}
	}
}
