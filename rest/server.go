// Package rest is the operators' JSON API, described by OpenAPI 3.1 at
// /api/v1/openapi.json. One table in routes.go has each route with the right that its
// caller needs; its handler decodes, asks a keeper, and encodes. Handlers decide
// nothing. How errors look is in package api.
package rest

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/audit"
	"github.com/countersign-iot/countersign/ca"
	"github.com/countersign-iot/countersign/event"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
	"github.com/countersign-iot/countersign/registry"
	"github.com/countersign-iot/countersign/respond"
	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// Server answers operators. Set the fields, then take the Handler.
type Server struct {
	CA          *ca.CA
	Registry    *registry.Registry
	Events      *event.Log
	RA          *ra.Authority
	Provisioner *provision.Provisioner
	Operators   *operator.Accounts
	// Gate decides who may ask for what; it is not asked where Local.
	Gate *operator.Gate
	// Alerts is where findings become alerts.
	Alerts *respond.Responder
	// Auditor looks through the records.
	Auditor *audit.Auditor
	// Sessions lists the live sessions of this node. It is a function because the index
	// of them is in package edge, which an operators' door may not import.
	Sessions func() []countersign.Session
	// Checks are what the server finds of itself beyond the records. It is a function
	// because only package server knows keys, clocks and disks.
	Checks func(context.Context) []api.Check
	// Local is for the Unix socket: a client that may open it is an admin, named by
	// LocalName. Otherwise each request needs an operator token.
	Local bool
	// Offline is how long live sessions go on without the database, for what is shown.
	Offline time.Duration
	Now     func() time.Time
	Log     *slog.Logger
}

// Handler returns the handler of everything under /api/v1.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	s.describe(mux)
	mux.HandleFunc("/", s.notFound(mux))
	var h http.Handler = mux // each route bounds its own body
	if !s.Local {
		// A page of another site must not act with what the browser sends by itself.
		h = http.NewCrossOriginProtection().Handler(h)
	}
	return s.guard(h)
}

// describe registers all routes, and with them what OpenAPI says of them.
func (s *Server) describe(mux *http.ServeMux) huma.API {
	doc := newDocument("Identity authority for fleets of devices. The listener where devices enroll serves its own document at the same path.",
		map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer", Description: "operator token"}})
	doc.Security = []map[string][]string{{"token": {}}}
	a := humago.New(mux, huma.Config{
		OpenAPI:                      doc,
		OpenAPIPath:                  api.Base + "/openapi",
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{problemInstead},
	})
	a.UseMiddleware(s.admit(a))
	for _, g := range s.routes() {
		for i := range g.routes {
			registerRoute(a, g.tag, &g.routes[i], s.Log)
		}
	}
	allowNull(a.OpenAPI())
	for _, name := range []string{"ErrorModel", "ErrorDetail"} { // ours is Problem
		delete(doc.Components.Schemas.Map(), name)
	}
	return a
}

// key is the type of this package's context keys.
type key int

const (
	requestKey key = iota
	callerKey
)

// viaAPI names the API as the door of an act.
const viaAPI = "rest"

// caller is who sent a request.
type caller struct {
	name  string
	role  operator.Role
	token string    // id of its operator token; empty at the socket
	until time.Time // end of that; zero at the socket
	from  netip.AddrPort
	via   string // the door of its acts in the log
}

// callerOf returns the caller of the request with ctx.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey).(caller)
	return c
}

// byOf returns the caller as an actor in the log.
func byOf(ctx context.Context) ra.By {
	c := callerOf(ctx)
	by := ra.By{Actor: countersign.OperatorActor(c.name), Via: c.via}
	if c.role == operator.Factory {
		by.Factory = &ra.Factory{Token: c.token, Until: c.until}
	}
	return by
}

// admit lets a request through to a route that its caller may use, with the time
// that the route has.
func (s *Server) admit(a huma.API) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r := ctx.Operation().Metadata[routeKey].(*route)
		c, err := s.identify(ctx.Context(), ctx.RemoteAddr(), ctx.Header("Authorization"), r.act, r.name)
		if err == nil && r.act == "" {
			err = countersign.Errorf(countersign.NotAllowed, "no role may do this")
		}
		if err != nil {
			writeProblem(a, ctx, logged(ctx.Context(), s.Log, err))
			return
		}
		timed, cancel := context.WithTimeout(ctx.Context(), r.handle.limit)
		defer cancel()
		next(huma.WithContext(ctx, context.WithValue(timed, callerKey, c)))
	}
}

// identify returns who sent a request, if that operator may do the act.
func (s *Server) identify(ctx context.Context, from, authorization string, act operator.Act, route string) (caller, error) {
	if s.Local {
		return caller{name: LocalName(from), role: operator.Admin, via: "cli"}, nil
	}
	if act == operator.Anyone {
		return caller{name: "anyone", via: viaAPI}, nil
	}
	remote, _ := netip.ParseAddrPort(from) // none: not counted
	ask := operator.Ask{Remote: remote, Via: viaAPI, Route: route}
	t, err := s.Gate.Authenticate(ctx, api.Bearer(authorization), ask)
	if err == nil {
		err = s.Gate.Allow(t.Name, t.Role, act, ask)
	}
	if err != nil {
		return caller{}, err
	}
	return caller{t.Name, t.Role, t.ID, t.ExpiresAt, remote, viaAPI}, nil
}

// localPrefix begins the address and the name of a client of the socket.
const localPrefix = "local:"

// LocalAddr is the remote address of a connection to the socket by a Unix user.
func LocalAddr(user string) string { return localPrefix + user }

// LocalName returns the operator's name for acts through the socket: local:<user>
// where the address is a LocalAddr, else local. No operator token has such a name.
func LocalName(from string) string {
	if user, ok := strings.CutPrefix(from, localPrefix); ok && user != "" {
		return localPrefix + user
	}
	return "local"
}

// guard returns each request an id and keeps a panic from ending the connection
// without an answer.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := rand.Text()
		w.Header().Set(api.RequestIDHeader, id)
		w.Header().Set("Cache-Control", "no-store") // answers hold secrets, and age at once
		w.Header().Set("X-Content-Type-Options", "nosniff")
		r = r.WithContext(context.WithValue(r.Context(), requestKey, id))
		defer func() {
			if v := recover(); v != nil {
				s.answerPanic(w, r, v)
			}
		}()
		if err := checkText(r); err != nil {
			logged(r.Context(), s.Log, err).Write(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) answerPanic(w http.ResponseWriter, r *http.Request, v any) {
	if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
		panic(v)
	}
	logged(r.Context(), s.Log, fmt.Errorf("panic: %v", v)).Write(w)
}

// notFound answers what no route does, with 405 where another method would do.
func (s *Server) notFound(mux *http.ServeMux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			try := *r
			try.Method = m
			if _, pattern := mux.Handler(&try); pattern != "/" {
				allowed = append(allowed, m)
			}
		}
		p := logged(r.Context(), s.Log, countersign.Errorf(countersign.NotFound, "there is no %s %.200s", r.Method, r.URL.Path).
			WithNext("see "+api.Base+"/openapi.json"))
		if len(allowed) > 0 {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			p.WrongMethod()
		}
		p.Write(w)
	}
}
