package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/rogpeppe/go-internal/testscript"
)

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func newRequest(ts *testscript.TestScript, id string) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
	ts.Check(err)
	return pemOf("CERTIFICATE REQUEST", der)
}

// cmdCSR makes a request: csr pump-7 out.csr
func cmdCSR(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(newRequest(ts, args[0])), 0o600))
}

// cmdWaits enrolls with a request and a token and wants to be told to come again:
// waits pump-7.csr token.txt
func cmdWaits(ts *testscript.TestScript, _ bool, args []string) {
	var e api.Endpoints
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("d/"+api.EndpointsFile)), &e))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ts.ReadFile("d/roots.pem")))
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, e.Enroll+api.Base+"/enroll", strings.NewReader(ts.ReadFile(args[0])))
	ts.Check(err)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(args[1])))
	client := &http.Client{Timeout: startWait, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}
	res, err := client.Do(req)
	ts.Check(err)
	ts.Check(res.Body.Close())
	if res.StatusCode != http.StatusAccepted || res.Header.Get("Retry-After") == "" {
		ts.Fatalf("got %s, Retry-After %q, want 202", res.Status, res.Header.Get("Retry-After"))
	}
}

// cmdDecide decides the request whose id is in a file: decide request.txt approve 5
func cmdDecide(ts *testscript.TestScript, neg bool, args []string) {
	code := "0"
	if len(args) > 2 {
		code = args[2]
	}
	cmdExits(ts, neg, []string{code, "countersign", "enroll", args[1], strings.TrimSpace(ts.ReadFile(args[0])), "--note", "seen"})
}

// cmdMaker makes a manufacturer's CA, its revocation list, and a certificate that
// it signed over the code in a file: maker code.txt
func cmdMaker(ts *testscript.TestScript, _ bool, args []string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Acme"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1, 2, 3},
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	ts.Check(err)
	parsed, err := x509.ParseCertificate(der)
	ts.Check(err)
	proof := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: strings.TrimSpace(ts.ReadFile(args[0]))},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
	}
	signed, err := x509.CreateCertificate(rand.Reader, proof, parsed, &key.PublicKey, key)
	ts.Check(err)
	crl, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour),
	}, parsed, key)
	ts.Check(err)
	for name, text := range map[string]string{"maker.pem": pemOf("CERTIFICATE", der), "proof.pem": pemOf("CERTIFICATE", signed), "maker.crl": string(crl)} {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

// cmdRequests writes a factory's requests, and mixed.jsonl with a bad one among
// them: requests 20 requests.jsonl
func cmdRequests(ts *testscript.TestScript, _ bool, args []string) {
	var n int
	_, err := fmt.Sscan(args[0], &n)
	ts.Check(err)
	var all strings.Builder
	for i := range n {
		b, err := json.Marshal(api.FactoryRequest{Item: fmt.Sprint("item-", i), CSR: newRequest(ts, fmt.Sprint("made-", i))})
		ts.Check(err)
		all.Write(append(b, '\n'))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(all.String()), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("mixed.jsonl"), []byte(all.String()+"{}\n"), 0o600))
}
