package status

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/test/kit"
)

func newClient() *Client {
	return &Client{HTTP: &http.Client{Timeout: 10 * time.Second}, Now: time.Now}
}

// ask sends a request unchanged, with the header names and values h. It returns the response with its body.
func ask(t *testing.T, method, address string, body []byte, h ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(h); i += 2 {
		req.Header.Set(h[i], h[i+1])
	}
	res, err := newClient().HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, got
}

func request(t testing.TB, a *authority, cert *x509.Certificate, nonce []byte) []byte {
	t.Helper()
	der, err := EncodeOCSPRequest(cert, a.cert, nonce)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestClientLearnsGoodRevokedUnknown(t *testing.T) {
	a := newAuthority(t)
	u := start(t, a)
	good, bad, unknown := a.issue(t, 100), a.issue(t, 101), a.sign(t, template(102, "stranger"), a.cert, kit.Key(t))
	a.revoke(bad)
	for cert, want := range map[*x509.Certificate]int{good: ocsp.Good, bad: ocsp.Revoked, unknown: ocsp.Unknown} {
		res, err := newClient().OCSP(t.Context(), u+"/ocsp", cert, a.cert)
		if err != nil {
			t.Fatal(err)
		}
		if res.Status != want || want == ocsp.Revoked && res.RevocationReason != ocsp.KeyCompromise {
			t.Errorf("OCSP of serial %v: got status %d, reason %d, want %d", cert.SerialNumber, res.Status, res.RevocationReason, want)
		}
	}
}

func TestClientRefusesWhatItCannotBelieve(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	u := start(t, a)
	cert := a.issue(t, 100)
	plainKey := kit.Key(t)
	plain := a.sign(t, template(103, "no responder"), a.cert, plainKey)
	for name, mangle := range map[string]func(*ocspData){
		"no nonce":            func(d *ocspData) { d.nonce = nil },
		"another nonce":       func(d *ocspData) { d.nonce = []byte("replayed") },
		"stale":               func(d *ocspData) { d.nextUpdate = time.Now().Add(-time.Minute) },
		"from the future":     func(d *ocspData) { d.thisUpdate = time.Now().Add(2 * clockSkew) },
		"foreign signer":      func(d *ocspData) { d.signer, d.key = other.responder, other.respKey },
		"signer without OCSP": func(d *ocspData) { d.signer, d.key = plain, plainKey },
		"signature of other":  func(d *ocspData) { d.key = plainKey },
	} {
		a.mangle = mangle
		if res, err := newClient().OCSP(t.Context(), u+"/ocsp", cert, a.cert); err == nil {
			t.Errorf("%s: got status %d, want an error", name, res.Status)
		}
	}
	a.mangle = nil
	if _, err := newClient().OCSP(t.Context(), u+"/ocsp", cert, a.cert); err != nil {
		t.Errorf("as it should be: got %v, want an answer", err)
	}
}

func TestOCSPGetReadsEveryPathForm(t *testing.T) {
	a := newAuthority(t)
	u := start(t, a)
	var b64 string
	// A request whose base64 contains a plus and two slashes in a row.
	for serial := int64(1 << 40); !strings.Contains(b64, "//") || !strings.Contains(b64, "+") || !strings.HasSuffix(b64, "="); serial++ {
		tmpl := template(serial, "x")
		b64 = base64.StdEncoding.EncodeToString(request(t, a, tmpl, bytes.Repeat([]byte{0xff}, int(serial%7)+9)))
	}
	for name, path := range map[string]string{
		"plain": "/ocsp/" + b64, "escaped": "/ocsp/" + url.QueryEscape(b64), "unpadded": "/ocsp/" + strings.TrimRight(b64, "="),
		"slash too many": "/ocsp//" + b64, "slashes escaped": "/ocsp/" + strings.ReplaceAll(b64, "/", "%2f"),
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			res, der := ask(t, method, u+path, nil)
			if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != mediaTypeOCSPResponse || res.ContentLength < 100 {
				t.Errorf("%s %s: got %d, %d octets", method, name, res.StatusCode, res.ContentLength)
			}
			if method == http.MethodGet {
				if r, err := ocsp.ParseResponse(der, nil); err != nil || r.Status != ocsp.Unknown {
					t.Errorf("%s: got %v, want unknown", name, err)
				}
			}
		}
	}
}

func TestOCSPGetIsCacheableAndRevocationChangesTheTag(t *testing.T) {
	a := newAuthority(t)
	u := start(t, a)
	cert := a.issue(t, 100)
	path := u + "/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(request(t, a, cert, nil)))
	res, der := ask(t, http.MethodGet, path, nil)
	r, err := ocsp.ParseResponseForCert(der, cert, a.cert)
	if err != nil {
		t.Fatal(err)
	}
	h := res.Header
	if got := h.Get("Cache-Control"); got != "max-age=300, public, no-transform, must-revalidate" {
		t.Errorf("Cache-Control: got %q", got)
	}
	if h.Get("Last-Modified") != r.ThisUpdate.Format(http.TimeFormat) || h.Get("Expires") != r.NextUpdate.Format(http.TimeFormat) {
		t.Errorf("got Last-Modified %q, Expires %q, want %v, %v", h.Get("Last-Modified"), h.Get("Expires"), r.ThisUpdate, r.NextUpdate)
	}
	a.revoke(cert)
	res, _ = ask(t, http.MethodGet, path, nil, "If-None-Match", h.Get("ETag"), "If-Modified-Since", h.Get("Last-Modified"))
	if res.StatusCode != http.StatusOK {
		t.Errorf("conditional GET after revocation: got %d, want 200", res.StatusCode)
	}
}

func TestOCSPWithNonceIsNotStored(t *testing.T) {
	a := newAuthority(t)
	u := start(t, a)
	cert := a.issue(t, 100)
	nonce := []byte("0123456789abcdef")
	path := u + "/ocsp/" + url.PathEscape(base64.StdEncoding.EncodeToString(request(t, a, cert, nonce)))
	res, _ := ask(t, http.MethodGet, path, nil)
	if got := res.Header.Get("Cache-Control"); got != "no-store" || !bytes.Equal(a.last.Nonce, nonce) {
		t.Errorf("got Cache-Control %q, nonce %q, want no-store, %q", got, a.last.Nonce, nonce)
	}
}

func TestOCSPErrors(t *testing.T) {
	a := newAuthority(t)
	u := start(t, a)
	req := request(t, a, a.issue(t, 100), nil)
	for _, tt := range []struct {
		name string
		fail error
		body []byte
		want ocspStatus
	}{
		{"malformed", nil, []byte("hello"), malformedRequest},
		{"empty", nil, nil, malformedRequest},
		{"foreign issuer", countersign.Errorf(countersign.CertUnknown, "x"), req, unauthorized},
		{"unavailable", countersign.Errorf(countersign.Unavailable, "x"), req, tryLater},
		{"broken", errBroken, req, internalError},
	} {
		a.fail = tt.fail
		for _, address := range []string{u + "/ocsp", u + "/ocsp/"} {
			res, der := ask(t, http.MethodPost, address, tt.body, "Content-Type", mediaTypeOCSPRequest)
			if res.StatusCode != http.StatusOK || !bytes.Equal(der, tt.want.der()) || res.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: got %d, %x, %v, want 200, %x, no-store", tt.name, res.StatusCode, der, res.Header, tt.want.der())
			}
		}
		res, der := ask(t, http.MethodGet, u+"/ocsp/"+url.PathEscape(base64.StdEncoding.EncodeToString(tt.body)), nil)
		if res.StatusCode != http.StatusOK || !bytes.Equal(der, tt.want.der()) {
			t.Errorf("%s by GET: got %d, %x, want 200, %x", tt.name, res.StatusCode, der, tt.want.der())
		}
	}
}

func TestHTTPRefusals(t *testing.T) {
	a := newAuthority(t)
	u := start(t, a)
	req := request(t, a, a.issue(t, 100), nil)
	for _, tt := range []struct {
		name, method, path, mediaType string
		body                          []byte
		want                          int
		allow                         string
	}{
		{"PUT on OCSP", "PUT", "/ocsp", mediaTypeOCSPRequest, req, 405, "GET, HEAD, POST"},
		{"form", "POST", "/ocsp", "application/x-www-form-urlencoded", req, 415, ""},
		{"no media type", "POST", "/ocsp", "", req, 200, ""},
		{"media type with parameter", "POST", "/ocsp?x=1", "Application/OCSP-Request; x=y", req, 200, ""},
		{"long", "POST", "/ocsp", mediaTypeOCSPRequest, make([]byte, MaxOCSPRequest+1), 413, ""},
		{"long path", "GET", "/ocsp/" + strings.Repeat("A", maxOCSPPath+1), "", nil, 413, ""},
		{"POST on CRL", "POST", "/crl/issuing/0.crl", "", nil, 405, "GET, HEAD"},
		{"POST on certificate", "POST", "/ca/issuing.cer", "", nil, 405, "GET, HEAD"},
		{"no shard", "GET", "/crl/issuing/7.crl", "", nil, 404, ""},
		{"no authority", "GET", "/crl/other/0.crl", "", nil, 404, ""},
		{"no number", "GET", "/crl/issuing/x.crl", "", nil, 404, ""},
		{"another way to write it", "GET", "/crl/issuing/00.crl", "", nil, 404, ""},
		{"negative", "GET", "/crl/issuing/-1.crl", "", nil, 404, ""},
		{"above", "GET", "/crl/../ca/issuing.cer", "", nil, 404, ""},
		{"no name", "GET", "/ca/Issuing%00.cer", "", nil, 404, ""},
		{"no authority", "GET", "/ca/other.cer", "", nil, 404, ""},
		{"nothing there", "GET", "/ocspx", "", nil, 404, ""},
		{"root", "GET", "/", "", nil, 404, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, body := ask(t, tt.method, u+tt.path, tt.body, "Content-Type", tt.mediaType)
			if res.StatusCode != tt.want || res.Header.Get("Allow") != tt.allow {
				t.Errorf("got %d, Allow %q: %s, want %d, %q", res.StatusCode, res.Header.Get("Allow"), body, tt.want, tt.allow)
			}
		})
	}
	a.fail = countersign.Errorf(countersign.Unavailable, "the database does not answer")
	res, body := ask(t, http.MethodGet, u+"/crl/issuing/0.crl", nil)
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "30" {
		t.Errorf("unavailable: got %d, Retry-After %q: %s, want 503, 30", res.StatusCode, res.Header.Get("Retry-After"), body)
	}
	a.fail = errBroken
	if res, body := ask(t, http.MethodGet, u+"/crl/issuing/0.crl", nil); res.StatusCode != 500 || strings.Contains(string(body), "fire") {
		t.Errorf("broken: got %d, %s, want 500 without the cause", res.StatusCode, body)
	}
}

func TestCRLIsServedUntilItChanges(t *testing.T) {
	a := newAuthority(t)
	u := start(t, a) + "/crl/issuing/0.crl"
	cert := a.issue(t, 100)
	list, err := newClient().CRL(t.Context(), u, a.cert)
	if err != nil || len(list.RevokedCertificateEntries) != 0 {
		t.Fatalf("CRL: got %v, %v, want an empty list", list, err)
	}
	res, _ := ask(t, http.MethodGet, u, nil)
	tag, date := res.Header.Get("ETag"), res.Header.Get("Last-Modified")
	if res.Header.Get("Content-Type") != mediaTypeCRL || date == "" || res.Header.Get("Expires") == "" {
		t.Errorf("got header %v", res.Header)
	}
	a.revoke(cert)
	// The second may be the same, but the list is another one, so the date must not count.
	if res, _ = ask(t, http.MethodGet, u, nil, "If-Modified-Since", date); res.StatusCode != http.StatusOK {
		t.Errorf("GET by date after revocation: got %d, want 200", res.StatusCode)
	}
	if res, _ = ask(t, http.MethodGet, u, nil, "If-None-Match", tag); res.StatusCode != http.StatusOK {
		t.Errorf("GET by tag after revocation: got %d, want 200", res.StatusCode)
	}
	list, err = newClient().CRL(t.Context(), u, a.cert)
	if err != nil || len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.SerialNumber) != 0 {
		t.Errorf("CRL after revocation: got %v, %v, want the serial", list, err)
	}
	if _, err := newClient().CRL(t.Context(), u, a.responder); err == nil {
		t.Error("CRL checked against another issuer: got it, want an error")
	}
}

// TestOnlyDownloadsReadTheList checks that HEAD, and a conditional GET of a client that has
// the list, are answered from its record.
func TestOnlyDownloadsReadTheList(t *testing.T) {
	a := newAuthority(t)
	u := start(t, a) + "/crl/issuing/0.crl"
	res, list := ask(t, http.MethodHead, u, nil)
	tag := res.Header.Get("ETag")
	if res.StatusCode != http.StatusOK || len(list) != 0 || tag == "" || res.ContentLength < 100 {
		t.Errorf("HEAD: got %d, Content-Length %d, tag %s", res.StatusCode, res.ContentLength, tag)
	}
	for name, match := range map[string]string{"its tag": tag, "a weak tag": "W/" + tag, "several": `"x", ` + tag, "any": "*"} {
		if a.opened = 0; name == "any" {
			a.opened = -1 // no cache sends this; the list is opened and not sent
		}
		if res, list := ask(t, http.MethodGet, u, nil, "If-None-Match", match); res.StatusCode != http.StatusNotModified || len(list) != 0 || a.opened != 0 {
			t.Errorf("GET by %s: got %d, %d octets, opened %d times", name, res.StatusCode, len(list), a.opened)
		}
	}
	a.opened = 0
	if res, list := ask(t, http.MethodGet, u, nil, "If-None-Match", `"x"`); res.StatusCode != http.StatusOK || len(list) == 0 || a.opened != 1 {
		t.Errorf("GET by another tag: got %d, %d octets, opened %d times", res.StatusCode, len(list), a.opened)
	}
	if res, part := ask(t, http.MethodGet, u, nil, "Range", "bytes=10-19", "If-Range", tag); res.StatusCode != http.StatusPartialContent || len(part) != 10 {
		t.Errorf("GET of a part: got %d, %d octets", res.StatusCode, len(part))
	}
}

func TestIssuerIsServedAndRevalidated(t *testing.T) {
	a := newAuthority(t)
	u := start(t, a) + "/ca/issuing.cer"
	res, der := ask(t, http.MethodGet, u, nil)
	if !bytes.Equal(der, a.cert.Raw) || res.Header.Get("Content-Type") != mediaTypeCert {
		t.Errorf("got %d octets of %s, want the certificate", len(der), res.Header.Get("Content-Type"))
	}
	if res, _ = ask(t, http.MethodGet, u, nil, "If-None-Match", res.Header.Get("ETag")); res.StatusCode != http.StatusNotModified {
		t.Errorf("conditional GET: got %d, want 304", res.StatusCode)
	}
	if res, der = ask(t, http.MethodHead, u, nil); res.ContentLength != int64(len(a.cert.Raw)) || len(der) != 0 {
		t.Errorf("HEAD: got Content-Length %d, %d octets, want %d, none", res.ContentLength, len(der), len(a.cert.Raw))
	}
}

func TestMaxAgeEndsWithTheAnswer(t *testing.T) {
	now := time.Unix(1000, 0)
	s := &Server{Now: func() time.Time { return now }}
	for left, want := range map[time.Duration]string{
		-time.Second: "max-age=0,", 90 * time.Second: "max-age=90,", time.Hour: "max-age=300,",
	} {
		if got := s.cacheControl(now.Add(left)); !strings.HasPrefix(got, want) {
			t.Errorf("cacheControl with %v left: got %q, want %q", left, got, want)
		}
	}
}

func BenchmarkOCSPPost(b *testing.B) {
	a := newAuthority(b)
	req := request(b, a, a.issue(b, 100), nil)
	q, err := ParseOCSPRequest(req)
	if err != nil {
		b.Fatal(err)
	}
	answer, err := a.OCSP(b.Context(), q)
	if err != nil {
		b.Fatal(err)
	}
	s := &Server{Authority: fixed{answer: answer}, Now: time.Now}
	b.ReportAllocs()
	for b.Loop() {
		r := &http.Request{
			Method: http.MethodPost, URL: &url.URL{Path: "/ocsp"}, ContentLength: int64(len(req)),
			Header: http.Header{"Content-Type": {mediaTypeOCSPRequest}}, Body: io.NopCloser(bytes.NewReader(req)),
		}
		s.ServeHTTP(discard{http.Header{}}, r.WithContext(b.Context()))
	}
}

type fixed struct {
	Authority
	answer countersign.OCSPAnswer
}

func (f fixed) OCSP(context.Context, countersign.OCSPQuery) (countersign.OCSPAnswer, error) {
	return f.answer, nil
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

func BenchmarkParseOCSPRequest(b *testing.B) {
	a := newAuthority(b)
	req := request(b, a, a.issue(b, 1<<60), make([]byte, 32))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseOCSPRequest(req); err != nil {
			b.Fatal(err)
		}
	}
}
