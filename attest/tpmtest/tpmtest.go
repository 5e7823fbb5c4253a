// Package tpmtest runs a software TPM 2.0 (swtpm) for tests, with endorsement key
// certificates from a CA of its own, and does what a device does with its TPM. A
// test that asks for one is skipped where swtpm is not installed, and fails
// there with COUNTERSIGN_REQUIRE_PEERS=1.
package tpmtest

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/countersign-iot/countersign/test/kit"
)

// startTimeout is how long swtpm may take to listen. It takes a few milliseconds
// on an idle machine.
const startTimeout = 20 * time.Second

// TPM is a running software TPM, fresh from its factory.
type TPM struct {
	Root         *x509.Certificate // of the manufacturer
	Intermediate *x509.Certificate // signs EK certificates
	TCTI         string            // for TPM2TOOLS_TCTI
	socket       string
}

// Start makes a TPM with EK certificates (RSA 2048 and P-384) and runs it until
// the test ends.
func Start(t testing.TB) *TPM {
	t.Helper()
	kit.Programs(t, "swtpm", "swtpm_setup", "swtpm_localca")
	// Not t.TempDir: a socket's path may have 107 octets, and a test's name is in it.
	dir, err := os.MkdirTemp("", "swtpm") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatalf("make a folder for the TPM: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // the machine's folder for such things; swtpm may be late to leave it
	manufacture(t, dir)
	m := &TPM{socket: filepath.Join(dir, "tpm")}
	m.TCTI = "swtpm:path=" + m.socket
	m.Root = readCertificate(t, filepath.Join(dir, "ca", "swtpm-localca-rootca-cert.pem"))
	m.Intermediate = readCertificate(t, filepath.Join(dir, "ca", "issuer.pem"))
	m.run(t, dir)
	return m
}

// manufacture makes the TPM's state: keys, certificates, PCR banks.
func manufacture(t testing.TB, dir string) {
	t.Helper()
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		t.Fatal(err)
	}
	ca, state := filepath.Join(dir, "ca"), filepath.Join(dir, "state")
	files := map[string]string{
		"localca.conf": fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/key.pem\nissuercert = %[1]s/issuer.pem\ncertserial = %[1]s/serial\n", ca),
		"options":      "--platform-manufacturer Countersign\n--platform-version 1\n--platform-model test\n",
		"setup.conf": fmt.Sprintf("create_certs_tool=%s\ncreate_certs_tool_config=%[2]s/localca.conf\ncreate_certs_tool_options=%[2]s/options\n",
			localca, dir),
	}
	for _, d := range []string{ca, state} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setup := exec.CommandContext(t.Context(), "swtpm_setup", "--tpm2", "--tpmstate", state, "--create-ek-cert", //nolint:gosec // test
		"--config", filepath.Join(dir, "setup.conf"), "--pcr-banks", "sha256")
	if out, err := setup.CombinedOutput(); err != nil {
		t.Fatalf("swtpm_setup: %v\n%s", err, out)
	}
}

func (m *TPM) run(t testing.TB, dir string) {
	t.Helper()
	// The control socket is where the tools' TCTI looks for it.
	swtpm := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(dir, "state"), //nolint:gosec // test; killed below
		"--server", "type=unixio,path="+m.socket, "--ctrl", "type=unixio,path="+m.socket+".ctrl", "--flags", "not-need-init,startup-clear")
	if err := swtpm.Start(); err != nil {
		t.Fatalf("start swtpm: %v", err)
	}
	t.Cleanup(func() {
		_ = swtpm.Process.Kill() // it may have ended by itself
		_ = swtpm.Wait()         // reports that it was killed
	})
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(5 * time.Millisecond) { //nolint:forbidigo // the clock of a real process
		if conn, err := new(net.Dialer).DialContext(t.Context(), "unix", m.socket); err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) { //nolint:forbidigo // as above
			t.Fatalf("swtpm does not listen after %s", startTimeout)
		}
	}
}

func readCertificate(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(name) //nolint:gosec // a file of the test's own
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s holds no PEM", name)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Open returns a way to send commands. swtpm serves one client at a time: each
// command is a connection of its own, so several may be open.
func (m *TPM) Open(t testing.TB) transport.TPMCloser {
	t.Helper()
	tpm, err := linuxudstpm.Open(m.socket)
	if err != nil {
		t.Fatalf("open the TPM: %v", err)
	}
	t.Cleanup(func() { _ = tpm.Close() })
	return tpm
}

// Dial returns a raw command channel, which keeps others out until it is closed.
func (m *TPM) Dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", m.socket)
	if err != nil {
		t.Fatalf("dial the TPM: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
