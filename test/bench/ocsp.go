package main

import (
	"context"
	"errors"
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
// which is signed, then repeated ones in random order, in turn with cfssl, which has
// answers about the same in memory, and a server that always answers with the same bytes.
func (b *bench) ocsp(ctx context.Context) (err error) {
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
	if err := b.responds(ctx, responding{"ocsp_first", b.server.process, responder, n, inOrder}); err != nil {
		return err
	}
	rows := []responding{
		{"ocsp", b.server.process, responder, b.opts.size.ocsp, drawn},
		{"limit_http", b.baseline.process, b.baseline.HTTP, b.opts.size.ocsp, drawn},
	}
	if program := b.peerProgram(ctx, cfsslSource()); program != "" {
		answers, err := b.limitCA.answersFor(b.all[len(b.all)-n:])
		if err != nil {
			return err
		}
		peer, addr, err := startCFSSL(ctx, program, b.dir, b.opts.size.quiet, answers)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, peer.stop()) }()
		rows = append(rows, responding{cfsslPrefix + "ocsp", peer, addr, b.opts.size.ocsp, drawn})
	}
	for _, r := range ordered(b.round, rows) {
		if err := b.responds(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// responding is a row of the report: n answers of a responder.
type responding struct {
	name    string
	process *process
	addr    string
	n       int
	request func(i int) []byte
}

// responds measures a row.
func (b *bench) responds(ctx context.Context, r responding) error {
	dial := func(ctx context.Context) (net.Conn, error) { return b.dialer.dial(ctx, r.addr) }
	ask := func(w *web, i int) error { _, err := w.do(r.request(i)); return err }
	return b.keep(r.process.load(ctx, r.name, webWorkers, r.n, kept(webWorkers, dial, ask)))
}
