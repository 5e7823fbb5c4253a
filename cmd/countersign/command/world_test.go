package command

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/countersigntest"
)

// world is a server with the command line beside it.
type world struct {
	*countersigntest.Server
	t *testing.T
}

func newWorld(t *testing.T) world {
	t.Helper()
	return world{countersigntest.Start(t), t}
}

// env returns the environment of a command that reads in.
func (w world) env(in string) (*Env, *output, *output) {
	var out, errOut output
	return &Env{
		In: strings.NewReader(in), Out: &out, Err: &errOut, Getenv: func(string) string { return "" }, Now: time.Now,
		dir: w.Dir, output: formatTable, timeout: defaultTimeout,
	}, &out, &errOut
}

// run runs a command line and returns its exit code and what it wrote.
func (w world) run(args ...string) (code int, out, errOut string) {
	env, o, e := w.env("")
	code = env.Run(append(args, "--dir", w.Dir))
	return code, o.String(), e.String()
}

// do runs a command line that must succeed and returns both outputs.
func (w world) do(args ...string) (out, errOut string) {
	w.t.Helper()
	code, out, errOut := w.run(args...)
	if code != exitOK {
		w.t.Fatalf("countersign %s: got exit code %d: %s%s", strings.Join(args, " "), code, out, errOut)
	}
	return out, errOut
}

// output is a buffer that a command may write while a test reads.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
