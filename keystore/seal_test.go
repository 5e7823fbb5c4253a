package keystore_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/keystore"
)

func TestSealOpensInItsContextOnly(t *testing.T) {
	store := &keystore.Store{Dir: t.TempDir()}
	s, err := store.MakeSealer("file:seal.key")
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("a device's key")
	sealed := s.Seal(secret, "key\x00default\x00pump-1")
	if bytes.Contains(sealed, secret) || bytes.Equal(sealed, s.Seal(secret, "key\x00default\x00pump-1")) {
		t.Error("it is not sealed, or the same twice")
	}
	later, err := store.OpenSealer("file:seal.key") // of the next process
	if err != nil {
		t.Fatal(err)
	}
	got, err := later.Open(sealed, "key\x00default\x00pump-1")
	if err != nil || !bytes.Equal(got, secret) {
		t.Errorf("Open: got %q, %v", got, err)
	}
	if _, err := s.Open(sealed, "key\x00default\x00pump-2"); err == nil {
		t.Error("it opened in another row")
	}
	for i := range sealed {
		broken := bytes.Clone(sealed)
		broken[i] ^= 1
		if _, err := s.Open(broken, "key\x00default\x00pump-1"); err == nil {
			t.Fatalf("it opened with octet %d changed", i)
		}
		if _, err := s.Open(sealed[:i], "key\x00default\x00pump-1"); err == nil {
			t.Fatalf("it opened with %d octets", i)
		}
	}
	other, err := store.MakeSealer("file:other.key")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open(sealed, "key\x00default\x00pump-1"); err == nil {
		t.Error("it opened with another key")
	}
}

func TestMakeSealerAtOnceIsOneKey(t *testing.T) {
	store := &keystore.Store{Dir: t.TempDir()}
	const at = 8
	made, errs := make(chan *keystore.Sealer, at), make(chan error, at)
	for range at {
		go func() {
			s, err := store.MakeSealer("file:seal.key")
			made <- s
			errs <- err
		}()
	}
	var sealed []byte
	for range at {
		s := <-made
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
		if sealed == nil {
			sealed = s.Seal([]byte("x"), "")
		}
		if _, err := s.Open(sealed, ""); err != nil {
			t.Errorf("two keys were made: %v", err)
		}
	}
}

func TestOpenSealerRefusesWhatIsNoKey(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"empty": "", "short": "AAAA\n", "not base64": strings.Repeat("?", 44), "long": strings.Repeat("A", 88), "huge": strings.Repeat("A", 1<<20),
	} {
		if err := os.WriteFile(filepath.Join(dir, "seal.key"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := (&keystore.Store{Dir: dir}).OpenSealer("file:seal.key"); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
}

// TestOpenSealerMakesNoKey holds that a sealing key that is missing stays missing: a
// new one would turn all that was sealed into noise.
func TestOpenSealerMakesNoKey(t *testing.T) {
	dir := t.TempDir()
	if _, err := (&keystore.Store{Dir: dir}).OpenSealer("file:keys/seal.key"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("OpenSealer: got %v, want ErrNotExist", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "keys")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("OpenSealer left a folder: %v", err)
	}
}
