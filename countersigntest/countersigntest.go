// Package countersigntest runs a whole authority inside a test: a server with its
// own CA on loopback, an operator's client, and devices that enroll as real ones
// do. Firmware and services that use the authority can be tested against it
// without anything installed.
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
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/server"
)

// Options change what Start starts. The zero value is a server as countersign dev
// runs it, on free ports and a temporary folder.
type Options struct {
	Configure func(*config.Config) // changes the configuration
	Now       func() time.Time     // the server's clock
}

// Server is a running authority. It stops with the test.
type Server struct {
	*server.Server
	Admin *sdk.Admin // an operator with role admin
	Roots *x509.CertPool
	Dir   string

	cancel context.CancelFunc
	done   chan struct{}
}

// Start runs a server until the test ends. Its log goes to the test's.
func Start(t testing.TB, o ...Options) *Server {
	t.Helper()
	var opts Options
	if len(o) > 0 {
		opts = o[0]
	}
	dir := tempDir(t)
	cfg := config.Dev(dir, true)
	if opts.Configure != nil {
		opts.Configure(&cfg)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	ctx, cancel := context.WithCancel(context.Background()) // outlives t.Context, which ends before cleanups
	srv, err := server.New(ctx, cfg, server.Options{Now: opts.Now, Log: log, Dev: true})
	if err != nil {
		cancel()
		t.Fatalf("start the server: %v", err)
	}
	s := &Server{Server: srv, Admin: sdk.Local(srv.Endpoints().Socket), Dir: dir, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		if err := srv.Run(ctx); err != nil {
			t.Errorf("run the server: %v", err)
		}
	}()
	t.Cleanup(s.Stop)
	pemRoots, err := os.ReadFile(srv.Endpoints().Roots)
	if err != nil {
		t.Fatalf("read the roots: %v", err)
	}
	s.Roots = x509.NewCertPool()
	s.Roots.AppendCertsFromPEM(pemRoots)
	return s
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

// Enroll gives a device its first certificate over EST.
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
