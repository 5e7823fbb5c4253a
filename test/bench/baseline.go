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
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/countersign-iot/countersign/simulate/device"
)

// limitsCommand makes this program the servers that are the limits, so that they
// pay for their own process as the one under test does.
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
	rootKey, err := newKey()
	if err != nil {
		return nil, err
	}
	root, err := limitCert("Bench Root", nil, rootKey, rootKey)
	if err != nil {
		return nil, err
	}
	c := &limitCA{root: root, pool: x509.NewCertPool()}
	c.pool.AddCert(root)
	if c.key, err = newKey(); err != nil {
		return nil, err
	}
	if c.cert, err = limitCert("Bench Issuing", root, c.key, rootKey); err != nil {
		return nil, err
	}
	leafKey, err := newKey()
	if err != nil {
		return nil, err
	}
	leaf, err := limitCert("127.0.0.1", c.cert, leafKey, c.key)
	if err != nil {
		return nil, err
	}
	c.leaf = tls.Certificate{Certificate: [][]byte{leaf.Raw, c.cert.Raw}, PrivateKey: leafKey, Leaf: leaf}
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
func (c *limitCA) serverTLS(clients *x509.CertPool) *tls.Config {
	return serverTLS(c.leaf, clients)
}

func serverTLS(cert tls.Certificate, clients *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, SessionTicketsDisabled: true,
	}
}

// write leaves the server's certificate and key where other processes find them.
func (c *limitCA) write(dir string) error {
	var chain []byte
	for _, der := range c.leaf.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.leaf.PrivateKey)
	if err != nil {
		return err
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	return errors.Join(
		os.WriteFile(filepath.Join(dir, chainFile), chain, 0o600),
		os.WriteFile(filepath.Join(dir, keyFile), keyPEM, 0o600),
	)
}

// baseline is the process of serveLimits.
type baseline struct {
	*process
	HTTP string `json:"http"` // host:port, answers every request with the same bytes
	TLS  string `json:"tls"`  // host:port, answers CONNECT with CONNACK
}

// startBaseline runs this program as serveLimits.
func startBaseline(dir string, quiet time.Duration) (*baseline, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(context.Background(), self, limitsCommand, dir) //nolint:gosec // this very program
	if _, err := cmd.StdinPipe(); err != nil {                                 // closed when we are gone, which ends it
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	b := &baseline{}
	if b.process, err = start(cmd, quiet); err != nil {
		return nil, err
	}
	if err := json.NewDecoder(out).Decode(b); err != nil {
		return nil, errors.Join(fmt.Errorf("couldn't start the limits: %w", err), b.stop())
	}
	return b, nil
}

// serveLimits serves until ctx or standard input ends: the least that a Go server can do for an HTTP
// answer and for an MQTT connection with client certificate.
func serveLimits(ctx context.Context, dir string, out io.Writer) error {
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
		_, _ = w.Write(answer) //nolint:gosec // an answer of ours from our own folder; the client is gone if it fails
	})}
	go func() { _ = web.Serve(plain) }() // ends with the process
	go acceptBare(secure, serverTLS(cert, roots))
	if err := json.NewEncoder(out).Encode(baseline{HTTP: plain.Addr().String(), TLS: secure.Addr().String()}); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	go func() {
		defer stop()
		_, _ = io.Copy(io.Discard, os.Stdin) // however it ends, our parent is gone
	}()
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
			defer func() { _ = c.Close() }() // nobody to tell
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
