// Package device plays a device: an identity of the authority and MQTT sessions with it.
// The simulation, the demo and the measurements share it.
package device

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/countersign-iot/countersign/sdk"
	"golang.org/x/sync/errgroup"
)

// Client is an enrolled device as a client of the broker.
type Client struct {
	*sdk.Identity
	Broker Broker
	From   string // address of this machine that it connects from; empty: any

	mu      sync.Mutex
	session *Session
}

// Connect opens a session with the device's certificate, which Session returns from then
// on.
func (d *Client) Connect(ctx context.Context) (*Session, error) {
	s, err := d.Broker.Open(ctx, Login{From: d.From, TLS: d.TLSConfig(), ClientID: d.Device()})
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session = s
	return s, nil
}

// Session returns the newest session, which may have ended; nil if there was none, or
// if the device left.
func (d *Client) Session() *Session {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.session
}

// Leave ends the newest session, if there is one, from the device's side.
func (d *Client) Leave() {
	d.mu.Lock()
	s := d.session
	d.session = nil
	d.mu.Unlock()
	if s != nil {
		s.Leave()
	}
}

// Topic returns a topic of the device: what it publishes begins with up/, what it
// receives with down/.
func (d *Client) Topic(name string) string { return "devices/" + d.Device() + "/" + name }

// Each does the same with every item, limit of them at once, and returns the first error.
func Each[T any](ctx context.Context, limit int, items []T, do func(ctx context.Context, i int, item T) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(limit)
	for i, item := range items {
		g.Go(func() error { return do(ctx, i, item) })
	}
	return g.Wait()
}

// Elsewhere returns the identity of a device as it shows itself at the server of e, such as
// the recovery listener.
func Elsewhere(id *sdk.Identity, e sdk.Enrollment) (*sdk.Identity, error) {
	path, err := x509.ParseCertificates(slices.Concat(id.Path()...))
	if err != nil {
		return nil, err
	}
	e.Device, e.Key = id.Device(), id.Key()
	return sdk.Known(e, path)
}

// Broker is a listener for MQTT over TLS.
type Broker struct {
	Addr  string // host:port
	Name  string // the name in its certificate
	Roots *x509.CertPool
}

// At returns the broker at an mqtts URL.
func At(endpoint string, roots *x509.CertPool) (Broker, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Port() == "" {
		return Broker{}, fmt.Errorf("%q is not the URL of an MQTT listener", endpoint)
	}
	return Broker{Addr: u.Host, Name: u.Hostname(), Roots: roots}, nil
}

// Dial connects from an address of this machine; empty is any. config may hold a client
// certificate; nil shows none.
func (b Broker) Dial(ctx context.Context, from string, config *tls.Config) (net.Conn, error) {
	if config == nil {
		config = &tls.Config{RootCAs: b.Roots, MinVersion: tls.VersionTLS12}
	}
	config.ServerName = b.Name
	dialer := &tls.Dialer{NetDialer: &net.Dialer{}, Config: config}
	if from != "" {
		dialer.NetDialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := dialer.DialContext(ctx, "tcp", b.Addr)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	return conn, nil
}

// SAS returns a shared access signature over a resource, as the device SDKs of Azure
// make it.
func SAS(resource string, key []byte, expiry time.Time) string {
	h := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(h, "%s\n%d", resource, expiry.Unix()) // a hash accepts everything
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d", resource, url.QueryEscape(base64.StdEncoding.EncodeToString(h.Sum(nil))), expiry.Unix())
}
