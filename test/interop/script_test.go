package interop

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/test/kit"
)

// TestScripts runs testdata/*.txt. Beside the commands of testscript they have
// those of the table below. In the arguments of exits, capture, eventually and
// spawn, a word @ID stands for the options with which the MQTT clients of Debian
// connect as device ID.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setUp,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"need":        need,        // need PROGRAM...: skip without them
			"serve":       serve,       // serve [ARG...]: countersign dev, or the command ARG...
			"stop":        stop,        // stop [KILL]: end the server
			"exits":       exits,       // exits CODE PROGRAM ARG...
			"capture":     capture,     // capture NAME PROGRAM ARG...: its output as a variable
			"eventually":  await,       // eventually REGEXP PROGRAM ARG...: until it says so
			"spawn":       spawn,       // spawn NAME PROGRAM ARG...: beside the script
			"says":        says,        // says NAME REGEXP: wait until it does; ! at this moment
			"lose":        lose,        // lose NAME: end it as a power cut would
			"ended":       ended,       // ended NAME CODE [TIME]: wait until it has, TIME at most
			"web":         web,         // web STATUS CURLARG...: the answer is in body and headers
			"request":     request,     // request ID FILE: FILE.key, .csr (PEM), .der and .b64
			"certificate": certificate, // certificate ANSWER FILE: EST's answer as PEM
			"freeport":    freePort,    // freeport NAME: a port that nobody has
			"enroll":      enroll,      // enroll ID: by EST into ID.pem and ID.key
		},
	})
}

// state is what a script has running.
type state struct {
	t       testscript.T
	server  *process
	spawned map[string]*process
}

type stateKey struct{}

func setUp(env *testscript.Env) error {
	dir := filepath.Join(env.WorkDir, "d")
	env.Setenv("PATH", filepath.Dir(program)+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("TZ", "UTC")
	env.Setenv("COUNTERSIGN_DIR", dir)
	env.Setenv("DIR", dir)
	s := &state{t: env.T(), spawned: map[string]*process{}}
	env.Values[stateKey{}] = s
	env.Defer(func() {
		for _, p := range s.spawned {
			p.kill()
		}
		if s.server != nil {
			s.server.kill()
		}
	})
	return nil
}

func stateOf(ts *testscript.TestScript) *state {
	s, ok := ts.Value(stateKey{}).(*state)
	if !ok {
		ts.Fatalf("the script was not set up")
	}
	return s
}

func usage(ts *testscript.TestScript, ok bool, form string) {
	if !ok {
		ts.Fatalf("usage: %s", form)
	}
}

func need(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, "need PROGRAM...")
	t, ok := stateOf(ts).t.(kit.Skipper) // it is a *testing.T
	if !ok {
		ts.Fatalf("need: the script's test is a %T, which nothing can be missing for", stateOf(ts).t)
	}
	kit.Programs(t, args...)
}

func serve(ts *testscript.TestScript, neg bool, args []string) {
	s := stateOf(ts)
	usage(ts, !neg && (s.server == nil || s.server.ended()), "serve [ARG...], once at a time")
	dir := ts.Getenv("DIR")
	if len(args) == 0 {
		args = []string{"dev", "--dir", dir, "--ports", "0"}
	}
	p, e, err := runServer(dir, args...)
	ts.Check(err)
	s.server = p
	ts.Check(setEndpoints(ts, e))
}

func setEndpoints(ts *testscript.TestScript, e api.Endpoints) error {
	mqtt, err := url.Parse(e.MQTT)
	if err != nil {
		return err
	}
	for name, value := range map[string]string{
		"EST": e.Enroll + "/.well-known/est", "ENROLL": e.Enroll, "API": e.API, "STATUS": e.Status,
		"ROOTS": e.Roots, "MQTT_PORT": mqtt.Port(),
	} {
		if value == "" {
			return fmt.Errorf("endpoints.json names no %s", name)
		}
		ts.Setenv(name, value)
	}
	return nil
}

func stop(ts *testscript.TestScript, neg bool, args []string) {
	s := stateOf(ts)
	usage(ts, !neg && s.server != nil && len(args) <= 1, "stop [KILL]")
	if len(args) == 1 {
		s.server.kill()
		return
	}
	ts.Check(s.server.stop())
}

// words puts in the options with which an MQTT client connects as a device.
func words(ts *testscript.TestScript, args []string) []string {
	var out []string
	for _, arg := range args {
		id, ok := strings.CutPrefix(arg, "@")
		if !ok {
			out = append(out, arg)
			continue
		}
		out = append(out, "-h", "127.0.0.1", "-p", ts.Getenv("MQTT_PORT"), "--cafile", ts.Getenv("ROOTS"),
			"--cert", id+".pem", "--key", id+".key", "-i", id)
	}
	return out
}

// codeOf gives the exit code behind err; ok is false if the program did not run.
func codeOf(err error) (code int, ok bool) {
	if exit, is := errors.AsType[*exec.ExitError](err); is {
		return exit.ExitCode(), true
	}
	return 0, err == nil
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "exits CODE PROGRAM ARG...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], words(ts, args[2:])...)
	code, ok := codeOf(err)
	if !ok {
		ts.Fatalf("run %s: %v", args[1], err)
	}
	if code != want {
		ts.Fatalf("exit code of %s: got %d, want %d", strings.Join(args[1:], " "), code, want)
	}
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "capture NAME PROGRAM ARG...")
	ts.Check(ts.Exec(args[1], words(ts, args[2:])...))
	text := strings.TrimSuffix(ts.ReadFile("stdout"), "\n")
	if text == "" || strings.Contains(text, "\n") {
		ts.Fatalf("output of %s: got %q, want one line", strings.Join(args[1:], " "), text)
	}
	ts.Setenv(args[0], text)
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "eventually REGEXP PROGRAM ARG...")
	want, err := regexp.Compile("(?s)" + args[0])
	ts.Check(err)
	var said string
	ok := eventually(func() bool {
		cmd := command(ts, args[1:])
		out, _ := cmd.CombinedOutput() // what it says counts
		said = string(out)
		return want.MatchString(said)
	})
	if !ok {
		ts.Fatalf("%s did not come to say %q:\n%s", strings.Join(args[1:], " "), args[0], said)
	}
}

// command is a program in the script's folder with the script's environment.
func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	path := args[0]
	if path == "countersign" {
		path = program
	}
	cmd := exec.Command(path, words(ts, args[1:])...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "COUNTERSIGN_DIR="+ts.Getenv("COUNTERSIGN_DIR"))
	return cmd
}

func spawn(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "spawn NAME PROGRAM ARG...")
	s := stateOf(ts)
	// Line by line, since a program that writes to no terminal says nothing until
	// its buffer is full.
	p, err := launch(command(ts, append([]string{"stdbuf", "-oL"}, args[1:]...)))
	ts.Check(err)
	if old := s.spawned[args[0]]; old != nil {
		old.kill()
	}
	s.spawned[args[0]] = p
}

func (s *state) process(ts *testscript.TestScript, name string) *process {
	p := s.spawned[name]
	if p == nil {
		ts.Fatalf("there is no %q", name)
	}
	return p
}

func says(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 2, "[!] says NAME REGEXP")
	p := stateOf(ts).process(ts, args[0])
	want, err := regexp.Compile("(?s)" + args[1])
	ts.Check(err)
	if !neg {
		ts.Check(p.says(want))
	} else if want.MatchString(p.out.String()) {
		ts.Fatalf("%s said %q:\n%s", args[0], args[1], p.out.String())
	}
}

func ended(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 2 || len(args) == 3), "ended NAME CODE [TIME]")
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	p := stateOf(ts).process(ts, args[0])
	begin := time.Now()
	code, err := p.wait()
	ts.Check(err)
	if len(args) == 3 {
		most, err := time.ParseDuration(args[2])
		ts.Check(err)
		if took := time.Since(begin); took > most {
			ts.Fatalf("end of %s: took %v, want %v at most", args[0], took, most)
		}
	}
	if code != want {
		ts.Fatalf("exit code of %s: got %d, want %d\n%s", args[0], code, want, p.out.String())
	}
}

func lose(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "lose NAME")
	stateOf(ts).process(ts, args[0]).kill()
}

func web(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "web STATUS CURLARG...")
	argv := slices.Concat([]string{
		"--silent", "--show-error", "--noproxy", "*", "--cacert", ts.Getenv("ROOTS"), "--max-time", strconv.Itoa(int(patience / time.Second)),
		"--output", "body", "--dump-header", "headers", "--write-out", "%{http_code}",
	}, args[1:])
	err := ts.Exec("curl", argv...)
	if status := ts.ReadFile("stdout"); status != args[0] {
		body, _ := os.ReadFile(ts.MkAbs("body")) // there may be none
		ts.Fatalf("curl %s: got %s (%v), want %s\n%s", strings.Join(args[1:], " "), status, err, args[0], body)
	}
}

func freePort(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "freeport NAME")
	port, err := kit.Port()
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(port))
}

func request(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "request ID FILE")
	key, csr, der, b64 := args[1]+".key", args[1]+".csr", args[1]+".der", args[1]+".b64"
	for _, argv := range [][]string{
		{"req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-subj", "/CN=" + args[0], "-out", csr},
		{"req", "-in", csr, "-outform", "DER", "-out", der},
		{"base64", "-in", der, "-out", b64},
	} {
		ts.Check(ts.Exec("openssl", argv...))
	}
}

func certificate(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "certificate ANSWER FILE")
	answer, file := args[0], args[1]
	// -A takes one line only, no flag takes short lines only: cut it.
	text := strings.Join(strings.Fields(ts.ReadFile(answer)), "")
	var cut strings.Builder
	for line := range slices.Chunk([]byte(text), 64) {
		cut.Write(append(line, '\n'))
	}
	ts.Check(os.WriteFile(ts.MkAbs(answer+".64"), []byte(cut.String()), 0o600))
	ts.Check(ts.Exec("openssl", "base64", "-d", "-in", answer+".64", "-out", answer+".p7"))
	ts.Check(ts.Exec("openssl", "pkcs7", "-inform", "DER", "-in", answer+".p7", "-print_certs", "-out", file))
}

func enroll(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "enroll ID")
	id := args[0]
	capture(ts, false, []string{"TOKEN", "countersign", "enroll", "token", "--device", id, "-o", "name"})
	request(ts, false, []string{id, id})
	web(ts, false, []string{
		"200", "--user", "x:" + ts.Getenv("TOKEN"), "--header", "Content-Type: application/pkcs10",
		"--data-binary", "@" + id + ".b64", ts.Getenv("EST") + "/simpleenroll",
	})
	certificate(ts, false, []string{"body", id + ".pem"})
}
