package hook

import (
	"context"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestCRLFileIsReplacedAndTold runs alone, because a signal is for the whole process.
func TestCRLFileIsReplacedAndTold(t *testing.T) {
	dir := t.TempDir()
	pid := filepath.Join(dir, "pid")
	if err := os.WriteFile(pid, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hups := make(chan os.Signal, 8)
	signal.Notify(hups, syscall.SIGHUP)
	t.Cleanup(func() { signal.Stop(hups) })
	lists := [][]byte{[]byte("one"), []byte("two")}
	f := NewCRLFile(CRLFile{
		Path: filepath.Join(dir, "crl.pem"), PID: pid, Log: slog.New(slog.DiscardHandler),
		Lists: func(context.Context) ([][]byte, error) {
			if lists == nil {
				return nil, errors.New("the database is away")
			}
			return lists, nil
		},
	})
	hup := func(what string, want bool) {
		t.Helper()
		got := false
		select {
		case <-hups:
			got = true
		case <-time.After(map[bool]time.Duration{true: 10 * time.Second, false: 50 * time.Millisecond}[want]):
		}
		if got != want {
			t.Errorf("%s: got SIGHUP %v, want %v", what, got, want)
		}
	}
	write := func() error { return f.Write(t.Context()) }
	if err := write(); err != nil {
		t.Fatal(err)
	}
	hup("the first lists", true)
	if err := write(); err != nil {
		t.Fatal(err)
	}
	hup("the same lists", false)
	lists = nil
	if err := write(); err == nil {
		t.Error("lists that cannot be read went unnoticed")
	}
	text, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	first, rest := pem.Decode(text)
	second, _ := pem.Decode(rest)
	if first == nil || second == nil || first.Type != "X509 CRL" || string(second.Bytes) != "two" {
		t.Errorf("the file holds %q, want both lists", text)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".crl-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestNoSignalToWhatIsNoProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pid")
	for _, text := range []string{"", "0", "1", "-1", "-7", "12x", "7 8"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if pid, err := readPID(path); err == nil {
			t.Errorf("%q: got process %d", text, pid)
		}
	}
}
