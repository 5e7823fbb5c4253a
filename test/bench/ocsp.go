package main

import (
	"context"
	"math/rand/v2"
	"net"

	"github.com/countersign-iot/countersign/status"
)

// ocspSubjects is about how many certificates OCSP is asked.
const ocspSubjects = 4000

func ocspPost(endpoint string, question []byte) []byte {
	return request("POST", endpoint, question, "Content-Type: application/ocsp-request")
}

// ocsp measures answers about some thousand certificates: the first about each,
// which is signed, then repeated ones in random order, beside a server that
// always answers with the same bytes.
func (b *bench) ocsp(ctx context.Context) error {
	if err := b.server.restart(ctx); err != nil { // it remembers no answer
		return err
	}
	n := min(ocspSubjects, b.opts.size.ocsp/4)
	if missing := n - len(b.all); missing > 0 {
		if _, err := b.enrolled(ctx, len(b.fresh)+missing); err != nil {
			return err
		}
	}
	requests := make([][]byte, n)
	for i, d := range b.all[len(b.all)-n:] {
		der, err := status.EncodeOCSPRequest(d.cert, b.issuer, nil)
		if err != nil {
			return err
		}
		requests[i] = ocspPost(d.cert.OCSPServer[0], der)
	}
	inOrder := func(i int) []byte { return requests[i] }
	drawn := func(int) []byte { return requests[rand.IntN(n)] } //nolint:gosec // an order, not a secret
	responder := hostOf(b.all[0].cert.OCSPServer[0])
	for _, one := range []struct {
		name    string
		process *process
		addr    string
		n       int
		request func(i int) []byte
	}{
		{"ocsp_first", b.server.process, responder, n, inOrder},
		{"ocsp", b.server.process, responder, b.opts.size.ocsp, drawn},
		{"limit_http", b.baseline.process, b.baseline.HTTP, b.opts.size.ocsp, drawn},
	} {
		dial := func(ctx context.Context) (net.Conn, error) { return b.dialer.dial(ctx, one.addr) }
		ask := func(w *web, i int) error { _, err := w.do(one.request(i)); return err }
		if err := b.keep(one.process.load(ctx, one.name, webWorkers, one.n, kept(webWorkers, dial, ask))); err != nil {
			return err
		}
	}
	return nil
}
