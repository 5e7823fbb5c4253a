package status

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

// Authority knows and signs; package ca implements it. Errors are
// *countersign.Error where a caller would branch.
type Authority interface {
	// OCSP answers a query. CertUnknown: none of our authorities is the issuer.
	OCSP(ctx context.Context, q countersign.OCSPQuery) (countersign.OCSPAnswer, error)
	// CRLRecord returns the record of the current list of one shard, without its
	// octets. NotFound: no such authority or shard.
	CRLRecord(ctx context.Context, issuer string, shard int) (*countersign.CRL, error)
	// OpenCRL opens the current list and returns its record beside it. Readers share
	// the octets; a Read fails where the list was superseded and had to be dropped.
	OpenCRL(ctx context.Context, issuer string, shard int) (*countersign.CRL, io.ReadSeekCloser, error)
	// Issuer returns an authority's certificate, DER. NotFound: no such authority.
	Issuer(ctx context.Context, id string) ([]byte, error)
}

// DefaultMaxAge is how long caches between us and a client may answer for us.
// What was revoked in that time still looks good there, so it is well below the
// hour to a day that the answers themselves are valid.
const DefaultMaxAge = 5 * time.Minute

// Server answers OCSP, CRL and caIssuers over HTTP. The fields are set once,
// before the first request.
type Server struct {
	Authority Authority
	Log       *slog.Logger // nil: no log
	Now       func() time.Time
	MaxAge    time.Duration // see [DefaultMaxAge]; 0: that
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// EscapedPath: in base64 an escaped slash is as good as a plain one, and only
	// the raw form shows where the request begins.
	path := r.URL.EscapedPath()
	switch {
	case path == "/ocsp" || strings.HasPrefix(path, "/ocsp/"):
		s.ocsp(w, r, strings.TrimPrefix(path, "/ocsp"))
	case r.Method != http.MethodGet && r.Method != http.MethodHead && isFile(path):
		s.refuse(w, r, &statusError{http.StatusMethodNotAllowed, "GET, HEAD", "this path takes GET only"})
	case strings.HasPrefix(path, "/crl/"):
		s.crl(w, r, path)
	case strings.HasPrefix(path, "/ca/"):
		s.caIssuers(w, r, path)
	default:
		s.refuse(w, r, errNoPath)
	}
}

func isFile(path string) bool {
	return strings.HasPrefix(path, "/crl/") || strings.HasPrefix(path, "/ca/")
}

var errNoPath = countersign.Errorf(countersign.NotFound, "nothing is at this path").
	WithNext("use the addresses in the certificate's extensions")

// file is a signed object with the times that caches go by.
type file struct {
	mediaType              string
	etag                   string // with quotes
	thisUpdate, nextUpdate time.Time
	content                io.ReadSeeker
}

// progress is how long a client may take to accept the next part of a file. The
// kernel's buffer lets a writer go on when a third of it is free, which at 10 KiB/s
// takes a minute.
const progress = 2 * time.Minute

// paced is a file under way: each part that is read of it is written next, and may
// take as long as progress. So a slow client gets a large list to its end, and one
// that stopped reading is left.
type paced struct {
	io.ReadSeeker
	control *http.ResponseController
}

func (p paced) Read(b []byte) (int, error) {
	// A writer without deadlines, as in a test, goes without.
	_ = p.control.SetWriteDeadline(time.Now().Add(progress)) //nolint:forbidigo // a deadline of the socket
	return p.ReadSeeker.Read(b)
}

// serve sends f to caches and clients (RFC 5019, 6.2; RFC 9111).
func (s *Server) serve(w http.ResponseWriter, r *http.Request, f file) {
	h := w.Header()
	h.Set("Content-Type", f.mediaType)
	h.Set("ETag", f.etag)
	h.Set("Expires", f.nextUpdate.UTC().Format(http.TimeFormat))
	h.Set("Cache-Control", s.cacheControl(f.nextUpdate))
	// Two lists can bear the same second when a revocation follows an issue at
	// once. By date alone the second would look unmodified until the third, and
	// the revocation unseen; only the entity tag distinguishes them.
	r.Header.Del("If-Modified-Since")
	r.Header.Del("If-Unmodified-Since")
	http.ServeContent(w, r, "", f.thisUpdate, paced{f.content, http.NewResponseController(w)})
}

// cacheControl lets an answer live until it ends or until our bound, what comes
// first.
func (s *Server) cacheControl(nextUpdate time.Time) string {
	bound := s.MaxAge
	if bound <= 0 {
		bound = DefaultMaxAge
	}
	age := max(0, min(bound, nextUpdate.Sub(s.Now())))
	return fmt.Sprintf("max-age=%d, public, no-transform, must-revalidate", int64(age/time.Second))
}

// quoted makes an entity tag.
func quoted(parts ...string) string { return strconv.Quote(strings.Join(parts, "-")) }

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}
