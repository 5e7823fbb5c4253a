package ra_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/netip"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/store"
	"github.com/countersign-iot/countersign/store/storetest"
	"github.com/countersign-iot/countersign/test/kit"
)

// maker is a manufacturer's CA.
type maker struct {
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	lists int64 // number of its last revocation list
}

func newMaker(t *testing.T, now time.Time) *maker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := &maker{key: key}
	m.cert = m.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Maker CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(20 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1, 2, 3},
	}, &key.PublicKey)
	return m
}

func (m *maker) sign(t *testing.T, tmpl *x509.Certificate, pub any) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber = serial
	parent := m.cert
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, m.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// device makes a factory certificate.
func (m *maker) device(t *testing.T, id string, now time.Time) *x509.Certificate {
	t.Helper()
	return m.sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: id}, NotBefore: now.Add(-time.Hour), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte(id),
	}, &kit.Key(t).PublicKey)
}

func (m *maker) crl(t *testing.T, now time.Time, revoked ...*x509.Certificate) []byte {
	t.Helper()
	m.lists++
	l := &x509.RevocationList{Number: big.NewInt(m.lists), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(24 * time.Hour)}
	for _, c := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: now.Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, m.cert, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (w *world) provisioner() *provision.Provisioner {
	return &provision.Provisioner{DB: w.DB, CA: w.CA, Registry: w.Registry, Events: w.Events, Sealer: w.Sealer, Rules: w.CheckRules}
}

func TestFactoryCertificateConnectsWhereTheFleetSaysSo(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		m := newMaker(t, w.Now())
		provisioner, by := w.provisioner(), ra.By{Actor: "operator:o"}
		if _, err := provisioner.RegisterAuthority(t.Context(), ca.Registration{ID: "maker", Certificate: m.cert.Raw, Override: true}, by); err != nil {
			t.Fatal(err)
		}
		rules := func(change func(*countersign.Rules)) {
			t.Helper()
			_, err := provisioner.SaveFleet(t.Context(), "default", func(f *countersign.Fleet) {
				f.Methods = []countersign.Method{countersign.MethodToken, countersign.MethodIDevID}
				f.Rules.Authorities = []string{"maker"}
				change(&f.Rules)
			}, by)
			if err != nil {
				t.Fatal(err)
			}
		}
		admit := func(c *x509.Certificate, id string) countersign.Verdict {
			return w.Admit(t.Context(), countersign.Connection{
				Gateway: "mqtt", Remote: netip.MustParseAddrPort("192.0.2.9:1000"), ClientID: id, Peer: []*x509.Certificate{c},
			})
		}
		pump := m.device(t, "pump-1", w.Now())
		rules(func(*countersign.Rules) {})
		if v := admit(pump, "pump-1"); v.Allow || v.Code != countersign.CertUnknown {
			t.Errorf("Admit before the fleet says so: got %+v", v)
		}
		rules(func(u *countersign.Rules) { u.Connect = true })
		for range 2 {
			if v := admit(pump, "pump-1"); !v.Allow || v.Device != "pump-1" {
				t.Fatalf("Admit: got %+v, want pump-1 let in", v)
			}
		}
		if v := admit(m.device(t, "pump-1", w.Now()), "pump-1"); v.Allow || v.Code != countersign.DeviceIsActive {
			t.Errorf("Admit with another factory certificate of the same id: got %+v, want device_active", v)
		}
		stranger := newMaker(t, w.Now()).device(t, "pump-2", w.Now())
		if v := admit(stranger, "pump-2"); v.Allow || v.Code == "" {
			t.Errorf("Admit of another maker's device: got %+v", v)
		}
		if err := provisioner.SetCRLs(t.Context(), "maker", ca.Lists{CRLs: [][]byte{m.crl(t, w.Now(), pump)}}, "", by); err != nil {
			t.Fatal(err)
		}
		if v := admit(pump, "pump-1"); v.Allow || v.Code != countersign.CertIsRevoked {
			t.Errorf("Admit after the maker revoked it: got %+v, want certificate_revoked", v)
		}
		rules(func(u *countersign.Rules) {
			u.Connect = true
			u.Approval = []countersign.Method{countersign.MethodIDevID}
		})
		third := m.device(t, "pump-3", w.Now())
		if v := admit(third, "pump-3"); v.Allow || v.Code != countersign.Pending {
			t.Fatalf("Admit where approval is wanted: got %+v, want pending", v)
		}
		waiting, _, err := w.Registry.Queue(t.Context(), "waiting", "", 0)
		if err != nil || len(waiting) != 1 {
			t.Fatalf("Queue: got %v, %v", waiting, err)
		}
		if _, err := provisioner.Approve(t.Context(), waiting[0].ID, "", by); err != nil {
			t.Fatal(err)
		}
		if v := admit(third, "pump-3"); !v.Allow {
			t.Errorf("Admit after approval: got %+v", v)
		}
	})
}

func TestAnotherMakersDeviceOfTheSameNameReplacesNothing(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		w := newWorld(t, db)
		provisioner, by := w.provisioner(), ra.By{Actor: "operator:o"}
		makers := map[string]*maker{"one": newMaker(t, w.Now()), "two": newMaker(t, w.Now())}
		for id, m := range makers {
			if _, err := provisioner.RegisterAuthority(t.Context(), ca.Registration{ID: id, Certificate: m.cert.Raw, Override: true}, by); err != nil {
				t.Fatal(err)
			}
		}
		_, err := provisioner.SaveFleet(t.Context(), "default", func(f *countersign.Fleet) {
			f.Methods = []countersign.Method{countersign.MethodIDevID}
			f.Rules.Authorities = []string{"one", "two"}
		}, by)
		if err != nil {
			t.Fatal(err)
		}
		enroll := func(c *x509.Certificate) error {
			req := enrollment(t, kit.Key(t), "pump-1", "")
			req.Evidence.Peer = []*x509.Certificate{c}
			_, err := w.Enroll(t.Context(), req)
			return err
		}
		first := makers["one"].device(t, "pump-1", w.Now())
		for range 2 { // it lost its key before it used the certificate, and asks again
			w.clock.Advance(time.Second)
			if err := enroll(first); err != nil {
				t.Fatalf("Enroll of the first maker's device: %v", err)
			}
		}
		w.clock.Advance(time.Second)
		kit.WantCode(t, enroll(makers["two"].device(t, "pump-1", w.Now())), countersign.DeviceIsActive)
	})
}

// TestReissuedCAIsRecordedWithTheCertificate has a maker issue the CA of a line anew, with
// the same key, and revoke the one before. A device that presents the new one is let in,
// and what is given out for it afterwards is judged by the new one, too.
func TestReissuedCAIsRecordedWithTheCertificate(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.gives(t)
		m := newMaker(t, w.Now())
		line := m.below(t, w.Now(), nil)
		w.registers(t, ca.Registration{ID: "maker", Certificate: m.cert.Raw})
		w.rules(t, "default", countersign.Rules{
			Authorities: []string{"maker"}, Connect: true, Access: countersign.Access{Kinds: []countersign.AccessKind{countersign.AccessCertificate, countersign.AccessToken}},
		})
		pump := line.device(t, "pump-1", w.Now())
		shows := func(chain ...*x509.Certificate) countersign.Connection {
			w.clock.Advance(time.Second)
			return countersign.Connection{Gateway: "mqtt", Remote: remote, ClientID: "pump-1", Peer: chain}
		}
		if v := w.Admit(t.Context(), shows(pump, line.cert)); !v.Allow {
			t.Fatalf("at first: got %+v", v)
		}
		token, err := w.AccessToken(t.Context(), shows(pump), time.Hour) // the CA is on record
		if err != nil {
			t.Fatalf("without the CA that is on record: %v", err)
		}
		again := &x509.Certificate{
			Subject: line.cert.Subject, NotBefore: line.cert.NotBefore, NotAfter: line.cert.NotAfter, IsCA: true, BasicConstraintsValid: true,
			KeyUsage: line.cert.KeyUsage, SubjectKeyId: line.cert.SubjectKeyId,
		}
		fresh := m.sign(t, again, &line.key.PublicKey)
		if err := w.provisioner().SetCRLs(t.Context(), "maker", ca.Lists{CRLs: [][]byte{m.crl(t, w.Now(), line.cert)}}, "", boss); err != nil {
			t.Fatal(err)
		}
		if v := w.Admit(t.Context(), tokenBearer(token.Token)); v.Code != countersign.CertIsRevoked {
			t.Errorf("a token for it after its CA was revoked: got %+v, want certificate_revoked", v)
		}
		if v := w.Admit(t.Context(), shows(pump, line.cert)); v.Code != countersign.CertIsRevoked {
			t.Errorf("by the revoked CA: got %+v, want certificate_revoked", v)
		}
		if v := w.Admit(t.Context(), shows(pump, fresh)); !v.Allow {
			t.Fatalf("by the CA that was issued anew: got %+v", v)
		}
		if v := w.Admit(t.Context(), tokenBearer(token.Token)); !v.Allow {
			t.Errorf("the token afterwards: got %+v, want it let in", v)
		}
	})
}
