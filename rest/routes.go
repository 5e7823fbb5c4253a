package rest

import (
	"context"
	"net/http"
	"strings"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/operator"
	"github.com/danielgtaylor/huma/v2"
)

// The routes that may take long: the walk over the log, and a factory's run.
const (
	verifyLog   = "POST /audit/verify"
	factoryLine = "POST /factory/{fleet}/certificates"
)

// acts says which right each route wants. A route that is not here is closed.
var acts = map[string]operator.Act{
	"GET /health":  operator.Anyone,
	"GET /version": operator.Read,
	"GET /doctor":  operator.Read,

	"GET /devices":                  operator.Read,
	"POST /devices":                 operator.Register,
	"GET /devices/{id}":             operator.Read,
	"GET /devices/{id}/events":      operator.Read,
	"POST /devices/{id}/suspend":    operator.Suspend,
	"POST /devices/{id}/reactivate": operator.Suspend,
	"POST /devices/{id}/revoke":     operator.Revoke,
	"POST /devices/{id}/retire":     operator.Revoke,
	"GET /holds":                    operator.Read,
	"POST /holds/{id}/retry":        operator.Suspend,
	"POST /holds/{id}/drop":         operator.Revoke, // it lets a device back in
	"GET /sessions":                 operator.Read,
	"GET /blocks":                   operator.Read,
	"POST /blocks":                  operator.Suspend,
	"DELETE /blocks/{network}":      operator.Suspend,

	"PATCH /devices/{id}":            operator.Revoke, // tags and fleet say what an active device may do
	"POST /devices/{id}/disconnect":  operator.Suspend,
	"POST /sessions/{id}/disconnect": operator.Suspend,
	"PATCH /fleets/{name}/rules":     operator.Configure,
	"GET /usage":                     operator.Read,
	"POST /devices/{id}/purge":       operator.Revoke, // what is dropped cannot be had back

	"GET /devices/{id}/secrets":                operator.Read,
	"POST /devices/{id}/secrets":               operator.Revoke, // whoever makes one can be the device, an active one too
	"POST /devices/{id}/secrets/rotate":        operator.Revoke,
	"POST /devices/{id}/secrets/{secret}/stop": operator.Revoke,

	"GET /access-tokens":              operator.Read,
	"POST /access-tokens":             operator.Read, // a role without Control gets one that only listens
	"POST /access-tokens/{id}/revoke": operator.Suspend,
	"POST /introductions":             operator.Control,

	"GET /alerts":                   operator.Read,
	"GET /alerts/{id}":              operator.Read,
	"GET /alerts/{id}/actions":      operator.Read,
	"POST /alerts/{id}/acknowledge": operator.Suspend,
	"POST /alerts/{id}/assign":      operator.Suspend,
	"POST /alerts/{id}/comment":     operator.Suspend,
	"POST /alerts/{id}/snooze":      operator.Suspend,
	"POST /alerts/{id}/close":       operator.Suspend,
	"POST /alerts/{id}/suspend":     operator.Suspend,
	"POST /alerts/{id}/reactivate":  operator.Suspend,
	"POST /alerts/{id}/revoke":      operator.Revoke,
	"POST /alerts/{id}/block":       operator.Suspend,
	"GET /alert-rules":              operator.Read,
	"GET /channels":                 operator.Read,
	"POST /channels/{name}/test":    operator.Configure,

	"GET /certificates":                  operator.Read,
	"GET /certificates/{serial}":         operator.Read,
	"POST /certificates/{serial}/revoke": operator.Revoke,
	"GET /authorities":                   operator.Read,
	"GET /authorities/{id}":              operator.Read,
	"POST /authorities":                  operator.Configure,
	"POST /authorities/code":             operator.Configure,
	"PUT /authorities/{id}/crls":         operator.Configure,

	"GET /events": operator.ReadLog,
	verifyLog:     operator.ReadLog,

	"GET /audit/checks":               operator.Read,
	"GET /audit/runs":                 operator.ReadLog,
	"POST /audit/runs":                operator.ReadLog, // it changes nothing but its own records
	"GET /audit/runs/{id}":            operator.ReadLog,
	"POST /audit/runs/{id}/cancel":    operator.ReadLog,
	"GET /audit/runs/{id}/findings":   operator.ReadLog,
	"GET /audit/trend":                operator.ReadLog,
	"GET /audit/suppressions":         operator.ReadLog,
	"POST /audit/suppressions":        operator.Approve, // to accept a risk
	"DELETE /audit/suppressions/{id}": operator.Approve,

	"GET /tokens":                       operator.Read,
	"POST /tokens":                      operator.Register,
	"POST /tokens/bulk":                 operator.Register,
	"GET /credentials":                  operator.Read,
	"GET /credentials/{id}":             operator.Read,
	"POST /credentials/{id}/stop":       operator.Revoke,
	"POST /claims":                      operator.Register,
	"POST /keys":                        operator.Register,
	"POST /group-keys":                  operator.Configure, // it makes any device of the fleet
	"POST /thumbprints":                 operator.Register,
	"POST /tpms":                        operator.Register,
	"GET /enrollments":                  operator.Read,
	"POST /enrollments/{id}/approve":    operator.Approve,
	"POST /enrollments/{id}/reject":     operator.Approve,
	"POST /enrollments/explain":         operator.Read,
	"POST /factory/{fleet}/certificate": operator.Vouch,
	factoryLine:                         operator.Vouch,

	"GET /fleets":                       operator.Read,
	"GET /fleets/{name}":                operator.Read,
	"PUT /fleets/{name}":                operator.Configure,
	"GET /profiles":                     operator.Read,
	"GET /profiles/{name}":              operator.Read,
	"PUT /profiles/{name}":              operator.Configure,
	"GET /operator-tokens":              operator.Operators,
	"POST /operator-tokens":             operator.Operators,
	"POST /operator-tokens/{id}/revoke": operator.Operators,

	"GET /policies/{fleet}":                    operator.Read,
	"GET /policies/{fleet}/versions":           operator.Read,
	"GET /policies/{fleet}/versions/{version}": operator.Read,
	"POST /policies/check":                     operator.Read,
	"POST /policies/explain":                   operator.Read,
	"POST /policies/{fleet}/replay":            operator.Read,
	"POST /policies/{fleet}/apply":             operator.Configure,
	"POST /policies/{fleet}/rollback":          operator.Configure,
}

// answer is the body of an answer.
type answer[T any] struct {
	Body T
}

// routeOf is the key of an operation in acts.
func routeOf(op *huma.Operation) string {
	return op.Method + " " + strings.TrimPrefix(op.Path, api.Base)
}

// route registers one route.
func route[In, Out any](s *Server, a huma.API, r spec, h func(ctx context.Context, in *In) (Out, error)) {
	status := http.StatusOK
	if r.creates {
		status = http.StatusCreated
	}
	op := huma.Operation{
		OperationID:     operationID(r.method, r.path),
		Method:          r.method,
		Path:            api.Base + r.path,
		Summary:         r.summary,
		Tags:            []string{r.tag},
		DefaultStatus:   status,
		MaxBodyBytes:    maxBody,
		BodyReadTimeout: bodyTimeout,
		Responses:       map[string]*huma.Response{"default": problemResponse(a.OpenAPI().Components.Schemas)},
	}
	if acts[routeOf(&op)] == operator.Anyone {
		op.Security = []map[string][]string{{}}
	}
	if r.body > 0 {
		op.MaxBodyBytes = r.body
	}
	huma.Register(a, op, func(ctx context.Context, in *In) (*answer[Out], error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, s.problem(ctx, err)
		}
		return &answer[Out]{out}, nil
	})
}

// spec is what OpenAPI says of a route.
type spec struct {
	method, path string
	tag, summary string
	creates      bool
	body         int64 // most octets of a request; 0: maxBody
}

// upTo lets a route take larger requests than others.
func (r spec) upTo(octets int64) spec {
	r.body = octets
	return r
}

func get(path, tag, summary string) spec {
	return spec{method: http.MethodGet, path: path, tag: tag, summary: summary}
}

func act(path, tag, summary string) spec {
	return spec{method: http.MethodPost, path: path, tag: tag, summary: summary}
}

func add(path, tag, summary string) spec {
	return spec{method: http.MethodPost, path: path, tag: tag, summary: summary, creates: true}
}

func put(path, tag, summary string) spec {
	return spec{method: http.MethodPut, path: path, tag: tag, summary: summary}
}

func patch(path, tag, summary string) spec {
	return spec{method: http.MethodPatch, path: path, tag: tag, summary: summary}
}

func remove(path, tag, summary string) spec {
	return spec{method: http.MethodDelete, path: path, tag: tag, summary: summary}
}
