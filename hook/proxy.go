package hook

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/countersign-iot/countersign"
)

const (
	// certHeader holds nginx's $ssl_client_escaped_cert.
	certHeader = "X-Client-Cert"
	// xfccHeader holds Envoy's description of the client's certificate.
	xfccHeader = "X-Forwarded-Client-Cert"
	// maxHeaderCert bounds a certificate in a header; nginx and Envoy take a few KiB.
	maxHeaderCert = 16 << 10
)

func proxyDeny() reply { return reply{status: http.StatusForbidden} }

// proxy is how a proxy asks: in which headers it passes the client's certificate and
// address, and how that certificate is read.
type proxy struct {
	cert, address string
	parse         func(string) ([]*x509.Certificate, error)
}

// nginx answers auth_request, envoy ext_authz over HTTP.
func (s *Server) nginx(ctx context.Context, a asked) reply {
	return s.proxied(ctx, a, proxy{certHeader, "X-Real-Ip", parseEscaped})
}

func (s *Server) envoy(ctx context.Context, a asked) reply {
	return s.proxied(ctx, a, proxy{xfccHeader, "X-Envoy-External-Address", parseXFCC})
}

// proxied decides on the holder of a certificate: 200, 401 where no certificate was shown,
// or 403. Proxies ask at each request, so a verdict is reused until it is cut.
func (s *Server) proxied(ctx context.Context, a asked, by proxy) reply {
	values := a.r.Header.Values(by.cert)
	if len(values) > 1 {
		return proxyDeny() // one of them is not the proxy's
	}
	if len(values) == 0 || values[0] == "" {
		return reply{status: http.StatusUnauthorized}
	}
	chain, err := by.parse(values[0])
	if err != nil {
		return proxyDeny()
	}
	k := key{hook: a.hook.Name, client: fingerprint(chain[0])}
	if e, ok := s.cache.get(k); !ok || e.cut || !s.fresh(e) {
		c := countersign.Connection{
			Gateway: a.hook.gateway(), Remote: address(strings.TrimSpace(a.r.Header.Get(by.address)), 0), Protocol: "HTTP", Peer: chain, Software: plain(a.r.UserAgent()),
		}
		if v := s.decideFor(ctx, c, k); !v.Allow {
			return proxyDeny()
		}
	}
	e, ok := s.cache.get(k)
	if !ok || e.cut {
		return proxyDeny()
	}
	return reply{
		status: http.StatusOK, allowed: true,
		header: map[string]string{"X-Device-Id": e.verdict.Device, "X-Fleet": e.verdict.Fleet},
	}
}

// parseEscaped reads a percent-encoded PEM certificate. nginx escapes blanks and
// plus signs, so PathUnescape and not QueryUnescape.
func parseEscaped(text string) ([]*x509.Certificate, error) {
	if len(text) > maxHeaderCert {
		return nil, errors.New("the certificate is too long")
	}
	plain, err := url.PathUnescape(text)
	if err != nil {
		return nil, err
	}
	return parseChain([]byte(plain))
}

// parseXFCC reads the certificate from Envoy's header: pairs separated by semicolons, in
// elements separated by commas, with values that may be quoted. Envoy with
// SANITIZE_SET sends one element; more come from proxies before it, which are not
// trusted.
func parseXFCC(text string) ([]*x509.Certificate, error) {
	if len(text) > 2*maxHeaderCert {
		return nil, errors.New("the header is too long")
	}
	var cert string
	for rest := text; rest != ""; {
		name, after, ok := strings.Cut(rest, "=")
		if !ok {
			return nil, errors.New("a pair without a value")
		}
		value, after, err := xfccValue(after)
		if err != nil {
			return nil, err
		}
		if strings.EqualFold(strings.TrimSpace(name), "Cert") {
			if cert != "" {
				return nil, errors.New("two certificates")
			}
			cert = value
		}
		if strings.HasPrefix(after, ",") {
			return nil, errors.New("more than one element")
		}
		rest = strings.TrimPrefix(after, ";")
	}
	return parseEscaped(cert)
}

// xfccValue cuts a value from the front: quoted, with backslashes before quotes, or
// up to the next separator.
func xfccValue(text string) (value, rest string, err error) {
	if !strings.HasPrefix(text, `"`) {
		end := strings.IndexAny(text, ";,")
		if end < 0 {
			end = len(text)
		}
		return text[:end], text[end:], nil
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
		case c == '"':
			rest = text[i+1:]
			if rest != "" && rest[0] != ';' && rest[0] != ',' {
				return "", "", errors.New("text after a quoted value")
			}
			return b.String(), rest, nil
		default:
			b.WriteByte(c)
		}
	}
	return "", "", errors.New("a quote that does not end")
}
