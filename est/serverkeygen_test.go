package est

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/cms"
	"github.com/countersign-iot/countersign/test/kit"
)

// keys makes P-256 keys for every fleet but "bare" and remembers the last.
type keys struct {
	t    *testing.T
	last *ecdsa.PrivateKey
}

func (k *keys) GenerateKey(_ context.Context, fleet string) (crypto.Signer, error) {
	if fleet == "bare" {
		return nil, countersign.Errorf(countersign.NotAllowed, "the profile wants keys made on the device")
	}
	k.last = kit.Key(k.t)
	return k.last, nil
}

// startKeyServer also delivers encrypted keys, vouched for by the issuing
// authority's certificate.
func startKeyServer(t *testing.T) (*server, *keys) {
	t.Helper()
	s, k := startServer(t), &keys{t: t}
	s.door.Keys = k
	s.door.KeySigner = func() (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{s.issuing.Raw, s.root.Raw}, PrivateKey: s.issuingKey}, nil
	}
	return s, k
}

// attribute of one value in DER.
func attribute(t testing.TB, id asn1.ObjectIdentifier, value any) AttrOrOID {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return AttrOrOID{ID: id, Values: [][]byte{der}}
}

func capabilities(t testing.TB, ids ...asn1.ObjectIdentifier) AttrOrOID {
	t.Helper()
	var list []pkix.AlgorithmIdentifier
	for _, id := range ids {
		list = append(list, pkix.AlgorithmIdentifier{Algorithm: id})
	}
	return attribute(t, oidCapabilities, list)
}

// manufacturer's certificate for a key that may encrypt, unless usage says no.
func (s *server) idevid(t *testing.T, key crypto.Signer, usage x509.KeyUsage) *x509.Certificate {
	t.Helper()
	other := newDesk(t)
	tmpl := other.template("serial 4711", time.Hour)
	tmpl.KeyUsage = usage
	return sign(t, tmpl, other.issuing, key.Public(), other.issuingKey)
}

func TestServerKeyGenGivesKeyWithItsCertificate(t *testing.T) {
	s, k := startKeyServer(t)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "pump-7"}, DNSNames: []string{"pump-7.example"},
	}, kit.Key(t))
	if err != nil {
		t.Fatal(err)
	}
	csr[len(csr)-1] ^= 1 // RFC 7030, 4.4.1: the signature is ignored
	g, err := s.client(t, nil, nil).ServerKeyGen(t.Context(), "pumps", csr, goodToken)
	if err != nil {
		t.Fatal(err)
	}
	if !k.last.PublicKey.Equal(g.Certificate.PublicKey) || g.Certificate.Subject.CommonName != "pump-7" || len(g.Certificate.DNSNames) != 1 {
		t.Errorf("got certificate of %v, %v, want the names of the request and the new key", g.Certificate.Subject, g.Certificate.DNSNames)
	}
	if key, err := x509.ParsePKCS8PrivateKey(g.Key); err != nil || !k.last.Equal(key) {
		t.Errorf("got key %v, want the one that was made", err)
	}
	req := s.last(t)
	if !bytes.Equal(req.Asked, csr) || bytes.Equal(req.CSR, csr) || req.Fleet != "pumps" || req.Evidence.Token != goodToken || req.Bound {
		t.Errorf("Enroll: got fleet %q, token %q, bound %t", req.Fleet, req.Evidence.Token, req.Bound)
	}
	if log := s.log.String(); strings.Contains(log, hex.EncodeToString(g.Key)) || strings.Contains(log, base64.StdEncoding.EncodeToString(g.Key)) {
		t.Error("the log holds the key")
	}
}

func TestServerKeyGenGoesByTheEvidence(t *testing.T) {
	s, _ := startKeyServer(t)
	first, err := s.client(t, nil, nil).ServerKeyGen(t.Context(), "", kit.CSR(t, kit.Key(t), "pump-7"), goodToken)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(first.Key)
	if err != nil {
		t.Fatal(err)
	}
	key := parsed.(*ecdsa.PrivateKey)
	if _, err := s.client(t, first.Certificate, key).ServerKeyGen(t.Context(), "", kit.CSR(t, kit.Key(t), "pump-7"), ""); err != nil {
		t.Errorf("with the current certificate: %v", err)
	}
	// Reenroll refuses this, and Enroll would not.
	_, err = s.client(t, first.Certificate, key).ServerKeyGen(t.Context(), "", kit.CSR(t, kit.Key(t), "pump-8"), "")
	if StatusOf(err) != http.StatusForbidden {
		t.Errorf("with the current certificate of another subject: got %v, want 403", err)
	}
	maker := kit.Key(t)
	if _, err := s.client(t, s.idevid(t, maker, 0), maker).ServerKeyGen(t.Context(), "", kit.CSR(t, kit.Key(t), "pump-9"), ""); err != nil {
		t.Errorf("with a manufacturer's certificate: %v", err)
	}
	_, err = s.client(t, nil, nil).ServerKeyGen(t.Context(), "", kit.CSR(t, kit.Key(t), "pump-9"), "")
	if StatusOf(err) != http.StatusUnauthorized {
		t.Errorf("without evidence: got %v, want 401", err)
	}
}

func TestServerKeyGenEncryptsForClientCertificate(t *testing.T) {
	s, k := startKeyServer(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"RSA": rsaKey, "EC": kit.Key(t)} {
		cert := s.idevid(t, key, x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement)
		csr := newCSRWith(t, "pump-7", kit.Key(t), attribute(t, oidAsymmetricID, KeyID(cert)), capabilities(t, ourCapabilityIDs...))
		g, err := s.client(t, cert, key).ServerKeyGen(t.Context(), "", csr, "")
		if err != nil {
			t.Fatal(err)
		}
		if g.Key != nil || len(g.Sealed) == 0 {
			t.Errorf("%s: got the key in the clear", name)
		}
		signer, err := g.Open(cms.Recipient{Certificate: cert, Key: key})
		if err != nil || !signer.Equal(s.issuing) {
			t.Fatalf("%s: Open: got %v, want the key signer", name, err)
		}
		if got, err := x509.ParsePKCS8PrivateKey(g.Key); err != nil || !k.last.Equal(got) {
			t.Errorf("%s: got another key (%v)", name, err)
		}
	}
}

func TestServerKeyGenEncryptsWithSharedKey(t *testing.T) {
	s, k := startKeyServer(t)
	secret, id := bytes.Repeat([]byte{9}, 32), []byte("pump-7/primary")
	s.door.SharedKey = func(_ context.Context, fleet string, asked []byte) ([]byte, error) {
		if fleet != "pumps" || !bytes.Equal(asked, id) {
			return nil, countersign.Errorf(countersign.NotFound, "no such key")
		}
		return secret, nil
	}
	c := s.client(t, nil, nil)
	g, err := c.ServerKeyGen(t.Context(), "pumps", newCSRWith(t, "pump-7", kit.Key(t), attribute(t, oidDecryptKeyID, id)), goodToken)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Open(cms.Recipient{Secret: secret, SecretID: id}); err != nil {
		t.Fatal(err)
	}
	if got, err := x509.ParsePKCS8PrivateKey(g.Key); err != nil || !k.last.Equal(got) {
		t.Errorf("got another key (%v)", err)
	}
	_, err = c.ServerKeyGen(t.Context(), "pumps", newCSRWith(t, "pump-7", kit.Key(t), attribute(t, oidDecryptKeyID, []byte("x"))), goodToken)
	if StatusOf(err) != http.StatusNotFound {
		t.Errorf("with an unknown key: got %v, want 404", err)
	}
}

func TestServerKeyGenRefusesBeforeIssuing(t *testing.T) {
	s, _ := startKeyServer(t)
	key := kit.Key(t)
	good := s.idevid(t, key, 0)
	signs := s.idevid(t, key, x509.KeyUsageDigitalSignature)
	id := attribute(t, oidAsymmetricID, KeyID(good))
	malformed := kit.CSR(t, key, "pump-7")
	for name, tt := range map[string]struct {
		csr  []byte
		cert *x509.Certificate
		want int
	}{
		"malformed request":        {malformed[:len(malformed)-1], good, 400},
		"unknown key":              {newCSRWith(t, "p", key, attribute(t, oidAsymmetricID, []byte("?"))), good, 404},
		"no client certificate":    {newCSRWith(t, "p", key, id), nil, 404},
		"no shared key":            {newCSRWith(t, "p", key, attribute(t, oidDecryptKeyID, []byte("k"))), good, 404},
		"both ways":                {newCSRWith(t, "p", key, id, attribute(t, oidDecryptKeyID, []byte("k"))), good, 400},
		"identifier of no octets":  {newCSRWith(t, "p", key, attribute(t, oidAsymmetricID, []byte{})), good, 400},
		"identifier of other type": {newCSRWith(t, "p", key, attribute(t, oidAsymmetricID, 7)), good, 400},
		"strange algorithms":       {newCSRWith(t, "p", key, id, capabilities(t, asn1.ObjectIdentifier{1, 3, 14, 3, 2, 7})), good, 400},
		"malformed algorithms":     {newCSRWith(t, "p", key, id, attribute(t, oidCapabilities, 7)), good, 400},
		"a key that only signs":    {newCSRWith(t, "p", key, attribute(t, oidAsymmetricID, KeyID(signs))), signs, 400},
	} {
		_, err := s.client(t, tt.cert, key).ServerKeyGen(t.Context(), "", tt.csr, goodToken)
		if StatusOf(err) != tt.want {
			t.Errorf("%s: got %v, want status %d", name, err, tt.want)
		}
	}
	if _, err := s.client(t, nil, nil).ServerKeyGen(t.Context(), "bare", kit.CSR(t, key, "p"), goodToken); StatusOf(err) != http.StatusForbidden {
		t.Errorf("a profile that forbids it: got %v, want 403", err)
	}
	if len(s.seen) != 0 {
		t.Errorf("got %d certificates issued, want none", len(s.seen))
	}
}

func TestServerKeyGenRefusesToDropEncryption(t *testing.T) {
	s, _ := startKeyServer(t)
	s.door.KeySigner = nil
	key := kit.Key(t)
	cert := s.idevid(t, key, 0)
	csr := newCSRWith(t, "p", key, attribute(t, oidAsymmetricID, KeyID(cert)))
	if _, err := s.client(t, cert, key).ServerKeyGen(t.Context(), "", csr, goodToken); StatusOf(err) != http.StatusForbidden {
		t.Errorf("got %v, want 403", err)
	}
}

func TestServerKeyGenNeverSendsCertificateOfAnotherKey(t *testing.T) {
	s, _ := startKeyServer(t)
	s.stale = s.issuing.Raw
	g, err := s.client(t, nil, nil).ServerKeyGen(t.Context(), "", kit.CSR(t, kit.Key(t), "pump-7"), goodToken)
	if StatusOf(err) != http.StatusInternalServerError {
		t.Errorf("got %v, %v, want 500", g, err)
	}
}

func TestServerKeyGenPendsOnTheSameQuestion(t *testing.T) {
	s, _ := startKeyServer(t)
	s.pend(1)
	csr := kit.CSR(t, kit.Key(t), "pump-7")
	c := s.client(t, nil, nil)
	if _, err := Await(t.Context(), time.Minute, func(ctx context.Context) (*Generated, error) {
		return c.ServerKeyGen(ctx, "", csr, goodToken)
	}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.last(t).Asked, csr) {
		t.Error("Asked is not the request as it was sent")
	}
}

// slowKeys makes no key before it is told to.
type slowKeys struct {
	t           *testing.T
	began, goOn chan struct{}
}

func (k *slowKeys) GenerateKey(ctx context.Context, fleet string) (crypto.Signer, error) {
	k.began <- struct{}{}
	<-k.goOn
	return kit.Key(k.t), ctx.Err()
}

func TestServerKeyGenBoundsKeysAtOnce(t *testing.T) {
	s := startServer(t)
	k := &slowKeys{t: t, began: make(chan struct{}), goOn: make(chan struct{})}
	s.door.Keys = k
	csr := kit.CSR(t, kit.Key(t), "pump-7")
	c := s.client(t, nil, nil)
	ask := func() error {
		_, err := c.ServerKeyGen(t.Context(), "", csr, goodToken)
		return err
	}
	answers := make(chan error)
	for range maxGenerating {
		go func() { answers <- ask() }()
		<-k.began
	}
	if err := ask(); StatusOf(err) != http.StatusTooManyRequests {
		t.Errorf("one key too many: got %v, want 429", err)
	}
	close(k.goOn)
	for range maxGenerating {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	go func() { answers <- ask() }()
	<-k.began
	if err := <-answers; err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestCurlAndOpenSSLReadGeneratedKey takes the answer apart with a MIME reader
// that is not the client's, and leaves the rest to openssl.
func TestCurlAndOpenSSLReadGeneratedKey(t *testing.T) {
	curl, openssl := kit.Program(t, "curl"), kit.Program(t, "openssl")
	s, k := startKeyServer(t)
	d := newDevice(t)
	cert := s.idevid(t, d.key, 0)
	writePEM(t, d.file("cert.pem"), "CERTIFICATE", cert.Raw)
	sealed := newCSRWith(t, "pump-7", d.key, attribute(t, oidAsymmetricID, KeyID(cert)))
	if err := os.WriteFile(d.file("sealed.b64"), []byte(base64.StdEncoding.EncodeToString(sealed)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{"req.b64", "sealed.b64"} {
		_, said := d.run(t, curl, "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", "--cacert", s.roots,
			"--cert", "cert.pem", "--key", "key.pem", "--dump-header", "head.txt", "--output", "answer",
			"--header", "Content-Type: application/pkcs10", "--data-binary", "@"+in, s.url+pathPrefix+"serverkeygen")
		parts := d.readMultipart(t, said)
		if len(parts) != 2 {
			t.Fatalf("got %d parts, want 2: %s\n%s", len(parts), said, s.log)
		}
		if in == "sealed.b64" {
			signed, said := d.run(t, openssl, "cms", "-decrypt", "-inform", "DER", "-binary", "-in", "part0", "-recip", "cert.pem", "-inkey", "key.pem")
			if contentType, _, by, err := cms.Verify(signed); err != nil || !by.Equal(s.issuing) || contentType.String() != "2.16.840.1.101.2.1.2.78.5" {
				t.Errorf("openssl cms -decrypt: got %v, %v\n%s", contentType, err, said)
			}
		} else {
			public, said := d.run(t, openssl, "pkey", "-inform", "DER", "-in", "part0", "-pubout", "-outform", "DER")
			if want, _ := x509.MarshalPKIXPublicKey(k.last.Public()); !bytes.Equal(public, want) {
				t.Errorf("openssl pkey: got %x, want %x\n%s", public, want, said)
			}
		}
		_, said = d.run(t, openssl, "pkcs7", "-inform", "DER", "-in", "part1", "-print_certs", "-out", "issued.pem")
		public, more := d.run(t, openssl, "x509", "-in", "issued.pem", "-noout", "-pubkey")
		block, _ := pem.Decode(public)
		if want, _ := x509.MarshalPKIXPublicKey(k.last.Public()); block == nil || !bytes.Equal(block.Bytes, want) {
			t.Errorf("%s: openssl x509: got %s, want the new key\n%s", in, public, said+more)
		}
	}
}

// readMultipart writes the parts of curl's answer to part0, part1 and so on.
func (d device) readMultipart(t *testing.T, said string) (types []string) {
	t.Helper()
	head, err := os.ReadFile(d.file("head.txt"))
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	body, err := os.ReadFile(d.file("answer"))
	if err != nil {
		t.Fatal(err)
	}
	_, contentType, _ := strings.Cut(strings.ToLower(string(head)), "content-type: ")
	contentType, _, _ = strings.Cut(contentType, "\r\n")
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil || kind != "multipart/mixed" {
		t.Fatalf("got %q, %v, want multipart/mixed\n%s\n%s", contentType, err, body, said)
	}
	parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		p, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			return types
		}
		if err != nil {
			t.Fatal(err)
		}
		if p.Header.Get("Content-Transfer-Encoding") != "base64" {
			t.Errorf("part %d: got headers %v, want base64", len(types), p.Header)
		}
		der, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, p))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.file("part"+string(rune('0'+len(types)))), der, 0o600); err != nil {
			t.Fatal(err)
		}
		types = append(types, p.Header.Get("Content-Type"))
	}
}

func FuzzParseGenerated(f *testing.F) {
	const b = "--x\r\nContent-Type: "
	key := kit.Key(f)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	tmpl := newDesk(f)
	certs, err := cms.EncodeCertsOnly(sign(f, tmpl.template("p", time.Hour), tmpl.issuing, key.Public(), tmpl.issuingKey).Raw)
	if err != nil {
		f.Fatal(err)
	}
	second := b + mediaTypeCertsOnly + "\r\n\r\n" + string(encodeLines(certs)) + "\r\n--x--\r\n"
	f.Add([]byte(b + mediaTypePKCS8 + "\r\n\r\n" + string(encodeLines(pkcs8)) + "\r\n" + second))
	f.Add([]byte(b + mediaTypeKey + "\r\n\r\nMAA=\r\n" + second))
	f.Add([]byte(second))
	f.Fuzz(func(t *testing.T, body []byte) {
		g, err := parseGenerated(body, "x")
		if err == nil && (g.Certificate == nil || (g.Key == nil) == (g.Sealed == nil)) {
			t.Errorf("parseGenerated: got %v without error, want a certificate and a key in one form", g)
		}
	})
}
