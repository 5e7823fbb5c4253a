package status

import (
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
)

// retryAfter is the value of Retry-After if a refusal has no time.
const retryAfter = 30 * time.Second

// ocspStatus is OCSPResponseStatus (RFC 6960, 4.2.1).
type ocspStatus byte

const (
	malformedRequest ocspStatus = 1
	internalError    ocspStatus = 2
	tryLater         ocspStatus = 3
	unauthorized     ocspStatus = 6
)

// ocspStatusOf maps codes to the statuses of OCSP. unauthorized means that the issuer is
// not an authority of this server (RFC 5019, 2.2.3).
func ocspStatusOf(code countersign.Code) ocspStatus {
	switch code {
	case countersign.BadRequest:
		return malformedRequest
	case countersign.Unavailable, countersign.RateLimited:
		return tryLater
	case countersign.CertUnknown, countersign.NotFound, countersign.NotAllowed:
		return unauthorized
	}
	return internalError
}

// der returns an OCSPResponse that has only the status.
func (s ocspStatus) der() []byte { return []byte{0x30, 0x03, 0x0a, 0x01, byte(s)} }

// ocspError answers with an error of OCSP, which is a success of HTTP (RFC 6960, A.2).
func (s *Server) ocspError(w http.ResponseWriter, r *http.Request, err error) {
	st := ocspStatusOf(countersign.CodeOf(err))
	level := slog.LevelDebug // any client can send a bad request
	if st == internalError || st == tryLater {
		level = slog.LevelError
	}
	s.log().Log(r.Context(), level, "ocsp request not answered", "remote", r.RemoteAddr,
		"ocsp_status", int(st), "err", err, "cause", errors.Unwrap(err))
	s.writeOCSP(w, r, st.der())
}

// statusError is a refusal that only HTTP has a status for.
type statusError struct {
	status  int
	allow   string // for 405
	message string
}

func (e *statusError) Error() string { return e.message }

// httpStatus maps codes to statuses of HTTP, for the errors that are not answered in OCSP.
func httpStatus(code countersign.Code) int {
	switch code {
	case countersign.BadRequest:
		return http.StatusBadRequest
	case countersign.TooLarge:
		return http.StatusRequestEntityTooLarge
	case countersign.NotFound, countersign.CertUnknown:
		return http.StatusNotFound
	case countersign.RateLimited:
		return http.StatusTooManyRequests
	case countersign.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// refuse answers with the error's sentence and next step, in plain text.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	h := w.Header()
	var status int
	var text string
	if e, ok := errors.AsType[*statusError](err); ok {
		status, text = e.status, e.message
		if e.allow != "" {
			h.Set("Allow", e.allow)
		}
	} else {
		e := countersign.Public(err)
		status, text = httpStatus(e.Code), e.Message
		if e.Next != "" {
			text += ": " + e.Next
		}
		if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
			h.Set("Retry-After", seconds(e.RetryAfter))
		}
	}
	if status >= http.StatusInternalServerError {
		s.log().ErrorContext(r.Context(), "status request failed", "path", r.URL.Path, "remote", r.RemoteAddr,
			"status", status, "err", err, "cause", errors.Unwrap(err))
	}
	h.Set("Cache-Control", "no-store")
	http.Error(w, text+".", status)
}

// seconds formats d in seconds, rounded up so that no client retries too early.
func seconds(d time.Duration) string {
	if d <= 0 {
		d = retryAfter
	}
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
