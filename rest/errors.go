package rest

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/danielgtaylor/huma/v2"
)

// statuses is the one table from codes to HTTP (RFC 9110, 15). 401 is for what
// another credential could mend, 403 for what none can, 409 for a thing that is
// not in the state for it.
var statuses = map[countersign.Code]int{
	countersign.BadRequest:       http.StatusBadRequest,
	countersign.TooLarge:         http.StatusRequestEntityTooLarge,
	countersign.BadSignature:     http.StatusBadRequest,
	countersign.WeakKey:          http.StatusBadRequest,
	countersign.Unauthenticated:  http.StatusUnauthorized,
	countersign.BadCredential:    http.StatusUnauthorized,
	countersign.CredentialSpent:  http.StatusUnauthorized,
	countersign.CredentialExpire: http.StatusUnauthorized,
	countersign.NotAllowed:       http.StatusForbidden,
	countersign.SubjectMismatch:  http.StatusForbidden,
	countersign.DeviceIsActive:   http.StatusConflict,
	countersign.DeviceOnHold:     http.StatusForbidden,
	countersign.DeviceGone:       http.StatusForbidden,
	countersign.CertUnknown:      http.StatusForbidden,
	countersign.CertIsRevoked:    http.StatusForbidden,
	countersign.CertIsHeld:       http.StatusForbidden,
	countersign.CertExpired:      http.StatusForbidden,
	countersign.CertNotYetValid:  http.StatusForbidden,
	countersign.KeyReused:        http.StatusForbidden,
	countersign.ForkDetected:     http.StatusForbidden,
	countersign.NotFound:         http.StatusNotFound,
	countersign.Conflict:         http.StatusConflict,
	countersign.RateLimited:      http.StatusTooManyRequests,
	countersign.OverBudget:       http.StatusTooManyRequests,
	countersign.Misconfigured:    http.StatusForbidden,
	countersign.Pending:          http.StatusAccepted, // no refusal, yet the caller must ask again
	countersign.Unavailable:      http.StatusServiceUnavailable,
	countersign.Internal:         http.StatusInternalServerError,
}

// defaultRetry is said where the refusal names no time.
const defaultRetry = 30 * time.Second

// problem is an api.Problem that huma can write and a handler return.
type problem struct {
	api.Problem
}

var (
	_ huma.StatusError       = (*problem)(nil)
	_ huma.HeadersError      = (*problem)(nil)
	_ huma.ContentTypeFilter = (*problem)(nil)
)

func (p *problem) Error() string             { return p.Detail }
func (p *problem) GetStatus() int            { return p.Status }
func (p *problem) ContentType(string) string { return api.ProblemType }

// GetHeaders gives what HTTP wants beside the status.
func (p *problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="countersign"`)
	}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(p.RetryAfter, 10))
	}
	return h
}

// wrongMethod makes p a 405, for which there is no code: only HTTP has methods.
func (p *problem) wrongMethod() {
	p.Status, p.Title = http.StatusMethodNotAllowed, http.StatusText(http.StatusMethodNotAllowed)
}

// problemOf words err for its reader. The cause stays here.
func problemOf(ctx context.Context, err error) *problem {
	id, _ := ctx.Value(requestKey).(string)
	e := countersign.Public(err)
	if errors.Is(err, context.DeadlineExceeded) && e.Code == countersign.Internal {
		e = countersign.Errorf(countersign.Unavailable, "this took too long and was given up").WithNext("try again, or ask for less")
	}
	status, ok := statuses[e.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	if e.RetryAfter == 0 && (e.Code == countersign.RateLimited || e.Code == countersign.OverBudget || e.Code == countersign.Unavailable || e.Code == countersign.Pending) {
		e.RetryAfter = defaultRetry
	}
	return &problem{api.Problem{
		Type:       "about:blank",
		Title:      http.StatusText(status),
		Status:     status,
		Detail:     e.Message,
		Code:       string(e.Code),
		Next:       e.Next,
		RequestID:  id,
		RetryAfter: int64(math.Ceil(e.RetryAfter.Seconds())),
	}}
}

// problem words err and logs it, with its cause if the fault is ours.
func (s *Server) problem(ctx context.Context, err error) *problem {
	p := problemOf(ctx, err)
	logProblem(ctx, s.Log, p, err)
	return p
}

func logProblem(ctx context.Context, log *slog.Logger, p *problem, err error) {
	if log == nil {
		return
	}
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

// problemInstead rewrites what huma says of a request that does not fit its
// schema. The values that it would repeat are left out: they may be secrets.
func problemInstead(ctx huma.Context, _ string, v any) (any, error) {
	switch e := v.(type) {
	case *problem:
		return e.Problem, nil
	case *huma.ErrorModel:
		return fromHuma(ctx.Context(), e), nil
	}
	return v, nil
}

func fromHuma(ctx context.Context, e *huma.ErrorModel) api.Problem {
	code := countersign.BadRequest
	switch {
	case e.Status == http.StatusRequestEntityTooLarge:
		code = countersign.TooLarge
	case e.Status >= http.StatusInternalServerError:
		code = countersign.Internal
	}
	detail := "the request does not fit"
	if e.Status != http.StatusUnprocessableEntity {
		detail = e.Detail
	}
	p := problemOf(ctx, countersign.Errorf(code, "%s", detail).WithNext("see "+api.Base+"/openapi.json")).Problem
	p.Status, p.Title = e.Status, http.StatusText(e.Status)
	for _, d := range e.Errors {
		p.Errors = append(p.Errors, api.FieldProblem{Location: d.Location, Message: d.Message})
	}
	return p
}

// writeProblem writes p from a middleware.
func writeProblem(a huma.API, ctx huma.Context, p *problem) {
	for k, values := range p.GetHeaders() {
		for _, v := range values {
			ctx.SetHeader(k, v)
		}
	}
	ctx.SetHeader("Content-Type", api.ProblemType)
	ctx.SetStatus(p.Status)
	_ = a.Marshal(ctx.BodyWriter(), "application/json", p.Problem) // nobody to tell when the caller is gone
}

// newRequestID makes an id that is unique without being counted anywhere.
func newRequestID() string { return rand.Text() }
