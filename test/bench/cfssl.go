package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ocsp"
)

// cfsslPrefix is that of the names of cfssl's measurements.
const cfsslPrefix = "cfssl_"

// cfsslSource is cfssl, whose responder answers from a file of signed answers.
func cfsslSource() source {
	return source{"cfssl", "github.com/cloudflare/cfssl/cmd/cfssl", "v1.6.5"}
}

// answersFor writes what cfssl ocspsign writes: an answer of the issuer itself about each
// certificate. Our server's carry the certificate of a responder, which cfssl would verify
// each time.
func (c *limitCA) answersFor(devices []*enrollee) ([]byte, error) {
	var text bytes.Buffer
	for _, d := range devices {
		about := ocsp.Response{Status: ocsp.Good, SerialNumber: d.cert.SerialNumber, ThisUpdate: now(), NextUpdate: now().Add(time.Hour)}
		answer, err := ocsp.CreateResponse(c.cert, c.cert, about, c.key) //nolint:forbidigo // for a server beside ours; no relying party asks it
		if err != nil {
			return nil, err
		}
		text.WriteString(base64.StdEncoding.EncodeToString(answer) + "\n")
	}
	return text.Bytes(), nil
}

// startCFSSL runs its OCSP responder without a log of requests.
func startCFSSL(ctx context.Context, program, dir string, quiet time.Duration, answers []byte) (*process, string, error) {
	file := filepath.Join(dir, "cfssl-answers")
	if err := os.WriteFile(file, answers, 0o600); err != nil { //nolint:gosec // our own folder
		return nil, "", err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, "", err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, "", err
	}
	p, err := serve(ctx, addr, quiet, program, "ocspserve", "-address", host, "-port", port, "-responses", file, "-loglevel", "5")
	return p, addr, err
}
