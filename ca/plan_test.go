package ca_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

func TestDeviceCertificateSaysWhatItShould(t *testing.T) {
	h := found(t, storetest.Open(t))
	rec := h.issue(t, ca.ProfileDevice, "pump-1")
	cert := parse(t, rec.DER)
	issuing := h.certificateOf(t, ca.IssuingID)
	if err := cert.CheckSignatureFrom(issuing); err != nil {
		t.Error(err)
	}
	got := map[string]any{
		"subject": cert.Subject.String(), "uri": cert.URIs[0].String(), "usage": cert.KeyUsage, "extended": cert.ExtKeyUsage,
		"crl": cert.CRLDistributionPoints, "ocsp": cert.OCSPServer, "issuer": cert.IssuingCertificateURL,
		"from": cert.NotBefore, "to": cert.NotAfter, "ca": cert.IsCA, "constraints": cert.BasicConstraintsValid,
	}
	want := map[string]any{
		"subject": "CN=pump-1", "uri": "urn:countersign:device:default:pump-1", "usage": x509.KeyUsageDigitalSignature,
		"extended": []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		"crl":      []string{"http://ca.example.net:8090/crl/issuing/0.crl"}, "ocsp": []string{"http://ca.example.net:8090/ocsp"},
		"issuer": []string{"http://ca.example.net:8090/ca/issuing.cer"},
		"from":   start.Add(-5 * time.Minute), "to": start.Add(30 * 24 * time.Hour), "ca": false, "constraints": false,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("certificate (-want +got):\n%s", d)
	}
	if len(cert.SubjectKeyId) != 20 || !slices.Equal(cert.AuthorityKeyId, issuing.SubjectKeyId) {
		t.Errorf("key identifiers: got %x and %x, want 20 octets and %x", cert.SubjectKeyId, cert.AuthorityKeyId, issuing.SubjectKeyId)
	}
	hash, err := ca.KeyHash(cert.PublicKey)
	if err != nil || hash != rec.KeyHash || rec.State != countersign.CertPending || rec.Serial != countersign.SerialOf(cert.SerialNumber) {
		t.Errorf("record: got %+v, want pending with key %s (%v)", rec, hash, err)
	}
}

func TestSPIFFEIDNamesDevice(t *testing.T) {
	h := found(t, storetest.Open(t))
	o := h.order(t, ca.ProfileDevice, "pump-1")
	o.Fleet.TrustDomain = "example.net"
	cert := parse(t, h.sign(t, o).DER)
	if got, want := cert.URIs[0].String(), "spiffe://example.net/default/pump-1"; len(cert.URIs) != 1 || got != want {
		t.Errorf("URI: got %v, want %s alone (SPIFFE wants exactly one)", cert.URIs, want)
	}
}

func TestLongIDStandsInURIOnly(t *testing.T) {
	h := found(t, storetest.Open(t))
	for _, tt := range []struct {
		length int
		inCN   bool
	}{{64, true}, {65, false}, {countersign.MaxDeviceID, false}} {
		id := strings.Repeat("a", tt.length)
		cert := parse(t, h.sign(t, h.order(t, ca.ProfileDevice, id)).DER)
		if got := cert.Subject.CommonName == id; got != tt.inCN {
			t.Errorf("id of %d: got %v in CN, want %v", tt.length, cert.Subject, tt.inCN)
		}
		if len(cert.URIs) != 1 || !strings.HasSuffix(cert.URIs[0].String(), ":"+id) {
			t.Errorf("id of %d: got URIs %v", tt.length, cert.URIs)
		}
	}
	// Even where the profile leaves the URI out, there must be a name.
	o := h.order(t, ca.ProfileDevice, strings.Repeat("a", 65))
	o.Profile.OmitURI = true
	if cert := parse(t, h.sign(t, o).DER); len(cert.URIs) != 1 {
		t.Error("a long id is nowhere in it")
	}
}

func TestEveryDeviceIDMakesOneURI(t *testing.T) {
	h := found(t, storetest.Open(t))
	for _, id := range []string{"a", ".", "..", "-", ":", "a:b", "A_b.c-d:e", "::", "%41"[1:]} {
		for _, domain := range []string{"", "example.net"} {
			o := h.order(t, ca.ProfileDevice, id)
			o.Fleet.TrustDomain = domain
			cert := parse(t, h.sign(t, o).DER)
			if got, want := cert.URIs[0].String(), countersign.DeviceURI(o.Fleet, id); got != want {
				t.Errorf("id %q: got %s, want %s", id, got, want)
			}
		}
	}
}

func TestIDevIDNeverExpires(t *testing.T) {
	h := found(t, storetest.Open(t))
	rec := h.issue(t, ca.ProfileIDevID, "pump-1")
	cert := parse(t, rec.DER)
	if want := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC); !cert.NotAfter.Equal(want) {
		t.Errorf("NotAfter: got %v, want %v", cert.NotAfter, want)
	}
	if !strings.Contains(string(cert.RawTBSCertificate), "99991231235959Z") {
		t.Error("99991231235959Z is not in the certificate")
	}
	again, err := ca.Certificate(t.Context(), h.db, rec.Ref())
	if err != nil || !again.NotAfter.Equal(cert.NotAfter) {
		t.Errorf("on record: got %v, %v, want %v", again.NotAfter, err, cert.NotAfter)
	}
}

func TestValidityKeepsWithinTheIssuers(t *testing.T) {
	h := found(t, storetest.Open(t))
	end := h.certificateOf(t, ca.IssuingID).NotAfter
	h.clock.Advance(end.Sub(start) - 24*time.Hour)
	if cert := parse(t, h.sign(t, h.order(t, ca.ProfileDevice, "pump-1")).DER); !cert.NotAfter.Equal(end) {
		t.Errorf("NotAfter: got %v, want the issuer's %v", cert.NotAfter, end)
	}
	h.clock.Advance(24*time.Hour - time.Minute)
	_, err := h.Plan(t.Context(), h.order(t, ca.ProfileDevice, "pump-1"))
	kit.WantCode(t, err, countersign.Unavailable)
}

func TestPlanIsSignedOnce(t *testing.T) {
	h := found(t, storetest.Open(t))
	p, err := h.Plan(t.Context(), h.order(t, ca.ProfileDevice, "pump-1"))
	if err != nil {
		t.Fatal(err)
	}
	const at = 8
	errs := make(chan error, at)
	for range at {
		go func() {
			_, err := h.Sign(p)
			errs <- err
		}()
	}
	signed := 0
	for range at {
		switch err := <-errs; {
		case err == nil:
			signed++
		case !errors.Is(err, ca.ErrSpent):
			t.Errorf("Sign: got %v, want ErrSpent", err)
		}
	}
	if signed != 1 {
		t.Errorf("one plan was signed %d times", signed)
	}
}

func TestPlanRefuses(t *testing.T) {
	h := found(t, storetest.Open(t))
	for _, tt := range []struct {
		name   string
		change func(*ca.Order)
		want   countersign.Code
	}{
		{"key type that the profile does not take", func(o *ca.Order) { o.Profile.Keys = []string{"Ed25519"} }, countersign.WeakKey},
		{"no key", func(o *ca.Order) { o.PublicKey = nil }, countersign.WeakKey},
		{"unknown issuer", func(o *ca.Order) { o.Fleet.Issuer = "nobody" }, countersign.NotFound},
	} {
		o := h.order(t, ca.ProfileDevice, "pump-1")
		tt.change(&o)
		if _, err := h.Plan(t.Context(), o); countersign.CodeOf(err) != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
	if _, _, err := h.IssueServer(t.Context(), ca.IssuingID, nil, &kit.Key(t).PublicKey); err == nil {
		t.Error("a server certificate without a name was issued")
	}
}

func TestCheckKey(t *testing.T) {
	rsaKey := func(bits, e int) *rsa.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: e}
	}
	ec := func(c elliptic.Curve) crypto.PublicKey {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return &key.PublicKey
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	even := rsaKey(2048, 65537)
	even.N.SetBit(even.N, 0, 0)
	for _, tt := range []struct {
		name string
		key  crypto.PublicKey
		want string // empty: refused
	}{
		{"P-224", ec(elliptic.P224()), ""},
		{"P-256", ec(elliptic.P256()), "P-256"},
		{"P-384", ec(elliptic.P384()), "P-384"},
		{"P-521", ec(elliptic.P521()), "P-521"},
		{"Ed25519", ed, "Ed25519"},
		{"RSA 1024", rsaKey(1024, 65537), ""},
		{"RSA 2047", rsaKey(2047, 65537), ""},
		{"RSA 2048", rsaKey(2048, 65537), "RSA"},
		{"RSA 4096", rsaKey(4096, 65537), "RSA"},
		{"RSA 8192", rsaKey(8192, 65537), ""},
		{"RSA exponent 1", rsaKey(2048, 1), ""},
		{"RSA exponent 3", rsaKey(2048, 3), ""},
		{"RSA even exponent", rsaKey(2048, 65538), ""},
		{"RSA even modulus", even, ""},
		{"none", nil, ""},
		{"no curve", &ecdsa.PublicKey{}, ""},
		{"a private key", kit.Key(t), ""},
		{"not a key", "P-256", ""},
	} {
		got, err := ca.CheckKey(tt.key)
		if got != tt.want || tt.want == "" && countersign.CodeOf(err) != countersign.WeakKey || tt.want != "" && err != nil {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

// TestCertificatesPassLint runs zlint's RFC lints over every kind of certificate
// that this package signs. There is nothing to explain: none fails.
func TestCertificatesPassLint(t *testing.T) {
	h := found(t, storetest.Open(t))
	key := kit.Key(t)
	server, _, err := h.IssueServer(t.Context(), ca.IssuingID, []string{"ca.example.net", "localhost", "127.0.0.1", "::1"}, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	spiffe := h.order(t, ca.ProfileDevice, "pump-1")
	spiffe.Fleet.TrustDomain = "example.net"
	bare := h.order(t, ca.ProfileDevice, "pump-1")
	bare.Profile.NoStatus, bare.Profile.OmitURI = true, true
	for name, der := range map[string][]byte{
		"root":      h.certificateOf(t, ca.RootID).Raw,
		"issuing":   h.certificateOf(t, ca.IssuingID).Raw,
		"device":    h.issue(t, ca.ProfileDevice, "pump-1").DER,
		"long id":   h.issue(t, ca.ProfileDevice, strings.Repeat("d", 128)).DER,
		"spiffe":    h.sign(t, spiffe).DER,
		"bare":      h.sign(t, bare).DER,
		"idevid":    h.issue(t, ca.ProfileIDevID, "pump-1").DER,
		"server":    server[0],
		"responder": h.responder(t).Raw,
	} {
		failed, err := ca.Lint(der)
		if err != nil || len(failed) > 0 {
			t.Errorf("%s: %v\n%s", name, err, strings.Join(failed, "\n"))
		}
	}
}

// TestLintFindsBadCertificate shows that the lints can fail.
func TestLintFindsBadCertificate(t *testing.T) {
	key := kit.Key(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: start, NotAfter: start.Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, // and yet no CA
	}, &x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	failed, err := ca.Lint(der)
	if err != nil || len(failed) == 0 {
		t.Errorf("Lint: got %v, %v, want failures", failed, err)
	}
}

func TestSaveProfileRefuses(t *testing.T) {
	h := found(t, storetest.Open(t))
	good := ca.Profile{
		Name: "meter", Validity: ca.Duration(time.Hour), KeyUsage: []string{"digitalSignature"}, ExtKeyUsage: []string{"clientAuth"},
	}
	save := func(p ca.Profile) error {
		return h.db.Write(t.Context(), func(ctx context.Context, tx *store.Tx) error { return h.SaveProfile(ctx, tx, p) })
	}
	if err := save(good); err != nil {
		t.Fatalf("a good profile: %v", err)
	}
	for name, change := range map[string]func(*ca.Profile){
		"bad name":               func(p *ca.Profile) { p.Name = "Über" },
		"too short":              func(p *ca.Profile) { p.Validity = ca.Duration(time.Minute) },
		"too long":               func(p *ca.Profile) { p.Validity = ca.Duration(51 * 365 * 24 * time.Hour) },
		"no validity":            func(p *ca.Profile) { p.Validity = 0 },
		"validity and no expiry": func(p *ca.Profile) { p.NoExpiry = true },
		"negative backdate":      func(p *ca.Profile) { p.Backdate = -1 },
		"backdate over a week":   func(p *ca.Profile) { p.Backdate = ca.Duration(8 * 24 * time.Hour) },
		"no key usage":           func(p *ca.Profile) { p.KeyUsage = nil },
		"certificate signing":    func(p *ca.Profile) { p.KeyUsage = []string{"keyCertSign"} },
		"no extended key usage":  func(p *ca.Profile) { p.ExtKeyUsage = nil },
		"OCSP signing":           func(p *ca.Profile) { p.ExtKeyUsage = []string{"OCSPSigning"} },
		"unknown key type":       func(p *ca.Profile) { p.Keys = []string{"DSA"} },
		"encipherment with any key": func(p *ca.Profile) {
			p.KeyUsage, p.ExtKeyUsage = []string{"digitalSignature", "keyEncipherment"}, []string{"serverAuth"}
		},
		"client that only enciphers": func(p *ca.Profile) { p.KeyUsage, p.Keys = []string{"keyEncipherment"}, []string{"RSA"} },
	} {
		p := good
		change(&p)
		if err := save(p); countersign.CodeOf(err) != countersign.BadRequest {
			t.Errorf("%s: got %v, want bad_request", name, err)
		}
	}
	rsaOnly := good
	rsaOnly.Name, rsaOnly.Keys = "rsa", []string{"RSA"}
	rsaOnly.KeyUsage, rsaOnly.ExtKeyUsage = []string{"digitalSignature", "keyEncipherment"}, []string{"serverAuth"}
	if err := save(rsaOnly); err != nil {
		t.Errorf("encipherment with RSA: %v", err)
	}
	got, err := ca.ReadProfile(t.Context(), h.db, "rsa")
	if d := cmp.Diff(rsaOnly, got); err != nil || d != "" {
		t.Errorf("Profile (-want +got): %v\n%s", err, d)
	}
}
