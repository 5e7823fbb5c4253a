package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"slices"

	"github.com/countersign-iot/countersign/simulate/device"
)

const (
	// webWorkers is how many connections ask at once over HTTP, connectWorkers how
	// many devices connect at once: enough to keep two cores busy.
	webWorkers     = 16
	connectWorkers = 32
	// payloadSize is that of a small report.
	payloadSize = 100
)

// enrollee is a device with what it asks and what it got. Keys and requests are
// made before a measurement, certificates read after it.
type enrollee struct {
	id       string
	key      *ecdsa.PrivateKey
	request  []byte // as it goes over the wire
	answer   []byte
	cert     *x509.Certificate
	identity tls.Certificate
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func newCSR(id string, key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
}

// renewKey makes a new key and returns a certification request for it.
func (d *enrollee) renewKey() (csr []byte, err error) {
	if d.key, err = newKey(); err != nil {
		return nil, err
	}
	return newCSR(d.id, d.key)
}

// send sends the request and keeps the answer.
func (d *enrollee) send(w *web) (err error) {
	d.answer, err = w.do(d.request)
	return err
}

// hold keeps the certificate that was issued, to be shown with the path above it.
func (d *enrollee) hold(der []byte, path [][]byte) (err error) {
	if d.cert, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("couldn't read the certificate of %s: %w", d.id, err)
	}
	if !d.key.PublicKey.Equal(d.cert.PublicKey) {
		return fmt.Errorf("the certificate of %s is for another key", d.id)
	}
	d.identity = tls.Certificate{Certificate: append([][]byte{d.cert.Raw}, path...), PrivateKey: d.key, Leaf: d.cert}
	d.request, d.answer = nil, nil
	return nil
}

// client is the side of devices and relying parties.
type client struct {
	dialer dialer
	roots  *x509.CertPool // of the authority and of the servers beside it
}

// join opens an MQTT session with full mutual TLS: one with clean session, or the kept one
// of the device.
func (c *client) join(ctx context.Context, addr string, d *enrollee, kept bool) (*device.Wire, error) {
	conn, err := c.dialer.dialTLS(ctx, addr, clientTLS(c.roots, &d.identity))
	if err != nil {
		return nil, err
	}
	return device.Join(conn, d.id, kept)
}

// joinAll opens the sessions of devices. What it returns with an error is open too, and
// may have gaps.
func (c *client) joinAll(ctx context.Context, addr string, devices []*enrollee, kept bool) ([]*device.Wire, error) {
	all := make([]*device.Wire, len(devices))
	_, err := drive(ctx, connectWorkers, len(devices), func(ctx context.Context, _, i int) (err error) {
		all[i], err = c.join(ctx, addr, devices[i], kept)
		return err
	})
	return all, err
}

// leaveAll ends sessions; those that receive end too.
func leaveAll(clients []*device.Wire) {
	for _, c := range clients {
		if c != nil {
			device.Disconnect(c)
		}
	}
}

// connects measures new MQTT connections of devices, each until its CONNACK.
func (c *client) connects(ctx context.Context, t target, name string, devices []*enrollee) (sample, error) {
	return t.process.load(ctx, t.prefix+name, connectWorkers, len(devices), func(ctx context.Context, _, i int) error {
		one, err := c.join(ctx, t.addr, devices[i], false)
		if err == nil {
			device.Disconnect(one)
		}
		return err
	})
}

// crew is the devices of one of our servers.
type crew struct {
	client
	server *server
	issuer *x509.Certificate
	token  string
	loads  string // token of the load fleet

	fresh  []*enrollee // enrolled and never connected
	active []*enrollee // connected once
	all    []*enrollee // all whose certificate is good
	load   []*enrollee // those of the load fleet, connected once
}

// mqtt is our server as a broker.
func (c *crew) mqtt() target {
	return target{process: c.server.process, addr: hostOf(c.server.endpoints.MQTT)}
}

// newcomers enrolls n new devices.
func (c *crew) newcomers(ctx context.Context, n int, token string) ([]*enrollee, error) {
	a := c.authority("", token)
	devices, err := a.newDevices(ctx, n)
	if err != nil {
		return nil, err
	}
	if _, err := drive(ctx, webWorkers, n, a.askKept(webWorkers, devices)); err != nil {
		return nil, err
	}
	return devices, forEach(devices, a.take)
}

// enrolled returns n devices with certificates that were never used.
func (c *crew) enrolled(ctx context.Context, n int) ([]*enrollee, error) {
	if missing := n - len(c.fresh); missing > 0 {
		devices, err := c.newcomers(ctx, missing, c.token)
		if err != nil {
			return nil, err
		}
		c.fresh, c.all = append(c.fresh, devices...), append(c.all, devices...)
	}
	return c.fresh[:n:n], nil
}

// connected returns n devices that have connected before, each once.
func (c *crew) connected(ctx context.Context, n int) ([]*enrollee, error) {
	if missing := n - len(c.active); missing > 0 {
		devices, err := c.enrolled(ctx, missing)
		if err != nil {
			return nil, err
		}
		if _, err := c.connects(ctx, c.mqtt(), "connect_first", devices); err != nil {
			return nil, err
		}
		c.fresh, c.active = c.fresh[missing:], append(c.active, devices...)
	}
	return c.active[:n:n], nil
}

// loaders returns n devices of the load fleet that have connected before.
func (c *crew) loaders(ctx context.Context, n int) ([]*enrollee, error) {
	if missing := n - len(c.load); missing > 0 {
		devices, err := c.newcomers(ctx, missing, c.loads)
		if err != nil {
			return nil, err
		}
		if _, err := c.connects(ctx, c.mqtt(), "connect_load", devices); err != nil {
			return nil, err
		}
		c.load = append(c.load, devices...)
	}
	return c.load[:n:n], nil
}

// lost forgets devices that are revoked.
func (c *crew) lost(devices ...*enrollee) {
	gone := func(d *enrollee) bool { return slices.Contains(devices, d) }
	c.active, c.all = slices.DeleteFunc(c.active, gone), slices.DeleteFunc(c.all, gone)
}
