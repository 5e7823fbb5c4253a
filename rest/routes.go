package rest

import (
	"context"
	"net/http"
	"strings"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/operator"
	"github.com/danielgtaylor/huma/v2"
)

// verifyLog is the one route that may take long.
const verifyLog = "POST /audit/verify"

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
	"GET /sessions":                 operator.Read,
	"GET /blocks":                   operator.Read,
	"POST /blocks":                  operator.Suspend,
	"DELETE /blocks/{network}":      operator.Suspend,

	"GET /certificates":                  operator.Read,
	"GET /certificates/{serial}":         operator.Read,
	"POST /certificates/{serial}/revoke": operator.Revoke,
	"GET /authorities":                   operator.Read,
	"GET /authorities/{id}":              operator.Read,

	"GET /events": operator.ReadLog,
	verifyLog:     operator.ReadLog,

	"GET /tokens":                       operator.Read,
	"POST /tokens":                      operator.Register,
	"GET /fleets":                       operator.Read,
	"GET /fleets/{name}":                operator.Read,
	"PUT /fleets/{name}":                operator.Configure,
	"GET /profiles":                     operator.Read,
	"GET /profiles/{name}":              operator.Read,
	"PUT /profiles/{name}":              operator.Configure,
	"GET /operator-tokens":              operator.Operators,
	"POST /operator-tokens":             operator.Operators,
	"POST /operator-tokens/{id}/revoke": operator.Operators,
}

// answer is the body of an answer.
type answer[T any] struct {
	Body T
}

// routeOf is the key of an operation in acts.
func routeOf(op *huma.Operation) string {
	return op.Method + " " + strings.TrimPrefix(op.Path, api.Base)
}

// operationID names an operation for those who generate clients:
// post-devices-id-revoke.
func (r spec) operationID() string {
	return strings.ToLower(r.method) + strings.NewReplacer("/", "-", "{", "", "}", "").Replace(r.path)
}

// route registers one route.
func route[In, Out any](s *Server, a huma.API, r spec, h func(ctx context.Context, in *In) (Out, error)) {
	status := http.StatusOK
	if r.creates {
		status = http.StatusCreated
	}
	op := huma.Operation{
		OperationID:     r.operationID(),
		Method:          r.method,
		Path:            api.Base + r.path,
		Summary:         r.summary,
		Tags:            []string{r.tag},
		DefaultStatus:   status,
		MaxBodyBytes:    maxBody,
		BodyReadTimeout: bodyTimeout,
		Responses:       map[string]*huma.Response{"default": problemResponse(a)},
	}
	if acts[routeOf(&op)] == operator.Anyone {
		op.Security = []map[string][]string{{}}
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
}

func get(path, tag, summary string) spec { return spec{http.MethodGet, path, tag, summary, false} }
func act(path, tag, summary string) spec { return spec{http.MethodPost, path, tag, summary, false} }
func add(path, tag, summary string) spec { return spec{http.MethodPost, path, tag, summary, true} }
func put(path, tag, summary string) spec { return spec{http.MethodPut, path, tag, summary, false} }

func remove(path, tag, summary string) spec {
	return spec{method: http.MethodDelete, path: path, tag: tag, summary: summary}
}

func problemResponse(a huma.API) *huma.Response {
	schema := a.OpenAPI().Components.Schemas.Schema(typeOf[api.Problem](), true, "Problem")
	return &huma.Response{Description: "Problem", Content: map[string]*huma.MediaType{api.ProblemType: {Schema: schema}}}
}
