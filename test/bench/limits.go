package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// block is what is appended for a commit: one page of a write-ahead log.
const block = 4 << 10

// limits measures what Go and this machine can do at best, on all cores, with
// keys and certificates as the authority uses them.
func (b *bench) limits(ctx context.Context) ([]sample, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256([]byte("limit"))
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		return nil, err
	}
	csr, err := newCSR("limit", key)
	if err != nil {
		return nil, err
	}
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	issuer := b.limitCA
	var out []sample
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
		{"limit_handshake", b.handshake},
	} {
		s, err := saturate(ctx, b.opts.size.limit, l.op)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		s.name = l.name
		out = append(out, s)
	}
	s, err := appendSync(ctx, b.dir, b.opts.size.limit)
	if err != nil {
		return nil, fmt.Errorf("limit_fsync: %w", err)
	}
	return append(out, s), nil
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
	_, err := x509.CreateCertificate(rand.Reader, template, c.cert, r.PublicKey, c.key) //nolint:forbidigo // the limit to measure; nobody gets this certificate
	return err
}

// handshake does both sides of a full TLS 1.3 handshake with client certificate
// in memory.
func (b *bench) handshake() error {
	client, server := net.Pipe()
	defer func() { _ = errors.Join(client.Close(), server.Close()) }() // pipes do not fail to close
	var group errgroup.Group
	group.Go(func() error {
		return tls.Server(server, b.limitCA.serverTLS(b.limitCA.pool)).HandshakeContext(context.Background())
	})
	group.Go(func() error {
		return tls.Client(client, clientTLS(b.limitCA.pool, &b.limitCA.leaf)).HandshakeContext(context.Background())
	})
	return group.Wait()
}

// saturate does op on all cores for a while and counts own CPU.
func saturate(ctx context.Context, d time.Duration, op func() error) (sample, error) {
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
	return sample{ops: int(done.Load()), wall: wall, cpu: after - before}, errors.Join(err, cpuErr)
}

// appendSync appends to a file and waits until the disk has it, one after the
// other: what each commit costs before anything is written to a database.
func appendSync(ctx context.Context, dir string, d time.Duration) (s sample, err error) {
	f, err := os.Create(filepath.Join(dir, "fsync")) //nolint:gosec // our own folder
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
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
	slices.Sort(took)
	return sample{name: "limit_fsync", ops: len(took), wall: wall, p50: percentile(took, 50), p99: percentile(took, 99)}, nil
}
