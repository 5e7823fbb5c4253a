package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// Failure is why a TLS handshake failed; the set is fixed.
type Failure string

// The failures.
const (
	FailureTimeout Failure = "timeout" // it did not complete in time
	FailureClosed  Failure = "closed"  // the client left
	FailureNotTLS  Failure = "not_tls" // it sent something else
	FailureVersion Failure = "version" // it offered no supported version
	FailureALPN    Failure = "alpn"    // it offered no supported protocol
	FailureCipher  Failure = "cipher"  // no suite, group or signature algorithm in common
	FailureChain   Failure = "chain"   // its certificates are over a bound, see MaxChain
	FailureAlert   Failure = "alert"   // it sent an alert: most often it does not trust our certificate
	FailureNoTurn  Failure = "no_turn" // the node had no time for it
	FailureOther   Failure = "other"   // a certificate or signature that cannot be read, a breach of the protocol
)

// FailureCount names one count of failed handshakes.
type FailureCount struct {
	Listener string
	Failure  Failure
}

// failureEvery is how often a failed handshake of one listener and kind is logged.
const failureEvery = 10 * time.Second

// failures counts the handshakes that failed.
type failures struct {
	mu     sync.Mutex
	counts map[FailureCount]uint64
	logged map[FailureCount]logged
}

// logged is when a failure was logged last, and which one of its kind it was.
type logged struct {
	at time.Time
	n  uint64
}

// Failures returns how many handshakes failed since the start.
func (g *Guard) Failures() map[FailureCount]uint64 {
	g.failures.mu.Lock()
	defer g.failures.mu.Unlock()
	return maps.Clone(g.failures.counts)
}

// handshakeFailed counts a failed handshake. At most one of a listener and kind is
// logged within failureEvery, with the number of those that were not.
func (g *Guard) handshakeFailed(ctx context.Context, listener string, s *socket, err error) {
	k := FailureCount{listener, failureOf(s, err)}
	if s.closed.Load() {
		return // by us
	}
	now := g.Now()
	f := &g.failures
	f.mu.Lock()
	if f.counts == nil {
		f.counts, f.logged = map[FailureCount]uint64{}, map[FailureCount]logged{}
	}
	f.counts[k]++
	n, last := f.counts[k], f.logged[k]
	report := last.at.IsZero() || now.Sub(last.at) >= failureEvery
	if report {
		f.logged[k] = logged{now, n}
	}
	f.mu.Unlock()
	if report && g.Log != nil {
		g.Log.LogAttrs(ctx, slog.LevelInfo, "handshake failed", slog.String("listener", listener), slog.String("reason", string(k.Failure)),
			slog.String("remote", remoteOf(s.Conn).String()), slog.String("hello", s.hello), slog.Any("error", err), slog.Uint64("not_logged", n-last.n-1))
	}
}

// failureOf returns the kind of a failure. crypto/tls has no error values for most;
// the client's offer shows why there was no agreement.
func failureOf(s *socket, err error) Failure {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return FailureNotTLS
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return FailureAlert
	}
	switch {
	case errors.Is(err, errNoTurn):
		return FailureNoTurn
	case errors.Is(err, errChain), errors.Is(err, errGreeting):
		return FailureChain
	case errors.Is(err, os.ErrDeadlineExceeded):
		return FailureTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), isReset(err):
		return FailureClosed
	case s.offer != nil:
		return refusedOffer(s.offer, s.config)
	}
	return FailureOther
}

func isReset(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "read" || op.Op == "write")
}

// refusedOffer returns what is missing in a ClientHello.
func refusedOffer(hello *tls.ClientHelloInfo, c *tls.Config) Failure {
	if !slices.ContainsFunc(hello.SupportedVersions, func(v uint16) bool { return v == tls.VersionTLS12 || v == tls.VersionTLS13 }) {
		return FailureVersion
	}
	if len(hello.SupportedProtos) > 0 && len(c.NextProtos) > 0 && !overlap(hello.SupportedProtos, c.NextProtos) {
		return FailureALPN
	}
	if cert, err := c.GetCertificate(hello); err == nil && hello.SupportsCertificate(cert) != nil {
		return FailureCipher
	}
	return FailureOther
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(p string) bool { return slices.Contains(b, p) })
}
