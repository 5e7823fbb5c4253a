package rest

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/access"
	"github.com/countersign-iot/countersign/operator"
	"github.com/countersign-iot/countersign/provision"
	"github.com/countersign-iot/countersign/ra"
)

// The words of RFC 8693.
const (
	grantExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"     //nolint:gosec // a name
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token" //nolint:gosec // a name
	typeJWT         = "urn:ietf:params:oauth:token-type:jwt"
)

// maxExchangeBody bounds a request: an ID token with many groups, and a scope.
const maxExchangeBody = 32 << 10

// Exchange returns web applications an access token for what their user signed in
// with (RFC 8693): an ID token of the configured provider, or an operator token.
//
//	POST /token  grant_type=urn:ietf:params:oauth:grant-type:token-exchange
//	             subject_token, subject_token_type=…:id_token or …:access_token (an operator token)
//	             scope="device:pump-1 device:pump-2 read"; with read it only listens
//	             expires_in=900 (ours: how long, 60 to 3600 seconds)
//
// Errors are those of RFC 6749, 5.2. Browsers may ask from the Origins.
type Exchange struct {
	Provisioner *provision.Provisioner
	Gate        *operator.Gate
	OIDC        *operator.OIDC // nil: there is no provider
	// Origins whose pages may ask: host or scheme://host, with * for any text; the
	// listener's own always may.
	Origins []string
	Now     func() time.Time
	Log     *slog.Logger
}

// exchanged is the answer (RFC 8693, 2.2.1).
type exchanged struct {
	Token     string `json:"access_token"`
	Issued    string `json:"issued_token_type"`
	Type      string `json:"token_type"`
	ExpiresIn int    `json:"expires_in"`
	Scope     string `json:"scope"`
}

// ServeHTTP answers one request.
func (x *Exchange) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if !x.origin(w, r) {
		x.refuse(w, r, countersign.Errorf(countersign.NotAllowed, "pages of %.100q may not ask here", r.Header.Get("Origin")).
			WithNext("add it to websocket.origins"))
		return
	}
	switch r.Method {
	case http.MethodOptions:
		h.Set("Access-Control-Allow-Methods", http.MethodPost)
		h.Set("Access-Control-Allow-Headers", "Content-Type")
		w.WriteHeader(http.StatusNoContent)
		return
	case http.MethodPost:
	default:
		h.Set("Allow", "OPTIONS, POST")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	r.Body = http.MaxBytesReader(w, r.Body, maxExchangeBody)
	if err := r.ParseForm(); err != nil {
		x.refuse(w, r, countersign.Errorf(countersign.BadRequest, "the form cannot be read"))
		return
	}
	answer, err := x.exchange(ctx, r)
	if err != nil {
		x.refuse(w, r, err)
		return
	}
	h.Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) //nolint:gosec // it is what was asked for; a client that is gone needs no answer
}

// origin lets a page of an origin that may ask read the answer.
func (x *Exchange) origin(w http.ResponseWriter, r *http.Request) bool {
	o := r.Header.Get("Origin")
	if o == "" {
		return true // no browser, or a page of the listener itself
	}
	_, host, _ := strings.Cut(o, "://")
	if host != r.Host && !slices.ContainsFunc(x.Origins, func(pattern string) bool {
		subject := host
		if strings.Contains(pattern, "://") {
			subject = o
		}
		ok, err := path.Match(strings.ToLower(pattern), strings.ToLower(subject))
		return err == nil && ok
	}) {
		return false
	}
	w.Header().Set("Access-Control-Allow-Origin", o)
	w.Header().Set("Vary", "Origin")
	return true
}

// person is who asks.
type person struct {
	name, source string
	role         operator.Role
	fleets       []string
	until        time.Time // what he signed in with is good for so long
}

func (x *Exchange) exchange(ctx context.Context, r *http.Request) (*exchanged, error) {
	if g := r.PostForm.Get("grant_type"); g != grantExchange {
		return nil, countersign.Errorf(countersign.BadRequest, "grant_type %.80q is not served", g).WithNext("write " + grantExchange)
	}
	order, err := parseScope(r.PostForm.Get("scope"))
	if err != nil {
		return nil, err
	}
	ttl := access.DefaultTokenTTL
	if text := r.PostForm.Get("expires_in"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, countersign.Errorf(countersign.BadRequest, "expires_in %.20q is no number of seconds", text)
		}
		ttl = time.Duration(n) * time.Second
	}
	p, err := x.who(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := x.Gate.Allow(p.name, p.role, operator.Read, askOf(r)); err != nil {
		return nil, err
	}
	order.Subject, order.Source, order.Until = operatorSubject(p.name), p.source, p.until
	order.ReadOnly = order.ReadOnly || !p.role.May(operator.Control)
	if err := x.checkFleets(ctx, p, order.Devices); err != nil {
		return nil, err
	}
	k, text, err := x.Provisioner.CreateAccessToken(ctx, order, ttl, ra.By{Actor: countersign.OperatorActor(p.name), Via: "exchange"})
	if err != nil {
		return nil, err
	}
	return &exchanged{
		Token: text, Issued: typeJWT, Type: "N_A", ExpiresIn: int(k.ExpiresAt.Sub(k.IssuedAt) / time.Second), Scope: scopeOf(k),
	}, nil
}

// checkFleets holds the devices against the fleets that the person is for. What he
// may not see is answered as what is not there.
func (x *Exchange) checkFleets(ctx context.Context, p person, devices []string) error {
	if len(p.fleets) == 0 {
		return nil
	}
	for _, id := range devices {
		d, err := x.Provisioner.Registry.Device(ctx, x.Provisioner.DB, id)
		if err != nil {
			return err
		}
		if !slices.Contains(p.fleets, d.Fleet) {
			return countersign.Errorf(countersign.NotFound, "there is no device %.140q", id).WithNext("ask for devices of your fleets")
		}
	}
	return nil
}

// who checks what the user signed in with. Wrong ones are counted against the
// address.
func (x *Exchange) who(ctx context.Context, r *http.Request) (p person, err error) {
	token, kind := r.PostForm.Get("subject_token"), r.PostForm.Get("subject_token_type")
	err = x.Gate.Prove(ctx, askOf(r), func() error {
		p, err = x.check(ctx, token, kind)
		return err
	})
	return p, err
}

func askOf(r *http.Request) operator.Ask {
	remote, _ := netip.ParseAddrPort(r.RemoteAddr) // none: not counted
	return operator.Ask{Remote: remote, Via: "exchange", Route: r.Method + " " + r.URL.Path}
}

func (x *Exchange) check(ctx context.Context, token, kind string) (person, error) {
	switch {
	case kind == typeAccessToken:
		t, err := x.Gate.Accounts.Authenticate(ctx, token)
		return person{name: t.Name, source: provision.OperatorSource(t.ID), role: t.Role, until: t.ExpiresAt}, err
	case kind == typeIDToken && x.OIDC != nil:
		p, err := x.OIDC.Verify(ctx, token)
		// No operator token has a colon in its name: a person who may choose his own name takes no operator's.
		return person{name: "oidc:" + p.Name, source: "oidc:" + p.Subject, role: p.Role, fleets: p.Fleets, until: p.Until}, err
	case kind == typeIDToken:
		return person{}, countersign.Errorf(countersign.BadRequest, "no sign-in provider is configured").WithNext("set oidc in the configuration")
	}
	return person{}, countersign.Errorf(countersign.BadRequest, "subject_token_type %.80q is not served", kind).
		WithNext("write " + typeIDToken + " or " + typeAccessToken)
}

// parseScope reads the devices, and whether they are to be listened to only.
func parseScope(text string) (k access.Token, err error) {
	for word := range strings.FieldsSeq(text) {
		id, isDevice := strings.CutPrefix(word, "device:")
		switch {
		case isDevice && countersign.IsDeviceID(id):
			k.Devices = append(k.Devices, id)
		case word == "read":
			k.ReadOnly = true
		default:
			return k, countersign.Errorf(countersign.BadRequest, "scope %.140q is neither device:<id> nor read", word)
		}
	}
	if len(k.Devices) == 0 {
		return k, countersign.Errorf(countersign.BadRequest, "the scope names no device").WithNext("write scope=device:<id>")
	}
	return k, nil
}

func scopeOf(k access.Token) string {
	words := make([]string, 0, len(k.Devices)+1)
	for _, id := range k.Devices {
		words = append(words, "device:"+id)
	}
	if k.ReadOnly {
		words = append(words, "read")
	}
	return strings.Join(words, " ")
}

// refuse writes an error as OAuth has it (RFC 6749, 5.2; RFC 8693, 2.2.2).
func (x *Exchange) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := countersign.Public(err)
	status, word := http.StatusBadRequest, "invalid_request"
	switch p.Code {
	case countersign.BadCredential, countersign.CredentialExpire, countersign.Unauthenticated:
		word = "invalid_grant"
	case countersign.NotFound:
		word = "invalid_scope"
	case countersign.NotAllowed:
		status, word = http.StatusForbidden, "access_denied"
	case countersign.RateLimited:
		status, word = http.StatusTooManyRequests, "temporarily_unavailable"
	case countersign.Unavailable:
		status, word = http.StatusServiceUnavailable, "temporarily_unavailable"
	case countersign.Internal:
		status, word = http.StatusInternalServerError, "server_error"
		x.Log.ErrorContext(r.Context(), "token not exchanged", "error", err)
	}
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(p.RetryAfter/time.Second)+1))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	text := p.Message
	if p.Next != "" {
		text += "; " + p.Next
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"error": word, "error_description": text})
}
