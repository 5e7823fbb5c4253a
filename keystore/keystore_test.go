package keystore_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/countersign-iot/countersign/keystore"
	"github.com/countersign-iot/countersign/test/kit"
)

func TestCreateOpensAgain(t *testing.T) {
	for _, tc := range []struct {
		name       string
		passphrase []byte
	}{{"plain", nil}, {"wrapped", []byte("correct horse")}} {
		t.Run(tc.name, func(t *testing.T) {
			s := &keystore.Store{Dir: t.TempDir()}
			made, err := s.Create("file:keys/root.pem", "", tc.passphrase)
			if err != nil {
				t.Fatal(err)
			}
			opened, err := s.Open("file:keys/root.pem", tc.passphrase)
			if err != nil {
				t.Fatal(err)
			}
			if !publicEqual(t, made, opened) {
				t.Error("Open: got another key than Create made")
			}
			digest := sha256.Sum256([]byte("message"))
			if _, err := opened.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
				t.Errorf("Sign: %v", err)
			}
			info, err := os.Stat(filepath.Join(s.Dir, "keys/root.pem"))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != 0o600 {
				t.Errorf("key file: got mode %v, want 0600", info.Mode().Perm())
			}
		})
	}
}

func TestOpenRefusesWrongPassphrase(t *testing.T) {
	s := &keystore.Store{Dir: t.TempDir()}
	if _, err := s.Create("file:k.pem", "", []byte("right")); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]error{"": keystore.ErrPassphraseMissing, "wrong": keystore.ErrPassphraseWrong} {
		if _, err := s.Open("file:k.pem", []byte(p)); !errors.Is(err, want) {
			t.Errorf("Open with %q: got %v, want %v", p, err, want)
		}
	}
	if wrapped, err := s.Wrapped("file:k.pem"); err != nil || !wrapped {
		t.Errorf("Wrapped: got %v, %v, want true", wrapped, err)
	}
}

func TestCreateKeepsExistingKey(t *testing.T) {
	s := &keystore.Store{Dir: t.TempDir()}
	if _, err := s.Create("file:k.pem", "", nil); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(filepath.Join(s.Dir, "k.pem"))
	if _, err := s.Create("file:k.pem", "", nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("Create over a key: got %v, want ErrExist", err)
	}
	after, _ := os.ReadFile(filepath.Join(s.Dir, "k.pem"))
	if !bytes.Equal(before, after) {
		t.Error("Create changed the existing key")
	}
	left, _ := filepath.Glob(filepath.Join(s.Dir, ".new-*"))
	if len(left) != 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

func TestCreateMakesEachType(t *testing.T) {
	s := &keystore.Store{Dir: t.TempDir()}
	for _, kind := range keystore.KeyTypes {
		uri := "file:" + kind + ".pem"
		made, err := s.Create(uri, kind, nil)
		if err != nil {
			t.Errorf("Create %s: %v", kind, err)
			continue
		}
		if opened, err := s.Open(uri, nil); err != nil || !publicEqual(t, made, opened) {
			t.Errorf("Open %s: got %v, want the key that was made", kind, err)
		}
		if wrapped, err := s.Wrapped(uri); err != nil || wrapped {
			t.Errorf("Wrapped %s: got %v, %v, want false", kind, wrapped, err)
		}
	}
	if _, err := s.Create("file:x.pem", "P-224", nil); err == nil {
		t.Error("Create P-224: got a key")
	}
}

func TestOpensslReadsWrappedKey(t *testing.T) {
	kit.Programs(t, "openssl")
	s := &keystore.Store{Dir: t.TempDir()}
	made, err := s.Create("file:k.pem", "", []byte("pass phrase"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "openssl", "pkey", "-in", filepath.Join(s.Dir, "k.pem"), "-passin", "stdin", "-pubout", "-outform", "DER")
	cmd.Stdin = bytes.NewBufferString("pass phrase\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl pkey: %v", err)
	}
	want, _ := x509.MarshalPKIXPublicKey(made.Public())
	if !bytes.Equal(out, want) {
		t.Error("openssl read another public key")
	}
}

func TestOpenRefusesWhatIsNoKey(t *testing.T) {
	s := &keystore.Store{Dir: t.TempDir()}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("empty.pem", "")
	write("cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	write("huge.pem", string(make([]byte, 65<<10)))
	for _, uri := range []string{"file:empty.pem", "file:cert.pem", "file:huge.pem", "file:none.pem", "pkcs11:token=x", "file:"} {
		if _, err := s.Open(uri, nil); err == nil {
			t.Errorf("Open(%q): got a key", uri)
		}
	}
}

func publicEqual(t *testing.T, a, b crypto.Signer) bool {
	t.Helper()
	x, err := x509.MarshalPKIXPublicKey(a.Public())
	if err != nil {
		t.Fatal(err)
	}
	y, err := x509.MarshalPKIXPublicKey(b.Public())
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}
