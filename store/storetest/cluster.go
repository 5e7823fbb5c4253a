package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/countersign-iot/countersign/test/kit"
)

const (
	// startWait bounds the start of the server on a slow, busy machine.
	startWait = time.Minute
)

// ErrMissing is returned where PostgreSQL is not installed.
var ErrMissing = errors.New("PostgreSQL's programs are not installed")

// Cluster is a PostgreSQL server of one test, which may kill it. It syncs its log, as
// servers in use do.
type Cluster struct {
	dir, bin, port string
	cred           *syscall.Credential
	options        []string  // beside those that every one has
	end            io.Closer // ends the server; nil: it does not run
	done           chan struct{}
}

// NewCluster makes and starts one. It skips the test when PostgreSQL is not installed,
// and fails it when COUNTERSIGN_REQUIRE_PEERS=1.
func NewCluster(t testing.TB) *Cluster {
	t.Helper()
	c, err := Make()
	require(t, err)
	t.Cleanup(func() {
		c.Kill(t)
		if err := os.RemoveAll(c.dir); err != nil {
			t.Error(err)
		}
	})
	c.Start(t)
	return c
}

// Make makes a cluster in a temporary folder, Dir, for a caller without a test, who removes
// it. It does not start it. The options are those of the program postgres.
func Make(options ...string) (_ *Cluster, err error) {
	c := &Cluster{options: options}
	if c.bin, err = binaries(); err != nil {
		return nil, err
	}
	if c.dir, err = os.MkdirTemp("", "countersign-postgres-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(c.dir))
		}
	}()
	if c.cred, err = owner(c.dir); err != nil {
		return nil, err
	}
	port, err := kit.Port()
	if err != nil {
		return nil, err
	}
	c.port = strconv.Itoa(port)
	init := c.command(filepath.Join(c.bin, "initdb"), "-D", filepath.Join(c.dir, "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return c, nil
}

// Need is for a test of a program that starts PostgreSQL by itself: it skips it when
// PostgreSQL is not installed, and fails it when COUNTERSIGN_REQUIRE_PEERS=1.
func Need(t testing.TB) {
	t.Helper()
	_, err := binaries()
	require(t, err)
}

// require ends the test where there is no cluster.
func require(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, ErrMissing) {
		kit.Missing(t, "%v: apt-get install postgresql", err)
	}
	if err != nil {
		t.Fatalf("couldn't start PostgreSQL: %v", err)
	}
}

// binaries is the folder of the newest installed version.
func binaries() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	best, bestVersion := "", 0
	for _, path := range found {
		bin := filepath.Dir(path)
		if v, err := strconv.Atoi(filepath.Base(filepath.Dir(bin))); err == nil && v > bestVersion {
			best, bestVersion = bin, v
		}
	}
	if best == "" {
		return "", ErrMissing
	}
	return best, nil
}

// owner makes the user that runs the server the owner of dir: PostgreSQL refuses root.
// Nil is this process's own user.
func owner(dir string) (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, os.Chown(dir, int(uid), int(gid))
}

// command runs a program of PostgreSQL as the user who may, in a group of its own, so that
// an interrupt from the terminal reaches the test alone.
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

// script runs a command until standard input ends, which the kernel sees to when the test
// process is gone, killed or not, and then removes the folder $1, if there is one. SIGQUIT
// ends all processes of the server at once: nothing is written any more, and the next start
// recovers.
const script = `
dir=$1; shift; trap '' INT TERM HUP
"$@" </dev/null &
cat >/dev/null
kill -QUIT $!; wait $!
[ -z "$dir" ] || rm -rf "$dir"
`

// Dir is the cluster's folder.
func (c *Cluster) Dir() string { return c.dir }

// Server is the program that serves the cluster, not started, for a caller who measures its
// process.
func (c *Cluster) Server() *exec.Cmd {
	args := c.serve()
	return c.command(args[0], args[1:]...)
}

func (c *Cluster) serve() []string {
	return append([]string{
		filepath.Join(c.bin, "postgres"), "-D", filepath.Join(c.dir, "data"), "-p", c.port, "-k", c.dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=32MB",
	}, c.options...)
}

// Start starts the server, for the first time or after Kill, and waits until it answers.
func (c *Cluster) Start(t testing.TB) {
	t.Helper()
	require(t, c.start(""))
}

// start starts the server, with a folder that is removed after its end, and waits until it
// answers. Its log is part of the error.
func (c *Cluster) start(remove string) error {
	cmd := c.command("/bin/sh", append([]string{"-c", script, "sh", remove}, c.serve()...)...)
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	c.end, c.done = pipe, done
	go func() {
		_ = cmd.Wait() // it is killed, or its reason is in the log
		close(done)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	for {
		err := c.Exec(ctx, "SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
			continue
		case <-done:
		case <-ctx.Done():
		}
		text, _ := os.ReadFile(log.Name()) // without it the error is enough
		return fmt.Errorf("%w\n%s", err, text)
	}
}

// Exec runs one statement over a connection of its own.
func (c *Cluster) Exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, c.URL())
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
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
