package operator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/countersign-iot/countersign"
)

const (
	// maxIDToken bounds an ID token; those with many groups reach a few KiB.
	maxIDToken = 16 << 10
	// discoveryEvery bounds how often a provider that does not answer is asked.
	discoveryEvery = 10 * time.Second
	// discoveryTime bounds one question to it.
	discoveryTime = 10 * time.Second
)

// subjectName is what of an ID token may be a name in events and sessions.
var subjectName = regexp.MustCompile(`^[A-Za-z0-9._@-]{1,100}$`)

// OIDC takes the word of an OpenID provider on who a person is (OpenID Connect
// Core 1.0, 2). What he may do is ours to say, by Grants. Set the fields.
type OIDC struct {
	Issuer   string
	ClientID string // the audience that an ID token must name
	Grants   []Grant
	Client   *http.Client // nil: http.DefaultClient
	Now      func() time.Time

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier
	asked    time.Time
}

// Grant grants a role to users who have a value in a claim. The first that fits counts.
// The claim email counts with email_verified alone: many providers let people write
// any address there.
type Grant struct {
	Claim  string // such as groups; a text or a list of them
	Value  string // empty: any
	Role   Role
	Fleets []string // whose devices he may see and control; empty: all
}

// Person is a person whom the provider vouched for.
type Person struct {
	Name    string // preferred user name, mail address or subject
	Subject string
	Role    Role
	Fleets  []string
	Until   time.Time // end of the ID token
}

// Verify reads an ID token. It refuses with BadCredential one that is not good, with
// NotAllowed a person to whom no grant applies, and with Unavailable while the
// provider cannot be asked for its keys.
func (o *OIDC) Verify(ctx context.Context, raw string) (Person, error) {
	bad := countersign.Errorf(countersign.BadCredential, "the ID token is not good here").WithNext("sign in again")
	if len(raw) > maxIDToken {
		return Person{}, bad
	}
	ctx, cancel := context.WithTimeout(ctx, discoveryTime)
	defer cancel()
	v, err := o.provider(ctx)
	if err != nil {
		return Person{}, err
	}
	t, err := v.Verify(ctx, raw)
	if _, expired := errors.AsType[*oidc.TokenExpiredError](err); expired {
		return Person{}, countersign.Errorf(countersign.CredentialExpire, "the ID token has expired").WithNext("sign in again")
	}
	if err != nil && strings.Contains(err.Error(), keysAway) {
		return Person{}, o.away().WithCause(err)
	}
	if err != nil {
		return Person{}, bad.WithCause(err)
	}
	all := map[string]any{}
	if err := t.Claims(&all); err != nil {
		return Person{}, bad.WithCause(err)
	}
	if !has(all["email_verified"], "true") {
		delete(all, "email")
	}
	p := Person{Subject: t.Subject, Until: t.Expiry}
	for _, claim := range []string{"preferred_username", "email", "sub"} {
		if s, ok := all[claim].(string); ok && p.Name == "" && subjectName.MatchString(s) {
			p.Name = s
		}
	}
	if p.Name == "" {
		return Person{}, countersign.Errorf(countersign.NotAllowed, "the ID token holds no name that can be written to the log").WithNext("have the provider send preferred_username")
	}
	for _, g := range o.Grants {
		if has(all[g.Claim], g.Value) {
			p.Role, p.Fleets = g.Role, g.Fleets
			return p, nil
		}
	}
	return Person{}, countersign.Errorf(countersign.NotAllowed, "no grant of the configuration applies to %s", p.Name).
		WithNext("ask an admin to add one: oidc.grants")
}

// keysAway is what go-oidc says when the provider's keys cannot be fetched; it has no
// type for it. A person who signs in meanwhile has guessed nothing.
const keysAway = "fetching keys"

func (o *OIDC) away() *countersign.Error {
	return countersign.Errorf(countersign.Unavailable, "the sign-in provider cannot be asked now").WithNext("try again").WithRetry(discoveryEvery)
}

// has reports whether a claim holds the value, by itself or in a list.
func has(claim any, value string) bool {
	switch c := claim.(type) {
	case string:
		return value == "" || c == value
	case bool:
		return c && (value == "" || value == "true")
	case []any:
		return len(c) > 0 && value == "" || slices.Contains(c, any(value))
	}
	return false
}

// provider asks the provider for its keys, once; they are fetched anew when a
// token names one that is not known.
func (o *OIDC) provider(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.verifier != nil {
		return o.verifier, nil
	}
	if now := o.Now(); now.Sub(o.asked) < discoveryEvery {
		return nil, o.away()
	}
	if o.Client != nil {
		ctx = oidc.ClientContext(ctx, o.Client)
	}
	// Not the caller's context for what the key set does later: it keeps the client, not the deadline.
	p, err := oidc.NewProvider(context.WithoutCancel(ctx), o.Issuer)
	if err != nil {
		o.asked = o.Now()
		return nil, o.away().WithCause(fmt.Errorf("couldn't discover %s: %w", o.Issuer, err))
	}
	o.verifier = p.Verifier(&oidc.Config{ClientID: o.ClientID, Now: o.Now})
	return o.verifier, nil
}
