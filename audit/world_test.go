package audit_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/detect"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/policies"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

const day = 24 * time.Hour

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// world is an auditor with a founded authority, a fleet and a log, on a real database.
type world struct {
	*audit.Auditor
	clock    *kit.Clock
	ca       *ca.CA
	registry *registry.Registry
	log      *event.Log
	sessions []countersign.Session
	handled  []countersign.Finding
	issuer   *x509.Certificate // signs what devices of the tests hold
	key      *ecdsa.PrivateKey
	serials  int64
}

func newWorld(t testing.TB, db *store.DB) *world {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	w := &world{clock: kit.NewClock(start), serials: 1000}
	var err error
	w.ca, err = ca.Open(t.Context(), ca.Options{
		DB: db, Keys: &keystore.Store{Dir: t.TempDir()}, Now: w.clock.Now, Log: log, StatusURL: "http://status.example.net",
	})
	if err != nil {
		t.Fatal(err)
	}
	founding, err := w.ca.Found(t.Context(), ca.Plan{Name: "Test"})
	if err != nil {
		t.Fatal(err)
	}
	w.registry = &registry.Registry{DB: db, Now: w.clock.Now}
	w.log = &event.Log{DB: db, Now: w.clock.Now, Log: log, Node: "test"}
	w.Auditor = &audit.Auditor{
		DB: db, Now: w.clock.Now, Log: log, Every: day, Node: "test", CA: w.ca, Registry: w.registry, Events: w.log, Verify: w.log.Verify,
		Policies: &policies.Store{DB: db, Now: w.clock.Now}, Operators: &operator.Accounts{DB: db, Now: w.clock.Now, Log: log},
		Sessions: func() []countersign.Session { return w.sessions },
		Handle: func(_ context.Context, tx *store.Tx, list []countersign.Finding) error {
			tx.AfterCommit(func() { w.handled = append(w.handled, list...) })
			return nil
		},
	}
	w.write(t, func(ctx context.Context, tx *store.Tx) error { return w.ca.RecordFounding(ctx, tx, founding) })
	if err := w.ca.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.publish(t)
	w.fleet(t, "default", countersign.Rules{})
	w.issuer, w.key = newCA(t, "Issuer of the tests", nil, nil, 1)
	return w
}

// each runs the case in a world on SQLite and in one on PostgreSQL.
func each(t *testing.T, run func(t *testing.T, w *world)) {
	t.Helper()
	storetest.Each(t, func(t *testing.T, db *store.DB) { run(t, newWorld(t, db)) })
}

func (w *world) write(t testing.TB, fn func(context.Context, *store.Tx) error) {
	t.Helper()
	if err := w.DB.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func (w *world) exec(t testing.TB, q string, args ...any) {
	t.Helper()
	w.write(t, func(ctx context.Context, tx *store.Tx) error {
		n, err := tx.Exec(ctx, q, args...)
		if err == nil && n == 0 {
			err = errors.New("no row was changed")
		}
		return err
	})
}

func (w *world) publish(t testing.TB) {
	t.Helper()
	for _, id := range []string{ca.RootID, ca.IssuingID} {
		if _, err := w.ca.Publish(t.Context(), id, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) seal(t testing.TB) {
	t.Helper()
	for {
		n, err := w.log.Seal(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

func (w *world) fleet(t testing.TB, name string, rules countersign.Rules) {
	t.Helper()
	w.write(t, func(ctx context.Context, tx *store.Tx) error {
		return w.registry.SaveFleet(ctx, tx, countersign.Fleet{
			Name: name, Issuer: ca.IssuingID, Profile: ca.ProfileDevice, Methods: []countersign.Method{countersign.MethodToken}, Overlap: day, Rules: rules,
		})
	})
}

// device is a device as it stands in the record.
type device struct {
	id, fleet, state, owner string
	created, seen           time.Time
}

func (w *world) device(t testing.TB, id string, change ...func(*device)) {
	t.Helper()
	d := device{id: id, fleet: "default", state: "active", owner: "plant", created: w.Now().Add(-day), seen: w.Now().Add(-time.Hour)}
	for _, fn := range change {
		fn(&d)
	}
	w.exec(t, `INSERT INTO device (id, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
		VALUES ($1, $2, $3, '', $4, '{}', 0, $5, $5, $6, '')`, d.id, d.fleet, d.state, d.owner, store.Micros(d.created), store.Micros(d.seen))
}

// certificate is a device's certificate as it stands in the record.
type certificate struct {
	device, state, issuer string
	from, to, issued      time.Time
	pub                   crypto.PublicKey
	parent                *x509.Certificate
	key                   *ecdsa.PrivateKey
}

func (w *world) certificate(t testing.TB, device string, change ...func(*certificate)) *x509.Certificate {
	t.Helper()
	w.serials++
	c := certificate{
		device: device, state: "active", issuer: ca.IssuingID, from: w.Now().Add(-day), to: w.Now().Add(29 * day), issued: w.Now().Add(-day),
		parent: w.issuer, key: w.key,
	}
	for _, fn := range change {
		fn(&c)
	}
	if c.pub == nil {
		c.pub = &kit.Key(t).PublicKey
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(w.serials), Subject: pkix.Name{CommonName: device}, NotBefore: c.from, NotAfter: c.to,
	}, c.parent, c.pub, c.key)
	if err != nil {
		t.Fatal(err)
	}
	cert := parse(t, der)
	sum, spki := sha256.Sum256(der), sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	w.exec(t, `INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence, method,
			key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
		VALUES ($1, $2, $3, (SELECT fleet FROM device WHERE id = $3), '', $4, '', 0, FALSE, '', '', 'token', $5, $6, $7, $8, $9, 0, 0, 0, 0, $10)`,
		string(countersign.SerialOf(cert.SerialNumber)), c.issuer, device, c.state, hex.EncodeToString(spki[:]), hex.EncodeToString(sum[:]),
		store.Micros(c.from), store.Micros(c.to), store.Micros(c.issued), der)
	return cert
}

func (w *world) events(t testing.TB, events ...countersign.Event) {
	t.Helper()
	w.write(t, func(ctx context.Context, tx *store.Tx) error { return w.log.Append(ctx, tx, events...) })
}

// visit is a session of a device: by its certificate, or without one by its secret.
type visit struct {
	id, device, client, remote string
	cert                       *x509.Certificate
	ago                        time.Duration
}

// opened and closed are lines of a gateway about a session.
func (w *world) opened(v visit) countersign.Event {
	e := countersign.Event{
		Type: countersign.SessionOpened, At: w.Now().Add(-v.ago), Device: v.device, Fleet: "default", Remote: v.remote, Via: "mqtt",
		Data: map[string]string{"session": v.id, "client_id": v.client},
	}
	if v.cert != nil {
		e.Cert = countersign.CertRef{Issuer: ca.IssuingID, Serial: countersign.SerialOf(v.cert.SerialNumber)}
	} else {
		e.Data["credential"] = "secret:" + v.device
	}
	return e
}

func (w *world) closed(opened countersign.Event, why string, ago time.Duration) countersign.Event {
	opened.Type, opened.Reason, opened.At = countersign.SessionClosed, why, w.Now().Add(-ago)
	return opened
}

// raised is a finding of a detector about a device's certificate, or its secret.
func (w *world) raised(rule, device string, cert *x509.Certificate, ago time.Duration) countersign.Event {
	e := w.opened(visit{"", device, "", "192.0.2.1:1", cert, ago})
	e.Type, e.Actor, e.Reason = countersign.FindingRaised, countersign.System, "seen in two places"
	i := slices.IndexFunc(detect.Rules(), func(r detect.Rule) bool { return r.Name == rule })
	e.Data = map[string]string{"rule": rule, "severity": string(detect.Rules()[i].Severity), "subject": "device:" + device, "credential": e.Data["credential"]}
	return e
}

// audit runs all checks and gives what they found, as "check reason subject".
func (w *world) audit(t testing.TB, checks ...string) (audit.Run, []string) {
	t.Helper()
	w.seal(t)
	run, err := w.Start(t.Context(), audit.Request{By: "operator:ann", Via: "test", Checks: checks})
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	if run, err = w.Wait(t.Context(), run.ID); err != nil {
		t.Fatalf("Wait: %v", err)
	}
	var lines []string
	f := audit.Filter{Run: run.ID, Limit: 7}
	for {
		list, next, err := w.Findings(t.Context(), f)
		if err != nil {
			t.Fatalf("Findings: %v", err)
		}
		for _, x := range list {
			lines = append(lines, x.Check+" "+x.Reason+" "+x.Subject)
			if x.Summary == "" || x.Severity == "" || x.Evidence == nil {
				t.Errorf("finding %+v lacks its sentence, severity or evidence", x)
			}
			if !slices.Contains(reasonsOf(x.Check), x.Reason) {
				t.Errorf("%s is no reason of %s in the catalog", x.Reason, x.Check)
			}
		}
		if f.After = next; next == "" {
			break
		}
	}
	slices.Sort(lines)
	return run, lines
}

func reasonsOf(check string) []string {
	for _, c := range audit.Checks() {
		if c.Name == check {
			return c.Reasons
		}
	}
	return nil
}

// newCA makes a CA; the nil parent signs itself.
func newCA(t testing.TB, name string, parent *x509.Certificate, by *ecdsa.PrivateKey, serial int64) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := kit.Key(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: start.Add(-400 * day), NotAfter: start.Add(4000 * day),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if parent == nil {
		parent, by = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, der), key
}

func newList(t testing.TB, by *x509.Certificate, key *ecdsa.PrivateKey, until time.Time, revoked ...*x509.Certificate) []byte {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: start.Add(-100 * day), NextUpdate: until}
	for _, c := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: c.SerialNumber, RevocationTime: start.Add(-200 * day), ReasonCode: 1,
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, by, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// register brings an external authority with its lists in.
func (w *world) register(t testing.TB, g ca.Registration) {
	t.Helper()
	g.Override, g.Reason = true, "test"
	w.write(t, func(ctx context.Context, tx *store.Tx) error {
		_, err := w.ca.Register(ctx, tx, g)
		return err
	})
}
