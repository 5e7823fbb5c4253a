package est

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
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
		status, text = cmp.Or(api.StatusOf(code), http.StatusInternalServerError), sentence(e.Message, e.Next)
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
