package est

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/test/kit"
)

const (
	goodToken = countersign.TokenPrefix + "good"
	goodSAS   = "SharedAccessSignature sr=scope%2Fregistrations%2Fpump-7&sig=bm90IGNoZWNrZWQ%3D&se=4000000000"
)

// desk is a small CA that enrolls whoever shows goodToken, goodSAS or one of its
// certificates. A token "cset_" + code is refused with that code.
type desk struct {
	root, issuing       *x509.Certificate
	rootKey, issuingKey crypto.Signer

	mu      sync.Mutex
	serial  int64
	wants   CSRAttrs // nil: P-256
	stale   []byte   // the certificate to give instead of a new one
	pending int      // requests still to be answered with Pending
	seen    []countersign.EnrollRequest
}

func newDesk(t testing.TB) *desk {
	t.Helper()
	d := &desk{serial: 100}
	d.root, d.rootKey = d.issueCA(t, "Test root", nil, nil)
	d.issuing, d.issuingKey = d.issueCA(t, "Test issuing", d.root, d.rootKey)
	return d
}

func (d *desk) issueCA(t testing.TB, cn string, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := kit.Key(t)
	tmpl := d.template(cn, 24*time.Hour)
	tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	return sign(t, tmpl, parent, key.Public(), parentKey), key
}

func (d *desk) template(cn string, life time.Duration) *x509.Certificate {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.serial++
	return &x509.Certificate{
		SerialNumber: big.NewInt(d.serial), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(life), KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (d *desk) Enroll(_ context.Context, req countersign.EnrollRequest) (*countersign.Grant, error) {
	if code, ok := strings.CutPrefix(req.Evidence.Token, countersign.TokenPrefix); ok && req.Evidence.Token != goodToken {
		e := countersign.Errorf(countersign.Code(code), "refused as %s", code).WithNext("try another")
		return nil, e.WithCause(os.ErrPermission).WithRetry(1500 * time.Millisecond)
	}
	if req.Evidence.Token != goodToken && req.Evidence.Token != goodSAS && len(req.Evidence.Peer) == 0 {
		return nil, countersign.Errorf(countersign.BadCredential, "the token is unknown")
	}
	return d.grant(req)
}

func (d *desk) Reenroll(_ context.Context, req countersign.EnrollRequest) (*countersign.Grant, error) {
	peer := req.Evidence.Peer[0]
	if err := peer.CheckSignatureFrom(d.issuing); err != nil {
		return nil, countersign.Errorf(countersign.CertUnknown, "the certificate is none of ours").WithCause(err)
	}
	csr, err := pkcs10.Parse(req.CSR)
	if err != nil {
		return nil, countersign.Errorf(countersign.BadRequest, "the request is malformed").WithCause(err)
	}
	if csr.Subject.CommonName != peer.Subject.CommonName {
		return nil, countersign.Errorf(countersign.SubjectMismatch, "the request names another subject")
	}
	return d.grant(req)
}

func (d *desk) Revoke(context.Context, countersign.RevokeRequest) (*countersign.Revocation, error) {
	return nil, countersign.Errorf(countersign.NotAllowed, "not through this door")
}

func (d *desk) grant(req countersign.EnrollRequest) (*countersign.Grant, error) {
	if err := d.checkPending(); err != nil {
		return nil, err
	}
	csr, err := pkcs10.Parse(req.CSR)
	if err != nil {
		return nil, countersign.Errorf(countersign.BadRequest, "the request is malformed").WithCause(err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, countersign.Errorf(countersign.BadSignature, "the request is not signed with its own key").WithCause(err)
	}
	if d.stale != nil {
		return &countersign.Grant{Device: csr.Subject.CommonName, Leaf: d.stale, Again: true}, nil
	}
	tmpl := d.template(csr.Subject.CommonName, time.Hour)
	tmpl.DNSNames = csr.DNSNames
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, d.issuing, csr.PublicKey, d.issuingKey)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = append(d.seen, req)
	return &countersign.Grant{Device: csr.Subject.CommonName, Leaf: der, Chain: [][]byte{d.issuing.Raw, d.root.Raw}}, nil
}

func (d *desk) last(t *testing.T) countersign.EnrollRequest {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.seen) == 0 {
		t.Fatal("no enrollment reached the desk")
	}
	return d.seen[len(d.seen)-1]
}

// CACerts knows the default fleet, "pumps", and "bare", which asks for nothing.
func (d *desk) CACerts(_ context.Context, fleet string) ([][]byte, error) {
	if err := known(fleet); err != nil {
		return nil, err
	}
	return [][]byte{d.issuing.Raw, d.root.Raw}, nil
}

func (d *desk) CSRAttrs(_ context.Context, fleet string) (CSRAttrs, error) {
	if fleet == "bare" {
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wants != nil {
		return d.wants, nil
	}
	return Want("P-256"), known(fleet)
}

// want sets what the default fleet asks for.
func (d *desk) want(attrs CSRAttrs) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wants = attrs
}

func known(fleet string) error {
	switch fleet {
	case "", "pumps", "bare":
		return nil
	}
	return countersign.Errorf(countersign.NotFound, "there is no fleet %q", fleet)
}

// server is a desk behind a real TLS listener.
type server struct {
	*desk
	door  *Server // to be changed before the first request only
	url   string
	roots string // PEM file
	log   *bytes.Buffer
}

func startServer(t *testing.T) *server {
	t.Helper()
	d := newDesk(t)
	log := new(bytes.Buffer)
	door := &Server{Enroller: d, Trust: d, Log: slog.New(slog.NewTextHandler(&lockedWriter{w: log}, nil))}
	hs := httptest.NewUnstartedServer(door)
	key := kit.Key(t)
	tmpl := d.template("127.0.0.1", time.Hour)
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	tmpl.IPAddresses, tmpl.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
	cert := sign(t, tmpl, d.issuing, key.Public(), d.issuingKey)
	hs.TLS = &tls.Config{
		Certificates:                []tls.Certificate{{Certificate: [][]byte{cert.Raw, d.issuing.Raw}, PrivateKey: key}},
		ClientAuth:                  tls.RequestClientCert,
		MinVersion:                  tls.VersionTLS12,
		DynamicRecordSizingDisabled: true,
	}
	hs.StartTLS()
	t.Cleanup(hs.Close)
	roots := t.TempDir() + "/root.pem"
	writePEM(t, roots, "CERTIFICATE", d.root.Raw)
	return &server{desk: d, door: door, url: hs.URL, roots: roots, log: log}
}

type lockedWriter struct {
	mu sync.Mutex
	w  *bytes.Buffer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// client trusts the desk's root and shows the given certificate, if any.
func (s *server) client(t *testing.T, cert *x509.Certificate, key crypto.Signer) *Client {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(s.root)
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if cert != nil {
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
	}
	tr := &http.Transport{TLSClientConfig: config}
	t.Cleanup(tr.CloseIdleConnections)
	return &Client{BaseURL: s.url, HTTP: &http.Client{Transport: tr, Timeout: 10 * time.Second}}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
