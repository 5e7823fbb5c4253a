package interop

import (
	"crypto/tls"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestTheUnitFileIsOneThatSystemdReads has systemd check the unit, with a program that
// is on this machine in the place of the installed one.
func TestTheUnitFileIsOneThatSystemdReads(t *testing.T) {
	kit.Programs(t, "systemd-analyze")
	unit, err := os.ReadFile(filepath.Join(moduleRoot, "deploy", "countersign.service"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "countersign.service")
	text := strings.ReplaceAll(string(unit), "/usr/bin/countersign", program)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "countersign.service:") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// service is a server that runs as systemd runs it, with the socket on which it reports
// its state.
type service struct {
	*process
	t      *testing.T
	config string
	enroll string // address of the listener
	admin  *sdk.Admin
	states *net.UnixConn
}

// startService starts the server with NOTIFY_SOCKET set to socket.
func startService(t *testing.T, dir, socket string) *service {
	t.Helper()
	s := &service{t: t, config: filepath.Join(dir, "countersign.yaml")}
	data := filepath.Join(dir, "data")
	writeConfig(t, s.config, data, "log: {level: info}")
	found(t, s.config)
	var err error
	if s.states, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: strings.Replace(socket, "@", "\x00", 1), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.states.Close() })
	cmd := exec.Command(program, "server", "run", "--config", s.config)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	p, ends, err := startServer(data, cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	at, err := url.Parse(ends.Enroll)
	if err != nil {
		t.Fatal(err)
	}
	s.process, s.enroll, s.admin = p, at.Host, sdk.Local(ends.Socket)
	return s
}

// state is the next message to systemd.
func (s *service) state() string {
	s.t.Helper()
	if err := s.states.SetReadDeadline(time.Now().Add(patience)); err != nil {
		s.t.Fatal(err)
	}
	b := make([]byte, 256)
	n, err := s.states.Read(b)
	if err != nil {
		s.t.Fatalf("no message to systemd: %v\n%s", err, s.out.String())
	}
	return string(b[:n])
}

// names are those in the certificate of the enrollment listener; none while it does not
// accept.
func (s *service) names() []string {
	conn, err := tls.Dial("tcp", s.enroll, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0].DNSNames
}

// TestServiceNotifiesSystemd has the server report that it is up once its listeners
// accept, and that it stops (sd_notify(3)), to a socket in a folder and to one in the
// abstract namespace.
func TestServiceNotifiesSystemd(t *testing.T) {
	t.Parallel()
	for name, socket := range map[string]func(dir string) string{
		"file":     func(dir string) string { return filepath.Join(dir, "notify") },
		"abstract": func(dir string) string { return "@" + filepath.Base(dir) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			s := startService(t, dir, socket(dir))
			if got := s.state(); got != "READY=1" {
				t.Errorf("the first message: got %q, want READY=1", got)
			}
			conn, err := tls.Dial("tcp", s.enroll, &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				t.Fatalf("it is ready and serves no handshake: %v", err)
			}
			_ = conn.Close()
			if !strings.Contains(s.out.String(), "listening: enroll") || !strings.Contains(s.out.String(), s.enroll) {
				t.Errorf("it is ready and says:\n%s\nwant a line for each listener", s.out.String())
			}
			if err := s.stop(); err != nil {
				t.Error(err)
			}
			if got := s.state(); got != "STOPPING=1" {
				t.Errorf("the last message: got %q, want STOPPING=1", got)
			}
		})
	}
}

// TestHangupReloadsTheConfiguration sends SIGHUP to the running program, as systemctl
// reload does: it goes on running, what can change is in force, and a file with a fault
// changes nothing.
func TestHangupReloadsTheConfiguration(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	s := startService(t, dir, filepath.Join(dir, "notify"))
	s.state() // it is up
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	hangup := func(names string) {
		t.Helper()
		if err := os.WriteFile(s.config, []byte(strings.Replace(string(text), "names: [127.0.0.1]", "names: ["+names+"]", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hangup("127.0.0.1, reloaded.example.net")
	if !eventually(func() bool { return s.ended() || slices.Contains(s.names(), "reloaded.example.net") }) || s.ended() {
		t.Fatalf("names after SIGHUP: got %v (ended: %t), want the new one\n%s", s.names(), s.ended(), s.out.String())
	}
	hangup("not a name")
	if !eventually(func() bool { return s.ended() || strings.Contains(s.out.String(), "configuration not reloaded") }) || s.ended() {
		t.Fatalf("a file with a fault is not reported (ended: %t):\n%s", s.ended(), s.out.String())
	}
	if got := s.names(); !slices.Contains(got, "reloaded.example.net") {
		t.Errorf("names after a refused reload: got %v, want those of before", got)
	}
	if _, err := s.admin.Doctor(t.Context()); err != nil {
		t.Errorf("after both: %v", err)
	}
}
