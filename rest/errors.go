package rest

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/danielgtaylor/huma/v2"
)

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

// GetHeaders returns what HTTP wants beside the status.
func (p *problem) GetHeaders() http.Header { return p.Header() }

// logged returns what the client reads of err, and logs err with its cause.
func logged(ctx context.Context, log *slog.Logger, err error) *problem {
	p := problemOf(ctx, err)
	p.LogTo(ctx, log, err)
	return p
}

// problemOf returns what the client reads of err. The cause stays here.
func problemOf(ctx context.Context, err error) *problem {
	id, _ := ctx.Value(requestKey).(string)
	return &problem{api.ProblemOf(id, err)}
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
	_ = a.Marshal(ctx.BodyWriter(), "application/json", p.Problem) // a client that is gone needs no answer
}
