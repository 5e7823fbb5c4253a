// Package enroll is the device door for enrollment over plain HTTPS: a device that
// does not speak EST sends its request in JSON, PEM or DER and gets its certificate.
// With the certificate it may ask for what else a device needs: an introduction to
// another device, an access token, its next secret. The door knows the nouns and the
// JSON shapes; it decodes, calls Enroller or Devices, and encodes. It decides nothing.
package enroll

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
)

// door names this door in requests and events. It is the name that it had as a part of
// package rest, which existing events and rules of fleets have.
const door = "rest"

// Devices answers what a device asks beside certificates. Each method decides by itself
// whether the device may ask, and returns the refusal.
type Devices interface {
	// ChallengeTPM returns a challenge that only the TPM with these keys can answer.
	ChallengeTPM(ctx context.Context, id api.TPMIdentity, from netip.AddrPort) (api.TPMChallenge, error)
	// EnrollTPM checks the answer to a challenge and enrolls the device.
	EnrollTPM(ctx context.Context, answer api.TPMAnswer, r countersign.EnrollRequest) (*countersign.Grant, error)
	// Introduce introduces the device of c to the peer that in names.
	Introduce(ctx context.Context, c countersign.Connection, in api.NewIntroduction) (api.SignedIntroduction, error)
	// AccessToken makes an access token for the device of c; ttl 0 is the default.
	AccessToken(ctx context.Context, c countersign.Connection, ttl time.Duration) (api.IssuedAccessToken, error)
	// ChangeSecret makes the next secret of the device of c.
	ChangeSecret(ctx context.Context, c countersign.Connection, in api.ChangeSecret) (api.IssuedSecret, error)
}

// Server answers devices. Its listener must ask for client certificates without
// verifying them.
type Server struct {
	Enroller countersign.Enroller
	// Devices is nil where devices may do nothing but enroll and renew, as at the
	// listener for recovery. What needs it is not found there.
	Devices Devices
	// OpenAPI is the document that describes Routes, in JSON. Package rest makes it.
	OpenAPI []byte
	Now     func() time.Time
	Log     *slog.Logger
}

// route is one row of the table of routes: what is served, and how it is described.
type route struct {
	api.Route
	serve func(*Server, http.ResponseWriter, *http.Request) error
}

// routes returns the routes of s: the one table of what this door serves.
func (s *Server) routes() []route {
	const certificate = "TLS with the device's current certificate."
	list := []route{
		{api.Route{
			Path: "/enroll", Summary: "Enroll: get a first certificate",
			Description: "The evidence is a token, in the body, as Bearer or as password of Basic; or a SAS token as Authorization: SharedAccessSignature; " +
				"or a client certificate. While an operator has to approve, the answer is 202 with Retry-After.",
			Query: fleetQuery(), Request: api.EnrollRequest{}, RawRequest: requestTypes(), Answer: api.Grant{}, RawAnswer: pemChain,
		}, (*Server).enroll},
		{api.Route{
			Path: "/renew", Summary: "Renew: get the next certificate", Description: certificate,
			Query: fleetQuery(), Request: api.EnrollRequest{}, RawRequest: requestTypes(), Answer: api.Grant{}, RawAnswer: pemChain,
		}, (*Server).renew},
	}
	if s.Devices == nil {
		return list
	}
	return append(
		list,
		route{api.Route{
			Path: "/enroll/tpm", Summary: "Begin to enroll by a TPM 2.0", Description: "The answer is a challenge for the chip that has these keys.",
			Request: api.TPMIdentity{}, Answer: api.TPMChallenge{},
		}, (*Server).challenge},
		route{api.Route{
			Path: "/enroll/tpm/answer", Summary: "Answer a TPM's challenge, and get a first certificate",
			Request: api.TPMAnswer{}, Answer: api.Grant{}, RawAnswer: pemChain,
		}, (*Server).answer},
		route{api.Route{
			Path: "/introductions", Summary: "Be introduced to another device of the fleet", Description: certificate,
			Request: api.NewIntroduction{}, Answer: api.SignedIntroduction{},
		}, (*Server).introduce},
		route{api.Route{
			Path: "/access-tokens", Summary: "Get an access token of the device's own", Description: certificate,
			Request: api.NewDeviceAccessToken{}, MayBeEmpty: true, Answer: api.IssuedAccessToken{},
		}, (*Server).accessToken},
		route{api.Route{
			Path: "/secret", Summary: "Change the device's secret",
			Description: "The evidence is the present secret as password of Basic with the device's id as user name, or a client certificate.",
			Request:     api.ChangeSecret{}, MayBeEmpty: true, Answer: api.IssuedSecret{},
		}, (*Server).changeSecret},
	)
}

func fleetQuery() map[string]string {
	return map[string]string{"fleet": "The fleet to enroll in; the body may name it too."}
}

// requestTypes are the media types of a certification request that is a body by itself.
func requestTypes() []string { return []string{"application/pkcs10", "application/x-pem-file"} }

// Routes describes what s serves, each by POST, for OpenAPI.
func (s *Server) Routes() []api.Route {
	var list []api.Route
	for _, r := range s.routes() {
		list = append(list, r.Route)
	}
	return list
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := rand.Text()
	h := w.Header()
	h.Set(api.RequestIDHeader, id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if err := s.serve(w, r); err != nil {
		p := api.ProblemOf(id, err)
		if h.Get("Allow") != "" {
			p.WrongMethod()
		}
		p.LogTo(r.Context(), s.Log, err)
		p.Write(w)
	}
}

// serve finds the route of a request and has it answer.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	path := strings.TrimPrefix(r.URL.Path, api.Base)
	method, do := http.MethodPost, (func(*Server, http.ResponseWriter, *http.Request) error)(nil)
	for _, one := range s.routes() {
		if one.Path == path {
			do = one.serve
		}
	}
	if path == api.OpenAPIPath && len(s.OpenAPI) > 0 {
		method, do = http.MethodGet, (*Server).describe
	}
	switch {
	case do == nil:
		return countersign.Errorf(countersign.NotFound, "there is no %.200s here", r.URL.Path).
			WithNext("devices use " + api.Base + "/enroll and " + api.Base + "/renew")
	case r.Method != method:
		w.Header().Set("Allow", method)
		return countersign.Errorf(countersign.BadRequest, "this path serves %s only", method).WithNext("repeat the request as " + method)
	case r.TLS == nil: // a token must not cross a plain connection
		return countersign.Errorf(countersign.NotAllowed, "certificates are issued over TLS only").WithNext("use the https URL")
	}
	return do(s, w, r)
}

func (s *Server) describe(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.OpenAPI) // a client that is gone needs no answer
	return nil
}
