package ra_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/test/kit"
)

// numbered makes a factory certificate with serial number 1.
func (m *maker) numbered(t *testing.T, id string, now time.Time) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: id}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte(id),
	}, m.cert, &kit.Key(t).PublicKey, m.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestSerialNumbersAreUniqueForTheirIssuer has devices of three issuers, two of them below
// one registered authority, whose certificates all have serial number 1.
func TestSerialNumbersAreUniqueForTheirIssuer(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		now := w.Now()
		one, two := newMaker(t, now), newMaker(t, now)
		lineA := two.below(t, now, func(c *x509.Certificate) { c.Subject.CommonName, c.SubjectKeyId = "Line A", []byte{7, 7} })
		lineB := two.below(t, now, func(c *x509.Certificate) { c.Subject.CommonName, c.SubjectKeyId = "Line B", []byte{8, 8} })
		w.registers(t, ca.Registration{ID: "one", Certificate: one.cert.Raw})
		w.registers(t, ca.Registration{ID: "two", Certificate: two.cert.Raw})
		w.rules(t, "default", countersign.Rules{Authorities: []string{"one", "two"}, Connect: true})
		chains := map[string][]*x509.Certificate{
			"pump-1": {one.numbered(t, "pump-1", now)},
			"pump-a": {lineA.numbered(t, "pump-a", now), lineA.cert},
			"pump-b": {lineB.numbered(t, "pump-b", now), lineB.cert},
		}
		admit := func(device string) countersign.Verdict {
			w.clock.Advance(time.Second)
			return w.Admit(t.Context(), countersign.Connection{Gateway: "mqtt", Remote: remote, ClientID: device, Peer: chains[device]})
		}
		refs := map[string]countersign.CertRef{}
		for range 2 {
			for device := range chains {
				v := admit(device)
				if !v.Allow || v.Device != device {
					t.Fatalf("%s: got %+v, want it let in as itself", device, v)
				}
				refs[device] = v.Cert
			}
		}
		if refs["pump-1"] == refs["pump-a"] || refs["pump-a"] == refs["pump-b"] || refs["pump-b"].Authority() != "two" {
			t.Fatalf("the certificates are named %v", refs)
		}
		list, err := ca.BySerial(t.Context(), w.DB, "01")
		if err != nil || len(list) != 3 {
			t.Fatalf("BySerial: got %d, %v, want 3", len(list), err)
		}
		// Each act is on the one certificate that it names.
		if _, err := w.Revoke(t.Context(), countersign.RevokeRequest{Cert: refs["pump-a"], Reason: countersign.KeyCompromise}); err != nil {
			t.Fatal(err)
		}
		for device, want := range map[string]countersign.Code{"pump-1": "", "pump-a": countersign.CertIsRevoked, "pump-b": ""} {
			if v := admit(device); v.Code != want {
				t.Errorf("%s after the revocation of pump-a's certificate: got %+v, want %q", device, v, want)
			}
		}
		for _, e := range w.events(t, event.Filter{Type: countersign.CertRevokedEv}) {
			if e.Cert != refs["pump-a"] {
				t.Errorf("the log says that %s was revoked", e.Cert)
			}
		}
		// One issuer gives a serial number once: a second device with it is refused.
		chains["pump-2"] = []*x509.Certificate{one.numbered(t, "pump-2", now)}
		if v := admit("pump-2"); v.Allow || v.Code != countersign.Conflict {
			t.Errorf("a serial number that its issuer gave twice: got %+v, want conflict", v)
		}
		// A renewal keeps its predecessor apart from namesakes.
		w.renew(t, chains["pump-b"][0], kit.Key(t))
	})
}
