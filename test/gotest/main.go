// Command gotest runs "go test" with the arguments it is given, prints what go
// test prints, and names at the end the slowest tests, and each test that was
// skipped and why: a green run should not hide what it did not look at. With
// COUNTERSIGN_REQUIRE_PEERS=1 a skip is a failure. The exit status is otherwise that of go test.
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"regexp"
	"slices"
	"strings"
)

// maxLine bounds one line of go test -json. Go itself cuts the output of a test
// into lines, so only a test that prints a huge one gets near it.
const maxLine = 16 << 20

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	status, err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
	}
	os.Exit(status) //nolint:forbidigo // this is main; the rule knows only those under cmd
}

func run(ctx context.Context, out io.Writer, args []string) (status int, err error) {
	//nolint:gosec // the arguments are those of the developer who runs it
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stderr = os.Stderr
	stream, err := cmd.StdoutPipe()
	if err != nil {
		return 1, fmt.Errorf("couldn't read from go test: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("couldn't start go test: %w", err)
	}
	r := newReport(out)
	readErr := r.read(stream)
	if readErr != nil {
		// Go test must not block on a pipe that nobody reads.
		_, readErr = io.Copy(io.Discard, stream)
	}
	waitErr := cmd.Wait()
	r.summarize()
	if exit, ok := errors.AsType[*exec.ExitError](waitErr); ok {
		return max(exit.ExitCode(), 1), nil
	}
	if err := errors.Join(readErr, waitErr); err != nil {
		return 1, fmt.Errorf("couldn't follow go test: %w", err)
	}
	if len(r.skips) > 0 && os.Getenv("COUNTERSIGN_REQUIRE_PEERS") == "1" {
		return 1, errors.New("COUNTERSIGN_REQUIRE_PEERS=1 allows no skipped test")
	}
	return 0, nil
}

// event is one line of go test -json ("go doc test2json").
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64 // seconds, of a test or a package that ended
}

type skip struct{ pkg, test, reason string }

// timed is a test that passed or failed, and the seconds that it took. Tests that
// run in parallel share the cores, and their times with them.
type timed struct {
	pkg, test string
	seconds   float64
}

// slowest is how many tests the summary names, and slow the seconds below which a
// test is not worth a line.
const (
	slowest = 25
	slow    = 2
)

// report turns the events back into the text of a plain go test: all output of
// what failed, one line for each package that passed.
type report struct {
	out    io.Writer
	lines  map[string][]string // output so far, by package and test
	skips  []skip
	timed  []timed
	passed int
	failed int
}

func newReport(out io.Writer) *report {
	return &report{out: out, lines: map[string][]string{}}
}

func (r *report) read(stream io.Reader) error {
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			// Go writes some errors, such as an unknown flag, as plain text.
			fmt.Fprintln(r.out, lines.Text())
			continue
		}
		r.add(e)
	}
	return lines.Err()
}

func (r *report) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		r.lines[key] = append(r.lines[key], e.Output)
		return
	case "build-output":
		fmt.Fprint(r.out, e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	lines := r.lines[key]
	delete(r.lines, key)
	if e.Test == "" {
		r.endPackage(e, lines)
		return
	}
	if e.Elapsed >= slow && !strings.Contains(e.Test, "/") { // a test counts with its subtests
		r.timed = append(r.timed, timed{path.Base(e.Package), e.Test, e.Elapsed})
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		r.print(lines)
	case "skip":
		r.skips = append(r.skips, skip{path.Base(e.Package), e.Test, reason(lines)})
	}
}

// endPackage prints the package's own line, and on failure everything that is
// left: the output of a test that was running when the process died.
func (r *report) endPackage(e event, lines []string) {
	for key, left := range r.lines {
		if strings.HasPrefix(key, e.Package+" ") {
			if e.Action == "fail" {
				r.print(left)
			}
			delete(r.lines, key)
		}
	}
	for _, l := range lines {
		if e.Action == "fail" || strings.HasPrefix(l, "ok ") || strings.HasPrefix(l, "? ") {
			fmt.Fprint(r.out, l)
		}
	}
}

func (r *report) print(lines []string) {
	for _, l := range lines {
		if !strings.HasPrefix(l, "=== ") {
			fmt.Fprint(r.out, l)
		}
	}
}

var logPlace = regexp.MustCompile(`^[^ :]+\.go:\d+: `)

// reason is the last thing that a skipped test said.
func reason(lines []string) string {
	for _, l := range slices.Backward(lines) {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "=== ") && !strings.HasPrefix(l, "--- ") {
			return logPlace.ReplaceAllString(l, "")
		}
	}
	return "no reason given"
}

func (r *report) summarize() {
	slices.SortFunc(r.timed, func(a, b timed) int { return cmp.Compare(b.seconds, a.seconds) })
	for i, t := range r.timed[:min(slowest, len(r.timed))] {
		if i == 0 {
			fmt.Fprintf(r.out, "\nslowest tests, in seconds:\n")
		}
		fmt.Fprintf(r.out, "%7.1f %s %s\n", t.seconds, t.pkg, t.test)
	}
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped\n", r.passed, r.failed, len(r.skips))
	for _, s := range r.skips {
		fmt.Fprintf(r.out, "  skipped %s %s: %s\n", s.pkg, s.test, s.reason)
	}
}
