package rest

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/operator"
)

const (
	// maxBody of a request: the largest is a device with 64 tags of 512 octets.
	maxBody = 64 << 10
	// bodyTimeout is how long a request may take to arrive.
	bodyTimeout = 10 * time.Second
	// requestTimeout bounds the work of one request.
	requestTimeout = 30 * time.Second
)

// handler is what answers a route, with its bounds.
type handler struct {
	register func(a huma.API, op huma.Operation, log *slog.Logger)
	status   int           // of a good answer
	body     int64         // most octets of a request
	limit    time.Duration // of the work of one request
}

// answer is the body of an answer.
type answer[T any] struct{ Body T }

// on has h answer a route.
func on[In, Out any](h func(context.Context, *In) (Out, error)) handler {
	return handler{status: http.StatusOK, body: maxBody, limit: requestTimeout, register: func(a huma.API, op huma.Operation, log *slog.Logger) {
		huma.Register(a, op, func(ctx context.Context, in *In) (*answer[Out], error) {
			out, err := h(ctx, in)
			if err != nil {
				return nil, logged(ctx, log, err)
			}
			return &answer[Out]{out}, nil
		})
	}}
}

// creates is on for a route that makes something, which is answered with 201.
func creates[In, Out any](h func(context.Context, *In) (Out, error)) handler {
	out := on(h)
	out.status = http.StatusCreated
	return out
}

// upTo lets requests be larger than others.
func (h handler) upTo(octets int64) handler {
	h.body = octets
	return h
}

// within lets the work take longer than others.
func (h handler) within(limit time.Duration) handler {
	h.limit = limit
	return h
}

// routeKey is the key of a route in the metadata of its operation.
const routeKey = "route"

// registerRoute registers one route.
func registerRoute(a huma.API, tag string, r *route, log *slog.Logger) {
	method, path, _ := strings.Cut(r.name, " ")
	op := huma.Operation{
		OperationID:     operationID(method, path),
		Method:          method,
		Path:            api.Base + path,
		Summary:         r.summary,
		Tags:            []string{tag},
		DefaultStatus:   r.handle.status,
		MaxBodyBytes:    r.handle.body,
		BodyReadTimeout: bodyTimeout,
		Responses:       map[string]*huma.Response{"default": problemResponse(a.OpenAPI().Components.Schemas)},
		Metadata:        map[string]any{routeKey: r},
	}
	if r.act == operator.Anyone {
		op.Security = []map[string][]string{{}}
	}
	r.handle.register(a, op, log)
}
