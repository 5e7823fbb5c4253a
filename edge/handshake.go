package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"
)

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

// listening makes c record the fingerprint of each ClientHello on a socket and
// wait for a turn before anything is computed. A certificate chain is checked against
// the bounds of checkChain. lenient ignores the ALPN names of a client that offers
// none of c's, as a server without ALPN does; otherwise it is refused (RFC 7301, 3.2).
func listening(c *tls.Config, lenient bool) *tls.Config {
	c = c.Clone()
	c.VerifyConnection = checkChain
	var plain *tls.Config
	if lenient && len(c.NextProtos) > 0 {
		plain = c.Clone()
		plain.NextProtos = nil
	}
	protocols := c.NextProtos
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if s, ok := hello.Conn.(*socket); ok {
			s.hello, s.offer, s.config = Fingerprint(hello), hello, c
			if err := s.takeTurn(); err != nil {
				return nil, err
			}
		}
		if plain != nil && !overlap(hello.SupportedProtos, protocols) {
			return plain, nil
		}
		return nil, nil
	}
	return c
}

// handshake does that of a connection, as far as the deadline and the node's room allow.
// The error is why there is no connection, and why the reason if it was turned away.
func (s *socket) handshake(ctx context.Context, listener string, c *tls.Conn) (why Reason, err error) {
	_ = s.SetDeadline(s.guard.Now().Add(s.wait))
	// Not HandshakeContext: the deadline and Close end it, and it would cost a
	// goroutine for each connection.
	if err := c.Handshake(); err != nil {
		s.guard.handshakeFailed(ctx, listener, s, err)
		if errors.Is(err, errNoTurn) && !s.closed.Load() {
			why = ReasonNoTurn
		}
		return why, err
	}
	s.endHandshake()
	if !s.keepChain(c) {
		return ReasonChains, errChain
	}
	_ = s.SetDeadline(time.Time{})
	return "", nil
}
