// Package countersigntest runs a whole authority inside a test: a server with its
// own CA on loopback, an operator's client, and devices that enroll as real ones
// do. Firmware and services that use the authority can be tested against it
// without anything installed.
//
// A promise about "every node" is tested with [Each], one about a database that fails
// with the proxy in Server.Faults, and one about what survives with Restart.
package countersigntest

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/server"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
)

// Database is where a server keeps its records.
type Database int

// The databases.
const (
	SQLite   Database = iota // a file in the server's folder
	Postgres                 // a PostgreSQL database of the test's own, behind a proxy for faults
)

// Options change what Start starts. The zero value is a server as countersign dev
// runs it, on free ports and a temporary folder.
type Options struct {
	Database  Database
	Beside    *Server              // a further node on the PostgreSQL database, and with the keys, of this one
	Configure func(*config.Config) // changes the configuration
	Now       func() time.Time     // the server's clock
	Founding  *ca.Plan             // the authorities that are made; nil: those of development
	// Statement is called with each statement that the server has its database run; nil: nothing is.
	Statement func(store.Statement)
}

// Server is a running authority. It stops with the test.
type Server struct {
	*server.Server
	Admin *sdk.Admin // an operator with role admin
	Roots *x509.CertPool
	Dir   string
	// Faults is the way to the database. Each node on PostgreSQL has its own; on SQLite
	// it is nil.
	Faults *storetest.Proxy

	url    string // of the database, without the proxy
	cfg    config.Config
	opts   Options
	cancel context.CancelFunc
	done   chan struct{}
}

// Start runs a server until the test ends. Its log goes to the test's. On Postgres the
// test is skipped where PostgreSQL is not installed, see [storetest.PostgresURL].
func Start(t testing.TB, o ...Options) *Server {
	t.Helper()
	s := &Server{Dir: tempDir(t)}
	if len(o) > 0 {
		s.opts = o[0]
	}
	s.cfg = config.Dev(s.Dir, true)
	if first := s.opts.Beside; first != nil {
		if first.url == "" {
			t.Fatal("a node can be started beside one on PostgreSQL only")
		}
		s.url = first.url
		if err := os.CopyFS(filepath.Join(s.Dir, "keys"), os.DirFS(filepath.Join(first.Dir, "keys"))); err != nil {
			t.Fatal(err)
		}
	} else if s.opts.Database == Postgres {
		s.url = storetest.PostgresURL(t)
	}
	if s.url != "" {
		s.Faults = storetest.NewProxy(t, s.url)
		s.cfg.Database = config.Database(s.Faults.URL())
	}
	if s.opts.Configure != nil {
		s.opts.Configure(&s.cfg)
		s.Dir = s.cfg.Dir
	}
	t.Cleanup(s.Stop)
	s.run(t)
	return s
}

// Each runs the same test on a node with SQLite, on one with PostgreSQL, and on two
// nodes with one PostgreSQL. asked is the node that the test has act, other the one
// where the act must show as well; alone, they are the same.
func Each(t *testing.T, run func(t *testing.T, asked, other *Server), o ...Options) {
	t.Helper()
	var opts Options
	if len(o) > 0 {
		opts = o[0]
	}
	t.Run("sqlite", func(t *testing.T) {
		s := Start(t, opts)
		run(t, s, s)
	})
	opts.Database = Postgres
	t.Run("postgres", func(t *testing.T) {
		s := Start(t, opts)
		run(t, s, s)
	})
	t.Run("two nodes", func(t *testing.T) {
		one := Start(t, opts)
		opts.Beside = one
		run(t, one, Start(t, opts))
	})
}

// Restart stops the server and starts it anew: on the same folder, database and ports,
// with nothing of what it held in memory.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Stop()
	s.run(t)
}

// run starts the server and waits until it serves.
func (s *Server) run(t testing.TB) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctx, cancel := context.WithCancel(context.Background()) // outlives t.Context, which ends before cleanups
	srv, err := server.New(ctx, s.cfg, server.Options{Now: s.opts.Now, Log: log, Dev: s.opts.Beside == nil, Founding: s.opts.Founding, OnStatement: s.opts.Statement})
	if err != nil {
		cancel()
		t.Fatalf("start the server: %v", err)
	}
	done := make(chan struct{})
	s.Server, s.Admin, s.cancel, s.done = srv, sdk.Local(srv.Endpoints().Socket), cancel, done
	go func() {
		defer close(done)
		if err := srv.Run(ctx); err != nil {
			t.Errorf("run the server: %v", err)
		}
	}()
	pemRoots, err := os.ReadFile(srv.Endpoints().Roots)
	if err != nil {
		t.Fatalf("read the roots: %v", err)
	}
	s.Roots = x509.NewCertPool()
	s.Roots.AppendCertsFromPEM(pemRoots)
}

// tempDir is short, since the path of a Unix socket may have 107 octets only.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") //nolint:usetesting // t.TempDir is too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Stop stops the server and waits until it has.
func (s *Server) Stop() {
	if s.cancel == nil { // it never started
		return
	}
	s.cancel()
	<-s.done
}

// Broker is host:port of the MQTT listener.
func (s *Server) Broker(t testing.TB) string {
	t.Helper()
	u, err := url.Parse(s.Endpoints().MQTT)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// Token makes an enrollment token.
func (s *Server) Token(t testing.TB, n api.NewToken) string {
	t.Helper()
	issued, err := s.Admin.CreateToken(t.Context(), n)
	if err != nil {
		t.Fatalf("make a token: %v", err)
	}
	return issued.Secret
}

// Enroll returns the identity of a device with its first certificate, over EST.
func (s *Server) Enroll(t testing.TB, device string) *sdk.Identity {
	t.Helper()
	id, err := sdk.Enroll(t.Context(), sdk.Enrollment{
		Server: s.Endpoints().Enroll, Roots: s.Roots, Device: device, Token: s.Token(t, api.NewToken{Device: device}),
	})
	if err != nil {
		t.Fatalf("enroll %s: %v", device, err)
	}
	return id
}

// Files are the paths of a device's identity in PEM, for foreign programs.
type Files struct {
	Cert string // leaf and the authorities below the root
	Key  string
}

// WriteFiles puts an identity into files that foreign programs read.
func WriteFiles(t testing.TB, id *sdk.Identity) Files {
	t.Helper()
	dir := t.TempDir()
	f := Files{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	var chain []byte
	for _, der := range id.Path() {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(id.Key())
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{f.Cert: chain, f.Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}
