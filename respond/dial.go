package respond

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/countersign-iot/countersign/config"
)

const (
	// sendTime bounds one attempt to deliver a notice.
	sendTime = 20 * time.Second
	// maxAnswer is as much of an answer as is read.
	maxAnswer = 64 << 10
)

// tlsFor is the TLS of a channel; server is the name that its certificate must have,
// empty if the caller's library takes it from the URL.
func tlsFor(c config.Channel, server string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: server}
	if c.Roots != "" {
		pem, err := os.ReadFile(c.Roots)
		if err != nil {
			return nil, fmt.Errorf("read the roots: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("the roots hold no certificate")
		}
	}
	if c.Certificate != "" {
		cert, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
		if err != nil {
			return nil, fmt.Errorf("read the certificate: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}

// dial connects to the address of a channel. The connection ends with ctx.
func dial(ctx context.Context, c config.Channel, encrypted bool) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.Addr)
	if err != nil {
		return nil, fmt.Errorf("couldn't connect: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	if !encrypted {
		return conn, nil
	}
	host, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	t, err := tlsFor(c, host)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	secure := tls.Client(conn, t)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("couldn't set up TLS: %w", err), conn.Close())
	}
	return secure, nil
}
