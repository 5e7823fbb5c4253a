package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ocsp"
	"golang.org/x/sync/errgroup"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/server"
	"github.com/countersign-iot/countersign/status"
)

const (
	minDemoDevices = 6 // one for each story, and some that nothing happens to
	maxDemoDevices = 2000
	// demoWorkers is how many devices act at once; two cores are busy with four.
	demoWorkers = 4
	// demoStep bounds each step: one that hangs is a failure, not a long demo.
	demoStep = 2 * time.Minute
)

func (a *app) demoCommand() *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Watch the main job: enroll, connect, renew, suspend, revoke, catch a clone",
		Long: `demo starts a server on a temporary folder, gives devices their identities, and shows
what happens to them: each step is checked, and the exit code is 1 if one did not do what it says.`,
		Example: "  countersign demo\n  countersign demo --methods all\n  countersign demo --models\n  countersign demo --devices 100 --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.devices < minDemoDevices || o.devices > maxDemoDevices {
				return usagef("--devices %d is not between %d and %d", o.devices, minDemoDevices, maxDemoDevices)
			}
			if err := oneOf("--methods", o.methods, "token", "all"); err != nil {
				return err
			}
			o.asJSON = o.asJSON || a.output == formatJSON
			return a.demo(cmd.Context(), o)
		},
	}
	c.Flags().IntVar(&o.devices, "devices", 25, "how many devices")
	c.Flags().StringVar(&o.methods, "methods", "token", "all: another device for each way to a certificate")
	c.Flags().BoolVar(&o.models, "models", false, "show the models of authentication too, and what comes of guessing")
	c.Flags().BoolVar(&o.asJSON, "json", false, "print the table as JSON")
	complete(c, "methods", "token", "all")
	return c
}

type demoOptions struct {
	devices int
	methods string // token, all
	models  bool
	asJSON  bool
}

// demoResult is one line of the table.
type demoResult struct {
	Step string `json:"step"`
	OK   bool   `json:"ok"`
	// Skipped: what the step needs is not on this machine.
	Skipped bool    `json:"skipped,omitempty"`
	Result  string  `json:"result"`
	MS      float64 `json:"ms"`
}

// demoSkip is why a step was not done.
type demoSkip string

func (s demoSkip) Error() string { return string(s) }

// demoNamed is a step of the demo: it tells what it saw, or what was wrong.
type demoNamed struct {
	name string
	do   func(context.Context) (string, error)
}

// demo is one run.
type demo struct {
	app      *app
	server   *server.Server
	admin    *sdk.Admin
	roots    *x509.CertPool
	broker   string
	devices  []*demoDevice
	revoked  *x509.Certificate
	issuing  *x509.Certificate
	uplink   chan string
	results  []demoResult
	progress printer
	// Of --models.
	secret     string // meter-1's
	pair       []*sdk.Identity
	hookSecret config.Secret
	// ahead is by how many nanoseconds the server's clock is ahead of everybody's.
	ahead atomic.Int64
}

func (a *app) demo(ctx context.Context, o demoOptions) (err error) {
	dir, err := os.MkdirTemp("", "countersign-demo-")
	if err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &demo{app: a, progress: a.stderr(), uplink: make(chan string, o.devices)}
	now := func() time.Time { return a.now().Add(time.Duration(d.ahead.Load())) }
	cfg := config.Dev(dir, true)
	if o.models {
		if err := modelsConfig(&cfg); err != nil {
			return err
		}
		d.hookSecret = cfg.Hooks[0].Secret
	}
	srv, err := server.New(ctx, cfg, server.Options{Now: now, Log: slog.New(slog.DiscardHandler), Dev: true})
	if err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Run(ctx) }()
	defer func() { cancel(); err = errors.Join(err, <-served) }()

	d.server, d.admin = srv, sdk.Local(srv.Endpoints().Socket)
	if err := d.prepare(ctx, o.devices); err != nil {
		return err
	}
	steps := d.steps()
	if o.methods == "all" {
		steps = append(steps, d.methodSteps()...)
	}
	if o.models {
		steps = append(steps, d.modelSteps()...)
	}
	failed := false
	for _, step := range append(steps, demoNamed{"event log, verified", d.log}) {
		ok := d.run(ctx, step.name, step.do)
		failed = failed || !ok
		if !ok && len(d.devices) < o.devices { // nothing after this can work
			break
		}
	}
	for _, dev := range d.devices {
		dev.leave()
	}
	if err := d.report(o.asJSON); err != nil {
		return err
	}
	if failed {
		return errors.New("a step did not do what it says")
	}
	return nil
}

// steps are those of every demo.
func (d *demo) steps() []demoNamed {
	return []demoNamed{
		{"enroll over EST, keys made by the devices", d.enroll},
		{"connect over MQTT 5 with mutual TLS", d.connect},
		{"publish up, receive down", d.talk},
		{"renew a third of them", d.renew},
		{"suspend one, then reactivate it", d.suspend},
		{"revoke one that is connected", d.revoke},
		{"clone one: both renew, both connect", d.clone},
		{"CRL, read by another parser", d.crl},
		{"OCSP answer", d.ocsp},
	}
}

func (d *demo) prepare(ctx context.Context, n int) error {
	ends := d.server.Endpoints()
	pem, err := os.ReadFile(ends.Roots)
	if err != nil {
		return fmt.Errorf("read the roots: %w", err)
	}
	d.roots = x509.NewCertPool()
	d.roots.AppendCertsFromPEM(pem)
	u, err := url.Parse(ends.MQTT)
	if err != nil {
		return fmt.Errorf("read the MQTT address: %w", err)
	}
	d.broker = u.Host
	for _, a := range d.server.Authorities() {
		if a.Parent != "" {
			d.issuing = a.Certificate
		}
	}
	d.progress.linef("countersign demo: a server on a temporary folder, %d devices on loopback", n)
	for range n {
		d.devices = append(d.devices, &demoDevice{broker: d.broker})
	}
	return d.server.Subscribe(ctx, "devices/+/up/#", func(_ string, payload []byte) {
		select {
		case d.uplink <- string(payload):
		case <-ctx.Done(): // it is not waited for any more
		}
	})
}

// run does one step and notes how it went.
func (d *demo) run(ctx context.Context, name string, do func(context.Context) (string, error)) bool {
	ctx, cancel := context.WithTimeout(ctx, demoStep)
	defer cancel()
	begin := d.app.now()
	result, err := do(ctx)
	took := d.app.now().Sub(begin)
	r := demoResult{Step: name, OK: err == nil, Result: result, MS: float64(took.Microseconds()) / 1000}
	mark := d.progress.green("ok  ")
	if why, skip := errors.AsType[demoSkip](err); skip {
		r.OK, r.Skipped, r.Result = true, true, "skipped: "+string(why)
		mark = d.progress.yellow("skip")
	} else if err != nil {
		r.Result = err.Error()
		mark = d.progress.red("FAIL")
	}
	d.results = append(d.results, r)
	d.progress.linef("  %s  %s: %s", mark, name, printable(r.Result))
	return r.OK
}

func (d *demo) report(asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(d.app.out)
		enc.SetIndent("", "  ")
		return enc.Encode(d.results)
	}
	w := tabwriter.NewWriter(d.app.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "STEP\tOK\tTIME\tRESULT") // the writer keeps its error for Flush
	for _, r := range d.results {
		ok := "yes"
		switch {
		case r.Skipped:
			ok = "-"
		case !r.OK:
			ok = "NO"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%.0f ms\t%s\n", r.Step, ok, r.MS, printable(r.Result))
	}
	return w.Flush()
}

// each acts on some devices at once.
func (d *demo) each(ctx context.Context, devices []*demoDevice, do func(context.Context, int, *demoDevice) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(demoWorkers)
	for i, dev := range devices {
		g.Go(func() error { return do(ctx, i, dev) })
	}
	return g.Wait()
}

func (d *demo) enroll(ctx context.Context) (string, error) {
	token, err := d.admin.CreateToken(ctx, api.NewToken{Fleet: "default", Uses: len(d.devices), TTLSeconds: 600})
	if err != nil {
		return "", err
	}
	begin := d.app.now()
	err = d.each(ctx, d.devices, func(ctx context.Context, i int, dev *demoDevice) error {
		id, err := sdk.Enroll(ctx, sdk.Enrollment{
			Server: d.server.Endpoints().Enroll, Roots: d.roots, Device: fmt.Sprintf("greenhouse-%d", i+1), Token: token.Secret,
		})
		dev.Identity = id
		return err
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d devices, %.0f per second, each answer after its record was on disk", len(d.devices), float64(len(d.devices))/d.app.now().Sub(begin).Seconds()), nil
}

func (d *demo) connect(ctx context.Context) (string, error) {
	err := d.each(ctx, d.devices, func(ctx context.Context, _ int, dev *demoDevice) error { return dev.connect(ctx) })
	if err != nil {
		return "", err
	}
	if n := len(d.server.Sessions()); n != len(d.devices) {
		return "", fmt.Errorf("%d sessions are live, want %d", n, len(d.devices))
	}
	return fmt.Sprintf("%d sessions, each limited to its own topics", len(d.devices)), nil
}

func (d *demo) talk(ctx context.Context) (string, error) {
	err := d.each(ctx, d.devices, func(ctx context.Context, _ int, dev *demoDevice) error {
		if err := dev.publish(ctx, "from "+dev.Device()); err != nil {
			return err
		}
		if err := d.server.Publish(ctx, "devices/"+dev.Device()+"/down/hello", []byte("to "+dev.Device())); err != nil {
			return err
		}
		text, err := dev.receive(ctx)
		if err != nil || text != "to "+dev.Device() {
			return fmt.Errorf("%s received %q: %w", dev.Device(), text, err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	heard := map[string]bool{}
	for range d.devices {
		select {
		case text := <-d.uplink:
			heard[text] = true
		case <-ctx.Done():
			return "", fmt.Errorf("heard %d of %d devices: %w", len(heard), len(d.devices), ctx.Err())
		}
	}
	if len(heard) != len(d.devices) {
		return "", fmt.Errorf("heard %d different devices, want %d", len(heard), len(d.devices))
	}
	return fmt.Sprintf("%d messages up, %d down", len(heard), len(d.devices)), nil
}

func (d *demo) renew(ctx context.Context) (string, error) {
	third := d.devices[:len(d.devices)/3]
	err := d.each(ctx, third, func(ctx context.Context, _ int, dev *demoDevice) error {
		old := fmt.Sprintf("%x", dev.Certificate().SerialNumber)
		if err := dev.Renew(ctx); err != nil {
			return err
		}
		dev.leave()
		if err := dev.connect(ctx); err != nil { // the first use: the old one is superseded from now
			return err
		}
		cert, err := d.admin.Certificate(ctx, old)
		if err != nil {
			return err
		}
		if cert.State != "superseded" {
			return fmt.Errorf("the old certificate of %s is %s, want superseded", dev.Device(), cert.State)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d devices on new keys; the old certificates are superseded and accepted for the overlap", len(third)), nil
}

func (d *demo) suspend(ctx context.Context) (string, error) {
	dev := d.devices[len(d.devices)-1]
	if _, err := d.admin.Suspend(ctx, dev.Device(), api.Act{Note: "demo"}); err != nil {
		return "", err
	}
	if _, err := dev.end(ctx); err != nil {
		return "", err
	}
	no, err := d.refusedConnect(ctx, dev)
	if err != nil {
		return "", err
	}
	if _, err := d.admin.Reactivate(ctx, dev.Device(), api.Act{Note: "demo"}); err != nil {
		return "", err
	}
	if err := dev.connect(ctx); err != nil {
		return "", fmt.Errorf("connect after reactivation: %w", err)
	}
	return fmt.Sprintf("%s cut off, reconnect refused (%s), back with the same certificate", dev.Device(), no.reason), nil
}

// refusedConnect expects the server to refuse the device and gives how.
func (d *demo) refusedConnect(ctx context.Context, dev *demoDevice) (*refusal, error) {
	err := dev.connect(ctx)
	var no *refusal
	if !errors.As(err, &no) {
		return nil, fmt.Errorf("the reconnect of %s was not refused: %w", dev.Device(), err)
	}
	return no, nil
}

func (d *demo) revoke(ctx context.Context) (string, error) {
	dev := d.devices[len(d.devices)-2]
	d.revoked = dev.Certificate()
	cut, err := d.admin.Revoke(ctx, dev.Device(), api.Revoke{Reason: "keyCompromise", Note: "demo"})
	if err != nil {
		return "", err
	}
	end, err := dev.end(ctx)
	if err != nil {
		return "", err
	}
	if end.code != 0x98 {
		return "", fmt.Errorf("%s was dropped with reason code 0x%02x (%s), want 0x98", dev.Device(), end.code, end.reason)
	}
	no, err := d.refusedConnect(ctx, dev)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: %d session closed %.1f ms after the record; DISCONNECT 0x98 (%s); reconnect refused 0x%02x: %s",
		dev.Device(), cut.Sessions, float64(cut.CutMicros)/1000, end.reason, no.code, no.reason), nil
}

func (d *demo) clone(ctx context.Context) (string, error) {
	dev := d.devices[len(d.devices)-3]
	dev.leave()
	thief := &demoDevice{Identity: dev.Copy(), broker: d.broker}
	if err := dev.Renew(ctx); err != nil {
		return "", fmt.Errorf("the device's renewal: %w", err)
	}
	if err := thief.Renew(ctx); err != nil {
		return "", fmt.Errorf("the clone's renewal, which nothing gives away yet: %w", err)
	}
	var wg sync.WaitGroup
	for _, holder := range []*demoDevice{dev, thief} {
		wg.Go(func() { _ = holder.connect(ctx) }) // one may get in first; none may stay
	}
	wg.Wait()
	for _, holder := range []*demoDevice{dev, thief} {
		if holder.session() != nil {
			if _, err := holder.end(ctx); err != nil {
				return "", fmt.Errorf("a holder of the cloned identity stays connected: %w", err)
			}
		}
		if _, err := d.refusedConnect(ctx, holder); err != nil {
			return "", err
		}
	}
	for e, err := range d.admin.DeviceEvents(ctx, dev.Device(), api.Order{}) {
		if err != nil {
			return "", err
		}
		if e.Type == "finding.fork" {
			return fmt.Sprintf("%s suspended, device and clone both refused; %s: %s", dev.Device(), e.Severity, e.Reason), nil
		}
	}
	return "", errors.New("no alert was raised")
}

func (d *demo) status() *status.Client {
	return &status.Client{HTTP: &http.Client{Timeout: demoStep}, Now: d.app.now}
}

func (d *demo) crl(ctx context.Context) (string, error) {
	list, err := d.status().CRL(ctx, d.revoked.CRLDistributionPoints[0], d.issuing)
	if err != nil {
		return "", err
	}
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(d.revoked.SerialNumber) == 0 && e.ReasonCode == 1 {
			return fmt.Sprintf("CRL #%s, %d entries, signature good, lists the revoked certificate with keyCompromise", list.Number, len(list.RevokedCertificateEntries)), nil
		}
	}
	return "", fmt.Errorf("CRL #%s does not list the revoked certificate", list.Number)
}

func (d *demo) ocsp(ctx context.Context) (string, error) {
	answer, err := d.status().OCSP(ctx, d.revoked.OCSPServer[0], d.revoked, d.issuing)
	if err != nil {
		return "", err
	}
	if answer.Status != ocsp.Revoked || answer.RevocationReason != ocsp.KeyCompromise {
		return "", fmt.Errorf("OCSP says status %d, reason %d of the revoked certificate", answer.Status, answer.RevocationReason)
	}
	good := d.devices[len(d.devices)-1].Certificate()
	if answer, err = d.status().OCSP(ctx, good.OCSPServer[0], good, d.issuing); err != nil {
		return "", err
	}
	if answer.Status != ocsp.Good {
		return "", fmt.Errorf("OCSP says status %d of a good certificate", answer.Status)
	}
	return "revoked (keyCompromise) for the one, good for another", nil
}

func (d *demo) log(ctx context.Context) (string, error) {
	v, err := d.admin.VerifyLog(ctx)
	if err != nil {
		return "", err
	}
	if !v.Intact {
		return "", fmt.Errorf("the chain is broken at event %d: %s", v.BadSeq, v.Reason)
	}
	return fmt.Sprintf("%d events, hash chain intact", v.Events), nil
}
