package est

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/test/kit"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// newCSRWith makes a request with attributes, each of one value in DER, which
// crypto/x509 cannot write.
func newCSRWith(t testing.TB, cn string, key crypto.Signer, attrs ...AttrOrOID) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	subject, err := asn1.Marshal(pkix.Name{CommonName: cn}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	var info cryptobyte.Builder
	info.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(subject)
		b.AddBytes(spki)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			for _, a := range attrs {
				a.add(b)
			}
		})
	})
	tbs := info.BytesOrPanic()
	sum := sha256.Sum256(tbs)
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2})
		})
		b.AddASN1BitString(sig)
	})
	return b.BytesOrPanic()
}

func challengePassword(text string) AttrOrOID {
	return AttrOrOID{ID: oidChallengePassword, Values: [][]byte{append([]byte{0x0c, byte(len(text))}, text...)}}
}

// dial gives a client whose requests all go over the one connection in state.
func (s *server) dial(t *testing.T, maxVersion uint16) (*Client, *tls.ConnectionState) {
	t.Helper()
	c := s.client(t, nil, nil)
	tr := c.HTTP.Transport.(*http.Transport)
	tr.TLSClientConfig.MaxVersion = maxVersion
	conn, err := (&tls.Dialer{Config: tr.TLSClientConfig}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	tr.DialTLSContext = func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	state := conn.(*tls.Conn).ConnectionState()
	return c, &state
}

func TestBindingLinksRequestToItsSession(t *testing.T) {
	exporter := func(t *testing.T, state *tls.ConnectionState) string {
		t.Helper()
		text, err := Binding(state)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	_, other := startServer(t).dial(t, tls.VersionTLS13)
	for name, tt := range map[string]struct {
		version   uint16
		challenge func(state *tls.ConnectionState) string
		bound     bool
		want      int // status where bindings are optional, 0 for none
		required  int // where they are required
	}{
		"tls-exporter in TLS 1.3": {tls.VersionTLS13, func(state *tls.ConnectionState) string { return exporter(t, state) }, true, 0, 0},
		"tls-exporter in TLS 1.2": {tls.VersionTLS12, func(state *tls.ConnectionState) string { return exporter(t, state) }, true, 0, 0},
		"tls-unique in TLS 1.2": {
			tls.VersionTLS12,
			func(state *tls.ConnectionState) string { return base64.StdEncoding.EncodeToString(state.TLSUnique) },
			true, 0, 0,
		},
		"another session's": {tls.VersionTLS13, func(*tls.ConnectionState) string { return exporter(t, other) }, false, 400, 400},
		"a password":        {tls.VersionTLS13, func(*tls.ConnectionState) string { return "secret" }, false, 0, 400},
		"none":              {tls.VersionTLS13, nil, false, 0, 400},
	} {
		for _, required := range []bool{false, true} {
			s := startServer(t)
			s.door.RequireBinding = required
			c, state := s.dial(t, tt.version)
			csr := kit.CSR(t, kit.Key(t), "pump-7")
			if tt.challenge != nil {
				csr = newCSRWith(t, "pump-7", kit.Key(t), challengePassword(tt.challenge(state)))
			}
			_, err := c.SimpleEnroll(t.Context(), "", csr, goodToken)
			want := tt.want
			if required {
				want = tt.required
			}
			if StatusOf(err) != want || want == 0 && err != nil {
				t.Errorf("%s, required %t: got %v, want status %d", name, required, err, want)
			} else if want == 0 && s.last(t).Bound != tt.bound {
				t.Errorf("%s: got Bound %t, want %t", name, s.last(t).Bound, tt.bound)
			}
		}
	}
}

func TestCSRAttrsAsksForRequiredBinding(t *testing.T) {
	s := startServer(t)
	s.door.RequireBinding = true
	for _, label := range []string{"", "bare"} {
		attrs, err := s.client(t, nil, nil).CSRAttrs(t.Context(), label)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(attrs); n == 0 || !attrs[n-1].ID.Equal(oidChallengePassword) {
			t.Errorf("CSRAttrs(%q): got %v, want challengePassword in it", label, attrs)
		}
	}
}
