package ra_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/lockout"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// world is a desk with all that stands behind it, on a real database.
type world struct {
	*ra.Authority
	clock *kit.Clock

	mu    sync.Mutex
	cuts  []countersign.Cut
	total int // refusals so far, see TestRefusalsOfOneIdentityAreBounded
	// onCut sees the record as it is when sessions are cut.
	onCut func(countersign.Cut)
}

const (
	overlap = 24 * time.Hour
	ttl     = 300 * 24 * time.Hour // of tokens
)

// hookSecret signs what webhooks are asked.
const hookSecret = "a secret of the hook's own, long enough"

var remote = netip.MustParseAddrPort("192.0.2.7:4711")

// newWorld founds an authority with fleets default and other, and runs its log.
func newWorld(t *testing.T, db *store.DB) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	w := &world{clock: kit.NewClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))}
	keys := &keystore.Store{Dir: t.TempDir()}
	sealer, err := keys.MakeSealer("file:seal.key")
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.Open(t.Context(), ca.Options{
		DB: db, Keys: keys, Now: w.clock.Now, Log: log, StatusURL: "http://status.example.net",
	})
	if err != nil {
		t.Fatal(err)
	}
	founding, err := authority.Found(t.Context(), ca.Plan{Name: "Test"})
	if err != nil {
		t.Fatal(err)
	}
	reg := &registry.Registry{DB: db, Now: w.clock.Now}
	write(t, db, func(ctx context.Context, tx *store.Tx) error { return authority.RecordFounding(ctx, tx, founding) })
	if err := authority.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"default", "other"} {
		write(t, db, func(ctx context.Context, tx *store.Tx) error {
			return reg.SaveFleet(ctx, tx, countersign.Fleet{
				Name: name, Issuer: ca.IssuingID, Profile: ca.ProfileDevice, Methods: []countersign.Method{countersign.MethodToken}, Overlap: overlap,
			})
		})
	}
	events := &event.Log{DB: db, Now: w.clock.Now, Log: log, Node: "test", Cut: w.cut}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { _ = events.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	w.Authority = &ra.Authority{
		DB: db, CA: authority, Registry: reg, Access: kit.Must(access.New(events, authority, reg, sealer)), Ledger: &lockout.Ledger{Now: w.clock.Now},
		Events: events, Now: w.clock.Now, Log: log, Sealer: sealer,
		Secret: func(string) ([]byte, error) { return []byte(hookSecret), nil },
	}
	return w
}

// each runs the case in a world on SQLite and in one on PostgreSQL.
func each(t *testing.T, run func(t *testing.T, w *world)) {
	t.Helper()
	storetest.Each(t, func(t *testing.T, db *store.DB) { run(t, newWorld(t, db)) })
}

func (w *world) cut(c countersign.Cut) int {
	if w.onCut != nil {
		w.onCut(c)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cuts = append(w.cuts, c)
	return 1
}

// takeCuts returns the cuts since it was last called. One that is repeated counts
// once: a node that connects to PostgreSQL anew cuts again what it may have missed.
func (w *world) takeCuts() []countersign.Cut {
	w.mu.Lock()
	defer w.mu.Unlock()
	var cuts []countersign.Cut
	for _, c := range w.cuts {
		if !slices.Contains(cuts, c) {
			cuts = append(cuts, c)
		}
	}
	w.cuts = nil
	return cuts
}

func write(t *testing.T, db *store.DB, fn func(context.Context, *store.Tx) error) {
	t.Helper()
	if err := db.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// token makes an enrollment token and gives its secret.
func (w *world) token(t *testing.T, tok registry.Credential) string {
	t.Helper()
	if tok.Fleet == "" {
		tok.Fleet = "default"
	}
	if tok.UsesMax == 0 {
		tok.UsesMax = 1
	}
	var secret string
	write(t, w.DB, func(ctx context.Context, tx *store.Tx) (err error) {
		_, secret, err = w.Registry.CreateToken(ctx, tx, tok, ttl)
		return err
	})
	return secret
}

func enrollment(t kit.TB, key crypto.Signer, cn, secret string) countersign.EnrollRequest {
	t.Helper()
	return countersign.EnrollRequest{CSR: kit.CSR(t, key, cn), Evidence: countersign.Evidence{Token: secret}, Door: "test", Remote: remote}
}

func renewal(t kit.TB, shown *x509.Certificate, key crypto.Signer) countersign.EnrollRequest {
	t.Helper()
	return countersign.EnrollRequest{
		CSR: kit.CSR(t, key, shown.Subject.CommonName), Evidence: countersign.Evidence{Peer: []*x509.Certificate{shown}}, Door: "test", Remote: remote,
	}
}

func leaf(t kit.TB, g *countersign.Grant) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(g.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// enroll gives a device its first certificate. Time passes, as it does between
// any two acts of one device.
func (w *world) enroll(t *testing.T, id string) *x509.Certificate {
	t.Helper()
	g, err := w.Enroll(t.Context(), enrollment(t, kit.Key(t), id, w.token(t, registry.Credential{})))
	if err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(time.Second)
	return leaf(t, g)
}

// renew gives it the next one, for key.
func (w *world) renew(t *testing.T, shown *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	g, err := w.Reenroll(t.Context(), renewal(t, shown, key))
	if err != nil {
		t.Fatal(err)
	}
	w.clock.Advance(time.Second)
	return leaf(t, g)
}

func (w *world) connect(t interface{ Context() context.Context }, cert *x509.Certificate) countersign.Verdict {
	defer w.clock.Advance(time.Second)
	return w.Admit(t.Context(), countersign.Connection{Gateway: "test", Remote: remote, Protocol: "MQTT 5", Peer: []*x509.Certificate{cert}})
}

// use connects and wants to be let in.
func (w *world) use(t *testing.T, cert *x509.Certificate) {
	t.Helper()
	if v := w.connect(t, cert); !v.Allow {
		t.Fatalf("connect: got %s (%s), want to be allowed", v.Code, v.Reason)
	}
}

// active enrolls a device and connects it once.
func (w *world) active(t *testing.T, id string) *x509.Certificate {
	t.Helper()
	cert := w.enroll(t, id)
	w.use(t, cert)
	return cert
}

func (w *world) device(t *testing.T, id string) registry.Entry {
	t.Helper()
	dev, err := w.Registry.Device(t.Context(), w.DB, id)
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

func (w *world) record(t *testing.T, cert *x509.Certificate) countersign.Certificate {
	t.Helper()
	c, err := ca.Shown(t.Context(), w.DB, cert)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ref names a certificate as the record does.
func (w *world) ref(t *testing.T, cert *x509.Certificate) countersign.CertRef {
	t.Helper()
	c := w.record(t, cert)
	return c.Ref()
}

// events lists what is on record, queued events too.
func (w *world) events(t *testing.T, f event.Filter) []countersign.Event {
	t.Helper()
	if err := w.Events.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Limit = 1000
	list, _, err := w.Events.List(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// count counts rows: table and condition.
func (w *world) count(t *testing.T, from string, args ...any) int {
	t.Helper()
	var n int
	if err := w.DB.QueryRow(t.Context(), `SELECT count(*) FROM `+from, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
