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

// Authority has the status of certificates and signs the answers; package ca implements
// it. The errors named here are *countersign.Error.
type Authority interface {
	// OCSP answers a query. It returns CertUnknown if no authority of the server is the
	// issuer.
	OCSP(ctx context.Context, q countersign.OCSPQuery) (countersign.OCSPAnswer, error)
	// CRLRecord returns the record of the current list of one shard, without its octets.
	// It returns NotFound if there is no such authority or shard.
	CRLRecord(ctx context.Context, issuer string, shard int) (*countersign.CRL, error)
	// OpenCRL opens the current list and returns its record with it. Readers share the
	// octets. Read fails if the list was superseded and had to be dropped from memory.
	OpenCRL(ctx context.Context, issuer string, shard int) (*countersign.CRL, io.ReadSeekCloser, error)
	// Issuer returns an authority's certificate in DER. It returns NotFound if there is no
	// such authority.
	Issuer(ctx context.Context, id string) ([]byte, error)
}

// DefaultMaxAge is how long a cache may store an answer. It delays a revocation at that
// cache, so it is much shorter than the hour to a day for which the answers are valid.
const DefaultMaxAge = 5 * time.Minute

// Server serves OCSP, CRLs and caIssuers over HTTP. Set the fields before the first
// request.
type Server struct {
	Authority Authority
	Log       *slog.Logger // nil: no log
	Now       func() time.Time
	MaxAge    time.Duration // 0: DefaultMaxAge
}

// ServeHTTP serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The escaped path is needed because a slash may be part of the base64, escaped or not.
	path := r.URL.EscapedPath()
	switch {
	case path == "/ocsp" || strings.HasPrefix(path, "/ocsp/"):
		s.ocsp(w, r, strings.TrimPrefix(path, "/ocsp"))
	case r.Method != http.MethodGet && r.Method != http.MethodHead && isFile(path):
		s.refuse(w, r, &statusError{http.StatusMethodNotAllowed, "GET, HEAD", "this path accepts only GET"})
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

// file is a signed object with the times that caches need.
type file struct {
	mediaType              string
	etag                   string // with quotes
	thisUpdate, nextUpdate time.Time
	content                io.ReadSeeker
}

// partTime is how long a client may take to receive the next part of a file. The kernel
// accepts more data when a third of its buffer is free, which takes a minute at 10 KiB/s.
const partTime = 2 * time.Minute

// paced is a file that is being sent. Each part that is read from it is written next, and
// has partTime for that. So a slow client can receive a large list completely, and the
// connection of a client that stopped reading ends.
type paced struct {
	io.ReadSeeker
	control *http.ResponseController
}

func (p paced) Read(b []byte) (int, error) {
	// An error means that the writer has no deadlines, as in a test.
	_ = p.control.SetWriteDeadline(time.Now().Add(partTime)) //nolint:forbidigo // a deadline of the socket
	return p.ReadSeeker.Read(b)
}

// serve sends f to caches and clients (RFC 5019, 6.2; RFC 9111).
func (s *Server) serve(w http.ResponseWriter, r *http.Request, f file) {
	h := w.Header()
	h.Set("Content-Type", f.mediaType)
	h.Set("ETag", f.etag)
	h.Set("Expires", f.nextUpdate.UTC().Format(http.TimeFormat))
	h.Set("Cache-Control", s.cacheControl(f.nextUpdate))
	// Two lists can have the same time, in seconds. By date, the second one would look
	// unmodified, and a client would not get the new revocation in it. Only the entity tag
	// distinguishes them.
	r.Header.Del("If-Modified-Since")
	r.Header.Del("If-Unmodified-Since")
	http.ServeContent(w, r, "", f.thisUpdate, paced{f.content, http.NewResponseController(w)})
}

// cacheControl returns a Cache-Control field. max-age is the rest of the answer's life, at
// most MaxAge.
func (s *Server) cacheControl(nextUpdate time.Time) string {
	bound := s.MaxAge
	if bound <= 0 {
		bound = DefaultMaxAge
	}
	age := max(0, min(bound, nextUpdate.Sub(s.Now())))
	return fmt.Sprintf("max-age=%d, public, no-transform, must-revalidate", int64(age/time.Second))
}

// quoted returns an entity tag made of parts.
func quoted(parts ...string) string { return strconv.Quote(strings.Join(parts, "-")) }

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}
