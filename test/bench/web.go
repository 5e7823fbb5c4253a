package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
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
func (d *dialer) dialTLS(ctx context.Context, addr string, config *tls.Config) (net.Conn, error) {
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

// kept is an operation on an HTTP connection that each of the workers keeps.
func kept(workers int, dial func(context.Context) (net.Conn, error), do func(w *web, i int) error) operation {
	own := make([]*web, workers) // each owned by its worker
	return func(ctx context.Context, worker, i int) error {
		if own[worker] == nil {
			c, err := dial(ctx)
			if err != nil {
				return err
			}
			own[worker] = newWeb(c)
		}
		return do(own[worker], i)
	}
}

// do sends a request as it is on the wire and returns the body of its answer.
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
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated { // step-ca answers 201
		return nil, fmt.Errorf("the server answered %s: %.200s", res.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
}

// close ends the connection, which may be gone when TLS sends its alert.
func (w *web) close() { _ = w.conn.Close() }

// request writes a request as web.do sends it. headers are whole lines.
func request(method, endpoint string, body []byte, headers ...string) []byte {
	host, path := split(endpoint)
	headers = append([]string{method + " " + path + " HTTP/1.1", "Host: " + host, "Content-Length: " + strconv.Itoa(len(body))}, headers...)
	return append([]byte(strings.Join(headers, "\r\n")+"\r\n\r\n"), body...)
}

// split returns host:port and path of a URL that the server wrote; both are empty if it is none.
func split(endpoint string) (host, path string) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return "", ""
	}
	return u.Host, u.RequestURI()
}

// hostOf returns host:port of a URL that the server wrote.
func hostOf(endpoint string) string {
	host, _ := split(endpoint)
	return host
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

// pemOf writes a chain and its key as other processes read them.
func pemOf(c tls.Certificate) (chain, key []byte, err error) {
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}
