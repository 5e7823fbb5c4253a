package est

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
)

// challenge makes curl and strongSwan repeat the request with their password;
// neither sends it before.
const challenge = `Basic realm="countersign est", charset="UTF-8"`

// retryAfter is said where the refusal names no time: long enough to ease an
// overload, short enough for a person who waits.
const retryAfter = 30 * time.Second

// statusError is a refusal that only HTTP has a word for.
type statusError struct {
	status        int
	allow         string // for 405
	message, next string
}

func (e *statusError) Error() string { return e.message }

// httpStatus is the one table from codes to HTTP (RFC 7030, 4.2.3; RFC 9110, 15).
// 401 is for what another token could mend, 403 for what none can.
func httpStatus(code countersign.Code) int {
	switch code {
	case countersign.BadRequest, countersign.BadSignature, countersign.WeakKey:
		return http.StatusBadRequest
	case countersign.TooLarge:
		return http.StatusRequestEntityTooLarge
	case countersign.Unauthenticated, countersign.BadCredential,
		countersign.CredentialSpent, countersign.CredentialExpire:
		return http.StatusUnauthorized
	case countersign.NotAllowed, countersign.Misconfigured, countersign.SubjectMismatch,
		countersign.DeviceOnHold, countersign.DeviceGone,
		countersign.CertUnknown, countersign.CertIsRevoked, countersign.CertIsHeld, countersign.KeyReused,
		countersign.CertExpired, countersign.CertNotYetValid, countersign.ForkDetected:
		return http.StatusForbidden
	case countersign.NotFound:
		return http.StatusNotFound
	case countersign.Conflict, countersign.DeviceIsActive:
		return http.StatusConflict
	case countersign.RateLimited, countersign.OverBudget:
		return http.StatusTooManyRequests
	case countersign.Unavailable:
		return http.StatusServiceUnavailable
	case countersign.Pending: // no refusal, yet the client must ask again
		return http.StatusAccepted
	}
	return http.StatusInternalServerError
}

// authenticate is the name of the header as RFC 9110 spells it. Names are the same
// in any case, but libest compares this one octet by octet, and [http.Header.Set]
// would write Www-Authenticate.
const authenticate = "WWW-Authenticate"

// reasonHeader holds the reason of a 401 that has no body.
const reasonHeader = "Countersign-Reason"

// refuse answers with one sentence and a next step in plain text (RFC 7030,
// 4.2.3) and logs the refusal with its cause. A 401 to a request that came without
// Authorization is the first half of an exchange rather than a refusal: its body
// is empty, because Bouncy Castle closes it unread and fails on what is left of it. Nothing is kept of a request that
// awaits approval: its client repeats it, and the Enroller knows it again.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var status int
	var text string
	code := countersign.BadRequest
	h := w.Header()
	if e, ok := errors.AsType[*statusError](err); ok {
		status, text = e.status, sentence(e.message, e.next)
		if e.allow != "" {
			h.Set("Allow", e.allow)
		}
	} else {
		e := countersign.Public(err)
		code = e.Code
		status, text = httpStatus(code), sentence(e.Message, e.Next)
		switch status {
		case http.StatusUnauthorized:
			h[authenticate] = []string{challenge} //nolint:canonicalheader // on purpose, see there
		case http.StatusAccepted, http.StatusTooManyRequests, http.StatusServiceUnavailable:
			h.Set("Retry-After", seconds(e.RetryAfter))
		}
	}
	attrs := []any{
		"path", r.URL.Path, "remote", r.RemoteAddr, "status", status, "code", code, "err", err, "cause", errors.Unwrap(err),
	}
	switch {
	case status == http.StatusAccepted:
		s.log().InfoContext(r.Context(), "est request awaits approval", attrs...)
	case status >= http.StatusInternalServerError && status != http.StatusNotImplemented:
		s.log().ErrorContext(r.Context(), "est request failed", attrs...)
	default:
		s.log().InfoContext(r.Context(), "est request refused", attrs...)
	}

	if status == http.StatusUnauthorized && r.Header.Get("Authorization") == "" {
		// curl 7 takes the end of an HTTP/2 stream for a failure that comes while it is still
		// sending, and an answer without a body ends the stream at once.
		_, _ = io.CopyN(io.Discard, r.Body, DefaultMaxBody)
		h.Set(reasonHeader, headerText(text))
		h.Set("Content-Length", "0")
		w.WriteHeader(status)
		return
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // a client that is gone needs no answer
}

func sentence(message, next string) string {
	if next == "" {
		return message + ".\n"
	}
	return message + ": " + next + ".\n"
}

// headerText is text as a header may hold it: visible ASCII.
func headerText(text string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text))
}

// seconds rounds up, so that no client comes back too early.
func seconds(d time.Duration) string {
	if d <= 0 {
		d = retryAfter
	}
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
