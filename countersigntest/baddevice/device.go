// Package baddevice plays one enrolled device that misbehaves on purpose, against a
// whole server and through its public doors alone: TLS, the octets of MQTT, HTTPS. A
// test runs each of [Behaviors] and asserts that other devices are served meanwhile,
// what the server spends, and that the device gets the answer that is documented.
package baddevice

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"
)

// Device is the device, and what it has been answered. Set the fields, then Run.
type Device struct {
	Name   string
	Broker string      // host:port of the MQTT listener
	Renew  string      // URL of POST /api/v1/renew
	TLS    *tls.Config // with the device's certificate, and the roots of the server
	From   net.IP      // the address that it connects from; nil: any
	// Send has the operator's side send a message to the device.
	Send func(ctx context.Context, topic string, payload []byte) error

	mu      sync.Mutex
	answers map[string]int
	open    []net.Conn
}

// Behavior is one way to misbehave.
type Behavior struct {
	Name string
	// Takes is how long it has to go on until the server must have answered.
	Takes time.Duration
	// Answers are what the device must have been answered, in the form of Answers.
	Answers []string
	// Budget is what budget.exceeded names; empty: the server cannot know the device,
	// or what is refused has no budget.
	Budget string
	run    func(ctx context.Context, d *Device) error
}

// Run misbehaves until ctx ends, which must have a deadline, reads the last answers and
// closes all connections. The error is that the device could not even begin.
func (b Behavior) Run(ctx context.Context, d *Device) error {
	defer d.close()
	if err := b.run(ctx, d); err != nil {
		return fmt.Errorf("%s: %w", b.Name, err)
	}
	return nil
}

// Answers returns how often the device got each answer: "CONNACK 0x97", "PUBACK 0x00",
// "SUBACK 0x97", "DISCONNECT 0x96", "HTTP 429, Retry-After", or "closed" for the end
// of a connection by the server.
func (d *Device) Answers() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.answers)
}

func (d *Device) note(answer string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.answers == nil {
		d.answers = map[string]int{}
	}
	d.answers[answer]++
}

// dial opens a TCP connection that lasts until the end of ctx.
func (d *Device) dial(ctx context.Context) (net.Conn, error) {
	c, err := (&net.Dialer{LocalAddr: d.local()}).DialContext(ctx, "tcp", d.Broker)
	if err != nil {
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok {
		err = c.SetDeadline(end)
	}
	if tcp, ok := c.(*net.TCPConn); ok && err == nil {
		err = tcp.SetReadBuffer(8 << 10) // the kernel is not to read for it
	}
	d.mu.Lock()
	d.open = append(d.open, c)
	d.mu.Unlock()
	return c, err
}

// secure does the TLS handshake.
func (d *Device) secure(ctx context.Context, c net.Conn) (*tls.Conn, error) {
	config := d.TLS.Clone()
	if host, _, err := net.SplitHostPort(d.Broker); err == nil && config.ServerName == "" {
		config.ServerName = host
	}
	t := tls.Client(c, config)
	return t, t.HandshakeContext(ctx)
}

// http returns a client of the enrollment listener.
func (d *Device) http() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: d.TLS.Clone(), DialContext: (&net.Dialer{LocalAddr: d.local()}).DialContext,
	}}
}

func (d *Device) local() net.Addr {
	if d.From == nil {
		return nil
	}
	return &net.TCPAddr{IP: d.From}
}

func (d *Device) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.open {
		_ = c.Close()
	}
	d.open = nil
}
