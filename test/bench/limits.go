package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// block is what is appended for a commit: one page of a write-ahead log.
const block = 4 << 10

// limits measures what Go and this machine can do at best, on all cores, with
// keys and certificates as the authority uses them.
func (b *bench) limits(ctx context.Context) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte("limit"))
	sig, sigErr := ecdsa.SignASN1(rand.Reader, key, digest[:])
	csr, csrErr := newCSR("limit", key)
	if err := errors.Join(sigErr, csrErr); err != nil {
		return err
	}
	request, err := parseCSR(csr)
	if err != nil {
		return err
	}
	issuer := b.limitCA
	for _, l := range []struct {
		name string
		op   func() error
	}{
		{"limit_sign", func() error {
			_, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
			return err
		}},
		{"limit_verify", func() error {
			if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], sig) {
				return errors.New("couldn't verify a signature of this run")
			}
			return nil
		}},
		{"limit_parse_csr", func() error {
			_, err := parseCSR(csr)
			return err
		}},
		{"limit_create_certificate", func() error { return issuer.issue(request) }},
		{"limit_issuance", func() error {
			r, err := parseCSR(csr)
			if err != nil {
				return err
			}
			return issuer.issue(r)
		}},
		{"limit_handshake", issuer.handshake},
	} {
		if err := b.keep(saturate(ctx, l.name, b.opts.size.limit, l.op)); err != nil {
			return err
		}
	}
	return b.keep(appendSync(ctx, b.dir, b.opts.size.limit))
}

func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	return r, r.CheckSignature()
}

// issue makes the certificate that the authority would make.
func (c *limitCA) issue(r *x509.CertificateRequest) error {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1 << 62), Subject: r.Subject, NotBefore: c.cert.NotBefore, NotAfter: c.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		OCSPServer: []string{"http://127.0.0.1:8090/ocsp"}, CRLDistributionPoints: []string{"http://127.0.0.1:8090/crl/issuing/0.crl"},
	}
	_, err := x509.CreateCertificate(rand.Reader, template, c.cert, r.PublicKey, c.key) //nolint:forbidigo // the limit to measure; no device gets this certificate
	return err
}

// handshake does both sides of a full TLS 1.3 handshake with client certificate
// in memory.
func (c *limitCA) handshake() error {
	client, server := net.Pipe()
	defer func() { _ = errors.Join(client.Close(), server.Close()) }() // pipes do not fail to close
	var group errgroup.Group
	group.Go(func() error {
		return tls.Server(server, serverTLS(c.leaf, c.pool)).HandshakeContext(context.Background())
	})
	group.Go(func() error {
		return tls.Client(client, clientTLS(c.pool, &c.leaf)).HandshakeContext(context.Background())
	})
	return group.Wait()
}

// saturate does op on all cores for a while and counts own CPU.
func saturate(ctx context.Context, name string, d time.Duration, op func() error) (sample, error) {
	var done atomic.Int64
	before, err := ownCPU()
	if err != nil {
		return sample{}, err
	}
	group, ctx := errgroup.WithContext(ctx)
	begin := now()
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() error {
			for time.Since(begin) < d {
				if err := errors.Join(ctx.Err(), op()); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
	}
	err = group.Wait()
	wall := time.Since(begin)
	after, cpuErr := ownCPU()
	return sample{name: name, ops: int(done.Load()), wall: wall, cpu: after - before}, errors.Join(err, cpuErr)
}

// appendSync appends to a file and waits until the disk has it, one after the
// other: what each commit costs before anything is written to a database.
func appendSync(ctx context.Context, dir string, d time.Duration) (s sample, err error) {
	f, err := os.Create(filepath.Join(dir, "fsync")) //nolint:gosec // our own folder
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }() //nolint:gosec // made above
	data := make([]byte, block)
	var took []time.Duration
	begin := now()
	for time.Since(begin) < d {
		t := now()
		if _, err := f.Write(data); err != nil {
			return s, err
		}
		if err := errors.Join(ctx.Err(), syscall.Fdatasync(int(f.Fd()))); err != nil {
			return s, err
		}
		took = append(took, time.Since(t))
	}
	wall := time.Since(begin)
	s = timed("limit_fsync", took)
	s.wall = wall
	return s, nil
}
