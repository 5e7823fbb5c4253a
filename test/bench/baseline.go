package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign/simulate/device"
)

// limitsCommand makes this program the servers that are the limits, so that they
// cost a process of their own, as the one under test does.
const limitsCommand = "serve-limits"

// The files that the servers beside ours read, in the bench's folder.
const (
	chainFile  = "server.pem"
	keyFile    = "server.key"
	rootsFile  = "roots.pem"
	answerFile = "answer.der"
)

// limitCA is a chain as the authority's own: a root, an issuing CA and a leaf that
// serves as either side of TLS.
type limitCA struct {
	key  *ecdsa.PrivateKey // of the issuing CA
	cert *x509.Certificate
	leaf tls.Certificate
	root *x509.Certificate
	pool *x509.CertPool // the root alone
}

func newLimitCA() (*limitCA, error) {
	rootKey, rootErr := newKey()
	key, keyErr := newKey()
	leafKey, leafErr := newKey()
	if err := errors.Join(rootErr, keyErr, leafErr); err != nil {
		return nil, err
	}
	root, err := limitCert("Bench Root", nil, rootKey, rootKey)
	if err != nil {
		return nil, err
	}
	cert, err := limitCert("Bench Issuing", root, key, rootKey)
	if err != nil {
		return nil, err
	}
	leaf, err := limitCert("127.0.0.1", cert, leafKey, key)
	if err != nil {
		return nil, err
	}
	c := &limitCA{key: key, cert: cert, root: root, pool: x509.NewCertPool()}
	c.pool.AddCert(root)
	c.leaf = tls.Certificate{Certificate: [][]byte{leaf.Raw, cert.Raw}, PrivateKey: leafKey, Leaf: leaf}
	return c, nil
}

// limitCert makes a CA certificate, or a leaf where the name is an address.
func limitCert(name string, issuer *x509.Certificate, key, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	begin := now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(begin.UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: begin.Add(-time.Hour), NotAfter: begin.Add(24 * time.Hour), BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(name); ip != nil {
		t.IPAddresses = []net.IP{ip}
		t.KeyUsage = x509.KeyUsageDigitalSignature
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	} else {
		t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	}
	if issuer == nil {
		issuer = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, &key.PublicKey, signer) //nolint:forbidigo // for servers beside ours; trusted by this run alone
	if err != nil {
		return nil, fmt.Errorf("couldn't make the certificate %s: %w", name, err)
	}
	return x509.ParseCertificate(der)
}

// serverTLS is TLS as our own listeners speak it, with crypto/x509 to check who
// comes: full handshakes only.
func serverTLS(cert tls.Certificate, clients *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, SessionTicketsDisabled: true,
	}
}

// write stores the server's certificate and key where other processes find them.
func (c *limitCA) write(dir string) error {
	chain, key, err := pemOf(c.leaf)
	return errors.Join(
		err,
		os.WriteFile(filepath.Join(dir, chainFile), chain, 0o600),
		os.WriteFile(filepath.Join(dir, keyFile), key, 0o600),
	)
}

// baseline is the process of serveLimits.
type baseline struct {
	*helper
	addresses
}

// addresses are what serveLimits answers with.
type addresses struct {
	HTTP string `json:"http"` // host:port, answers every request with the same bytes
	TLS  string `json:"tls"`  // host:port, answers CONNECT with CONNACK
}

// startBaseline runs this program as serveLimits.
func startBaseline(ctx context.Context, dir string, quiet time.Duration) (*baseline, error) {
	h, err := startHelper(ctx, limitsCommand, quiet, dir)
	if err != nil {
		return nil, err
	}
	b := &baseline{helper: h}
	if err := json.NewDecoder(h.out).Decode(&b.addresses); err != nil {
		return nil, errors.Join(fmt.Errorf("couldn't start the limits: %w", err), b.stop())
	}
	return b, nil
}

// serveLimits serves until ctx ends: the least that a Go server can do for an HTTP
// answer and for an MQTT connection with client certificate.
func serveLimits(ctx context.Context, dir string, out *json.Encoder) error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, chainFile), filepath.Join(dir, keyFile))
	if err != nil {
		return err
	}
	roots, err := readRoots(filepath.Join(dir, rootsFile))
	if err != nil {
		return err
	}
	answer, err := os.ReadFile(filepath.Join(dir, answerFile)) //nolint:gosec // our own folder
	if err != nil {
		return err
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, plain.Close())
	}
	web := &http.Server{ReadHeaderTimeout: opTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, io.LimitReader(r.Body, block)); err != nil {
			return
		}
		w.Header().Set("Content-Type", "application/ocsp-response")
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
		_, _ = w.Write(answer) // an answer of ours from our own folder; the client is gone if it fails
	})}
	go func() { _ = web.Serve(plain) }() // ends with the process
	go acceptBare(secure, serverTLS(cert, roots))
	if err := out.Encode(addresses{HTTP: plain.Addr().String(), TLS: secure.Addr().String()}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// acceptBare answers each CONNECT with yes, once TLS has checked the certificate.
func acceptBare(l net.Listener, config *tls.Config) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }() // no caller could do anything
			_ = c.SetDeadline(now().Add(opTimeout))
			t := tls.Server(c, config)
			r := bufio.NewReaderSize(t, 256)
			if _, err := r.ReadByte(); err != nil {
				return
			}
			if _, err := t.Write(device.Accepted()); err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r) // until the client leaves
		}()
	}
}
