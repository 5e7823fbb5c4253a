package est

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/pkcs10"
	"github.com/countersign-iot/countersign/test/kit"
)

func TestCACertsGivesPathIssuingFirst(t *testing.T) {
	s := startServer(t)
	for _, label := range []string{"", "pumps"} {
		certs, err := s.client(t, nil, nil).CACerts(t.Context(), label)
		if err != nil {
			t.Fatal(err)
		}
		if len(certs) != 2 || !certs[0].Equal(s.issuing) || !certs[1].Equal(s.root) {
			t.Errorf("CACerts(%q): got %d certificates, want issuing and root", label, len(certs))
		}
	}
	if _, err := s.client(t, nil, nil).CACerts(t.Context(), "nobody"); StatusOf(err) != http.StatusNotFound {
		t.Errorf("CACerts of an unknown fleet: got %v, want status 404", err)
	}
}

func TestCSRAttrs(t *testing.T) {
	s := startServer(t)
	c := s.client(t, nil, nil)
	got, err := c.CSRAttrs(t.Context(), "pumps")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Want("P-256"), got); d != "" {
		t.Errorf("CSRAttrs (-want +got):\n%s", d)
	}
	if got, err := c.CSRAttrs(t.Context(), "bare"); err != nil || len(got) != 0 {
		t.Errorf("CSRAttrs of a fleet that wants nothing: got %v, %v, want none", got, err)
	}
}

func TestSimpleEnrollPassesOnWhatTheWireCarried(t *testing.T) {
	s := startServer(t)
	key := kit.Key(t)
	csr := kit.CSR(t, key, "pump-7")
	cert, err := s.client(t, nil, nil).SimpleEnroll(t.Context(), "pumps", csr, goodToken)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.CheckSignatureFrom(s.issuing); err != nil || cert.Subject.CommonName != "pump-7" {
		t.Errorf("SimpleEnroll: got %v (%v), want pump-7 from the issuing authority", cert.Subject, err)
	}
	req := s.last(t)
	if !bytes.Equal(req.CSR, csr) || req.Fleet != "pumps" || req.Door != "est" || req.Evidence.Token != goodToken ||
		len(req.Evidence.Peer) != 0 || !req.Remote.Addr().IsLoopback() {
		t.Errorf("Enroll: got fleet %q, door %q, token %q, %d peers, remote %v", req.Fleet, req.Door, req.Evidence.Token, len(req.Evidence.Peer), req.Remote)
	}
}

func TestSimpleEnrollTakesTokenInEveryForm(t *testing.T) {
	s := startServer(t)
	csr := kit.CSR(t, kit.Key(t), "pump-7")
	for _, auth := range []string{
		"Basic " + base64.StdEncoding.EncodeToString([]byte("anyone:"+goodToken)),
		"basic " + base64.StdEncoding.EncodeToString([]byte(":"+goodToken)),
		"Bearer " + goodToken,
		"bearer  " + goodToken,
		"Basic " + base64.StdEncoding.EncodeToString([]byte("anyone:"+goodSAS)),
		goodSAS,
	} {
		if res := post(t, s, csr, http.Header{"Authorization": {auth}}); res.StatusCode != http.StatusOK {
			t.Errorf("Authorization %s: got %d %s, want 200", auth, res.StatusCode, body(t, res))
		}
	}
}

func TestSimpleEnrollWithoutCredentialIsChallenged(t *testing.T) {
	s := startServer(t)
	res := post(t, s, kit.CSR(t, kit.Key(t), "pump-7"), nil)
	if res.StatusCode != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") != challenge {
		t.Errorf("got %d, challenge %q, want 401, %q", res.StatusCode, res.Header.Get("WWW-Authenticate"), challenge)
	}
	if len(s.seen) != 0 {
		t.Error("a request without credential reached the desk")
	}
	_, err := s.client(t, nil, nil).SimpleEnroll(t.Context(), "", kit.CSR(t, kit.Key(t), "pump-7"), "")
	if StatusOf(err) != http.StatusUnauthorized || !strings.Contains(err.Error(), "needs an enrollment token or a client certificate") {
		t.Errorf("our own client: got %v, want the reason, which is in a header", err)
	}
}

// TestChallengeOnTheWire holds the octets of the answers that two clients depend
// on: libest compares the name of the header octet by octet, and Bouncy Castle
// cannot go on after a 401 with a body.
func TestChallengeOnTheWire(t *testing.T) {
	s := startServer(t)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), s.client(t, nil, nil).HTTP.Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	csr := encodeBody(kit.CSR(t, kit.Key(t), "pump-7"), "")
	ask := func(authorization string) {
		t.Helper()
		_, err := fmt.Fprintf(conn, "POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/pkcs10\r\n%sContent-Length: %d\r\n\r\n%s",
			authorization, len(csr), csr)
		if err != nil {
			t.Fatal(err)
		}
	}
	in := bufio.NewReader(conn)
	answer := func() (head string) {
		t.Helper()
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(line, "Date: ") {
				continue
			}
			if head += line; line == "\r\n" {
				return head
			}
		}
	}
	ask("")
	want := "HTTP/1.1 401 Unauthorized\r\n" +
		"Content-Length: 0\r\n" +
		"Countersign-Reason: simpleenroll needs an enrollment token or a client certificate: give a token as the password of HTTP Basic, with any user name.\r\n" +
		"WWW-Authenticate: Basic realm=\"countersign est\", charset=\"UTF-8\"\r\n\r\n"
	if d := cmp.Diff(want, answer()); d != "" {
		t.Errorf("without Authorization (-want +got):\n%s", d)
	}
	// The same connection serves on: nothing was left unread on either side.
	ask("Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("estuser:wrong")) + "\r\n")
	head := answer()
	if !strings.HasPrefix(head, "HTTP/1.1 401 ") || !strings.Contains(head, "\r\nWWW-Authenticate: Basic ") || strings.Contains(head, "Content-Length: 0\r\n") {
		t.Errorf("with a wrong token: got %q, want 401 with the challenge and a reason in the body", head)
	}
}

func TestSimpleEnrollPassesOnClientCertificate(t *testing.T) {
	s := startServer(t)
	key := kit.Key(t)
	cert, err := s.client(t, nil, nil).SimpleEnroll(t.Context(), "", kit.CSR(t, key, "pump-7"), goodToken)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client(t, cert, key).SimpleEnroll(t.Context(), "", kit.CSR(t, kit.Key(t), "pump-8"), ""); err != nil {
		t.Fatal(err)
	}
	if req := s.last(t); len(req.Evidence.Peer) != 1 || !req.Evidence.Peer[0].Equal(cert) || req.Evidence.Token != "" {
		t.Errorf("Enroll: got %d peers, token %q, want the client certificate alone", len(req.Evidence.Peer), req.Evidence.Token)
	}
}

func TestSimpleReenroll(t *testing.T) {
	s := startServer(t)
	key := kit.Key(t)
	csr := kit.CSR(t, key, "pump-7")
	cert, err := s.client(t, nil, nil).SimpleEnroll(t.Context(), "", csr, goodToken)
	if err != nil {
		t.Fatal(err)
	}
	next, err := s.client(t, cert, key).SimpleReenroll(t.Context(), "", kit.CSR(t, kit.Key(t), "pump-7"))
	if err != nil {
		t.Fatal(err)
	}
	if next.Equal(cert) || next.Subject.CommonName != "pump-7" {
		t.Errorf("SimpleReenroll: got %v, want a new certificate for pump-7", next.Subject)
	}
	if _, err := s.client(t, cert, key).SimpleReenroll(t.Context(), "", kit.CSR(t, key, "pump-8")); StatusOf(err) != http.StatusForbidden {
		t.Errorf("SimpleReenroll for another subject: got %v, want status 403", err)
	}
	_, err = s.client(t, nil, nil).SimpleReenroll(t.Context(), "", csr)
	if StatusOf(err) != http.StatusForbidden || !strings.Contains(err.Error(), "client certificate") {
		t.Errorf("SimpleReenroll without certificate: got %v, want status 403 that says so", err)
	}
}

func TestReenrollWithForeignCertificateSaysWhy(t *testing.T) {
	s, other := startServer(t), newDesk(t)
	key := kit.Key(t)
	foreign := sign(t, other.template("pump-7", time.Hour), other.issuing, key.Public(), other.issuingKey)
	_, err := s.client(t, foreign, key).SimpleReenroll(t.Context(), "", kit.CSR(t, key, "pump-7"))
	if StatusOf(err) != http.StatusForbidden || !strings.Contains(err.Error(), "none of ours") {
		t.Errorf("SimpleReenroll: got %v, want status 403 with the reason", err)
	}
}

func TestRefusalsMapToHTTP(t *testing.T) {
	s := startServer(t)
	c := s.client(t, nil, nil)
	csr := kit.CSR(t, kit.Key(t), "pump-7")
	for code, want := range map[countersign.Code]int{
		countersign.BadRequest: 400, countersign.BadSignature: 400, countersign.WeakKey: 400, countersign.TooLarge: 413,
		countersign.BadCredential: 401, countersign.CredentialSpent: 401, countersign.CredentialExpire: 401,
		countersign.NotAllowed: 403, countersign.DeviceOnHold: 403, countersign.DeviceGone: 403, countersign.CertIsRevoked: 403, countersign.ForkDetected: 403,
		countersign.NotFound: 404, countersign.Conflict: 409, countersign.DeviceIsActive: 409,
		countersign.RateLimited: 429, countersign.Unavailable: 503, countersign.Internal: 500, "made_up": 500,
	} {
		_, err := c.SimpleEnroll(t.Context(), "", csr, countersign.TokenPrefix+string(code))
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Status != want {
			t.Errorf("%s: got %v, want status %d", code, err, want)
			continue
		}
		if text := "refused as " + string(code) + ": try another."; e.Message != text {
			t.Errorf("%s: got message %q, want %q", code, e.Message, text)
		}
		wait := time.Duration(0)
		if want == 429 || want == 503 {
			wait = 2 * time.Second // 1.5 rounded up
		}
		if e.RetryAfter != wait {
			t.Errorf("%s: got RetryAfter %v, want %v", code, e.RetryAfter, wait)
		}
	}
}

func TestLogHoldsCauseAndNoToken(t *testing.T) {
	s := startServer(t)
	token := countersign.TokenPrefix + "conflict"
	_, err := s.client(t, nil, nil).SimpleEnroll(t.Context(), "", kit.CSR(t, kit.Key(t), "pump-7"), token)
	if StatusOf(err) != http.StatusConflict {
		t.Fatal(err)
	}
	if log := s.log.String(); !strings.Contains(log, "permission denied") || strings.Contains(log, token) {
		t.Errorf("log: got %s, want the cause and no token", log)
	}
}

func TestHTTPRefusals(t *testing.T) {
	s := startServer(t)
	csr := kit.CSR(t, kit.Key(t), "pump-7")
	b64 := base64.StdEncoding.EncodeToString(csr)
	for _, tt := range []struct {
		name, method, path, mediaType, body string
		want                                int
		allow                               string
	}{
		{name: "GET on simpleenroll", method: "GET", path: "simpleenroll", want: 405, allow: "POST"},
		{name: "POST on cacerts", method: "POST", path: "cacerts", want: 405, allow: "GET, HEAD"},
		{name: "form", method: "POST", path: "simpleenroll", mediaType: "application/x-www-form-urlencoded", body: b64, want: 415},
		{name: "no media type", method: "POST", path: "simpleenroll", body: b64, want: 200},
		{name: "media type with parameter", method: "POST", path: "simpleenroll?x=1", mediaType: "Application/PKCS10; charset=utf-8", body: b64, want: 200},
		{name: "no base64", method: "POST", path: "simpleenroll", mediaType: mediaTypePKCS10, body: "%%%", want: 400},
		{name: "empty", method: "POST", path: "simpleenroll", mediaType: mediaTypePKCS10, want: 400},
		{name: "no request", method: "POST", path: "simpleenroll", mediaType: mediaTypePKCS10, body: "aGVsbG8=", want: 400},
		{name: "long body", method: "POST", path: "simpleenroll", mediaType: mediaTypePKCS10, body: strings.Repeat("A", DefaultMaxBody+1), want: 413},
		{name: "long request", method: "POST", path: "simpleenroll", mediaType: mediaTypePKCS10, body: strings.Repeat("A", (countersign.MaxCSR+3)/3*4), want: 413},
		{name: "optional operation", method: "POST", path: "serverkeygen", want: 501},
		{name: "optional operation", method: "POST", path: "pumps/fullcmc", want: 501},
		{name: "unknown operation", method: "GET", path: "cacert", want: 404},
		{name: "trailing slash", method: "GET", path: "cacerts/", want: 404},
		{name: "label that is no name", method: "GET", path: "Pumps%20/cacerts", want: 404},
		{name: "two labels", method: "GET", path: "a/b/cacerts", want: 404},
		{name: "HEAD", method: "HEAD", path: "cacerts", want: 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, s.url+pathPrefix+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth("x", goodToken)
			if tt.mediaType != "" {
				req.Header.Set("Content-Type", tt.mediaType)
			}
			res := do(t, s, req)
			if res.StatusCode != tt.want || res.Header.Get("Allow") != tt.allow {
				t.Errorf("got %d, Allow %q: %s, want %d, %q", res.StatusCode, res.Header.Get("Allow"), body(t, res), tt.want, tt.allow)
			}
		})
	}
}

func TestSplitPath(t *testing.T) {
	for path, want := range map[string][2]string{
		"/.well-known/est/cacerts":            {"", "cacerts"},
		"/.well-known/est/pumps/cacerts":      {"pumps", "cacerts"},
		"/pumps/.well-known/est/cacerts":      {"pumps", "cacerts"},
		"/.well-known/est/":                   {"", ""},
		"/pumps/.well-known/est/a/cacerts":    {},
		"/a/b/.well-known/est/cacerts":        {},
		"/.well-known/est/a/b/cacerts":        {},
		"/.well-known/est//cacerts":           {},
		"//.well-known/est/cacerts":           {},
		"/.well-known/est/../est/cacerts":     {},
		"/.well-known/estuary/cacerts":        {},
		"/.well-known/est/Pumps/simpleenroll": {},
	} {
		fleet, operation, err := splitPath(path)
		if got := [2]string{fleet, operation}; got != want || (err != nil) != (want == [2]string{} && path != pathPrefix) {
			t.Errorf("splitPath(%s): got %q, %v, want %q", path, got, err, want)
		}
	}
}

func TestTokenOverLimitIsRefused(t *testing.T) {
	s := startServer(t)
	_, err := s.client(t, nil, nil).SimpleEnroll(t.Context(), "", kit.CSR(t, kit.Key(t), "p"), strings.Repeat("a", maxToken+1))
	if StatusOf(err) != http.StatusUnauthorized || len(s.seen) != 0 {
		t.Errorf("got %v with %d requests at the desk, want status 401 and none", err, len(s.seen))
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	d := newDesk(t)
	w := &recorder{header: http.Header{}}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1"+pathPrefix+"cacerts", nil)
	(&Server{Enroller: d, Trust: d}).ServeHTTP(w, req)
	if w.status != http.StatusForbidden {
		t.Errorf("got status %d, want 403", w.status)
	}
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return len(p), nil }
func (r *recorder) WriteHeader(status int)      { r.status = status }

// TestAnswerFitsSmallClients reads the bytes on the wire: some clients know
// neither chunks nor a header over 1,024 octets.
func TestAnswerFitsSmallClients(t *testing.T) {
	s := startServer(t)
	pool := s.client(t, nil, nil).HTTP.Transport.(*http.Transport).TLSClientConfig
	for _, agent := range []string{"", "User-Agent: libest\r\n"} {
		conn, err := (&tls.Dialer{Config: pool}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(conn, "GET /.well-known/est/cacerts HTTP/1.1\r\nHost: x\r\n"+agent+"Connection: close\r\n\r\n")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		head, _, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
		if len(head) > 1000 {
			t.Errorf("header: got %d octets, want under 1,024", len(head))
		}
		res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw)), nil)
		if err != nil {
			t.Fatal(err)
		}
		text := body(t, res)
		if res.ContentLength != int64(len(text)) || len(res.TransferEncoding) != 0 {
			t.Errorf("got Content-Length %d, Transfer-Encoding %v, want %d and none", res.ContentLength, res.TransferEncoding, len(text))
		}
		longest := 0
		for line := range strings.SplitSeq(text, "\n") {
			longest = max(longest, len(line))
		}
		if agent == "" && strings.ContainsAny(text, "\r\n") || agent != "" && longest != lineLength {
			t.Errorf("agent %q: got lines of %d, want one line without agent, %d with", agent, longest, lineLength)
		}
	}
}

func TestDecodeBodyReadsEveryForm(t *testing.T) {
	der := kit.CSR(t, kit.Key(t), "pump-7")
	b64 := base64.StdEncoding.EncodeToString(der)
	for name, text := range map[string]string{
		"one line":     b64,
		"LF":           string(encodeBody(der, "x")),
		"CRLF":         strings.ReplaceAll(string(encodeBody(der, "x")), "\n", "\r\n"),
		"no padding":   strings.TrimRight(b64, "="),
		"blanks":       "\n  " + b64[:10] + "\t" + b64[10:] + "\r\n\r\n",
		"PEM":          string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		"PEM of old":   string(pem.EncodeToMemory(&pem.Block{Type: "NEW CERTIFICATE REQUEST", Bytes: der})),
		"PEM and text": "Certificate Request:\n" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})),
		"DER":          string(der),
	} {
		if got, err := decodeBody([]byte(text)); err != nil || !bytes.Equal(got, der) {
			t.Errorf("decodeBody of %s: got %d octets, %v, want %d", name, len(got), err, len(der))
		}
	}
	for _, text := range []string{"", "=", "A", "-----BEGIN CERTIFICATE REQUEST-----\n", "!!!!"} {
		if got, err := decodeBody([]byte(text)); err == nil {
			t.Errorf("decodeBody(%q): got %x, want an error", text, got)
		}
	}
}

func TestClientKeepsOneConnection(t *testing.T) {
	s := startServer(t)
	c := s.client(t, nil, nil)
	remotes := map[string]bool{}
	for range 3 {
		if _, err := c.SimpleEnroll(t.Context(), "", kit.CSR(t, kit.Key(t), "p"), goodToken); err != nil {
			t.Fatal(err)
		}
		remotes[s.last(t).Remote.String()] = true
		if _, err := c.CACerts(t.Context(), "nobody"); StatusOf(err) != http.StatusNotFound {
			t.Fatal(err)
		}
	}
	if len(remotes) != 1 {
		t.Errorf("got %d connections for six requests, want 1", len(remotes))
	}
}

func TestOneLineDisarmsText(t *testing.T) {
	if got, want := oneLine([]byte("\x1b[2Jgone\r\nfor good\xff \u202e!\n")), "[2Jgone for good !"; got != want {
		t.Errorf("oneLine: got %q, want %q", got, want)
	}
}

func TestSizeLimitsAgree(t *testing.T) {
	if pkcs10.MaxSize != countersign.MaxCSR {
		t.Errorf("pkcs10.MaxSize: got %d, want countersign.MaxCSR %d", pkcs10.MaxSize, countersign.MaxCSR)
	}
}

func FuzzESTBody(f *testing.F) {
	der := kit.CSR(f, kit.Key(f), "pump-7")
	f.Add(encodeBody(der, ""))
	f.Add(encodeBody(der, "x"))
	f.Add(der)
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	f.Fuzz(func(t *testing.T, text []byte) {
		der, err := decodeBody(text)
		if err != nil {
			return
		}
		for _, agent := range []string{"", "x"} {
			if got, err := decodeBody(encodeBody(der, agent)); err != nil || !bytes.Equal(got, der) {
				t.Errorf("decode, encode for agent %q, decode: got %x, %v, want %x", agent, got, err, der)
			}
		}
		_, _ = pkcs10.Parse(der)
		_, _ = parseCSRAttrs(der)
	})
}

func post(t *testing.T, s *server, csr []byte, h http.Header) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+pathPrefix+"simpleenroll", bytes.NewReader(encodeBody(csr, "")))
	if err != nil {
		t.Fatal(err)
	}
	if h != nil {
		req.Header = h
	}
	req.Header.Set("Content-Type", mediaTypePKCS10)
	return do(t, s, req)
}

func do(t *testing.T, s *server, req *http.Request) *http.Response {
	t.Helper()
	res, err := s.client(t, nil, nil).HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func body(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
