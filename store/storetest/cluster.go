package storetest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Cluster is a PostgreSQL server of one test, which may kill it. It syncs its log, as
// servers in use do.
type Cluster struct {
	dir, bin, port string
	cred           *syscall.Credential
	end            io.Closer // ends the server
	done           chan struct{}
}

// NewCluster makes and starts one. It skips the test when PostgreSQL is not installed,
// and fails it when COUNTERSIGN_REQUIRE_PEERS=1.
func NewCluster(t testing.TB) *Cluster {
	t.Helper()
	bin, err := binaries()
	if errors.Is(err, errMissing) && os.Getenv(requirePeers) != "1" {
		t.Skipf("%v: apt-get install postgresql", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{bin: bin}
	if c.dir, err = os.MkdirTemp("", "countersign-postgres-"); err != nil { //nolint:usetesting // its user must reach it
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Kill(t)
		if err := os.RemoveAll(c.dir); err != nil {
			t.Error(err)
		}
	})
	if c.cred, err = owner(c.dir); err != nil {
		t.Fatal(err)
	}
	if c.port, err = freePort(); err != nil {
		t.Fatal(err)
	}
	init := c.command(filepath.Join(c.bin, "initdb"), "-D", filepath.Join(c.dir, "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	c.Start(t)
	return c
}

// runCluster runs a command until standard input ends, which the kernel sees to when the
// test process is gone. SIGQUIT ends all processes of the server at once: nothing is
// written any more, and the next start recovers.
const runCluster = `
trap '' INT TERM HUP
"$@" </dev/null &
cat >/dev/null
kill -QUIT $!; wait $!
`

// command runs a program of PostgreSQL as the user who may.
func (c *Cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...) //nolint:gosec // fixed names; it outlives the test's context
	cmd.Dir = c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.cred, Setpgid: true}
	return cmd
}

// URL names the database.
func (c *Cluster) URL() string {
	u := url.URL{
		Scheme: "postgres", User: url.User("postgres"), Host: net.JoinHostPort("127.0.0.1", c.port), Path: "/postgres", RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Start starts the server, for the first time or after Kill, and waits until it answers.
func (c *Cluster) Start(t testing.TB) {
	t.Helper()
	cmd := c.command("/bin/sh", "-c", runCluster, "sh", filepath.Join(c.bin, "postgres"), "-D", filepath.Join(c.dir, "data"), "-p", c.port, "-k", c.dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=32MB")
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	pipe, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	c.end, c.done = pipe, done
	go func() {
		_ = cmd.Wait() // it is killed
		close(done)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), startWait)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, c.URL())
		if err == nil {
			_ = conn.Close(ctx)
			return
		}
		select {
		case <-ctx.Done():
			text, _ := os.ReadFile(log.Name()) // without it the error is enough
			t.Fatalf("PostgreSQL does not start: %v\n%s", err, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Kill ends all processes of the server as they are, as a power cut does.
func (c *Cluster) Kill(t testing.TB) {
	t.Helper()
	if c.end == nil {
		return
	}
	if err := c.end.Close(); err != nil {
		t.Error(err)
	}
	<-c.done
	c.end = nil
}
