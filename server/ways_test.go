package server_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/test/kit"
)

// evidence is what earns a device its first certificate.
type evidence struct {
	token string
	cert  *tls.Certificate
	stop  func() error // ends the credential; nil: it has none of its own
}

// way is a way to a first certificate.
type way struct {
	name string
	make func(t *testing.T, s *countersigntest.Server, id string) evidence
}

func credential(t *testing.T, s *countersigntest.Server, id string, e evidence) evidence {
	t.Helper()
	e.stop = func() error {
		_, err := s.Admin.StopCredential(t.Context(), id, api.Act{Note: "in a bin"})
		return err
	}
	return e
}

// ways are all that take no chip, and no line of a factory.
func ways(m *maker) []way {
	serial := int64(100)
	return []way{
		{"token", func(t *testing.T, s *countersigntest.Server, id string) evidence {
			made, err := s.Admin.CreateToken(t.Context(), api.NewToken{Device: id})
			fatal(t, err)
			return credential(t, s, made.ID, evidence{token: made.Secret})
		}},
		{"claim", func(t *testing.T, s *countersigntest.Server, id string) evidence {
			made, err := s.Admin.CreateClaim(t.Context(), api.NewClaim{Devices: []string{id}})
			fatal(t, err)
			pair, err := tls.X509KeyPair([]byte(made.Chain), []byte(made.Key))
			fatal(t, err)
			return credential(t, s, made.ID, evidence{cert: &pair})
		}},
		{"key", func(t *testing.T, s *countersigntest.Server, id string) evidence {
			made, err := s.Admin.CreateKey(t.Context(), api.NewKey{Device: id})
			fatal(t, err)
			return credential(t, s, made.ID, evidence{token: sasFor(t, made.Primary, "default/registrations/"+id)})
		}},
		{"group", func(t *testing.T, s *countersigntest.Server, id string) evidence {
			made, err := s.Admin.CreateGroupKey(t.Context(), api.NewGroupKey{Label: id})
			fatal(t, err)
			group, err := base64.StdEncoding.DecodeString(made.Primary)
			fatal(t, err)
			own := base64.StdEncoding.EncodeToString(attest.DeriveKey(group, id))
			return credential(t, s, made.ID, evidence{token: sasFor(t, own, "default/registrations/"+id)})
		}},
		{"thumbprint", func(t *testing.T, s *countersigntest.Server, id string) evidence {
			key := kit.Key(t)
			cert := (&maker{}).sign(t, &x509.Certificate{
				SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: id},
				NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			}, key)
			sum := sha256.Sum256(cert.Raw)
			made, err := s.Admin.CreateThumbprint(t.Context(), api.NewThumbprint{Device: id, Primary: hex.EncodeToString(sum[:])})
			fatal(t, err)
			return credential(t, s, made.ID, evidence{cert: &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}})
		}},
		{"idevid", func(t *testing.T, _ *countersigntest.Server, id string) evidence {
			serial++
			return evidence{cert: m.device(t, id, serial).factory}
		}},
	}
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused wants an answer that says no for good, and not one about the address.
func refused(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "answered 401") && !strings.Contains(err.Error(), "answered 403") {
		t.Errorf("%s: got %v, want 401 or 403", what, err)
	}
}

// enrollAt has a device enroll at a node.
func enrollAt(t *testing.T, s *countersigntest.Server, id string, e evidence) (*sdk.Identity, error) {
	t.Helper()
	return sdk.Enroll(t.Context(), sdk.Enrollment{Server: s.Endpoints().Enroll, Roots: s.Roots, Device: id, Token: e.token, Certificate: e.cert})
}

// identityAt returns the identity for use at another node.
func identityAt(t *testing.T, s *countersigntest.Server, id *sdk.Identity) *sdk.Identity {
	t.Helper()
	var path []*x509.Certificate
	for _, der := range id.Path() {
		c, err := x509.ParseCertificate(der)
		fatal(t, err)
		path = append(path, c)
	}
	moved, err := sdk.Known(sdk.Enrollment{Server: s.Endpoints().Enroll, Roots: s.Roots, Device: id.Device(), Key: id.Key()}, path)
	fatal(t, err)
	return moved
}

// TestEachWayToACertificateHoldsOnEveryNode prepares a device at one node for each way
// and has it enroll at the other, connect and renew at both; then it is revoked, and a
// credential of another device is stopped, at one node, which must count at the other.
func TestEachWayToACertificateHoldsOnEveryNode(t *testing.T) {
	countersigntest.Each(t, func(t *testing.T, asked, other *countersigntest.Server) {
		m := newMaker(t)
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.cert.Raw}))
		_, err := asked.Admin.RegisterAuthority(t.Context(), api.NewAuthority{ID: "maker", Certificate: text, Override: true, Reason: "a test"})
		fatal(t, err)
		_, err = asked.Admin.PutFleet(t.Context(), "default", api.PutFleet{
			Methods: &[]string{"token", "claim", "key", "group", "thumbprint", "idevid", "factory"}, Rules: &api.Rules{Authorities: []string{"maker"}},
		})
		fatal(t, err)
		kit.Eventually(t, "the other node knows the manufacturer", func() bool {
			_, err := other.Admin.Authority(t.Context(), "maker")
			return err == nil
		})
		for _, w := range ways(m) {
			t.Run(w.name, func(t *testing.T) {
				id := "pump-" + w.name
				e := w.make(t, asked, id)
				identity, err := enrollAt(t, other, id, e)
				fatal(t, err)
				lifeOnBothNodes(t, asked, other, identity)
				_, err = enrollAt(t, other, id, e)
				refused(t, "a revoked device enrolls at the other node with what it had before", err)
				if e.stop == nil {
					return
				}
				stopped := w.make(t, asked, id+"-2")
				fatal(t, stopped.stop())
				_, err = enrollAt(t, other, id+"-2", stopped)
				refused(t, "a device enrolls at the other node with a credential that was stopped", err)
			})
		}
		t.Run("factory", func(t *testing.T) { lifeOnBothNodes(t, asked, other, fromTheLine(t, asked, other, "pump-line")) })
		t.Run("approval", func(t *testing.T) { lifeOnBothNodes(t, asked, other, approved(t, asked, other)) })
	})
}

// lifeOnBothNodes connects and renews at both nodes, and revokes at the one.
func lifeOnBothNodes(t *testing.T, asked, other *countersigntest.Server, id *sdk.Identity) {
	t.Helper()
	if _, code := connect(t, asked, id); code != 0 {
		t.Fatalf("connect at the asked node: CONNACK %d", code)
	}
	id = identityAt(t, asked, id)
	fatal(t, id.Renew(t.Context()))
	id = identityAt(t, other, id)
	conn, code := connect(t, other, id)
	if code != 0 {
		t.Fatalf("connect at the other node with the renewed certificate: CONNACK %d", code)
	}
	_, err := asked.Admin.Revoke(t.Context(), id.Device(), api.Revoke{Reason: "keyCompromise"})
	fatal(t, err)
	ended(t, conn)
	if _, code := connect(t, other, id); code != 5 {
		t.Errorf("connect at the other node after the revocation: CONNACK %d, want 5", code)
	}
	refused(t, "a revoked device renews at the other node", id.Renew(t.Context()))
}

// fromTheLine has the asked node give a certificate on the word of a factory, and the
// other one give the same again.
func fromTheLine(t *testing.T, asked, other *countersigntest.Server, id string) *sdk.Identity {
	t.Helper()
	key := kit.Key(t)
	line, err := json.Marshal(api.FactoryRequest{Item: "1", ID: id, CSR: base64.StdEncoding.EncodeToString(kit.CSR(t, key, id))})
	fatal(t, err)
	var path []*x509.Certificate
	for i, s := range []*countersigntest.Server{asked, other} {
		for l, err := range s.Admin.Factory(t.Context(), "default", "", strings.NewReader(string(line)+"\n")) {
			fatal(t, err)
			if l.Error != nil {
				t.Fatalf("the line: %+v", l.Error)
			}
			if l.Report != nil {
				break
			}
			if l.Again != (i == 1) {
				t.Errorf("request %d of the line: again is %t", i, l.Again)
			}
			path = chainOf(t, l.Certificate)
		}
	}
	identity, err := sdk.Known(sdk.Enrollment{Server: other.Endpoints().Enroll, Roots: other.Roots, Device: id, Key: key}, path)
	fatal(t, err)
	return identity
}

func chainOf(t *testing.T, text string) (path []*x509.Certificate) {
	t.Helper()
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		fatal(t, err)
		path = append(path, c)
	}
	return path
}

// approved has a device ask at the other node, an operator approve at the asked one, and
// the device ask again.
func approved(t *testing.T, asked, other *countersigntest.Server) *sdk.Identity {
	t.Helper()
	_, err := asked.Admin.PutFleet(t.Context(), "watched", api.PutFleet{Rules: &api.Rules{Approval: []string{"token"}}})
	fatal(t, err)
	made, err := asked.Admin.CreateToken(t.Context(), api.NewToken{Device: "pump-asks", Fleet: "watched"})
	fatal(t, err)
	key := kit.Key(t)
	ask := func() (*sdk.Identity, error) {
		return sdk.Enroll(t.Context(), sdk.Enrollment{
			Server: other.Endpoints().Enroll, Roots: other.Roots, Device: "pump-asks", Fleet: "watched", Token: made.Secret, Key: key,
		})
	}
	if _, err := ask(); err == nil {
		t.Fatal("a device enrolled without the approval that its fleet wants")
	}
	for w, err := range asked.Admin.Enrollments(t.Context(), api.WaitingFilter{}) {
		fatal(t, err)
		_, err := asked.Admin.Approve(t.Context(), w.ID, api.Act{})
		if countersign.CodeOf(err) != "" {
			t.Fatal(err)
		}
	}
	id, err := ask()
	fatal(t, err)
	return id
}
