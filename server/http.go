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
	// before its request is there. A device on NB-IoT has round trips of up to 6
	// s; a request of two segments takes two of them where one is lost. What a slow
	// client holds meanwhile is bounded by edge's census and by intake.
	headerTimeout = 30 * time.Second
	readTimeout   = 60 * time.Second
	// writeTimeout includes the work; the slowest is a long list or the
	// verification of the whole log.
	writeTimeout = 2 * time.Minute
	idleTimeout  = 60 * time.Second
	// maxHeader is ample for a request line with an OCSP request in it.
	maxHeader = 16 << 10
	// stopTimeout bounds how long answers under way and sessions may take to end once the
	// server stops.
	stopTimeout = 5 * time.Second
	// maxStreams bounds the requests of one HTTP/2 connection at once: a browser asks
	// for a page's parts, a device for one thing.
	maxStreams = 32
	// streamBuffer and connectionBuffer bound what is received of one stream, and of
	// all of a connection, before a handler reads it: as much as HTTP/2 begins with
	// (RFC 9113, 6.9.2).
	streamBuffer     = 64 << 10
	connectionBuffer = 64 << 10
)

// httpProtocols returns the ALPN names of an HTTPS listener. HTTP/1.0 is among them
// because curl --http1.0 offers nothing else, and net/http answers its requests.
func httpProtocols() []string { return []string{"h2", "http/1.1", "http/1.0"} }

// httpDoor is one HTTP listener with its handler.
type httpDoor struct {
	server   *http.Server
	listener net.Listener
}

// doors are the HTTP listeners with what they share against floods.
type doors struct {
	guard   *edge.Guard
	intake  intake
	connect time.Duration // bounds a TLS handshake
	log     *slog.Logger
	list    []*httpDoor
}

// serve adds a door. A nil listener is one that is off; a nil tls is plain HTTP.
func (d *doors) serve(name string, l net.Listener, h http.Handler, tlsConfig *tls.Config) {
	if l == nil {
		return
	}
	door := d.guard.Listen(name, l, edge.Limits{PreAuth: maxHTTP, PreAuthPerAddress: maxHTTPPerAddress, Handshake: d.connect})
	l = door
	if tlsConfig != nil {
		tlsConfig.NextProtos = httpProtocols()
		l = door.TLS(tlsConfig)
	}
	d.add(name, l, d.intake.handler(name, h))
}

func (d *doors) add(name string, l net.Listener, h http.Handler) {
	d.list = append(d.list, &httpDoor{listener: l, server: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: streamBuffer, MaxReceiveBufferPerConnection: connectionBuffer,
			WriteByteTimeout: readTimeout,
		},
		// What net/http logs by itself are handshakes that strangers broke off.
		ErrorLog: slog.NewLogLogger(d.log.With("listener", name).Handler(), slog.LevelDebug),
	}})
}

// stop has a part end its work once ctx has ended, within stopTimeout.
func stop(ctx context.Context, end func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return end(ctx)
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
	err := stop(ctx, d.server.Shutdown)
	if errors.Is(err, context.DeadlineExceeded) {
		err = d.server.Close()
	}
	<-failed //nolint:errcheck // http.ErrServerClosed: Shutdown has said what matters
	return err
}
