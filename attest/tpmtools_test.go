package attest_test

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	goattest "github.com/google/go-attestation/attest"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/attest"
	"github.com/countersign-iot/countersign/attest/tpmtest"
	"github.com/countersign-iot/countersign/test/kit"
)

// channel is a connection as go-attestation wants it.
type channel struct{ net.Conn }

func (channel) MeasurementLog() ([]byte, error) {
	return nil, errors.New("swtpm has no measurement log")
}

// TestTPMOfGoAttestation has a device with that library enroll: its AK (RSA), a
// certified key, and a quote of all PCRs.
func TestTPMOfGoAttestation(t *testing.T) {
	m := tpmtest.Start(t)
	chip, err := goattest.OpenTPM(&goattest.OpenConfig{CommandChannel: channel{m.Dial(t)}})
	if err != nil {
		t.Fatal(err)
	}
	eks, err := chip.EKs()
	if err != nil || len(eks) == 0 || eks[0].Certificate == nil {
		t.Fatalf("EKs: %v %v", eks, err)
	}
	ak, err := chip.NewAK(nil)
	if err != nil {
		t.Fatal(err)
	}
	ekPublic, err := attest.EKArea(eks[0].Public)
	if err != nil {
		t.Fatal(err)
	}
	ev := attest.TPMEvidence{
		EKPublic: ekPublic, EKCertificate: eks[0].Certificate.Raw, EKChain: [][]byte{m.Intermediate.Raw},
		AKPublic: ak.AttestationParameters().Public,
	}
	o := trust(m)
	challenge, want, err := attest.ChallengeTPM(ev, o)
	if err != nil {
		t.Fatalf("ChallengeTPM: %v", err)
	}
	ev.Secret, err = ak.ActivateCredential(chip, goattest.EncryptedCredential{Credential: challenge.Credential, Secret: challenge.EncryptedSecret})
	if err != nil {
		t.Fatalf("ActivateCredential: %v", err)
	}
	key, err := chip.NewKey(ak, &goattest.KeyConfig{Algorithm: goattest.ECDSA, Size: 256, QualifyingData: challenge.Nonce})
	if err != nil {
		t.Fatal(err)
	}
	c := key.CertificationParameters()
	ev.KeyPublic, ev.CertifyInfo, ev.CertifySignature = c.Public, c.CreateAttestation, c.CreateSignature
	quote, err := ak.Quote(chip, challenge.Nonce, goattest.HashSHA256)
	if err != nil {
		t.Fatal(err)
	}
	pcrs, err := chip.PCRs(goattest.HashSHA256)
	if err != nil {
		t.Fatal(err)
	}
	ev.Quote, ev.QuoteSignature, ev.PCRs = quote.Quote, quote.Signature, map[int][]byte{}
	for _, p := range pcrs {
		ev.PCRs[p.Index] = p.Digest
	}
	o.PCRs = map[int][]byte{0: make([]byte, 32), 17: pcrs[17].Digest}
	got, err := attest.AppraiseTPM(ev, key.Public(), want, o)
	if err != nil || !got.PCRs || got.Model.Model != "swtpm" {
		t.Errorf("AppraiseTPM: got %+v %v", got, err)
	}
}

// shell runs a device's commands in a folder, with the TPM that they mean.
func shell(t *testing.T, m *tpmtest.TPM, dir, script string) {
	t.Helper()
	sh := exec.CommandContext(t.Context(), "sh", "-euc", script)
	sh.Dir = dir
	sh.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+m.TCTI)
	if out, err := sh.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestTPMOfTPM2Tools has a device with nothing but a shell enroll.
func TestTPMOfTPM2Tools(t *testing.T) {
	kit.Programs(t, "tpm2_createek", "tpm2_certifycreation", "sh")
	m := tpmtest.Start(t)
	dir := t.TempDir()
	shell(t, m, dir, `
tpm2_createek -Q -G rsa -c ek.ctx -u ek.pub
tpm2_getekcertificate -o ek.crt
tpm2_createak -Q -C ek.ctx -G ecc -g sha256 -s ecdsa -c ak.ctx -u ak.pub -n ak.name
tpm2_flushcontext -t
`)
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ev := attest.TPMEvidence{EKPublic: read("ek.pub"), EKCertificate: read("ek.crt"), EKChain: [][]byte{m.Intermediate.Raw}, AKPublic: read("ak.pub")}
	o := trust(m)
	challenge, want, err := attest.ChallengeTPM(ev, o)
	if err != nil {
		t.Fatalf("ChallengeTPM: %v", err)
	}
	if got := read("ak.name"); hex.EncodeToString(got) != hex.EncodeToString(want.AKName) {
		t.Errorf("AK name: got %x, want tpm2-tools' %x", want.AKName, got)
	}
	if err := os.WriteFile(filepath.Join(dir, "credential"), challenge.File(), 0o600); err != nil {
		t.Fatal(err)
	}
	shell(t, m, dir, `
tpm2_startauthsession -Q --policy-session -S session.ctx
tpm2_policysecret -Q -S session.ctx -c e
tpm2_activatecredential -Q -c ak.ctx -C ek.ctx -i credential -o secret -P session:session.ctx
tpm2_flushcontext session.ctx
tpm2_flushcontext -t

tpm2_createprimary -Q -C o -G ecc -c srk.ctx
tpm2_flushcontext -t
tpm2_create -Q -C srk.ctx -G ecc256 -a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign' \
  -u key.pub -r key.priv -d key.hash -t key.ticket
tpm2_flushcontext -t
tpm2_load -Q -C srk.ctx -u key.pub -r key.priv -c key.ctx
tpm2_flushcontext -t
tpm2_certifycreation -Q -C ak.ctx -c key.ctx -d key.hash -t key.ticket -g sha256 \
  -q `+hex.EncodeToString(challenge.Nonce)+` --attestation key.attest -o key.sig
tpm2_flushcontext -t
tpm2_readpublic -Q -c key.ctx -f der -o key.der
tpm2_flushcontext -t
tpm2_quote -Q -c ak.ctx -l sha256:0,1,7 -q `+hex.EncodeToString(challenge.Nonce)+` -m quote.attest -s quote.sig -g sha256
tpm2_flushcontext -t
tpm2_pcrread -Q sha256:0,1,7 -o pcrs
`)
	ev.Secret, ev.KeyPublic = read("secret"), read("key.pub")
	ev.CertifyInfo, ev.CertifySignature = read("key.attest"), read("key.sig")
	ev.Quote, ev.QuoteSignature = read("quote.attest"), read("quote.sig")
	values := read("pcrs")
	ev.PCRs = map[int][]byte{0: values[:32], 1: values[32:64], 7: values[64:]}
	o.PCRs = map[int][]byte{7: make([]byte, 32)}
	pub, err := x509.ParsePKIXPublicKey(read("key.der"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := attest.AppraiseTPM(ev, pub, want, o)
	if err != nil || !got.PCRs {
		t.Fatalf("AppraiseTPM: got %+v %v", got, err)
	}
	t.Run("tpm2_certify has a nonce of its own", func(t *testing.T) {
		shell(t, m, dir, `tpm2_certify -Q -C ak.ctx -c key.ctx -g sha256 -o key.attest -s key.sig; tpm2_flushcontext -t`)
		ev.CertifyInfo, ev.CertifySignature = read("key.attest"), read("key.sig")
		_, err := attest.AppraiseTPM(ev, pub, want, o)
		refused(t, err, countersign.Misconfigured, "not of this session")
	})
}
