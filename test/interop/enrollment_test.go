package interop

import (
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/attest/tpmtest"
	"github.com/countersign-iot/countersign/countersigntest"
	"github.com/countersign-iot/countersign/test/kit"
)

// pasted runs commands as one shell, which stops at the first that fails.
func pasted(t *testing.T, dir, commands string) string {
	t.Helper()
	sh := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", commands)
	sh.Dir = dir
	sh.Env = append(os.Environ(), "PATH="+dir+string(filepath.ListSeparator)+os.Getenv("PATH"), "HOME="+dir, "no_proxy=*")
	out, err := sh.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%s%v", commands, out, err)
	}
	return string(out)
}

// tpmProvider skips the test where openssl cannot use a TPM.
func tpmProvider(t *testing.T) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "openssl", "version", "-m").Output() // MODULESDIR: "/usr/lib/..."
	if err != nil {
		t.Fatal(err)
	}
	_, dir, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if _, err := os.Stat(filepath.Join(strings.Trim(dir, `"`), "tpm2.so")); err != nil {
		kit.Missing(t, "%s is not installed", "tpm2-openssl")
	}
}

// TestExpiredDeviceRecoversByCurl moves the server's clock past the end of a
// certificate. The device has openssl, curl, and what is in docs/enrollment.md.
func TestExpiredDeviceRecoversByCurl(t *testing.T) {
	t.Parallel()
	kit.Programs(t, "bash", "openssl", "curl")
	var ahead atomic.Int64
	s := countersigntest.Start(t, countersigntest.Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	short, err := s.Admin.Profile(t.Context(), "device")
	if err != nil {
		t.Fatal(err)
	}
	short.Name, short.ValiditySeconds = "short", 300
	if _, err := s.Admin.PutProfile(t.Context(), *short); err != nil {
		t.Fatal(err)
	}
	fleet := func(r api.Rules) {
		t.Helper()
		if _, err := s.Admin.PutFleet(t.Context(), "sleepers", api.PutFleet{Profile: &short.Name, Rules: &r}); err != nil {
			t.Fatal(err)
		}
	}
	fleet(api.Rules{})
	dir := t.TempDir()
	prepare := fmt.Sprintf("SERVER=%s RECOVERY=%s ROOTS=%s TOKEN=%s\n", s.Endpoints().Enroll, s.Endpoints().Recovery, s.Endpoints().Roots,
		s.Token(t, api.NewToken{Fleet: "sleepers", Device: "pump-1"})) + `
ask() { curl --silent --cacert $ROOTS --write-out '%{http_code}' --output answer "$@"; }
request() { openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -subj /CN=pump-1 -out $1.csr 2>/dev/null; }
`
	run := func(want, commands string) {
		t.Helper()
		if got := pasted(t, dir, prepare+commands); got != want {
			answer, _ := os.ReadFile(filepath.Join(dir, "answer")) // there may be none
			t.Fatalf("%s: got %s, want %s\n%s", commands, got, want, answer)
		}
	}
	run("200", `request one; ask --user "x:$TOKEN" --data-binary @one.csr $SERVER/api/v1/enroll; cp answer one.pem; request two`)
	const renew = "ask --cert one.pem --key one.key --data-binary @two.csr "
	ahead.Store(int64(10 * time.Minute))
	run("403", renew+"$SERVER/api/v1/renew")
	run("403", renew+"$RECOVERY/api/v1/renew") // no rule
	fleet(api.Rules{Recovery: &api.Recovery{MaxAge: "1m", MaxTimes: 1}})
	run("403", renew+"$RECOVERY/api/v1/renew") // too old
	fleet(api.Rules{Recovery: &api.Recovery{MaxAge: "1h", MaxTimes: 1, Networks: []string{"192.0.2.0/24"}}})
	run("403", renew+"$RECOVERY/api/v1/renew") // from elsewhere
	fleet(api.Rules{Recovery: &api.Recovery{MaxAge: "1h", MaxTimes: 1, ApproveAfter: "1m"}})
	run("202", renew+"$RECOVERY/api/v1/renew")
	fleet(api.Rules{Recovery: &api.Recovery{MaxAge: "1h", MaxTimes: 1}})
	run("403", `ask --user "x:$TOKEN" --data-binary @two.csr $RECOVERY/api/v1/enroll`) // nothing but renewal
	run("200", renew+"$RECOVERY/api/v1/renew; cp answer two.pem; request three")
	run("200", "openssl verify -CAfile $ROOTS -untrusted two.pem -no_check_time two.pem >/dev/null; printf 200")
	ahead.Store(int64(30 * time.Minute))
	run("403", "ask --cert two.pem --key two.key --data-binary @three.csr $RECOVERY/api/v1/renew") // the second time
	run("403", "ask $RECOVERY/.well-known/est/simpleenroll --user \"x:$TOKEN\" --header 'Content-Type: application/pkcs10' --data-binary @three.csr")
}

// TestCertifiedTPMEnrolls has a chip with a certificate of its maker enroll, which
// takes no registration of the chip, under the id that the chip itself gives.
func TestCertifiedTPMEnrolls(t *testing.T) {
	t.Parallel()
	kit.Programs(t, "bash", "openssl", "curl", "jq", "tpm2_createek", "tpm2_getekcertificate")
	tpmProvider(t)
	m := tpmtest.Start(t)
	s := countersigntest.Start(t)
	text := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	_, err := s.Admin.RegisterAuthority(t.Context(), api.NewAuthority{ID: "maker", Certificate: text(m.Root.Raw), Override: true, Reason: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	methods := []string{"tpm"}
	rules := api.Rules{Authorities: []string{"maker"}, TPMID: true, PCRs: map[string]string{"7": strings.Repeat("0", 64)}}
	if _, err := s.Admin.PutFleet(t.Context(), "chips", api.PutFleet{Methods: &methods, Rules: &rules}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "maker.der"), m.Intermediate.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	got := pasted(t, dir, fmt.Sprintf("export SERVER=%s ROOTS=%s TPM2TOOLS_TCTI=%[3]s TPM2OPENSSL_TCTI=%[3]s\n", s.Endpoints().Enroll, s.Endpoints().Roots, m.TCTI)+certifiedTPM)
	device, answers, _ := strings.Cut(got, " ")
	if want := "401 403 200"; answers != want {
		body, _ := os.ReadFile(filepath.Join(dir, "body")) // there may be none
		t.Fatalf("wrong secret, another key, right: got %s, want %s\n%s", answers, want, body)
	}
	d, err := s.Admin.Device(t.Context(), device)
	if err != nil || d.Fleet != "chips" || d.State != "active" {
		t.Errorf("device %s: got %+v %v, want it active in chips", device, d, err)
	}
}

// certifiedTPM prints the chip's id and the statuses of three answers: with a
// wrong secret, with a request for a key outside of the chip, and right.
const certifiedTPM = `
exec 3>&1 >log 2>&1
trap 'cat log >&3' ERR
tpm2_createek -G rsa -c ek.ctx -u ek.pub
tpm2_getekcertificate -o ek.crt
tpm2_createak -C ek.ctx -G ecc -g sha256 -s ecdsa -c ak.ctx -u ak.pub
tpm2_flushcontext -t
b64() { openssl base64 -A -in "$1"; }
hex() { od -An -v -tx1 | tr -d ' \n'; }
ID=$(openssl dgst -sha256 -binary ek.pub | base32 -w 0 | tr -d = | tr A-Z a-z)
jq -n --arg ek $(b64 ek.pub) --arg crt $(b64 ek.crt) --arg ca $(b64 maker.der) --arg ak $(b64 ak.pub) \
  '{fleet: "chips", ek_public: $ek, ek_certificate: $crt, ek_chain: [$ca], ak_public: $ak}' > identity.json
curl --fail-with-body --silent --cacert $ROOTS --json @identity.json --output challenge.json $SERVER/api/v1/enroll/tpm
jq -r .file challenge.json | openssl base64 -d -A > challenge
NONCE=$(jq -r .nonce challenge.json | openssl base64 -d -A | hex)
tpm2_startauthsession --policy-session -S session.ctx
tpm2_policysecret -S session.ctx -c e
tpm2_activatecredential -c ak.ctx -C ek.ctx -i challenge -o secret -P session:session.ctx
tpm2_flushcontext session.ctx
tpm2_flushcontext -t
tpm2_createprimary -C o -G ecc -c srk.ctx
tpm2_create -C srk.ctx -G ecc256 -a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign' -u key.pub -r key.priv -d key.hash -t key.ticket
tpm2_flushcontext -t
tpm2_load -C srk.ctx -u key.pub -r key.priv -c key.ctx
tpm2_evictcontrol -C o -c key.ctx 0x81000100
tpm2_flushcontext -t
tpm2_certifycreation -C ak.ctx -c key.ctx -d key.hash -t key.ticket -g sha256 -q $NONCE --attestation key.attest -o key.sig
tpm2_flushcontext -t
tpm2_quote -c ak.ctx -l sha256:7 -q $NONCE -m quote.attest -s quote.sig -g sha256
tpm2_flushcontext -t
tpm2_pcrread sha256:7 -o pcrs
openssl req -new -provider tpm2 -provider default -propquery '?provider=tpm2' -key handle:0x81000100 -subj /CN=$ID -out chip.csr
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout soft.key -subj /CN=$ID -out soft.csr
answer() {
  jq --arg secret $(b64 $1) --arg key $(b64 key.pub) --arg info $(b64 key.attest) --arg sig $(b64 key.sig) --rawfile csr $2 \
    --arg quote $(b64 quote.attest) --arg quotesig $(b64 quote.sig) --arg pcr7 $(hex < pcrs) --slurpfile c challenge.json \
    '. + {session: $c[0].session, secret: $secret, key_public: $key, certify_info: $info, certify_signature: $sig, csr: $csr,
    quote: $quote, quote_signature: $quotesig, pcrs: {"7": $pcr7}}' identity.json > answer.json
  curl --silent --cacert $ROOTS --json @answer.json --output body --write-out '%{http_code}' $SERVER/api/v1/enroll/tpm/answer
}
head -c 32 /dev/zero > wrong
printf '%s %s %s %s' $ID $(answer wrong chip.csr) $(answer secret soft.csr) $(answer secret chip.csr) >&3
`
