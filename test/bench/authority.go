package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net"
	"runtime"

	"github.com/countersign-iot/countersign/cms"
)

// authority is a server that issues certificates, ours or a peer. They differ in how a
// request is written and its answer read, before and after the clock; between them runs
// the same client.
type authority struct {
	*client
	*process
	prefix string                // of its names in the report
	base   string                // URL
	first  func(*enrollee) error // writes the request for a first certificate, with a new key
	again  func(*enrollee) error // that for the next one, shown the current one in TLS
	take   func(*enrollee) error // reads the certificate from the answer
}

// authority is one of our servers, whose devices show token (RFC 7030, 4.2).
func (c *crew) authority(prefix, token string) authority {
	basic := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(":"+token))
	base := c.server.endpoints.Enroll
	ask := func(d *enrollee, operation string, headers ...string) error {
		csr, err := d.renewKey()
		if err != nil {
			return err
		}
		headers = append(headers, "Content-Type: application/pkcs10", "Content-Transfer-Encoding: base64")
		d.request = request("POST", base+"/.well-known/est/"+operation, base64.StdEncoding.AppendEncode(nil, csr), headers...)
		return nil
	}
	return authority{
		client: &c.client, process: c.server.process, prefix: prefix, base: base,
		first: func(d *enrollee) error { return ask(d, "simpleenroll", basic) },
		again: func(d *enrollee) error { return ask(d, "simplereenroll") },
		take:  func(d *enrollee) error { return takeEST(d, [][]byte{c.issuer.Raw}) },
	}
}

// authority is the peer, of which clients trust the same root.
func (s *stepCA) authority(prefix string, c *client) authority {
	return authority{client: c, process: s.process, prefix: prefix, base: s.base, first: s.first, again: s.again, take: s.take}
}

// takeEST reads a device's certificate from a certs-only message.
func takeEST(d *enrollee, path [][]byte) error {
	der, err := base64.StdEncoding.DecodeString(string(d.answer)) // skips line breaks
	if err != nil {
		return fmt.Errorf("couldn't read the certificate of %s: %w", d.id, err)
	}
	certs, err := cms.ParseCertsOnly(der)
	if err != nil {
		return fmt.Errorf("couldn't read the certificate of %s: %w", d.id, err)
	}
	return d.hold(certs[0], path)
}

// newDevices makes n devices with keys and requests for their first certificates.
func (a *authority) newDevices(ctx context.Context, n int) ([]*enrollee, error) {
	run := rand.Text()[:12] // the database may know the devices of earlier runs and rounds
	list := make([]*enrollee, n)
	_, err := drive(ctx, runtime.GOMAXPROCS(0), n, func(_ context.Context, _, i int) error {
		list[i] = &enrollee{id: fmt.Sprintf("bench-%s-%06d", run, i)}
		return a.first(list[i])
	})
	return list, err
}

// askKept is an operation on a connection that each of the workers keeps.
func (a *authority) askKept(workers int, devices []*enrollee) operation {
	return kept(workers, func(ctx context.Context) (net.Conn, error) {
		return a.dialer.dialTLS(ctx, hostOf(a.base), clientTLS(a.roots, nil))
	}, func(w *web, i int) error { return devices[i].send(w) })
}

// askAnew is an operation on a new connection, with the device's certificate if
// it has one.
func (a *authority) askAnew(devices []*enrollee) operation {
	return func(ctx context.Context, _, i int) error {
		d := devices[i]
		cert := &d.identity
		if d.cert == nil {
			cert = nil
		}
		conn, err := a.dialer.dialTLS(ctx, hostOf(a.base), clientTLS(a.roots, cert))
		if err != nil {
			return err
		}
		w := newWeb(conn)
		defer w.close()
		return d.send(w)
	}
}

// forEach calls do with each device.
func forEach(devices []*enrollee, do func(*enrollee) error) error {
	for _, d := range devices {
		if err := do(d); err != nil {
			return err
		}
	}
	return nil
}
