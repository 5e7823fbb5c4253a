package storetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// requirePeers turns the skip of a missing program into a failure, for CI.
	requirePeers = "COUNTERSIGN_REQUIRE_PEERS"
	// startWait bounds the start of the server on a slow, busy machine.
	startWait = time.Minute
	// maxConnections lets parallel tests have several pools each.
	maxConnections = 400
)

// server is the one PostgreSQL of this test process. Test packages have no hook
// at their end that a library can use (TestMain is theirs), so the end of the
// process, however it comes, is what stops it: a shell beside it waits for our
// end of a pipe to close, then stops the server and removes its folder.
type server struct {
	once sync.Once
	err  error
	base url.URL
	next atomic.Int64
}

// shared is one for all tests of the process: a start takes seconds.
var shared server

var errMissing = errors.New("PostgreSQL's programs are not installed")

// PostgresURL names a fresh, empty database of a PostgreSQL that this test
// process started. It skips the test when PostgreSQL is not installed, and fails
// it when COUNTERSIGN_REQUIRE_PEERS=1.
func PostgresURL(t testing.TB) string {
	t.Helper()
	shared.once.Do(func() { shared.err = shared.start() })
	if errors.Is(shared.err, errMissing) && os.Getenv(requirePeers) != "1" {
		t.Skipf("%v: apt-get install postgresql", shared.err)
	}
	if shared.err != nil {
		t.Fatalf("couldn't start PostgreSQL (apt-get install postgresql): %v", shared.err)
	}
	name := fmt.Sprintf("test%d", shared.next.Add(1))
	ctx, cancel := context.WithTimeout(t.Context(), startWait)
	defer cancel()
	conn, err := pgx.Connect(ctx, shared.base.String())
	if err != nil {
		t.Fatalf("couldn't connect to PostgreSQL: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	// A language that sorts unlike the octets, as most servers have, finds the
	// queries that rely on order.
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"); err != nil {
		t.Fatalf("couldn't create a database: %v", err)
	}
	u := shared.base
	u.Path = "/" + name
	return u.String()
}

// start makes a cluster in a temporary folder and waits until it answers.
func (s *server) start() error {
	bin, err := binaries()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "countersign-postgres-")
	if err != nil {
		return err
	}
	cred, err := owner(dir)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	port, err := freePort()
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	if err := watch(bin, dir, port, cred); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	s.base = url.URL{
		Scheme: "postgres", User: url.User("postgres"), Host: net.JoinHostPort("127.0.0.1", port),
		Path: "/postgres", RawQuery: "sslmode=disable",
	}
	return s.await(filepath.Join(dir, "log"))
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
		return "", errMissing
	}
	return best, nil
}

// owner gives dir to the user that runs the server: PostgreSQL refuses root. Nil
// is this process's own user.
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

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

// script runs the server until standard input ends, which the kernel sees to when
// the test process is gone, killed or not. $1 binaries, $2 folder, $3 options.
const script = `
PATH="$1:$PATH"; dir=$2; trap '' INT TERM HUP
initdb -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C --no-sync >"$dir/log" 2>&1 || exit 1
postgres -D "$dir/data" $3 >>"$dir/log" 2>&1 </dev/null &
cat >/dev/null
kill -QUIT $!; wait $!
rm -rf "$dir"
`

// watch starts the shell that starts, and in the end stops, the server.
func watch(bin, dir, port string, cred *syscall.Credential) error {
	options := strings.Join([]string{
		"-p", port, "-k", dir, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
		"-c", "max_connections=" + strconv.Itoa(maxConnections), "-c", "shared_buffers=32MB",
	}, " ")
	cmd := exec.Command("/bin/sh", "-c", script, "sh", bin, dir, options) //nolint:gosec // fixed text; it outlives any one test's context
	cmd.Dir = dir
	// A group of its own, so that an interrupt from the terminal reaches the test alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Setpgid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = cmd.Wait() // ends with the server; start has met or will meet the reason in the log
		runtime.KeepAlive(pipe)
	}()
	return nil
}

// await waits until the server answers, and reports its log when it does not.
func (s *server) await(log string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, s.base.String())
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			text, _ := os.ReadFile(log) //nolint:gosec // our own file; without it the error stands alone
			return fmt.Errorf("%w\n%s", err, text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
