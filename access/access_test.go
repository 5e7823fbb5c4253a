package access_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"log/slog"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/policy"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// certificate returns a certificate with a serial and a new key.
func certificate(t *testing.T, serial int64) *x509.Certificate {
	t.Helper()
	key := kit.Key(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "pump-1"}, NotBefore: start, NotAfter: start.Add(time.Hour)}
	return kit.Must(x509.ParseCertificate(kit.Must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))))
}

// facts are the record of one device and its certificate.
type facts struct {
	device      countersign.DeviceState
	why         string
	cert        countersign.CertState
	reason      countersign.ReasonCode
	replaced    bool
	from, to    time.Duration // validity, from start
	acceptUntil time.Duration
	revokedAt   time.Duration
	authority   string
}

// good is an active device with a valid certificate.
func good() facts {
	return facts{device: countersign.DeviceActive, cert: countersign.CertActive, from: -time.Hour, to: 24 * time.Hour, authority: "active"}
}

// record writes the facts about device pump-1 and its certificate to the database.
func (f facts) record(t *testing.T, db *store.DB, cert *x509.Certificate) {
	t.Helper()
	sum := sha256.Sum256(cert.Raw)
	at := func(d time.Duration) int64 { return store.Micros(start.Add(d)) }
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		for _, q := range []struct {
			text string
			args []any
		}{
			{`DELETE FROM certificate`, nil},
			{`DELETE FROM device`, nil},
			{`DELETE FROM fleet`, nil},
			{`DELETE FROM profile`, nil},
			{`DELETE FROM authority`, nil},
			{`INSERT INTO authority (id, kind, parent, certificate, key_uri, state, created_at) VALUES ('issuing', 'issuing', '', $1, '', $2, 0)`, []any{[]byte{}, f.authority}},
			{`INSERT INTO profile (name, spec, created_at, updated_at) VALUES ('device', '{}', 0, 0)`, nil},
			{`INSERT INTO fleet (name, issuer, profile, methods, overlap, trust_domain, created_at, updated_at) VALUES ('pumps', 'issuing', 'device', '[]', 0, '', 0, 0)`, nil},
			{`INSERT INTO device (id, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
				VALUES ('pump-1', 'pumps', $1, $2, '', '', 0, 0, 0, 0, '')`, []any{string(f.device), f.why}},
			{
				`INSERT INTO certificate (serial, issuer, device, fleet, profile, state, held_from, reason, replaced, predecessor, evidence,
				method, key_hash, fingerprint, not_before, not_after, issued_at, used_at, accept_until, revoked_at, shard, der)
				VALUES ($1, 'issuing', 'pump-1', 'pumps', 'device', $2, '', $3, $4, '', '', '', '', $5, $6, $7, 0, 0, $8, $9, 0, $10)`,
				[]any{
					string(countersign.SerialOf(cert.SerialNumber)), string(f.cert), int(f.reason), f.replaced, hex.EncodeToString(sum[:]),
					at(f.from), at(f.to), at(f.acceptUntil), at(f.revokedAt),
					[]byte{},
				},
			},
		} {
			if _, err := tx.Exec(ctx, q.text, q.args...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// decider returns a Decider as a server has it, on a database without any CA key.
func decider(t *testing.T, db *store.DB, now func() time.Time) *access.Decider {
	t.Helper()
	sealer := kit.Must((&keystore.Store{Dir: t.TempDir()}).MakeSealer("file:seal.key"))
	events := &event.Log{DB: db, Now: now, Log: slog.New(slog.DiscardHandler)}
	return kit.Must(access.New(events, nil, &registry.Registry{DB: db, Now: now}, sealer))
}

func desk(t *testing.T, db *store.DB) *access.Decider {
	t.Helper()
	return decider(t, db, func() time.Time { return start })
}

// exec runs one statement.
func exec(t *testing.T, db *store.DB, q string, args ...any) {
	t.Helper()
	err := db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, q, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func connect(cert *x509.Certificate) countersign.Connection {
	return countersign.Connection{Gateway: "mqtt", Protocol: "MQTT 5", ClientID: "pump-1", Peer: []*x509.Certificate{cert}}
}

// TestDecide has a row for each reason to refuse a certificate and for each way to connect.
func TestDecide(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		cert := certificate(t, 0xa1)
		for _, tt := range []struct {
			name   string
			change func(*facts)
			code   countersign.Code
			reason string // part of it
			end    time.Duration
			check  func(access.Decision) bool
		}{
			{name: "active", end: 24 * time.Hour},
			{
				name: "first use", change: func(f *facts) { f.cert = countersign.CertPending }, end: 24 * time.Hour,
				check: func(d access.Decision) bool { return d.FirstUse },
			},
			{
				name: "superseded, within the overlap", end: time.Hour,
				change: func(f *facts) { f.cert, f.acceptUntil = countersign.CertSuperseded, time.Hour },
			},
			{
				name: "superseded, at the end of the overlap", end: 0,
				change: func(f *facts) { f.cert, f.acceptUntil = countersign.CertSuperseded, 0 },
			},
			{
				name: "superseded, overlap longer than the certificate", end: 24 * time.Hour,
				change: func(f *facts) { f.cert, f.acceptUntil = countersign.CertSuperseded, 48*time.Hour },
			},
			{
				name: "superseded, after the overlap", code: countersign.CertIsRevoked, reason: "overlap ended 5 s ago",
				change: func(f *facts) { f.cert, f.acceptUntil = countersign.CertSuperseded, -5*time.Second },
			},
			{name: "device retired", code: countersign.DeviceGone, reason: "retired", change: func(f *facts) { f.device = countersign.DeviceRetired }},
			{
				name: "device suspended", code: countersign.DeviceOnHold, reason: "the device is suspended: stolen",
				change: func(f *facts) { f.device, f.why = countersign.DeviceSuspended, "stolen" },
			},
			{
				name: "device suspended and certificate held", code: countersign.DeviceOnHold, reason: "the device is suspended",
				change: func(f *facts) { f.device, f.cert = countersign.DeviceSuspended, countersign.CertHeld },
			},
			{name: "device registered", code: countersign.NotAllowed, reason: "registered", change: func(f *facts) { f.device = countersign.DeviceRegistered }},
			{name: "device awaits approval", code: countersign.NotAllowed, reason: "pending", change: func(f *facts) { f.device = countersign.DevicePending }},
			{name: "device in a state of the future", code: countersign.NotAllowed, reason: "parked", change: func(f *facts) { f.device = "parked" }},
			{
				name: "revoked", code: countersign.CertIsRevoked, reason: "revoked (keyCompromise) 3 min ago",
				change: func(f *facts) {
					f.cert, f.reason, f.revokedAt = countersign.CertRevoked, countersign.KeyCompromise, -3*time.Minute
				},
			},
			{
				name: "revoked, device registered again", code: countersign.CertIsRevoked, reason: "revoked",
				change: func(f *facts) { f.device, f.cert = countersign.DeviceRegistered, countersign.CertRevoked },
			},
			{
				name: "replaced", code: countersign.CertIsRevoked, reason: "superseded",
				change: func(f *facts) { f.cert, f.reason, f.replaced = countersign.CertRevoked, countersign.Superseded, true },
				check:  func(d access.Decision) bool { return d.Replaced },
			},
			{name: "held", code: countersign.CertIsHeld, reason: "hold", change: func(f *facts) { f.cert = countersign.CertHeld }},
			{name: "authority retired", code: countersign.CertIsRevoked, reason: "authority", change: func(f *facts) { f.authority = "retired" }},
			{name: "last moment", change: func(f *facts) { f.to = 0 }, end: 0},
			{name: "expired", code: countersign.CertExpired, reason: "expired 2 d ago", change: func(f *facts) { f.to = -50 * time.Hour }},
			{name: "not yet valid, within the skew", change: func(f *facts) { f.from = time.Minute }, end: 24 * time.Hour},
			{name: "not yet valid", code: countersign.CertNotYetValid, reason: "not yet", change: func(f *facts) { f.from = time.Minute + time.Second }},
		} {
			f := good()
			if tt.change != nil {
				tt.change(&f)
			}
			f.record(t, db, cert)
			got := desk(t, db).Decide(t.Context(), connect(cert))
			if got.Code != tt.code || got.Allow != (tt.code == "") || !strings.Contains(got.Reason, tt.reason) || got.Allow && got.Reason != "" {
				t.Errorf("%s: got allow %v, %q, %q; want %q, %q", tt.name, got.Allow, got.Code, got.Reason, tt.code, tt.reason)
			}
			want := countersign.CertRef{Issuer: "issuing", Serial: "a1"}
			if !got.Known || got.Device != "pump-1" || got.Fleet != "pumps" || got.Cert != want {
				t.Errorf("%s: got %+v, want what is on record", tt.name, got)
			}
			if got.Allow && !got.NotAfter.Equal(start.Add(tt.end)) {
				t.Errorf("%s: the session ends at %v, want %v", tt.name, got.NotAfter, start.Add(tt.end))
			}
			if tt.check != nil && !tt.check(got) {
				t.Errorf("%s: got %+v", tt.name, got)
			}
			if tt.check == nil && (got.FirstUse || got.Replaced) {
				t.Errorf("%s: got first use %v, replaced %v", tt.name, got.FirstUse, got.Replaced)
			}
			perms, _, _ := policy.Builtin().Permissions(policy.Subject{Kind: policy.Devices, Device: "pump-1", ClientID: "pump-1"})
			if !got.Allow {
				perms = countersign.Permissions{}
			}
			if d := cmp.Diff(perms, got.Permissions); d != "" {
				t.Errorf("%s: permissions (-want +got):\n%s", tt.name, d)
			}
		}
	})
}

func TestDecideKnowsCertificateToTheBit(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		ours, forged, unknown := certificate(t, 0xa1), certificate(t, 0xa1), certificate(t, 0xa2)
		good().record(t, db, ours)
		stranger := access.Decision{Verdict: countersign.Verdict{Code: countersign.CertUnknown}}
		ignore := cmpopts.IgnoreFields(countersign.Verdict{}, "Reason")
		for name, cert := range map[string]*x509.Certificate{"same serial, other key": forged, "unknown serial": unknown} {
			// The verdict shows nothing of the record: the claim of an unknown client is no fact.
			if d := cmp.Diff(stranger, desk(t, db).Decide(t.Context(), connect(cert)), ignore); d != "" {
				t.Errorf("%s (-want +got):\n%s", name, d)
			}
		}
		// Only the leaf counts, because the client chooses the rest of the chain.
		c := connect(ours)
		c.Peer = append(c.Peer, unknown)
		if got := desk(t, db).Decide(t.Context(), c); !got.Allow {
			t.Errorf("with more in the chain: %+v", got)
		}
		c.Peer = []*x509.Certificate{unknown, ours}
		if got := desk(t, db).Decide(t.Context(), c); got.Allow {
			t.Error("admitted by a certificate without proof of its key")
		}
	})
}

func TestDecideWantsCertificate(t *testing.T) {
	got := desk(t, storetest.Open(t)).Decide(t.Context(), countersign.Connection{ClientID: "pump-1", Username: "pump-1"})
	if got.Allow || got.Code != countersign.Unauthenticated || got.Known {
		t.Errorf("got %+v, want unauthenticated", got)
	}
}

// TestOwnCertificatesAreNoDevices presents the server's own certificate.
func TestOwnCertificatesAreNoDevices(t *testing.T) {
	db := storetest.Open(t)
	cert := certificate(t, 0xa1)
	good().record(t, db, cert)
	exec(t, db, `UPDATE certificate SET device = '', profile = 'server'`)
	if got := desk(t, db).Decide(t.Context(), connect(cert)); got.Allow || got.Code != countersign.CertUnknown {
		t.Errorf("got %+v, want certificate_unknown", got)
	}
}

func TestClientIDIsTheDevices(t *testing.T) {
	db := storetest.Open(t)
	cert := certificate(t, 0xa1)
	good().record(t, db, cert)
	exec(t, db, `INSERT INTO device (id, fleet, state, reason, owner, tags, revoked_at, created_at, updated_at, last_seen, last_addr)
			VALUES ('pump-1:b', 'pumps', 'registered', '', '', '', 0, 0, 0, 0, '')`)
	for _, tt := range []struct {
		id    string
		allow bool
	}{
		{"pump-1:b", false}, // another device
		{"pump-1:b:c", true},
		{"", true},
		{"pump-1", true},
		{"pump-1/a", true},
		{"pump-1:a", true},
		{"pump-1/", true},
		{"pump-1:", true},
		{"pump-10", false},
		{"pump-1.a", false},
		{"pump-1-a", false},
		{"pump-1 ", false},
		{"Pump-1", false},
		{"pump-", false},
		{"pump-2", false},
		{"a/pump-1", false},
		{"/pump-1", false},
		{"pump-1\x00", false},
	} {
		c := connect(cert)
		c.ClientID = tt.id
		got := desk(t, db).Decide(t.Context(), c)
		if got.Allow != tt.allow || !tt.allow && got.Code != countersign.SubjectMismatch {
			t.Errorf("client id %q: got %v, %q, want %v", tt.id, got.Allow, got.Code, tt.allow)
		}
	}
}

// TestUnreadableRecordIsNo checks that a client is refused while the record cannot be read.
func TestUnreadableRecordIsNo(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		cert := certificate(t, 0xa1)
		good().record(t, db, cert)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if got := desk(t, db).Decide(ended, connect(cert)); got.Allow || got.Code != countersign.Unavailable || got.Known {
			t.Errorf("out of time: got %+v, want unavailable", got)
		}
		exec(t, db, `ALTER TABLE certificate RENAME TO away`)
		got := desk(t, db).Decide(t.Context(), connect(cert))
		if got.Allow || got.Code != countersign.Unavailable || got.Known || strings.Contains(got.Reason, "away") || strings.Contains(got.Reason, "table") {
			t.Errorf("table gone: got %+v, want unavailable and no inner words", got)
		}
	})
}
