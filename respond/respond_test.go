package respond_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/config"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/respond"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// world is a responder with all that it acts on, on a real database.
type world struct {
	*respond.Responder
	RA       *ra.Authority
	clock    *kit.Clock
	mu       sync.Mutex
	sessions []countersign.Session
}

const (
	cloned = "shared_certificate" // by default an alert
	looked = "probing"            // of low severity
)

func rules() []countersign.Rule {
	return []countersign.Rule{
		{Name: cloned, Severity: countersign.SeverityHigh, Why: "two hold one identity", Do: "suspend it"},
		{Name: looked, Severity: countersign.SeverityLow, Default: []countersign.Mitigation{countersign.MitigateAlert, countersign.MitigateSuspend}},
		{Name: "guessed", Severity: countersign.SeverityHigh, Unproven: true},
		{Name: "noise", Severity: countersign.SeverityInfo, Default: []countersign.Mitigation{countersign.MitigateNote}},
	}
}

// newWorld founds an authority with the fleet default, and runs its log.
func newWorld(t *testing.T, db *store.DB, channels ...config.Channel) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	w := &world{clock: kit.NewClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))}
	keys := &keystore.Store{Dir: t.TempDir()}
	sealer, err := keys.MakeSealer("file:seal.key")
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.Open(t.Context(), ca.Options{DB: db, Keys: keys, Now: w.clock.Now, Log: log, StatusURL: "http://status.example.net"})
	if err != nil {
		t.Fatal(err)
	}
	founding, err := authority.Found(t.Context(), ca.Plan{Name: "Test"})
	if err != nil {
		t.Fatal(err)
	}
	reg := &registry.Registry{DB: db, Now: w.clock.Now}
	write(t, db, func(ctx context.Context, tx *store.Tx) error {
		if err := authority.RecordFounding(ctx, tx, founding); err != nil {
			return err
		}
		return reg.SaveFleet(ctx, tx, countersign.Fleet{
			Name: countersign.DefaultFleet, Issuer: ca.IssuingID, Profile: ca.ProfileDevice, Methods: []countersign.Method{countersign.MethodToken},
		})
	})
	if err := authority.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	events := &event.Log{DB: db, Now: w.clock.Now, Log: log, Node: "test", Cut: w.cut}
	start(t, events.Run)
	w.RA = &ra.Authority{
		DB: db, CA: authority, Registry: reg, Access: kit.Must(access.New(events, authority, reg, sealer)),
		Ledger: &lockout.Ledger{DB: db, Now: w.clock.Now, Log: log, Events: events}, Events: events, Now: w.clock.Now, Log: log, Sealer: sealer,
	}
	w.Responder = w.node(channels...)
	return w
}

// node is another process of the same authority.
func (w *world) node(channels ...config.Channel) *respond.Responder {
	return &respond.Responder{
		DB: w.RA.DB, Registry: w.RA.Registry, Ledger: w.RA.Ledger, Events: w.RA.Events, Devices: w.RA, Now: w.RA.Now, Log: w.RA.Log,
		Sessions: w.live, Rules: rules(), Channels: channels, Host: "authority.example.net",
	}
}

// start runs a loop until the test ends.
func start(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); _ = run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

func each(t *testing.T, run func(t *testing.T, w *world)) {
	t.Helper()
	t.Parallel() // most of a test is waiting for a disk
	storetest.Each(t, func(t *testing.T, db *store.DB) { run(t, newWorld(t, db)) })
}

func write(t *testing.T, db *store.DB, fn func(context.Context, *store.Tx) error) {
	t.Helper()
	if err := db.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// live are the sessions of this node; cut ends them.
func (w *world) live() []countersign.Session {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]countersign.Session(nil), w.sessions...)
}

func (w *world) cut(c countersign.Cut) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var left []countersign.Session
	for _, s := range w.sessions {
		if s.Device == c.Device || c.Cert != (countersign.CertRef{}) && s.Cert == c.Cert {
			n++
			continue
		}
		left = append(left, s)
	}
	w.sessions = left
	return n
}

// enroll makes a device with a certificate and a number of live sessions.
func (w *world) enroll(t *testing.T, id string, sessions int) *x509.Certificate {
	t.Helper()
	var secret string
	write(t, w.RA.DB, func(ctx context.Context, tx *store.Tx) (err error) {
		_, secret, err = w.RA.Registry.CreateToken(ctx, tx, registry.Credential{
			Device: id, Fleet: countersign.DefaultFleet, UsesMax: 1, CreatedBy: countersign.System,
		}, time.Hour)
		return err
	})
	grant, err := w.RA.Enroll(t.Context(), countersign.EnrollRequest{
		CSR: kit.CSR(t, kit.Key(t), id), Evidence: countersign.Evidence{Token: secret}, Door: "test", Remote: netip.MustParseAddrPort("192.0.2.7:4711"),
	})
	if err != nil {
		t.Fatalf("enroll %s: %v", id, err)
	}
	leaf, err := x509.ParseCertificate(grant.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	for range sessions {
		w.mu.Lock()
		w.sessions = append(w.sessions, countersign.Session{
			ID: rand.Text(), Device: id, Fleet: countersign.DefaultFleet, Remote: netip.MustParseAddrPort("192.0.2.7:4711"),
		})
		w.mu.Unlock()
	}
	return leaf
}

// respond sets what the fleet default does on findings.
func (w *world) respond(t *testing.T, respond map[string][]countersign.Mitigation) {
	t.Helper()
	write(t, w.RA.DB, func(ctx context.Context, tx *store.Tx) error {
		f, err := w.RA.Registry.Fleet(ctx, tx, countersign.DefaultFleet)
		if err != nil {
			return err
		}
		f.Rules.Respond = respond
		return w.RA.Registry.SaveFleet(ctx, tx, f)
	})
}

// find hands findings to the responder as a detector does.
func (w *world) find(t *testing.T, list ...countersign.Finding) {
	t.Helper()
	write(t, w.RA.DB, func(ctx context.Context, tx *store.Tx) error { return w.Take(ctx, tx, list) })
}

// clone is a finding about a device.
func clone(id string) countersign.Finding {
	return countersign.Finding{
		Rule: cloned, Severity: countersign.SeverityHigh, Subject: "device:" + id, Device: id, Fleet: countersign.DefaultFleet,
		Remote: "203.0.113.9:5555", Summary: "one certificate in two places", Evidence: map[string]string{"first": "192.0.2.7", "second": "203.0.113.9"},
	}
}

func (w *world) list(t *testing.T, f respond.Filter) []respond.Alert {
	t.Helper()
	list, _, err := w.Alerts(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// one is the only alert of a filter.
func (w *world) one(t *testing.T, f respond.Filter) respond.Alert {
	t.Helper()
	list := w.list(t, f)
	if len(list) != 1 {
		t.Fatalf("alerts of %+v: got %d, want 1", f, len(list))
	}
	return list[0]
}

func (w *world) state(t *testing.T, id string) countersign.DeviceState {
	t.Helper()
	e, err := w.RA.Registry.Device(t.Context(), w.RA.DB, id)
	if err != nil {
		t.Fatal(err)
	}
	return e.State
}

func (w *world) events(t *testing.T, kind countersign.EventType) []countersign.Event {
	t.Helper()
	list, _, err := w.RA.Events.List(t.Context(), event.Filter{Type: kind})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// lines are the timeline's lines of an act with an outcome.
func lines(a respond.Alert, act, outcome string) (n int) {
	for _, l := range a.Timeline {
		if l.Act == act && l.Outcome == outcome {
			n++
		}
	}
	return n
}

var ana = respond.By{By: ra.By{Actor: countersign.OperatorActor("ana"), Via: "test"}, Note: "looked at it"}

func connection(cert *x509.Certificate) countersign.Connection {
	return countersign.Connection{
		Gateway: "mqtt", Remote: netip.MustParseAddrPort("192.0.2.7:4711"), Protocol: "MQTT 5", ClientID: cert.Subject.CommonName,
		Peer: []*x509.Certificate{cert},
	}
}
