package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"net"
	"runtime"
	"slices"

	"github.com/countersign-iot/countersign/cms"
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

// ask prepares a request with a new key (RFC 7030, 4.2).
func (d *enrollee) ask(base, operation string, headers ...string) (err error) {
	if d.key, err = newKey(); err != nil {
		return err
	}
	csr, err := newCSR(d.id, d.key)
	if err != nil {
		return err
	}
	headers = append(headers, "Content-Type: application/pkcs10", "Content-Transfer-Encoding: base64")
	d.request = request("POST", base+"/.well-known/est/"+operation, base64.StdEncoding.AppendEncode(nil, csr), headers...)
	return nil
}

// send sends the request and keeps the answer.
func (d *enrollee) send(w *web) (err error) {
	d.answer, err = w.do(d.request)
	return err
}

// take reads the certificate from the answer.
func (d *enrollee) take(path [][]byte) error {
	der, err := base64.StdEncoding.DecodeString(string(d.answer)) // skips line breaks
	if err == nil {
		var certs [][]byte
		if certs, err = cms.ParseCertsOnly(der); err == nil {
			d.cert, err = x509.ParseCertificate(certs[0])
		}
	}
	if err != nil {
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

// crew is the devices of a run.
type crew struct {
	client
	server *server
	path   [][]byte // what a device shows after its certificate
	token  string
	loads  string // token of the load fleet

	made   int         // devices so far
	fresh  []*enrollee // enrolled and never connected
	active []*enrollee // connected once
	all    []*enrollee // all whose certificate is good
	load   []*enrollee // those of the load fleet, connected once
}

// mqtt is our server as a broker.
func (c *crew) mqtt() target {
	return target{process: c.server.process, addr: hostOf(c.server.endpoints.MQTT)}
}

// newDevices makes n devices with keys and enrollment requests that show token.
func (c *crew) newDevices(ctx context.Context, n int, token string) ([]*enrollee, error) {
	basic := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(":"+token))
	run := rand.Text()[:6] // a PostgreSQL may know the devices of an earlier run
	list := make([]*enrollee, n)
	first := c.made
	c.made += n
	_, err := drive(ctx, runtime.GOMAXPROCS(0), n, func(_ context.Context, _, i int) error {
		list[i] = &enrollee{id: fmt.Sprintf("bench-%s-%06d", run, first+i)}
		return list[i].ask(c.server.endpoints.Enroll, "simpleenroll", basic)
	})
	return list, err
}

// take reads the certificates of devices from their answers.
func (c *crew) take(devices []*enrollee) error {
	for _, d := range devices {
		if err := d.take(c.path); err != nil {
			return err
		}
	}
	return nil
}

// askKept is an operation on a connection that each worker keeps.
func (c *crew) askKept(devices []*enrollee) operation {
	return kept(func(ctx context.Context) (net.Conn, error) {
		return c.dialer.dialTLS(ctx, hostOf(c.server.endpoints.Enroll), clientTLS(c.roots, nil))
	}, func(w *web, i int) error { return devices[i].send(w) })
}

// askAnew is an operation on a new connection, with the device's certificate if
// it has one.
func (c *crew) askAnew(devices []*enrollee) operation {
	return func(ctx context.Context, _, i int) error {
		d := devices[i]
		cert := &d.identity
		if d.cert == nil {
			cert = nil
		}
		conn, err := c.dialer.dialTLS(ctx, hostOf(c.server.endpoints.Enroll), clientTLS(c.roots, cert))
		if err != nil {
			return err
		}
		w := newWeb(conn)
		defer w.close()
		return d.send(w)
	}
}

// newcomers enrolls n new devices.
func (c *crew) newcomers(ctx context.Context, n int, token string) ([]*enrollee, error) {
	devices, err := c.newDevices(ctx, n, token)
	if err != nil {
		return nil, err
	}
	if _, err := drive(ctx, webWorkers, n, c.askKept(devices)); err != nil {
		return nil, err
	}
	return devices, c.take(devices)
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
