package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/countersign-iot/countersign/edge"
)

const (
	// headerTimeout and readTimeout bound how long a slow client holds a connection
	// before it has said what it wants.
	headerTimeout = 5 * time.Second
	readTimeout   = 15 * time.Second
	// writeTimeout includes the work; the slowest is a long list or the
	// verification of the whole log.
	writeTimeout = 2 * time.Minute
	idleTimeout  = 60 * time.Second
	// maxHeader is ample for a request line with an OCSP request in it.
	maxHeader = 16 << 10
	// stopTimeout bounds how long answers under way may take once the server stops.
	stopTimeout = 5 * time.Second
)

// httpDoor is one HTTP listener with its handler.
type httpDoor struct {
	server   *http.Server
	listener net.Listener
}

// serveHTTP adds a door. A nil listener is one that is off; a nil tls is plain HTTP.
func (s *Server) serveHTTP(name string, l net.Listener, h http.Handler, tlsConfig *tls.Config) {
	if l == nil {
		return
	}
	door := s.guard.Listen(name, l, edge.Limits{PreAuth: maxHTTP, PreAuthPerAddress: maxHTTPPerAddress, Handshake: headerTimeout})
	l = door
	if tlsConfig != nil {
		tlsConfig.NextProtos = []string{"h2", "http/1.1"}
		l = door.TLS(tlsConfig)
	}
	s.http = append(s.http, &httpDoor{listener: l, server: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		// What net/http logs by itself are handshakes that strangers broke off.
		ErrorLog: slog.NewLogLogger(s.log.With("listener", name).Handler(), slog.LevelDebug),
	}})
}

// run serves until ctx ends, then lets the answers under way finish.
func (d *httpDoor) run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- d.server.Serve(d.listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	err := d.server.Shutdown(stop)
	if errors.Is(err, context.DeadlineExceeded) {
		err = d.server.Close()
	}
	<-failed //nolint:errcheck // http.ErrServerClosed: Shutdown has said what matters
	return err
}
