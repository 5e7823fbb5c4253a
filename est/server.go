package est

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/countersign-iot/countersign"
)

// Trust has what devices ask about the authority. Fleet is the label of the
// path, empty for the default fleet; one that does not exist is NotFound.
type Trust interface {
	// CACerts returns the certification path of the fleet's issuing authority, each
	// certificate in DER, issuing authority first, root last.
	CACerts(ctx context.Context, fleet string) ([][]byte, error)
	// CSRAttrs returns what requests of the fleet should contain. Empty means
	// anything goes, and the door answers 204.
	CSRAttrs(ctx context.Context, fleet string) (CSRAttrs, error)
}

// Server answers EST over HTTPS. Its listener must ask for client certificates
// without verifying them and bound headers and time. The fields are set once,
// before the first request.
type Server struct {
	Enroller countersign.Enroller
	Trust    Trust
	Log      *slog.Logger // nil: no log
	// Now is the time at which a request began, so that one which arrives slowly cannot
	// undo a later one. nil: the Enroller goes by when it is called.
	Now     func() time.Time
	MaxBody int64 // largest request body in octets; 0: [DefaultMaxBody]
	// RequireBinding refuses requests that don't name the TLS session they come
	// over, see [Binding]; csrattrs asks for it. Few clients can do it.
	RequireBinding bool

	// Keys makes keys for serverkeygen; nil: the operation is not offered. They
	// are neither kept nor logged here.
	Keys KeyGenerator
	// KeySigner returns the certificate, with its path and key, that vouches for a key
	// which is delivered encrypted. The listener's will do. nil: TLS is all the
	// protection that keys get, and who asks for more is refused. A function, because
	// the listener's certificate is renewed while it listens.
	KeySigner func() (*tls.Certificate, error)
	// SharedKey returns the secret AES key that the authority and a device of the
	// fleet know under id, NotFound if there is none. nil: none is shared. A function,
	// because secrets belong to a keeper, which no door may know.
	SharedKey func(ctx context.Context, fleet string, id []byte) ([]byte, error)

	generating atomic.Int32 // keys being made, and refusals on their way
}

// pathPrefix is fixed by RFC 7030, 3.2.2.
const pathPrefix = "/.well-known/est/"

// ServeHTTP answers one EST request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.serve(w, r); err != nil {
		s.refuse(w, r, err)
	}
}

type handler func(w http.ResponseWriter, r *http.Request, fleet string) error

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	fleet, name, err := splitPath(r.URL.Path)
	if err != nil {
		return err
	}
	h, method := s.operation(name)
	switch {
	case method == "":
		return errNoOperation
	case h == nil:
		return &statusError{
			status:  http.StatusNotImplemented,
			message: name + " is not offered here", next: "use simpleenroll with a key made on the device",
		}
	case r.TLS == nil: // RFC 7030, 3.3: tokens must not cross a plain connection
		return countersign.Errorf(countersign.NotAllowed, "EST is served over TLS only").WithNext("use the https URL")
	case r.Method != method && (method != http.MethodGet || r.Method != http.MethodHead):
		return &statusError{
			status: http.StatusMethodNotAllowed, allow: allowed(method),
			message: name + " takes " + method + " only", next: "repeat it with that method",
		}
	}
	return h(w, r, fleet)
}

// operation returns the handler and the method of an operation: no method if RFC
// 7030 knows none of that name, no handler if we don't offer it.
func (s *Server) operation(name string) (h handler, method string) {
	switch name {
	case "cacerts":
		return s.caCerts, http.MethodGet
	case "csrattrs":
		return s.csrAttrs, http.MethodGet
	case "simpleenroll":
		return s.simpleEnroll, http.MethodPost
	case "simplereenroll":
		return s.simpleReenroll, http.MethodPost
	case "serverkeygen":
		if s.Keys == nil {
			return nil, http.MethodPost
		}
		return s.serverKeyGen, http.MethodPost
	case "fullcmc":
		return nil, http.MethodPost
	}
	return nil, ""
}

func allowed(method string) string {
	if method == http.MethodGet {
		return "GET, HEAD"
	}
	return method
}

var errNoOperation = countersign.Errorf(countersign.NotFound, "no EST operation has this path").
	WithNext("use /.well-known/est/{cacerts, csrattrs, simpleenroll, simplereenroll or serverkeygen}, with a fleet's name before the operation if need be")

// splitPath returns the label, empty if there is none, and the operation. The
// label follows the prefix (RFC 7030, 3.2.2); strongSwan puts it before.
func splitPath(path string) (fleet, operation string, err error) {
	before, operation, ok := strings.Cut(path, pathPrefix)
	label, inside := "", false
	if i := strings.LastIndexByte(operation, '/'); i >= 0 {
		label, operation, inside = operation[:i], operation[i+1:], true
	}
	switch {
	case !ok || inside && before != "":
		return "", "", errNoOperation
	case before != "":
		label = strings.TrimPrefix(before, "/")
	case !inside:
		return "", operation, nil
	}
	if countersign.CheckName(label) != nil {
		return "", "", countersign.Errorf(countersign.NotFound, "the path names no fleet: %.80q can't be one", label).
			WithNext("use the fleet's name, or no label for the default fleet")
	}
	return label, operation, nil
}

// write sends der in base64. The length is explicit and the header short since
// some clients read an answer in two TLS records and know no chunks.
func (s *Server) write(w http.ResponseWriter, r *http.Request, mediaType string, der []byte) error {
	body := encodeBody(der, r.UserAgent())
	h := w.Header()
	h.Set("Content-Type", mediaType)
	// RFC 8951, 3.2.1 has receivers ignore it; clients of RFC 7030 look for it.
	h.Set("Content-Transfer-Encoding", "base64")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if _, err := w.Write(body); err != nil { //nolint:gosec // G705: base64 holds no markup
		s.log().InfoContext(r.Context(), "est answer not delivered", "remote", r.RemoteAddr, "err", err)
	}
	return nil
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}
