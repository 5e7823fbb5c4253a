package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// stepProvisioner is the name of step-ca's one provisioner and of its key.
	stepProvisioner = "bench"
	// stepTokenLife is longer than a round: tokens are made before the clock starts.
	stepTokenLife = time.Hour
)

// stepCA is step-ca with a JWK provisioner whose key is ours, so that this program makes the
// one-time tokens as the step command does.
type stepCA struct {
	*process
	base   string // https://host:port
	issuer [][]byte
	tokens jose.Signer
}

// stepDB is the db block of its configuration.
type stepDB struct {
	Type       string `json:"type"`
	DataSource string `json:"dataSource"`
	Database   string `json:"database,omitempty"`
}

// stepSetup is what a step-ca is started with: an authority below the root of ca, with a
// folder and a database of its own.
type stepSetup struct {
	program string
	dir     string
	quiet   time.Duration
	ca      *limitCA
	db      stepDB
}

// start runs it, and returns when it accepts connections.
func (u stepSetup) start(ctx context.Context) (*stepCA, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	s := &stepCA{base: "https://" + addr, issuer: [][]byte{u.ca.cert.Raw}}
	config, err := s.configure(u.dir, addr, u.ca, u.db)
	if err != nil {
		return nil, fmt.Errorf("configure step-ca: %w", err)
	}
	if s.process, err = serve(ctx, addr, u.quiet, u.program, config); err != nil {
		return nil, err
	}
	return s, nil
}

// configure makes the key of the provisioner and writes what step ca init writes. Without a
// logger, as ours logs no requests either.
func (s *stepCA) configure(dir, addr string, ca *limitCA, db stepDB) (string, error) {
	key, err := newKey()
	if err != nil {
		return "", err
	}
	options := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", stepProvisioner)
	if s.tokens, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, options); err != nil {
		return "", err
	}
	caKey, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return "", err
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	type object = map[string]any
	config, err := json.Marshal(object{
		"root": file("root.crt"), "crt": file("issuing.crt"), "key": file("issuing.key"),
		"address": addr, "dnsNames": []string{"127.0.0.1"}, "db": db,
		"authority": object{"provisioners": []object{{
			"type": "JWK", "name": stepProvisioner,
			"key": jose.JSONWebKey{Key: &key.PublicKey, KeyID: stepProvisioner, Algorithm: string(jose.ES256), Use: "sig"},
		}}},
	})
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return file("ca.json"), errors.Join(
		os.WriteFile(file("root.crt"), pemText("CERTIFICATE", ca.root.Raw), 0o600),
		os.WriteFile(file("issuing.crt"), pemText("CERTIFICATE", ca.cert.Raw), 0o600),
		os.WriteFile(file("issuing.key"), pemText("PRIVATE KEY", caKey), 0o600),
		os.WriteFile(file("ca.json"), config, 0o600),
	)
}

// token returns a one-time token for a device, as step ca token makes it.
func (s *stepCA) token(device string) (string, error) {
	at := now()
	return jwt.Signed(s.tokens).Claims(jwt.Claims{
		Issuer: stepProvisioner, Subject: device, Audience: jwt.Audience{s.base + "/1.0/sign"}, ID: rand.Text(),
		IssuedAt: jwt.NewNumericDate(at), NotBefore: jwt.NewNumericDate(at), Expiry: jwt.NewNumericDate(at.Add(stepTokenLife)),
	}).Claims(map[string]any{"sans": []string{device}}).Serialize()
}

// first writes the request for a device's first certificate.
func (s *stepCA) first(d *enrollee) error {
	token, err := s.token(d.id)
	if err != nil {
		return err
	}
	return s.ask(d, "/1.0/sign", map[string]string{"ott": token})
}

// again writes that for a certificate with a new key, which its current certificate
// authenticates.
func (s *stepCA) again(d *enrollee) error { return s.ask(d, "/1.0/rekey", map[string]string{}) }

func (s *stepCA) ask(d *enrollee, path string, body map[string]string) error {
	csr, err := d.renewKey()
	if err != nil {
		return err
	}
	body["csr"] = string(pemText("CERTIFICATE REQUEST", csr))
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	d.request = request("POST", s.base+path, text, "Content-Type: application/json")
	return nil
}

// take reads a device's certificate from the answer.
func (s *stepCA) take(d *enrollee) error {
	var answer struct {
		Certificate string `json:"crt"`
	}
	if err := json.Unmarshal(d.answer, &answer); err != nil {
		return fmt.Errorf("read the answer of step-ca: %w", err)
	}
	block, _ := pem.Decode([]byte(answer.Certificate))
	if block == nil {
		return fmt.Errorf("couldn't find a certificate in the answer of step-ca: %.200s", d.answer)
	}
	return d.hold(block.Bytes, s.issuer)
}

func pemText(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
