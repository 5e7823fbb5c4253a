package ra_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/cms"
	"github.com/countersign-iot/countersign/enroll"
	"github.com/countersign-iot/countersign/est"
	"github.com/countersign-iot/countersign/test/kit"
)

// renewalDoors are the doors at which a device renews. Each asks for a certificate with a
// CSR over TLS with the current one, and returns the new one or the refusal's text.
func renewalDoors(t *testing.T, w *world) map[string]func(t *testing.T, shown *x509.Certificate, csr []byte) (*x509.Certificate, string) {
	state := handshake(t)
	answer := func(t *testing.T, h http.Handler, path, kind string, shown *x509.Certificate, body string) (int, []byte) {
		t.Helper()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(body))
		r.Header.Set("Content-Type", kind)
		session := state
		session.PeerCertificates = []*x509.Certificate{shown}
		r.TLS = &session
		out := httptest.NewRecorder()
		h.ServeHTTP(out, r)
		text, err := io.ReadAll(out.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		return out.Code, text
	}
	parse := func(t *testing.T, der []byte) *x509.Certificate {
		t.Helper()
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	return map[string]func(*testing.T, *x509.Certificate, []byte) (*x509.Certificate, string){
		"EST": func(t *testing.T, shown *x509.Certificate, csr []byte) (*x509.Certificate, string) {
			t.Helper()
			code, text := answer(t, &est.Server{Enroller: w.Authority, Log: w.Log}, "/.well-known/est/simplereenroll", "application/pkcs10", shown, base64.StdEncoding.EncodeToString(csr))
			if code != http.StatusOK {
				return nil, string(text)
			}
			der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(text)), ""))
			if err != nil {
				t.Fatal(err)
			}
			certs, err := cms.ParseCertsOnly(der)
			if err != nil {
				t.Fatal(err)
			}
			return parse(t, certs[0]), ""
		},
		"REST": func(t *testing.T, shown *x509.Certificate, csr []byte) (*x509.Certificate, string) {
			t.Helper()
			code, text := answer(t, &enroll.Server{Enroller: w.Authority, Now: w.Now, Log: w.Log}, "/api/v1/renew", "application/pkcs10", shown, string(csr))
			if code != http.StatusOK {
				return nil, string(text)
			}
			return parse(t, firstPEM(t, text)), ""
		},
	}
}

// handshake returns the state of a TLS session, in which any client certificate may be put.
func handshake(t *testing.T) tls.ConnectionState {
	t.Helper()
	here, there := net.Pipe()
	defer func() { _, _ = here.Close(), there.Close() }()
	key := kit.Key(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	server := tls.Server(here, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	go func() { _ = tls.Client(there, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.Context()) }()
	if err := server.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return server.ConnectionState()
}

func parseURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// templates are requests that a device may begin with; named says whether they hold its id.
func templates(t *testing.T, id string) map[string]*x509.CertificateRequest {
	t.Helper()
	named := pkix.Name{CommonName: id}
	return map[string]*x509.CertificateRequest{
		"its name":          {Subject: named},
		"no name":           {},
		"more of a subject": {Subject: pkix.Name{CommonName: id, Organization: []string{"Acme"}, SerialNumber: "0815", Country: []string{"DE"}}},
		"a DNS name":        {Subject: named, DNSNames: []string{id + ".example.net"}},
		"an address":        {Subject: named, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}},
		"a mailbox":         {Subject: named, EmailAddresses: []string{"a@example.net"}},
		"a URI":             {Subject: named, URIs: []*url.URL{parseURL(t, "https://example.net/"+id), parseURL(t, "spiffe://else.example/default/pump-9")}},
		"its URI":           {Subject: named, URIs: []*url.URL{parseURL(t, "urn:countersign:device:old-fleet:"+id)}},
	}
}

// repeats are the requests with which a device that has the certificate renews.
func repeats(first *x509.CertificateRequest, current *x509.Certificate, id string) map[string]*x509.CertificateRequest {
	same := &x509.CertificateRequest{RawSubject: current.RawSubject} // RFC 7030, 4.2.2
	for _, e := range current.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			same.ExtraExtensions = append(same.ExtraExtensions, e)
		}
	}
	return map[string]*x509.CertificateRequest{
		"the first request again":       first,
		"the names of the certificate":  same,
		"an empty subject":              {},
		"the common name and no others": {Subject: pkix.Name{CommonName: id}},
	}
}

func signedBy(t *testing.T, tmpl *x509.CertificateRequest) []byte {
	t.Helper()
	return kit.CSR(t, kit.Key(t), "", func(r *x509.CertificateRequest) { *r = *tmpl })
}

// TestWhatEnrolledRenews takes devices through every way in with every form of request,
// and has each renew at each door with every request that it may make.
func TestWhatEnrolledRenews(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		doors, list := renewalDoors(t, w), ways(t, w)
		for _, way := range list {
			n := 0
			for form, first := range templates(t, "x") {
				if form == "no name" && !way.bound {
					continue // then the request is what names the device
				}
				n++
				id := "dev-" + string(way.method) + "-" + string(rune('a'+n))
				first = templates(t, id)[form]
				t.Run(string(way.method)+"/"+form, func(t *testing.T) {
					req := countersign.EnrollRequest{CSR: signedBy(t, first), Evidence: way.make(t, w, id), Door: "test", Remote: remote}
					g, err := w.Enroll(t.Context(), req)
					if err != nil {
						t.Fatalf("enroll: %v", err)
					}
					w.renewsEverywhere(t, doors, renewing{id: id, first: first, current: leaf(t, g)})
				})
			}
		}
		t.Run("introduced", func(t *testing.T) { introducedRenews(t, w, doors) })
	})
}

// renewing is a device that renews.
type renewing struct {
	id      string
	first   *x509.CertificateRequest
	current *x509.Certificate
}

func (w *world) renewsEverywhere(t *testing.T, doors map[string]func(*testing.T, *x509.Certificate, []byte) (*x509.Certificate, string), r renewing) {
	t.Helper()
	for door, renew := range doors {
		for form := range repeats(r.first, r.current, r.id) {
			w.clock.Advance(time.Second)
			next, refusal := renew(t, r.current, signedBy(t, repeats(r.first, r.current, r.id)[form]))
			if refusal != "" {
				t.Fatalf("%s, %s: refused: %s", door, form, refusal)
			}
			if next.Subject.CommonName != r.id || len(next.DNSNames)+len(next.EmailAddresses)+len(next.IPAddresses) != 0 || len(next.URIs) != 1 {
				t.Fatalf("%s, %s: got a certificate for %s with alternative names %v %v", door, form, next.Subject, next.DNSNames, next.URIs)
			}
			r.current = next
		}
		for name, bad := range map[string]*x509.CertificateRequest{
			"another device's name": {Subject: pkix.Name{CommonName: "else-" + r.id}},
			"another device's URI":  {Subject: pkix.Name{CommonName: r.id}, URIs: []*url.URL{parseURL(t, "urn:countersign:device:default:else")}},
		} {
			if _, refusal := renew(t, r.current, signedBy(t, bad)); !strings.Contains(refusal, "the request") {
				t.Errorf("%s, %s: got %q, want a refusal that says so", door, name, refusal)
			}
		}
	}
}

// introducedRenews has devices come in with a factory certificate whose names are the
// maker's, and renew with those names.
func introducedRenews(t *testing.T, w *world, doors map[string]func(*testing.T, *x509.Certificate, []byte) (*x509.Certificate, string)) {
	m := newMaker(t, w.Now())
	w.registers(t, ca.Registration{ID: "acme", Certificate: m.cert.Raw})
	w.rules(t, "default", countersign.Rules{Authorities: []string{"acme"}, Connect: true, ID: countersign.IDRule{Field: "serial_number"}})
	for door := range doors {
		id := "unit-" + strings.ToLower(door)
		factory := m.sign(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "Acme Sensor", SerialNumber: id, Organization: []string{"Acme"}}, NotBefore: w.Now().Add(-time.Hour), NotAfter: w.Now().Add(9999 * time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte(id),
			DNSNames: []string{"sensor.acme.example"}, EmailAddresses: []string{"service@acme.example"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 9)},
			URIs: []*url.URL{parseURL(t, "https://acme.example/"+id)},
		}, &kit.Key(t).PublicKey)
		w.use(t, factory)
		first := repeats(nil, factory, id)["the names of the certificate"]
		next, refusal := doors[door](t, factory, signedBy(t, first))
		if refusal != "" {
			t.Fatalf("%s: with the names of the factory certificate: %s", door, refusal)
		}
		w.renewsEverywhere(t, doors, renewing{id: id, first: first, current: next})
	}
}

// TestNamesOfOthersAreRefusedAtOnce has first requests with another device's URI refused,
// as renewals are.
func TestNamesOfOthersAreRefusedAtOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		f, err := w.provisioner().SaveFleet(t.Context(), "default", func(f *countersign.Fleet) { f.TrustDomain = "example.net" }, boss)
		if err != nil {
			t.Fatal(err)
		}
		for _, way := range ways(t, w) {
			for _, uri := range []string{"urn:countersign:device:default:pump-2", "urn:countersign:device:gone:pump-2", countersign.DeviceURI(f, "pump-2")} {
				id := "pump-" + string(way.method)
				req := countersign.EnrollRequest{
					CSR:      signedBy(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}, URIs: []*url.URL{parseURL(t, uri)}}),
					Evidence: way.make(t, w, id), Door: "test", Remote: remote,
				}
				_, err := w.Enroll(t.Context(), req)
				kit.WantCode(t, err, countersign.SubjectMismatch)
			}
		}
	})
}

func firstPEM(t *testing.T, text []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no PEM in %q", text)
	}
	return block.Bytes
}
