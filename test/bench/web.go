package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// opTimeout bounds one operation; what takes longer is broken and not slow.
	opTimeout = 30 * time.Second
	// maxBody bounds an answer.
	maxBody = 1 << 20
	// sources is over how many loopback addresses the load is spread: servers limit
	// the rate of connections of one address, and a fleet does not come from one.
	sources = 32
)

// dialer connects from one loopback address after the other.
type dialer struct {
	next atomic.Uint32
	wide atomic.Bool // from all of 127.16.0.0/12
}

// source returns the next address.
func (d *dialer) source() net.IP {
	n := d.next.Add(1)
	if d.wide.Load() {
		return net.IPv4(127, byte(16+n>>16%16), byte(n>>8), byte(n)) //nolint:gosec // octets of it
	}
	return net.IPv4(127, 0, 1, byte(1+n%sources))
}

func (d *dialer) dial(ctx context.Context, addr string) (net.Conn, error) {
	var from net.Addr
	if to, err := netip.ParseAddrPort(addr); err == nil && to.Addr().Is4() && to.Addr().IsLoopback() {
		from = &net.TCPAddr{IP: d.source()}
	}
	n := &net.Dialer{LocalAddr: from, Timeout: opTimeout}
	return n.DialContext(ctx, "tcp", addr)
}

// dialTLS does a full handshake.
func (d *dialer) dialTLS(ctx context.Context, addr string, config *tls.Config) (*tls.Conn, error) {
	c, err := d.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	t := tls.Client(c, config)
	if err := errors.Join(t.SetDeadline(now().Add(opTimeout)), t.HandshakeContext(ctx)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return t, nil
}

// clientTLS keeps no session, so that each connection is a full handshake with
// Go's default key exchange, X25519MLKEM768.
func clientTLS(roots *x509.CertPool, cert *tls.Certificate) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "127.0.0.1"}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	return c
}

// web is one HTTP/1.1 connection. It costs the machine less than net/http's
// client, which would take the server's share of the cores.
type web struct {
	conn net.Conn
	in   *bufio.Reader
}

func newWeb(c net.Conn) *web { return &web{conn: c, in: bufio.NewReader(c)} }

// do sends a request as it is on the wire and gives the body of its answer.
func (w *web) do(request []byte) ([]byte, error) {
	if err := w.conn.SetDeadline(now().Add(opTimeout)); err != nil {
		return nil, err
	}
	if _, err := w.conn.Write(request); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(w.in, nil)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answered %s: %.200s", res.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// close ends the connection; TLS says goodbye on a connection that may be gone.
func (w *web) close() { _ = w.conn.Close() }

// post writes a request as web.do sends it. headers are whole lines.
func post(host, path, mediaType string, body []byte, headers ...string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n", path, host, mediaType, len(body))
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// get fetches a small document.
func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", url, res.Status)
	}
	return body, nil
}

func readRoots(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path) //nolint:gosec // the roots of this run
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("couldn't find a certificate in %s", path)
	}
	return pool, nil
}
