package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
)

// Problem is an error (RFC 9457) with what a program branches on and what a
// person does next.
type Problem struct {
	Type       string         `json:"type" doc:"about:blank: the kind is in the code"`
	Title      string         `json:"title" doc:"The meaning of the status."`
	Status     int            `json:"status" doc:"The HTTP status."`
	Detail     string         `json:"detail" doc:"What was refused and why, one sentence."`
	Code       string         `json:"code" doc:"Machine-readable reason, such as not_found."`
	Next       string         `json:"next,omitempty" doc:"What to do about it."`
	RequestID  string         `json:"request_id,omitempty" doc:"The id of the request, which the server's log has beside the cause."`
	RetryAfter int64          `json:"retry_after,omitempty" doc:"Seconds to wait before another try."`
	Errors     []FieldProblem `json:"errors,omitempty" doc:"Each part of the request that is wrong."`
}

// FieldProblem is what is wrong with one part of a request. It never repeats
// the value, which may be a secret.
type FieldProblem struct {
	Location string `json:"location" doc:"Path of the part: body.fleet."`
	Message  string `json:"message"`
}

// ProblemType is the media type of a Problem.
const ProblemType = "application/problem+json"

// RequestIDHeader carries the id that the server gave a request.
const RequestIDHeader = "X-Request-Id"

// defaultRetry is the Retry-After of a refusal that names no time.
const defaultRetry = 30 * time.Second

// StatusOf returns the HTTP status (RFC 9110, 15; RFC 7030, 4.2.3) for a code, and 0 for
// one that it does not know. 401 is for what another credential could mend, 403 for what none can,
// 409 for a thing that is not in the state for the request.
func StatusOf(c countersign.Code) int {
	switch c {
	case countersign.BadRequest, countersign.BadSignature, countersign.WeakKey:
		return http.StatusBadRequest
	case countersign.TooLarge:
		return http.StatusRequestEntityTooLarge
	case countersign.Unauthenticated, countersign.BadCredential, countersign.CredentialSpent, countersign.CredentialExpire:
		return http.StatusUnauthorized
	case countersign.NotAllowed, countersign.SubjectMismatch, countersign.DeviceOnHold, countersign.DeviceGone, countersign.CertUnknown,
		countersign.CertIsRevoked, countersign.CertIsHeld, countersign.CertExpired, countersign.CertNotYetValid, countersign.KeyReused,
		countersign.ForkDetected, countersign.Misconfigured:
		return http.StatusForbidden
	case countersign.DeviceIsActive, countersign.Conflict:
		return http.StatusConflict
	case countersign.NotFound:
		return http.StatusNotFound
	case countersign.RateLimited, countersign.OverBudget:
		return http.StatusTooManyRequests
	case countersign.Pending:
		return http.StatusAccepted // no refusal, but the client must ask again
	case countersign.Unavailable:
		return http.StatusServiceUnavailable
	case countersign.Internal:
		return http.StatusInternalServerError
	}
	return 0
}

// ProblemOf returns what the client with the request id reads of err. The cause of err
// is not in it.
func ProblemOf(id string, err error) Problem {
	e := countersign.Public(err)
	if errors.Is(err, context.DeadlineExceeded) && e.Code == countersign.Internal {
		e = countersign.Errorf(countersign.Unavailable, "this took too long and was given up").WithNext("try again, or ask for less")
	}
	status := cmp.Or(StatusOf(e.Code), http.StatusInternalServerError)
	if e.RetryAfter == 0 && (status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || status == http.StatusAccepted) {
		e.RetryAfter = defaultRetry
	}
	return Problem{
		Type:       "about:blank",
		Title:      http.StatusText(status),
		Status:     status,
		Detail:     e.Message,
		Code:       string(e.Code),
		Next:       e.Next,
		RequestID:  id,
		RetryAfter: int64(math.Ceil(e.RetryAfter.Seconds())),
	}
}

// WrongMethod makes p a 405, for which there is no code: only HTTP has methods.
func (p *Problem) WrongMethod() {
	p.Status, p.Title = http.StatusMethodNotAllowed, http.StatusText(http.StatusMethodNotAllowed)
}

// Header returns the header fields that HTTP wants beside the status.
func (p *Problem) Header() http.Header {
	h := http.Header{}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="countersign"`)
	}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(p.RetryAfter, 10))
	}
	return h
}

// Write answers a request with p.
func (p *Problem) Write(w http.ResponseWriter) {
	maps.Copy(w.Header(), p.Header())
	w.Header().Set("Content-Type", ProblemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a client that is gone needs no answer
}

// LogTo writes p to the log with err, its cause, and at a level by whose fault it is.
func (p *Problem) LogTo(ctx context.Context, log *slog.Logger, err error) {
	level := slog.LevelInfo
	if p.Status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	var cause error
	if e, ok := errors.AsType[*countersign.Error](err); ok {
		cause = e.Err
	}
	log.LogAttrs(ctx, level, "request refused", slog.String("request", p.RequestID), slog.Int("status", p.Status),
		slog.String("code", p.Code), slog.Any("error", err), slog.Any("cause", cause))
}
