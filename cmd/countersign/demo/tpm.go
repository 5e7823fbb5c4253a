package demo

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
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
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
)

const (
	// chipStart is how long a software TPM may take to listen.
	chipStart = 10 * time.Second
	// maxAnswer bounds what the demo's TPM device reads of the server.
	maxAnswer = 64 << 10
)

// byTPM runs a software TPM if there is one on this machine.
func (d *demo) byTPM(ctx context.Context, e *sdk.Enrollment) (id *sdk.Identity, err error) {
	program, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, skip("swtpm is not installed")
	}
	dir, err := os.MkdirTemp("", "countersign-tpm-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the TPM: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	socket := filepath.Join(dir, "tpm")
	swtpm := exec.CommandContext(ctx, program, "socket", "--tpm2", "--tpmstate", "dir="+dir, //nolint:gosec // a program of that name, on a folder of ours
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init,startup-clear")
	if err := swtpm.Start(); err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("start swtpm: %w", err), os.RemoveAll(dir))
	}
	defer func() {
		stop()
		_ = swtpm.Wait() // says that it was killed
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	c, err := openChip(ctx, socket)
	if err != nil {
		return nil, err
	}
	if id, err = d.enrollChip(ctx, c, e); err != nil {
		return nil, err
	}
	return id, d.admitted(ctx, id)
}

// chip is a TPM with the three keys of an enrollment.
type chip struct {
	tpm         transport.TPM
	ek, ak, key chipKey
}

type chipKey struct {
	tpm    transport.TPM
	handle tpm2.NamedHandle
	area   []byte // TPMT_PUBLIC
}

func (k chipKey) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.handle.Handle, Name: k.handle.Name, Auth: tpm2.PasswordAuth(nil)}
}

func openChip(ctx context.Context, socket string) (*chip, error) {
	ctx, cancel := context.WithTimeout(ctx, chipStart)
	defer cancel()
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		// That it is there is not enough: it is made before it is listened on.
		if c, err := new(net.Dialer).DialContext(ctx, "unix", socket); err == nil {
			_ = c.Close()
			tick.Stop()
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("swtpm does not listen: %w", ctx.Err())
		}
	}
	tpm, err := linuxudstpm.Open(socket)
	if err != nil {
		return nil, fmt.Errorf("open the TPM: %w", err)
	}
	c := &chip{tpm: tpm}
	stays := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true}
	restricted := stays
	restricted.Restricted = true
	for _, k := range []struct {
		into      *chipKey
		hierarchy tpm2.TPMHandle
		template  tpm2.TPMTPublic
	}{
		{&c.ek, tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate}, {&c.ak, tpm2.TPMRHOwner, chipTemplate(restricted)}, {&c.key, tpm2.TPMRHOwner, chipTemplate(stays)},
	} {
		made, err := tpm2.CreatePrimary{PrimaryHandle: k.hierarchy, InPublic: tpm2.New2B(k.template)}.Execute(tpm)
		if err != nil {
			return nil, fmt.Errorf("make a key in the TPM: %w", err)
		}
		*k.into = chipKey{tpm, tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, made.OutPublic.Bytes()}
	}
	return c, nil
}

// chipTemplate is that of a P-256 key that signs SHA-256.
func chipTemplate(a tpm2.TPMAObject) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: a,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
	}
}

// Public implements crypto.Signer.
func (k chipKey) Public() crypto.PublicKey {
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](k.area)
	if err != nil {
		return nil
	}
	pub, err := tpm2.Pub(*area)
	if err != nil {
		return nil
	}
	return pub
}

// Sign implements crypto.Signer.
func (k chipKey) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	got, err := tpm2.Sign{
		KeyHandle: k.auth(), Digest: tpm2.TPM2BDigest{Buffer: bytes.Clone(digest)}, Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(k.tpm)
	if err != nil {
		return nil, fmt.Errorf("sign in the TPM: %w", err)
	}
	sig, err := got.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("sign in the TPM: %w", err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)})
}

// answer proves to the server that the chip is that of the endorsement key and that
// the key was made in it.
func (c *chip) answer(a *api.TPMAnswer, ch *api.TPMChallenge) error {
	policy := tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(tpm transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}, PolicySession: session,
		}.Execute(tpm)
		return err
	})
	if len(ch.Credential) < 2 || len(ch.EncryptedSecret) < 2 {
		return errors.New("the challenge is cut off")
	}
	secret, err := tpm2.ActivateCredential{
		ActivateHandle: c.ak.auth(), KeyHandle: tpm2.AuthHandle{Handle: c.ek.handle.Handle, Name: c.ek.handle.Name, Auth: policy},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: ch.Credential[2:]}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: ch.EncryptedSecret[2:]},
	}.Execute(c.tpm)
	if err != nil {
		return fmt.Errorf("activate the credential: %w", err)
	}
	word, err := tpm2.Certify{
		ObjectHandle: c.key.auth(), SignHandle: c.ak.auth(), QualifyingData: tpm2.TPM2BData{Buffer: ch.Nonce}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(c.tpm)
	if err != nil {
		return fmt.Errorf("certify the key: %w", err)
	}
	a.Session, a.Secret, a.KeyPublic = ch.Session, secret.CertInfo.Buffer, c.key.area
	a.CertifyInfo, a.CertifySignature = word.CertifyInfo.Bytes(), tpm2.Marshal(word.Signature)
	return nil
}

func (d *demo) enrollChip(ctx context.Context, c *chip, e *sdk.Enrollment) (*sdk.Identity, error) {
	if _, err := d.admin.CreateTPM(ctx, api.NewTPM{Device: e.Device, Fleet: e.Fleet, EKPublic: c.ek.area}); err != nil {
		return nil, err
	}
	who := api.TPMIdentity{Fleet: e.Fleet, EKPublic: c.ek.area, AKPublic: c.ak.area}
	var challenge api.TPMChallenge
	if err := d.post(ctx, "/enroll/tpm", who, &challenge); err != nil {
		return nil, fmt.Errorf("ask for a challenge: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: e.Device}}, c.key)
	if err != nil {
		return nil, err
	}
	a := api.TPMAnswer{TPMIdentity: who, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))}
	if err := c.answer(&a, &challenge); err != nil {
		return nil, err
	}
	var grant api.Grant
	if err := d.post(ctx, "/enroll/tpm/answer", a, &grant); err != nil {
		return nil, fmt.Errorf("answer the challenge: %w", err)
	}
	path, err := certificates(grant.Chain)
	if err != nil {
		return nil, err
	}
	e.Key = c.key
	return sdk.Known(*e, path)
}

// post posts JSON to the enrollment listener and reads JSON.
func (d *demo) post(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.server.Endpoints().Enroll+api.Base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: d.roots, MinVersion: tls.VersionTLS12}}
	defer t.CloseIdleConnections()
	res, err := (&http.Client{Transport: t, Timeout: stepTime}).Do(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answered %s: %.300s", res.Status, text)
	}
	return json.Unmarshal(text, out)
}
