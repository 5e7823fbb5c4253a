package main

import (
	"context"
	"math/rand/v2"
	"net/url"

	"github.com/countersign-iot/countersign/status"
)

// ocspSubjects is about how many certificates OCSP is asked.
const ocspSubjects = 4000

func ocspPost(endpoint string, request []byte) []byte {
	path := "/"
	if u, err := url.Parse(endpoint); err == nil {
		path = u.RequestURI()
	}
	return post(hostOf(endpoint), path, "application/ocsp-request", request)
}

// ocsp measures answers about some thousand certificates: the first about each,
// which is signed, then repeated ones in random order, beside a server that
// always answers with the same bytes.
func (b *bench) ocsp(ctx context.Context) ([]sample, error) {
	if err := b.restart(ctx); err != nil { // it knows no answer by heart
		return nil, err
	}
	n := min(ocspSubjects, b.opts.size.ocsp/4)
	if missing := n - len(b.all); missing > 0 {
		if _, err := b.enrolled(ctx, len(b.fresh)+missing); err != nil {
			return nil, err
		}
	}
	requests := make([][]byte, n)
	for i, d := range b.all[len(b.all)-n:] {
		der, err := status.EncodeOCSPRequest(d.cert, b.issuer, nil)
		if err != nil {
			return nil, err
		}
		requests[i] = ocspPost(d.cert.OCSPServer[0], der)
	}
	addr := hostOf(b.all[0].cert.OCSPServer[0])
	first, err := b.server.load(ctx, "ocsp_first", webWorkers, n, b.asker(addr, func(i int) []byte { return requests[i] }))
	if err != nil {
		return nil, err
	}
	draw := func(int) []byte { return requests[rand.IntN(n)] } //nolint:gosec // an order, not a secret
	hot, err := b.server.load(ctx, "ocsp", webWorkers, b.opts.size.ocsp, b.asker(addr, draw))
	if err != nil {
		return nil, err
	}
	static, err := b.baseline.load(ctx, "limit_http", webWorkers, b.opts.size.ocsp, b.asker(b.baseline.HTTP, draw))
	if err != nil {
		return nil, err
	}
	return []sample{first, hot, static}, nil
}

// asker sends a request on a connection that each worker keeps.
func (b *bench) asker(addr string, request func(i int) []byte) func(ctx context.Context, worker, i int) error {
	kept := make([]*web, webWorkers) // each owned by its worker
	return func(ctx context.Context, worker, i int) error {
		if kept[worker] == nil {
			c, err := b.dialer.dial(ctx, addr)
			if err != nil {
				return err
			}
			kept[worker] = newWeb(c)
		}
		_, err := kept[worker].do(request(i))
		return err
	}
}
