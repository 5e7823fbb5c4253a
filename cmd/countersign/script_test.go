package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/rogpeppe/go-internal/testscript"
)

// startWait is how long a server may take to start on a busy machine.
const startWait = 30 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"countersign": main})
}

// TestScripts runs the program as a person at a shell does.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("COUNTERSIGN_DIR", e.WorkDir+"/d")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":    cmdExits,
			"await":    cmdAwait,
			"alerted":  cmdAlerted,
			"until":    cmdUntil,
			"enroll":   cmdEnroll,
			"csr":      cmdCSR,
			"waits":    cmdWaits,
			"decide":   cmdDecide,
			"maker":    cmdMaker,
			"requests": cmdRequests,
		},
		RequireExplicitExec: true,
	})
}

// cmdExits runs a program and wants its exit code: exits 3 countersign device get x
func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%s: %v", args[1], err)
		}
		got = e.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s: got exit code %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// cmdAwait waits for a file: await d/endpoints.json
func cmdAwait(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("%s is not there after %s", args[0], startWait)
		}
	}
}

// cmdUntil runs a program until its output holds a text: until suspended countersign
// device get pump-7
func cmdUntil(ts *testscript.TestScript, _ bool, args []string) {
	again(ts, args[0], func() bool {
		return ts.Exec(args[1], args[2:]...) == nil && strings.Contains(ts.ReadFile("stdout"), args[0])
	})
}

// cmdAlerted waits for an alert of a rule and sets a variable to its id: alerted
// unusual_enrollment ALERT
func cmdAlerted(ts *testscript.TestScript, _ bool, args []string) {
	again(ts, "an alert of "+args[0], func() bool {
		ts.Check(ts.Exec("countersign", "alert", "list", "--rule", args[0], "-o", "name"))
		id := strings.TrimSpace(ts.ReadFile("stdout"))
		ts.Setenv(args[1], id)
		return id != ""
	})
}

// again asks until the answer is yes.
func again(ts *testscript.TestScript, what string, yes func() bool) {
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !yes() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("%s: not after %s", what, startWait)
		}
	}
}

// cmdEnroll enrolls a device with the token in a file: enroll pump-7 token.txt cert.pem
func cmdEnroll(ts *testscript.TestScript, _ bool, args []string) {
	var e api.Endpoints
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("d/"+api.EndpointsFile)), &e))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: args[0]}}, key)
	ts.Check(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ts.ReadFile("d/roots.pem")))
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, e.Enroll+api.Base+"/enroll", strings.NewReader(string(csr)))
	ts.Check(err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(args[1])))
	client := &http.Client{Timeout: startWait, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}
	res, err := client.Do(req)
	ts.Check(err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	ts.Check(err)
	if res.StatusCode != http.StatusOK {
		ts.Fatalf("enroll %s: got %s %s", args[0], res.Status, body)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), body, 0o600))
}
