package ca_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

var start = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// house is an authority with its database, keys and clock.
type house struct {
	*ca.CA
	db    *store.DB
	clock *kit.Clock
	keys  string
}

// failer is what a test and a property have in common.
type failer interface {
	kit.TB
	Context() context.Context
}

// process opens the authorities as a new process of the same installation does.
func (h *house) process(t failer) *ca.CA {
	t.Helper()
	return kit.Must(ca.Open(t.Context(), ca.Options{
		DB: h.db, Keys: &keystore.Store{Dir: h.keys}, Now: h.clock.Now,
		Log: slog.New(slog.DiscardHandler), StatusURL: "http://ca.example.net:8090",
	}))
}

func found(t testing.TB, db *store.DB) *house {
	t.Helper()
	h := &house{db: db, clock: kit.NewClock(start), keys: t.TempDir()}
	h.CA = h.process(t)
	f := kit.Must(h.Found(t.Context(), ca.Plan{Name: "Example"}))
	h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.RecordFounding(ctx, tx, f) })
	if err := h.Reload(t.Context()); err != nil {
		t.Fatalf("Reload: %v", err)
	}
	return h
}

func (h *house) write(t failer, fn func(ctx context.Context, tx *store.Tx) error) {
	t.Helper()
	if err := h.db.Write(t.Context(), fn); err != nil {
		t.Fatalf("Write: %v", err)
	}
}

func (h *house) order(t failer, profile, device string) ca.Order {
	t.Helper()
	return ca.Order{
		Profile: kit.Must(ca.ReadProfile(t.Context(), h.db, profile)), Device: device, PublicKey: &kit.Key(t).PublicKey, Method: countersign.MethodToken,
		Fleet: countersign.Fleet{Name: "default", Issuer: ca.IssuingID},
	}
}

// sign plans and signs, and records nothing.
func (h *house) sign(t failer, o ca.Order) *ca.Issued {
	t.Helper()
	return kit.Must(h.Sign(kit.Must(h.Plan(t.Context(), o))))
}

// issue makes and records a certificate.
func (h *house) issue(t failer, profile, device string) countersign.Certificate {
	t.Helper()
	issued := h.sign(t, h.order(t, profile, device))
	h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.Record(ctx, tx, issued) })
	return issued.Certificate
}

func parse(t failer, der []byte) *x509.Certificate {
	t.Helper()
	return kit.Must(x509.ParseCertificate(der))
}

func (h *house) certificateOf(t failer, authority string) *x509.Certificate {
	t.Helper()
	a, err := h.Authority(authority)
	if err != nil {
		t.Fatalf("Authority: %v", err)
	}
	return a.Certificate
}

// openssl runs the program on behalf of a test: it is a peer whose word counts.
func openssl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), kit.Program(t, "openssl"), args...).CombinedOutput()
	return string(out), err
}

func writePEM(t *testing.T, name, kind string, ders ...[]byte) string {
	t.Helper()
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFoundMakesRootAndIssuing(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		h := found(t, db)
		list := h.Authorities()
		if len(list) != 2 || list[0].ID != ca.RootID || list[1].ID != ca.IssuingID {
			t.Fatalf("Authorities: got %v, want root, then issuing", list)
		}
		root, issuing := list[0].Certificate, list[1].Certificate
		if err := root.CheckSignatureFrom(root); err != nil {
			t.Errorf("root: %v", err)
		}
		if err := issuing.CheckSignatureFrom(root); err != nil {
			t.Errorf("issuing: %v", err)
		}
		if root.Subject.CommonName != "Example Root" || issuing.Subject.CommonName != "Example Issuing" {
			t.Errorf("names: got %q and %q", root.Subject, issuing.Subject)
		}
		if !issuing.MaxPathLenZero {
			t.Error("the issuing authority may have authorities below it")
		}
		// Their own certificates are on record like any other.
		for _, c := range []*x509.Certificate{root, issuing} {
			rec, err := ca.Shown(t.Context(), db, c)
			if err != nil || rec.Issuer != ca.RootID || rec.Device != "" {
				t.Errorf("record of %s: got %+v, %v, want one by root for no device", c.Subject, rec, err)
			}
		}
		chain, err := h.Chain(ca.IssuingID)
		if err != nil || len(chain) != 2 || string(chain[0]) != string(issuing.Raw) || string(chain[1]) != string(root.Raw) {
			t.Errorf("Chain: got %d certificates, %v, want issuing and root", len(chain), err)
		}
		if _, err := h.Chain("nobody"); countersign.CodeOf(err) != countersign.NotFound {
			t.Errorf("Chain of nobody: got %v, want not_found", err)
		}
		// Another process finds the same.
		other := h.process(t)
		if got := other.Authorities(); len(got) != 2 || !got[1].Certificate.Equal(issuing) {
			t.Errorf("Authorities after Open: got %v", got)
		}
		profiles, err := ca.Profiles(t.Context(), h.db)
		if err != nil || len(profiles) != 2 || profiles[0].Name != ca.ProfileDevice || profiles[1].Name != ca.ProfileIDevID {
			t.Errorf("Profiles: got %v, %v, want device and idevid", profiles, err)
		}
	})
}

func TestFoundUsesKeysOfInterruptedFounding(t *testing.T) {
	h := &house{db: storetest.Open(t), clock: kit.NewClock(start), keys: t.TempDir()}
	h.CA = h.process(t)
	if _, err := h.Found(t.Context(), ca.Plan{Name: "Example"}); err != nil { // and the process dies
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(h.keys, "keys", "root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	h.CA = h.process(t)
	if list := h.Authorities(); len(list) != 0 {
		t.Fatalf("Authorities: got %v before anything was recorded", list)
	}
	f, err := h.Found(t.Context(), ca.Plan{Name: "Example"})
	if err != nil {
		t.Fatal(err)
	}
	h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.RecordFounding(ctx, tx, f) })
	after, err := os.ReadFile(filepath.Join(h.keys, "keys", "root.pem"))
	if err != nil || string(before) != string(after) {
		t.Errorf("the root key changed (%v)", err)
	}
}

func TestRootKeyWantsItsPassphrase(t *testing.T) {
	h := &house{db: storetest.Open(t), clock: kit.NewClock(start), keys: t.TempDir()}
	open := func(passphrase string) *ca.CA {
		c, err := ca.Open(t.Context(), ca.Options{
			DB: h.db, Keys: &keystore.Store{Dir: h.keys}, Now: h.clock.Now, Log: slog.New(slog.DiscardHandler),
			StatusURL:  "http://ca.example.net:8090",
			Passphrase: func() ([]byte, error) { return []byte(passphrase), nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	h.CA = open("correct horse")
	f, err := h.Found(t.Context(), ca.Plan{Name: "Example"})
	if err != nil {
		t.Fatal(err)
	}
	h.write(t, func(ctx context.Context, tx *store.Tx) error { return h.RecordFounding(ctx, tx, f) })
	for _, tt := range []struct {
		passphrase string
		want       error
	}{{"correct horse", nil}, {"wrong", keystore.ErrPassphraseWrong}, {"", keystore.ErrPassphraseMissing}} {
		_, err := open(tt.passphrase).Publish(t.Context(), ca.RootID, 0)
		if !errors.Is(err, tt.want) {
			t.Errorf("sign with passphrase %q: got %v, want %v", tt.passphrase, err, tt.want)
		}
	}
	// Daily work needs no root key.
	if _, err := open("wrong").Publish(t.Context(), ca.IssuingID, 0); err != nil {
		t.Errorf("issuing authority without the root's passphrase: %v", err)
	}
}

// TestKeyMustBeTheAuthoritys puts another key in the place of the issuing one.
func TestKeyMustBeTheAuthoritys(t *testing.T) {
	h := found(t, storetest.Open(t))
	der, err := x509.MarshalPKCS8PrivateKey(crypto.Signer(kit.Key(t)))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.keys, "keys", "issuing.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.process(t).Publish(t.Context(), ca.IssuingID, 0); !errors.Is(err, ca.ErrOtherKey) {
		t.Errorf("sign with another key: got %v, want a refusal", err)
	}
}

func TestOpenSSLVerifiesEachProfile(t *testing.T) {
	h := found(t, storetest.Open(t))
	key := kit.Key(t)
	server, _, err := h.IssueServer(t.Context(), ca.IssuingID, []string{"ca.example.net", "127.0.0.1", "::1"}, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("d", countersign.MaxDeviceID)
	for _, tt := range []struct {
		name, purpose string
		der           []byte
	}{
		{"device", "sslclient", h.issue(t, ca.ProfileDevice, "pump-1").DER},
		{"long id", "sslclient", h.issue(t, ca.ProfileDevice, long).DER},
		{"idevid", "sslclient", h.issue(t, ca.ProfileIDevID, "pump-1").DER},
		{"server", "sslserver", server[0]},
		{"responder", "ocsphelper", h.responder(t).Raw},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := openssl(t, "verify", "-x509_strict", "-purpose", tt.purpose, "-attime", strconv.FormatInt(start.Unix()+1, 10),
				"-CAfile", writePEM(t, "root.pem", "CERTIFICATE", h.certificateOf(t, ca.RootID).Raw),
				"-untrusted", writePEM(t, "issuing.pem", "CERTIFICATE", h.certificateOf(t, ca.IssuingID).Raw),
				writePEM(t, "leaf.pem", "CERTIFICATE", tt.der))
			if err != nil {
				t.Errorf("openssl verify: %v\n%s", err, out)
			}
		})
	}
}

// responder returns the OCSP responder's certificate of the issuing authority.
func (h *house) responder(t failer) *x509.Certificate {
	t.Helper()
	cert := h.issue(t, ca.ProfileDevice, fmt.Sprintf("asked-%d", time.Since(start)))
	return h.ask(t, &cert).Certificate
}
