package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/est"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/status"
)

const (
	// webWorkers is how many connections ask at once over HTTP, connectWorkers how
	// many devices connect at once: enough to keep two cores busy.
	webWorkers     = 16
	connectWorkers = 32
)

// subject is a group of measurements that belong side by side.
type subject struct {
	name    string
	measure func(*bench, context.Context) ([]sample, error)
	asked   bool // only where it is named
}

// subjects are measured in this order in each round; the later ones use what the
// earlier ones enrolled.
func subjects() []subject {
	return []subject{
		{name: "limits", measure: (*bench).limits},
		{name: "enroll", measure: (*bench).enroll},
		{name: "connect", measure: (*bench).connectAll},
		{name: "renew", measure: (*bench).renew},
		{name: "ocsp", measure: (*bench).ocsp},
		{name: "sessions", measure: (*bench).sessions},
		{name: "flood", measure: (*bench).flood},
		{name: "memory", measure: (*bench).memory},
		{name: "messages", measure: (*bench).messages},
		{name: "fanout", measure: (*bench).fanout},
		{name: "scale", measure: (*bench).scale, asked: true},
	}
}

func subjectNames() []string {
	var names []string
	for _, s := range subjects() {
		names = append(names, s.name)
	}
	return names
}

// bench is one run.
type bench struct {
	opts    options
	dir     string
	program string // of the server

	limitCA  *limitCA
	baseline *baseline

	server    *process
	endpoints api.Endpoints
	admin     *sdk.Admin
	web       *http.Client // for what is fetched beside the measurements

	roots  *x509.CertPool // of the authority and of the servers beside it
	issuer *x509.Certificate
	path   [][]byte // what a device shows after its certificate
	token  string
	dialer dialer

	loadToken string // of the load fleet
	load      []*enrollee

	made   int         // devices so far
	fresh  []*enrollee // enrolled and never connected
	active []*enrollee // connected once
	all    []*enrollee // all whose certificate is good

	mu    sync.Mutex
	notes []string // what a table cannot show
}

// note adds what a table cannot show.
func (b *bench) note(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.notes = append(b.notes, text)
}

// run measures everything and writes the report.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "csbench") // short: the socket's path may have 107 octets
	if err != nil {
		return err
	}
	b := &bench{opts: o, dir: dir, web: &http.Client{Timeout: opTimeout}}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.open(ctx); err != nil {
		return err
	}
	r := newReport(ctx, b)
	for round := range o.rounds {
		for _, s := range subjects() {
			if !slices.Contains(o.only, s.name) && (len(o.only) > 0 || s.asked) {
				continue
			}
			_, _ = fmt.Fprintf(out, "round %d of %d: %s\n", round+1, o.rounds, s.name)
			samples, err := s.measure(b, ctx)
			if err != nil {
				return fmt.Errorf("measure %s: %w", s.name, err)
			}
			r.add(samples)
		}
	}
	b.mu.Lock()
	r.Notes = append(r.Notes, b.notes...)
	b.mu.Unlock()
	r.finish()
	if o.json != "" {
		if err := r.save(o.json); err != nil {
			return err
		}
	}
	if o.stat != "" {
		if err := saveFile(o.stat, r.benchmarks()); err != nil {
			return fmt.Errorf("write the result: %w", err)
		}
	}
	return r.print(out)
}

// build builds the server as it is released, unless there is one to measure.
func (b *bench) build(ctx context.Context) error {
	if b.program = b.opts.server; b.program != "" {
		return nil
	}
	b.program = filepath.Join(b.dir, "countersign")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.program, "github.com/countersign-iot/countersign/cmd/countersign") //nolint:gosec // our own program
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("couldn't build the server: %w: %s", err, text)
	}
	return nil
}

// open builds and starts everything.
func (b *bench) open(ctx context.Context) error {
	if err := raiseFiles(); err != nil {
		return err
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	var err error
	if b.limitCA, err = newLimitCA(); err != nil {
		return err
	}
	if err := b.limitCA.write(b.dir); err != nil {
		return err
	}
	if err := b.startServer(ctx); err != nil {
		return err
	}
	if err := b.learn(ctx); err != nil {
		return err
	}
	b.baseline, err = startBaseline(b.dir, b.opts.size.quiet)
	return err
}

// startServer runs the released program on a data folder within ours. A second
// start continues the first.
func (b *bench) startServer(ctx context.Context) error {
	data := filepath.Join(b.dir, "d")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	// As countersign dev, with the database of our choice.
	config := `names: ["127.0.0.1"]
listeners: {enroll: "127.0.0.1:0", mqtt: "127.0.0.1:0", api: "127.0.0.1:0", status: "127.0.0.1:0"}
log: {level: warn, format: json}
`
	if b.opts.database != "" {
		config += "database: env:BENCH_DATABASE\n"
	}
	if err := os.WriteFile(filepath.Join(data, "countersign.yaml"), []byte(config), 0o600); err != nil {
		return err
	}
	founding := exec.CommandContext(ctx, b.program, "server", "init", "--dir", data) //nolint:gosec // built above
	founding.Env = append(os.Environ(), "BENCH_DATABASE="+b.opts.database)
	if out, err := founding.CombinedOutput(); err != nil {
		return fmt.Errorf("couldn't found the server: %w: %s", err, out)
	}
	// Not ended by ctx: stop does that in order.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), b.program, "server", "run", "--dir", data) //nolint:gosec // built above
	cmd.Env = append(os.Environ(), "BENCH_DATABASE="+b.opts.database)
	var err error
	if b.server, err = start(cmd, b.opts.size.quiet); err != nil {
		return err
	}
	path := filepath.Join(data, api.EndpointsFile)
	err = b.server.await(ctx, func() bool { _, err := os.Stat(path); return err == nil })
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path) //nolint:gosec // our own folder
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &b.endpoints); err != nil {
		return fmt.Errorf("couldn't read %s: %w", path, err)
	}
	b.admin = sdk.Local(b.endpoints.Socket)
	return nil
}

// restart gives the server the memory of a new process.
func (b *bench) restart(ctx context.Context) error {
	if err := b.server.stop(); err != nil {
		return err
	}
	return b.startServer(ctx)
}

// learn takes from the server what devices and relying parties know, and leaves
// it where the servers beside it read it.
func (b *bench) learn(ctx context.Context) error {
	text, err := os.ReadFile(b.endpoints.Roots)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.dir, rootsFile), text, 0o600); err != nil { //nolint:gosec // our own folder
		return err
	}
	if b.roots, err = readRoots(b.endpoints.Roots); err != nil {
		return err
	}
	b.roots.AddCert(b.limitCA.root)
	issued, err := b.admin.CreateToken(ctx, api.NewToken{Uses: registry.MaxUses, TTLSeconds: 24 * 3600})
	if err != nil {
		return err
	}
	b.token = issued.Secret
	if err := b.createLoadFleet(ctx); err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: clientTLS(b.roots, nil)}
	defer transport.CloseIdleConnections()
	client := &est.Client{BaseURL: b.endpoints.Enroll, HTTP: &http.Client{Transport: transport, Timeout: opTimeout}}
	authorities, err := client.CACerts(ctx, "")
	if err != nil {
		return err
	}
	for _, a := range authorities {
		if string(a.RawSubject) != string(a.RawIssuer) {
			b.issuer, b.path = a, append(b.path, a.Raw)
		}
	}
	if len(b.path) != 1 {
		return fmt.Errorf("the server has %d issuing authorities, not 1", len(b.path))
	}
	return b.learnStatus(ctx)
}

// learnStatus enrolls one device and takes the OCSP answer and the CRL about it.
func (b *bench) learnStatus(ctx context.Context) error {
	first, err := b.enrolled(ctx, 1)
	if err != nil {
		return err
	}
	cert := first[0].cert
	request, err := status.EncodeOCSPRequest(cert, b.issuer, nil)
	if err != nil {
		return err
	}
	c, err := b.dialer.dial(ctx, hostOf(cert.OCSPServer[0]))
	if err != nil {
		return err
	}
	w := newWeb(c)
	defer w.close()
	answer, err := w.do(ocspPost(cert.OCSPServer[0], request))
	if err != nil {
		return err
	}
	crl, err := get(ctx, b.web, cert.CRLDistributionPoints[0])
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(b.dir, answerFile), answer, 0o600),
		os.WriteFile(filepath.Join(b.dir, crlFile), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl}), 0o600),
	)
}

// hostOf gives host:port of a URL that the server wrote; empty if it is none.
func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Host
}

func (b *bench) close() error {
	var errs []error
	if b.baseline != nil {
		errs = append(errs, b.baseline.stop())
	}
	if b.server != nil {
		errs = append(errs, b.server.stop())
		if text := strings.TrimSpace(b.server.stderr.String()); text != "" && b.server.err != nil {
			errs = append(errs, fmt.Errorf("the server said: %.2000s", text))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}
