package interop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/countersign-iot/countersign/api"
)

const (
	// patience bounds every wait for something that should happen soon. It is long
	// since the machine may be slow and busy; a passing test never waits it out.
	patience = 30 * time.Second
	// glance is how often a condition is looked at.
	glance = 20 * time.Millisecond
)

// eventually looks at a condition until it holds or patience ends.
func eventually(holds func() bool) bool {
	for deadline := time.Now().Add(patience); ; time.Sleep(glance) {
		if holds() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// output gathers what a process says; others may look at it meanwhile.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// process is a program that runs beside the test.
type process struct {
	cmd  *exec.Cmd
	out  output // standard output and error, as they came
	done chan struct{}
}

// launch starts cmd, which must not be used elsewhere.
func launch(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait() // the exit code tells
		close(p.done)
	}()
	return p, nil
}

// says waits until the output matches.
func (p *process) says(want *regexp.Regexp) error {
	if eventually(func() bool { return want.MatchString(p.out.String()) || p.ended() }) && want.MatchString(p.out.String()) {
		return nil
	}
	return fmt.Errorf("%s did not say %q (ended: %v):\n%s", filepath.Base(p.cmd.Path), want, p.ended(), p.out.String())
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// wait waits for the end and gives the exit code, -1 for one that was killed.
func (p *process) wait() (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(patience):
		return 0, fmt.Errorf("%s does not end:\n%s", filepath.Base(p.cmd.Path), p.out.String())
	}
}

// kill ends the process as a power cut would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// runServer starts the program under test with args and waits until all its
// listeners accept.
func runServer(dir string, args ...string) (*process, api.Endpoints, error) {
	return startServer(dir, exec.Command(program, args...))
}

// startServer is runServer with a command that has an environment of its own.
func startServer(dir string, cmd *exec.Cmd) (*process, api.Endpoints, error) {
	var e api.Endpoints
	cmd.Dir = filepath.Dir(dir)
	path := filepath.Join(dir, api.EndpointsFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, e, err
	}
	p, err := launch(cmd)
	if err != nil {
		return nil, e, err
	}
	ready := func() bool {
		text, err := os.ReadFile(path)
		return err == nil && json.Unmarshal(text, &e) == nil
	}
	if !eventually(func() bool { return p.ended() || ready() }) || !ready() {
		p.kill()
		return nil, e, fmt.Errorf("the server did not start:\n%s", p.out.String())
	}
	return p, e, nil
}

// stop ends a server as systemd does.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("%w:\n%s", err, p.out.String())
	}
	code, err := p.wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code after SIGTERM: got %d, want 0\n%s", code, p.out.String())
	}
	return err
}
