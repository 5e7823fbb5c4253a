// Package demo shows the life of some devices against a server of its own: enroll, connect,
// renew, suspend, revoke, catch a clone. Each step checks what it claims.
package demo

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/server"
	"github.com/countersign-iot/countersign/simulate/device"
	"github.com/countersign-iot/countersign/status"
)

const (
	// MinDevices is one for each story, and some that nothing happens to.
	MinDevices = 6
	// MaxDevices bounds the sessions: each has goroutines of this process.
	MaxDevices = 2000
	// workers is how many devices act at once; two cores are busy with four.
	workers = 4
	// stepTime bounds each step: one that hangs is a failure, not a long demo.
	stepTime = 2 * time.Minute
)

// Options are what a demonstration shows.
type Options struct {
	Devices int  // MinDevices to MaxDevices
	Methods bool // another device for each way to a certificate
	Models  bool // the models of authentication, and what comes of guessing
	Now     func() time.Time
	// Progress is called as each step ends: a person watches the demo, which takes
	// half a minute.
	Progress func(Result)
}

// Result is one line of the table.
type Result struct {
	Step string `json:"step"`
	OK   bool   `json:"ok"`
	// Skipped: what the step needs is not on this machine.
	Skipped bool    `json:"skipped,omitempty"`
	Result  string  `json:"result"`
	MS      float64 `json:"ms"`
}

// skip is why a step was not done.
type skip string

func (s skip) Error() string { return string(s) }

// step is a step of the demo: it returns what it saw, or what was wrong.
type step struct {
	name string
	do   func(context.Context) (string, error)
}

// demo is one run.
type demo struct {
	now      func() time.Time
	progress func(Result)
	server   *server.Server
	admin    *sdk.Admin
	roots    *x509.CertPool
	broker   device.Broker
	devices  []*device.Client
	revoked  *x509.Certificate
	issuing  *x509.Certificate
	uplink   chan string
	results  []Result
	// Of Options.Models.
	secret     string // meter-1's
	pair       []*sdk.Identity
	hookSecret config.Secret
	// ahead is by how many nanoseconds the server's clock is ahead of everybody's.
	ahead atomic.Int64
}

// Run starts a server on a temporary folder, plays every step against it and returns
// how each went. A step that failed is no error.
func Run(ctx context.Context, o Options) (results []Result, err error) {
	dir, err := os.MkdirTemp("", "countersign-demo-")
	if err != nil {
		return nil, fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &demo{now: o.Now, progress: o.Progress, uplink: make(chan string, o.Devices)}
	now := func() time.Time { return o.Now().Add(time.Duration(d.ahead.Load())) }
	cfg := config.Dev(dir, true)
	if o.Models {
		if err := modelsConfig(&cfg); err != nil {
			return nil, err
		}
		d.hookSecret = cfg.Hooks[0].Secret
	}
	srv, err := server.New(ctx, cfg, server.Options{Now: now, Log: slog.New(slog.DiscardHandler), Dev: true})
	if err != nil {
		return nil, fmt.Errorf("start the server: %w", err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Run(ctx) }()
	defer func() { cancel(); err = errors.Join(err, <-served) }()

	d.server, d.admin = srv, sdk.Local(srv.Endpoints().Socket)
	if err := d.prepare(ctx, o.Devices); err != nil {
		return nil, err
	}
	d.play(ctx, o)
	return d.results, nil
}

// play does the steps, one after the other.
func (d *demo) play(ctx context.Context, o Options) {
	steps := d.steps()
	if o.Models {
		steps = append(steps, d.modelSteps()...)
	}
	if o.Methods { // last: one of them moves the server's clock
		steps = append(steps, d.methodSteps()...)
	}
	for i, s := range append(steps, step{"event log, verified", d.log}) {
		if ok := d.run(ctx, s); !ok && i == 0 { // without devices nothing after this can work
			break
		}
	}
	for _, dev := range d.devices {
		dev.Leave()
	}
}

// steps are those of every demo.
func (d *demo) steps() []step {
	return []step{
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
	if d.broker, err = device.At(ends.MQTT, d.roots); err != nil {
		return err
	}
	for _, a := range d.server.Authorities() {
		if a.Parent != "" {
			d.issuing = a.Certificate
		}
	}
	for range n {
		d.devices = append(d.devices, &device.Client{Broker: d.broker})
	}
	return d.server.Subscribe(ctx, "devices/+/up/#", func(_ string, payload []byte) {
		select {
		case d.uplink <- string(payload):
		case <-ctx.Done(): // it is not waited for any more
		}
	})
}

// run does one step, notes how it went and reports whether it succeeded.
func (d *demo) run(ctx context.Context, s step) bool {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	begin := d.now()
	result, err := s.do(ctx)
	took := d.now().Sub(begin)
	r := Result{Step: s.name, OK: err == nil, Result: result, MS: float64(took.Microseconds()) / 1000}
	if why, skipped := errors.AsType[skip](err); skipped {
		r.OK, r.Skipped, r.Result = true, true, "skipped: "+string(why)
	} else if err != nil {
		r.Result = err.Error()
	}
	d.results = append(d.results, r)
	d.progress(r)
	return r.OK
}

// each acts on some devices at once.
func each(ctx context.Context, devices []*device.Client, do func(context.Context, int, *device.Client) error) error {
	return device.Each(ctx, workers, devices, do)
}

func (d *demo) enroll(ctx context.Context) (string, error) {
	token, err := d.admin.CreateToken(ctx, api.NewToken{Fleet: "default", Uses: len(d.devices), TTLSeconds: 600})
	if err != nil {
		return "", err
	}
	begin := d.now()
	err = each(ctx, d.devices, func(ctx context.Context, i int, dev *device.Client) error {
		id, err := sdk.Enroll(ctx, sdk.Enrollment{
			Server: d.server.Endpoints().Enroll, Roots: d.roots, Device: fmt.Sprintf("greenhouse-%d", i+1), Token: token.Secret,
		})
		dev.Identity = id
		return err
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d devices, %.0f per second, each answer after its record was on disk", len(d.devices), float64(len(d.devices))/d.now().Sub(begin).Seconds()), nil
}

func (d *demo) connect(ctx context.Context) (string, error) {
	err := each(ctx, d.devices, func(ctx context.Context, _ int, dev *device.Client) error { return connect(ctx, dev) })
	if err != nil {
		return "", err
	}
	if n := len(d.server.Sessions()); n != len(d.devices) {
		return "", fmt.Errorf("%d sessions are live, want %d", n, len(d.devices))
	}
	return fmt.Sprintf("%d sessions, each limited to its own topics", len(d.devices)), nil
}

func (d *demo) talk(ctx context.Context) (string, error) {
	err := each(ctx, d.devices, func(ctx context.Context, _ int, dev *device.Client) error {
		if err := dev.Session().Publish(ctx, dev.Topic("up/hello"), "from "+dev.Device()); err != nil {
			return err
		}
		if err := d.server.Publish(ctx, dev.Topic("down/hello"), []byte("to "+dev.Device())); err != nil {
			return err
		}
		text, err := dev.Session().Receive(ctx)
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
	err := each(ctx, third, func(ctx context.Context, _ int, dev *device.Client) error {
		old := fmt.Sprintf("%x", dev.Certificate().SerialNumber)
		if err := dev.Renew(ctx); err != nil {
			return err
		}
		dev.Leave()
		if err := connect(ctx, dev); err != nil { // the first use: the old one is superseded from now
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
	if _, err := dev.Session().End(ctx); err != nil {
		return "", err
	}
	no, err := refusedConnect(ctx, dev)
	if err != nil {
		return "", err
	}
	if _, err := d.admin.Reactivate(ctx, dev.Device(), api.Act{Note: "demo"}); err != nil {
		return "", err
	}
	if err := connect(ctx, dev); err != nil {
		return "", fmt.Errorf("connect after reactivation: %w", err)
	}
	return fmt.Sprintf("%s cut off, reconnect refused (%s), back with the same certificate", dev.Device(), no.Reason), nil
}

// connect opens a session and subscribes to what is sent to the device.
func connect(ctx context.Context, dev *device.Client) error {
	s, err := dev.Connect(ctx)
	if err != nil {
		return err
	}
	return s.Subscribe(ctx, dev.Topic("down/#"))
}

// refusedConnect expects the server to refuse the device and returns how.
func refusedConnect(ctx context.Context, dev *device.Client) (*device.Refusal, error) {
	err := connect(ctx, dev)
	var no *device.Refusal
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
	end, err := dev.Session().End(ctx)
	if err != nil {
		return "", err
	}
	if end.Code != 0x98 {
		return "", fmt.Errorf("%s was dropped with reason code 0x%02x (%s), want 0x98", dev.Device(), end.Code, end.Reason)
	}
	no, err := refusedConnect(ctx, dev)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: %d session closed %.1f ms after the record; DISCONNECT 0x98 (%s); reconnect refused 0x%02x: %s",
		dev.Device(), cut.Sessions, float64(cut.CutMicros)/1000, end.Reason, no.Code, no.Reason), nil
}

func (d *demo) clone(ctx context.Context) (string, error) {
	dev := d.devices[len(d.devices)-3]
	dev.Leave()
	thief := &device.Client{Identity: dev.Copy(), Broker: d.broker}
	if err := dev.Renew(ctx); err != nil {
		return "", fmt.Errorf("the device's renewal: %w", err)
	}
	if err := thief.Renew(ctx); err != nil {
		return "", fmt.Errorf("the clone's renewal, which nothing shows yet: %w", err)
	}
	var wg sync.WaitGroup
	for _, holder := range []*device.Client{dev, thief} {
		wg.Go(func() { _ = connect(ctx, holder) }) // one may get in first; none may stay
	}
	wg.Wait()
	for _, holder := range []*device.Client{dev, thief} {
		if holder.Session() != nil {
			if _, err := holder.Session().End(ctx); err != nil {
				return "", fmt.Errorf("a holder of the cloned identity stays connected: %w", err)
			}
		}
		if _, err := refusedConnect(ctx, holder); err != nil {
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

func relyingParty(now func() time.Time) *status.Client {
	return &status.Client{HTTP: &http.Client{Timeout: stepTime}, Now: now}
}

func (d *demo) crl(ctx context.Context) (string, error) {
	list, err := relyingParty(d.now).CRL(ctx, d.revoked.CRLDistributionPoints[0], d.issuing)
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
	answer, err := relyingParty(d.now).OCSP(ctx, d.revoked.OCSPServer[0], d.revoked, d.issuing)
	if err != nil {
		return "", err
	}
	if answer.Status != ocsp.Revoked || answer.RevocationReason != ocsp.KeyCompromise {
		return "", fmt.Errorf("OCSP says status %d, reason %d of the revoked certificate", answer.Status, answer.RevocationReason)
	}
	good := d.devices[len(d.devices)-1].Certificate()
	if answer, err = relyingParty(d.now).OCSP(ctx, good.OCSPServer[0], good, d.issuing); err != nil {
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
