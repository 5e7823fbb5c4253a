// Package kit has the small things that the tests of most packages need: a clock
// that the test moves, keys, certification requests, and waiting for a condition.
// It imports no package of ours but the root, so that each package's tests can use it.
package kit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
)

// TB is what the functions of this package need of a test, a benchmark, a fuzz
// target or a *rapid.T.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Clock is a clock that moves only when the test moves it.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that shows t.
func NewClock(t time.Time) *Clock { return &Clock{now: t} }

// Now returns the clock's time. It is a function for the Now field of a package's type.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock by d, which may be negative.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Set sets the clock to t.
func (c *Clock) Set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

// Patience is how long Eventually waits. It is long because a test machine may be
// loaded: a test that passes never waits for it.
const Patience = 30 * time.Second

// pollInterval is how often Eventually looks.
const pollInterval = 5 * time.Millisecond

// Eventually waits until ok returns true, and fails with what after Patience. It
// returns how long it waited.
func Eventually(t TB, what string, ok func() bool) time.Duration {
	t.Helper()
	begin := time.Now() //nolint:forbidigo // it waits for real
	for !ok() {
		if time.Since(begin) > Patience {
			t.Fatalf("not within %v: %s", Patience, what)
		}
		time.Sleep(pollInterval)
	}
	return time.Since(begin)
}

// WantCode fails unless err carries the code want and a public message without a secret.
func WantCode(t TB, err error, want countersign.Code) {
	t.Helper()
	if got := countersign.CodeOf(err); got != want {
		t.Fatalf("got %q (%v), want %q", got, err, want)
	}
	if p := countersign.Public(err); p.Message == "" || strings.Contains(p.Message, countersign.TokenPrefix) {
		t.Errorf("%s: got message %q, want one without the secret", want, p.Message)
	}
}

// Key returns a new P-256 key.
func Key(t TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// CSR returns a certification request (DER) for key with the common name cn; each
// change may alter its template first.
func CSR(t TB, key crypto.Signer, cn string, change ...func(*x509.CertificateRequest)) []byte {
	t.Helper()
	tmpl := &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}
	for _, fn := range change {
		fn(tmpl)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Must returns v, and panics if err is not nil: for values that cannot fail in a test.
func Must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
