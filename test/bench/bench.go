package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/est"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/status"
)

// bench is one run.
type bench struct {
	crew
	opts   options
	dir    string
	report *report

	round      int
	limitCA    *limitCA
	baseline   *baseline
	stepCA     *stepCA            // nil: it could not be built
	theirs     []*enrollee        // devices of step-ca
	filled     map[string]*filled // by prefix, servers with a filled database
	slowed     *crew              // of the server on a slow disk; nil: it does not run yet
	onPostgres *onPostgres        // nil: they do not run yet
}

// keep adds a measurement to the report, unless it failed.
func (b *bench) keep(s sample, err error) error {
	if err == nil {
		b.report.add(s)
	}
	return err
}

// newBench builds and starts everything. What it returns with an error is to be closed too.
func newBench(ctx context.Context, o options) (*bench, error) {
	b := &bench{opts: o, filled: map[string]*filled{}}
	dir, err := os.MkdirTemp("", "csbench") // short: the socket's path may have 107 octets
	if err != nil {
		return b, err
	}
	b.dir = dir
	b.server = &server{program: o.server, data: filepath.Join(dir, "d"), database: o.database, quiet: o.size.quiet}
	b.report = newReport(ctx, o, dir)
	if err := raiseFiles(); err != nil {
		return b, err
	}
	if err := b.server.build(ctx); err != nil {
		return b, err
	}
	if b.limitCA, err = newLimitCA(); err != nil {
		return b, err
	}
	if err := b.limitCA.write(b.dir); err != nil {
		return b, err
	}
	if err := b.server.start(ctx); err != nil {
		return b, err
	}
	if err := b.learn(ctx); err != nil {
		return b, err
	}
	if b.baseline, err = startBaseline(context.WithoutCancel(ctx), b.dir, o.size.quiet); err != nil {
		return b, err
	}
	return b, b.startPeers(ctx)
}

// startPeers starts those that are measured together with our server for the whole run.
func (b *bench) startPeers(ctx context.Context) (err error) {
	if only := b.opts.only; len(only) > 0 && !slices.Contains(only, "enroll") && !slices.Contains(only, "renew") {
		return nil
	}
	program := b.peerProgram(ctx, stepCASource())
	if program == "" {
		return nil
	}
	dir := filepath.Join(b.dir, "stepca")
	db := stepDB{Type: "badgerv2", DataSource: filepath.Join(dir, "db")}
	b.stepCA, err = stepSetup{program, dir, b.opts.size.quiet, b.limitCA, db}.start(ctx)
	return err
}

// peerProgram returns the path of a peer's program; empty where there is none, which the
// report then says.
func (b *bench) peerProgram(ctx context.Context, s source) string {
	program := s.installed()
	if program == "" && b.opts.build {
		var err error
		if program, err = s.install(ctx); err != nil {
			b.report.note("%s was not measured, because it could not be built: %v", s, err)
			return ""
		}
	}
	if program == "" {
		b.report.note("%s was not measured, because it is not built yet and -build=false forbids it", s)
		return ""
	}
	if name := s.String(); !slices.Contains(b.report.Machine.Peers, name) {
		b.report.Machine.Peers = append(b.report.Machine.Peers, name)
	}
	return program
}

func (b *bench) close() error {
	var errs []error
	for _, f := range b.filled {
		errs = append(errs, f.end())
	}
	if b.onPostgres != nil {
		errs = append(errs, b.onPostgres.stop())
	}
	if b.slowed != nil && b.slowed.server.process != nil {
		errs = append(errs, b.slowed.server.stop())
	}
	if b.stepCA != nil {
		errs = append(errs, b.stepCA.stop())
	}
	if b.baseline != nil {
		errs = append(errs, b.baseline.stop())
	}
	if b.server != nil && b.server.process != nil {
		p := b.server.process
		errs = append(errs, p.stop())
		if text := strings.TrimSpace(p.stderr.String()); text != "" && p.err != nil {
			errs = append(errs, fmt.Errorf("the server wrote: %.2000s", text))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...) //nolint:gosec // our own folder
}

// beside measures our server, then each peer, if it is installed, in a process of its own.
func (b *bench) beside(ctx context.Context, peers []peer, measure func(context.Context, target) error) error {
	if err := measure(ctx, b.mqtt()); err != nil || !hasMosquitto() {
		return err
	}
	for _, p := range peers {
		t, err := startMosquitto(ctx, b.dir, b.opts.size.quiet, p)
		if err != nil {
			return err
		}
		if err := errors.Join(measure(ctx, t), t.process.stop()); err != nil {
			return err
		}
	}
	return nil
}

// learn takes from the server what devices and relying parties know, and stores
// it where the servers beside it read it.
func (b *bench) learn(ctx context.Context) error {
	roots, err := os.ReadFile(b.server.endpoints.Roots)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.dir, rootsFile), roots, 0o600); err != nil { //nolint:gosec // our own folder
		return err
	}
	if err := b.meet(ctx, b.limitCA.root); err != nil {
		return err
	}
	return b.learnStatus(ctx)
}

// meet takes from a server what devices know, and makes the fleet and the tokens that they
// use. peers is the root of the servers beside it.
func (c *crew) meet(ctx context.Context, peers *x509.Certificate) (err error) {
	if c.roots, err = readRoots(c.server.endpoints.Roots); err != nil {
		return err
	}
	c.roots.AddCert(peers)
	if err := createLoadFleet(ctx, c.server.admin); err != nil {
		return err
	}
	for fleet, token := range map[string]*string{"": &c.token, loadFleet: &c.loads} {
		issued, err := c.server.admin.CreateToken(ctx, api.NewToken{Fleet: fleet, Uses: registry.MaxUses, TTLSeconds: 24 * 3600})
		if err != nil {
			return err
		}
		*token = issued.Secret
	}
	transport := &http.Transport{TLSClientConfig: clientTLS(c.roots, nil)}
	defer transport.CloseIdleConnections()
	authorities, err := (&est.Client{BaseURL: c.server.endpoints.Enroll, HTTP: &http.Client{Transport: transport, Timeout: opTimeout}}).CACerts(ctx, "")
	if err != nil {
		return err
	}
	for _, a := range authorities {
		if string(a.RawSubject) == string(a.RawIssuer) {
			continue
		}
		if c.issuer != nil {
			return errors.New("the server has more than one issuing authority")
		}
		c.issuer = a
	}
	if c.issuer == nil {
		return errors.New("the server has no issuing authority")
	}
	return nil
}

// learnStatus enrolls one device and takes the OCSP answer and the CRL about it.
func (b *bench) learnStatus(ctx context.Context) error {
	first, err := b.enrolled(ctx, 1)
	if err != nil {
		return err
	}
	cert := first[0].cert
	question, err := status.EncodeOCSPRequest(cert, b.issuer, nil)
	if err != nil {
		return err
	}
	for file, ask := range map[string][]byte{
		answerFile: ocspPost(cert.OCSPServer[0], question),
		crlFile:    request("GET", cert.CRLDistributionPoints[0], nil),
	} {
		c, err := b.dialer.dial(ctx, hostOf(cert.OCSPServer[0])) // the CRL is at the same listener
		if err != nil {
			return err
		}
		w := newWeb(c)
		defer w.close()
		answer, err := w.do(ask)
		if err != nil {
			return err
		}
		if file == crlFile {
			answer = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: answer})
		}
		if err := os.WriteFile(filepath.Join(b.dir, file), answer, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// raiseFiles lets this process, and those that it starts, have as many sockets as the
// system allows.
func raiseFiles() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur = l.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
}
