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
	"errors"
	"fmt"
	"runtime"

	"github.com/countersign-iot/countersign/cms"
)

// enrollee is a device with what it asks and what it got. Keys and requests are
// made before a measurement, certificates read after it.
type enrollee struct {
	id       string
	key      *ecdsa.PrivateKey
	csr      []byte
	request  []byte // as it goes over the wire
	answer   []byte
	cert     *x509.Certificate
	identity tls.Certificate
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func newCSR(id string, key *ecdsa.PrivateKey) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
}

// newDevices makes n devices with keys and enrollment requests that show token.
func (b *bench) newDevices(ctx context.Context, n int, token string) ([]*enrollee, error) {
	basic := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(":"+token))
	run := rand.Text()[:6] // a PostgreSQL may know the devices of an earlier run
	list := make([]*enrollee, n)
	first := b.made
	b.made += n
	_, _, err := drive(ctx, runtime.GOMAXPROCS(0), n, func(_ context.Context, _, i int) error {
		d := &enrollee{id: fmt.Sprintf("bench-%s-%06d", run, first+i)}
		list[i] = d
		return d.ask(hostOf(b.endpoints.Enroll), "simpleenroll", basic)
	})
	return list, err
}

// ask prepares a request with a new key (RFC 7030, 4.2).
func (d *enrollee) ask(host, operation string, headers ...string) (err error) {
	if d.key, err = newKey(); err != nil {
		return err
	}
	if d.csr, err = newCSR(d.id, d.key); err != nil {
		return err
	}
	body := base64.StdEncoding.AppendEncode(nil, d.csr)
	d.request = post(host, "/.well-known/est/"+operation, "application/pkcs10", body, append(headers, "Content-Transfer-Encoding: base64")...)
	return nil
}

// take reads the certificate from the answer.
func (d *enrollee) take(path [][]byte) error {
	der, err := base64.StdEncoding.DecodeString(string(d.answer)) // skips line breaks
	if err != nil {
		return fmt.Errorf("couldn't read the certificate of %s: %w", d.id, err)
	}
	certs, err := cms.ParseCertsOnly(der)
	if err != nil {
		return fmt.Errorf("couldn't read the certificate of %s: %w", d.id, err)
	}
	if d.cert, err = x509.ParseCertificate(certs[0]); err != nil {
		return fmt.Errorf("couldn't read the certificate of %s: %w", d.id, err)
	}
	if !d.key.PublicKey.Equal(d.cert.PublicKey) {
		return fmt.Errorf("the certificate of %s is for another key", d.id)
	}
	d.identity = tls.Certificate{Certificate: append([][]byte{d.cert.Raw}, path...), PrivateKey: d.key, Leaf: d.cert}
	d.request, d.answer, d.csr = nil, nil, nil
	return nil
}

func (b *bench) takeAll(devices []*enrollee) error {
	for _, d := range devices {
		if err := d.take(b.path); err != nil {
			return err
		}
	}
	return nil
}

// askKept is an operation on a connection that each worker keeps.
func (b *bench) askKept(devices []*enrollee) func(ctx context.Context, worker, i int) error {
	kept := make([]*web, webWorkers) // each owned by its worker
	return func(ctx context.Context, worker, i int) error {
		if kept[worker] == nil {
			c, err := b.dialer.dialTLS(ctx, hostOf(b.endpoints.Enroll), clientTLS(b.roots, nil))
			if err != nil {
				return err
			}
			kept[worker] = newWeb(c)
		}
		var err error
		devices[i].answer, err = kept[worker].do(devices[i].request)
		return err
	}
}

// askAnew is an operation on a new connection, with the device's certificate if
// it has one.
func (b *bench) askAnew(devices []*enrollee) func(ctx context.Context, worker, i int) error {
	return func(ctx context.Context, _, i int) error {
		d := devices[i]
		cert := &d.identity
		if d.cert == nil {
			cert = nil
		}
		c, err := b.dialer.dialTLS(ctx, hostOf(b.endpoints.Enroll), clientTLS(b.roots, cert))
		if err != nil {
			return err
		}
		w := newWeb(c)
		defer w.close()
		d.answer, err = w.do(d.request)
		return err
	}
}

// enroll measures first certificates over EST by token, durably recorded.
func (b *bench) enroll(ctx context.Context) ([]sample, error) {
	devices, err := b.newDevices(ctx, b.opts.size.enroll+b.opts.size.connect, b.token)
	if err != nil {
		return nil, err
	}
	one, other := devices[:b.opts.size.enroll], devices[b.opts.size.enroll:]
	kept, err := b.server.load(ctx, "enroll", webWorkers, len(one), b.askKept(one))
	if err != nil {
		return nil, err
	}
	rss, err := b.server.rss()
	if err != nil {
		return nil, err
	}
	anew, err := b.server.load(ctx, "enroll_new_connection", webWorkers, len(other), b.askAnew(other))
	if err != nil {
		return nil, err
	}
	b.fresh, b.all = append(b.fresh, devices...), append(b.all, devices...)
	return []sample{kept, anew, {name: "memory_under_load", bytes: float64(rss)}}, b.takeAll(devices)
}

// enrolled gives n devices with certificates that were never used.
func (b *bench) enrolled(ctx context.Context, n int) ([]*enrollee, error) {
	if missing := n - len(b.fresh); missing > 0 {
		devices, err := b.newDevices(ctx, missing, b.token)
		if err != nil {
			return nil, err
		}
		if _, _, err := drive(ctx, webWorkers, missing, b.askKept(devices)); err != nil {
			return nil, err
		}
		if err := b.takeAll(devices); err != nil {
			return nil, err
		}
		b.fresh, b.all = append(b.fresh, devices...), append(b.all, devices...)
	}
	return b.fresh[:n:n], nil
}

// connected gives n devices that have connected before, each once.
func (b *bench) connected(ctx context.Context, n int) ([]*enrollee, error) {
	if missing := n - len(b.active); missing > 0 {
		devices, err := b.enrolled(ctx, missing)
		if err != nil {
			return nil, err
		}
		if _, err := b.connects(ctx, b.server, "connect_first", hostOf(b.endpoints.MQTT), devices); err != nil {
			return nil, err
		}
		b.fresh, b.active = b.fresh[missing:], append(b.active, devices...)
	}
	return b.active[:n:n], nil
}

// connectAll measures new MQTT connections: of certificates that were never used,
// which is written down first; of ones in use; and those to the servers beside ours.
func (b *bench) connectAll(ctx context.Context) ([]sample, error) {
	devices, err := b.enrolled(ctx, b.opts.size.connect)
	if err != nil {
		return nil, err
	}
	first, err := b.connects(ctx, b.server, "connect_first", hostOf(b.endpoints.MQTT), devices)
	if err != nil {
		return nil, err
	}
	b.fresh, b.active = b.fresh[len(devices):], append(b.active, devices...)
	again, err := b.connects(ctx, b.server, "connect", hostOf(b.endpoints.MQTT), devices)
	if err != nil {
		return nil, err
	}
	bare, err := b.connects(ctx, b.baseline.process, "limit_accept", b.baseline.TLS, devices)
	if err != nil {
		return nil, err
	}
	samples := []sample{first, again, bare}
	if !hasMosquitto() {
		return samples, nil
	}
	m, addr, err := b.startMosquitto(ctx, nothingKept)
	if err != nil {
		return nil, err
	}
	peer, err := b.connects(ctx, m, "mosquitto_connect", addr, devices)
	return append(samples, peer), errors.Join(err, m.stop())
}

// renew measures simplereenroll: a new key, over a new connection with the current
// certificate. A connection belongs to one device, so there is none to keep.
func (b *bench) renew(ctx context.Context) ([]sample, error) {
	devices, err := b.connected(ctx, b.opts.size.connect)
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		if err := d.ask(hostOf(b.endpoints.Enroll), "simplereenroll"); err != nil {
			return nil, err
		}
	}
	s, err := b.server.load(ctx, "renew", webWorkers, len(devices), b.askAnew(devices))
	if err != nil {
		return nil, err
	}
	// Their new certificates were never used: they are not active any more.
	b.active, b.fresh = b.active[len(devices):], append(b.fresh, devices...)
	return []sample{s}, b.takeAll(devices)
}
