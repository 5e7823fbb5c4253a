package server_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/test/kit"
)

// maker is a manufacturer with a CA.
type maker struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (m *maker) sign(t *testing.T, tmpl *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	parent, signer := m.cert, m.key
	if parent == nil {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newMaker(t *testing.T) *maker {
	t.Helper()
	m, key := &maker{}, kit.Key(t)
	m.cert = m.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Maker CA"}, SubjectKeyId: []byte{1, 2, 3},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(20 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, key)
	m.key = key
	return m
}

// device makes a factory certificate.
func (m *maker) device(t *testing.T, id string, serial int64) client {
	t.Helper()
	key := kit.Key(t)
	cert := m.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: id}, SubjectKeyId: []byte(id), KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
	}, key)
	return client{id: id, factory: &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
}

func (m *maker) crl(t *testing.T, number int64, serials ...int64) []byte {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(24 * time.Hour)}
	for _, n := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: time.Now().Add(-time.Minute)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, m.cert, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// register brings the manufacturer's CA in as the authority maker.
func (m *maker) register(t *testing.T, s *countersigntest.Server) {
	t.Helper()
	_, err := s.Admin.RegisterAuthority(t.Context(), api.NewAuthority{
		ID: "maker", Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.cert.Raw})), Override: true, Reason: "a test",
	})
	if err != nil {
		t.Fatal(err)
	}
}

// trusted has the default fleet accept the factory certificates of maker.
func trusted(t *testing.T, s *countersigntest.Server) {
	t.Helper()
	methods := []string{"token", "idevid"}
	_, err := s.Admin.PutFleet(t.Context(), "default", api.PutFleet{Methods: &methods, Rules: &api.Rules{Connect: true, Authorities: []string{"maker"}}})
	if err != nil {
		t.Fatal(err)
	}
}

// TestAuthorityOfOneNodeCountsAtTheOtherWithoutNotices has a manufacturer and its list
// registered at a node of which the other one receives no notice.
func TestAuthorityOfOneNodeCountsAtTheOtherWithoutNotices(t *testing.T) {
	one, two := twoNodes(t)
	two.Faults.CutNotices()
	t.Cleanup(two.Faults.Heal)
	m := newMaker(t)
	m.register(t, one)
	trusted(t, two)
	revoked, kept := m.device(t, "pump-1", 11), m.device(t, "pump-2", 12)
	cut, stays := revoked.open(t, two), kept.open(t, two)
	if _, err := one.Admin.PutCRLs(t.Context(), "maker", api.PutCRLs{CRLs: [][]byte{m.crl(t, 1, 11, 13)}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []client{revoked, m.device(t, "pump-3", 13)} { // before and after its introduction
		if _, code := c.dial(t, two); code != 5 {
			t.Errorf("CONNACK of %s, which is on the list: got %d, want 5", c.id, code)
		}
	}
	endsWithin(t, "a device that is on the list", cut, event.CaughtUp)
	lives(t, "a device that is not on the list", stays)
}

// TestLostAnswerOfACRLCutsOnEveryNode loses the answer of COMMIT while the list of a
// manufacturer is set that has a device on it.
func TestLostAnswerOfACRLCutsOnEveryNode(t *testing.T) {
	one, two := twoNodes(t)
	m := newMaker(t)
	m.register(t, one)
	trusted(t, one)
	revoked, kept := m.device(t, "pump-1", 11), m.device(t, "pump-2", 12)
	here, there, stays := revoked.open(t, one), revoked.open(t, two), kept.open(t, two)
	lost := one.Faults.LoseCommit("authority.updated")
	if _, err := one.Admin.PutCRLs(t.Context(), "maker", api.PutCRLs{CRLs: [][]byte{m.crl(t, 1, 11)}}); err != nil {
		t.Errorf("PutCRLs: %v", err)
	}
	select {
	case <-lost:
	default:
		t.Fatal("no COMMIT was lost")
	}
	endsWithin(t, "the asked node", here, event.CaughtUp)
	endsWithin(t, "the other node", there, event.CaughtUp)
	lives(t, "a device that is not on the list", stays)
	if _, code := revoked.dial(t, two); code == 0 {
		t.Error("connected although it is on the list")
	}
}
