package interop

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/est"
)

const (
	// smallDisk holds a young authority with its message store, and little more.
	smallDisk = "24m"
	// maxUntilFull bounds how many devices find the last room.
	maxUntilFull = 2000
)

// TestFullDiskRefusesAndRecovers fills the disk below a running server.
func TestFullDiskRefusesAndRecovers(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "mode=0700,size="+smallDisk, "countersign-test", dir).CombinedOutput(); err != nil {
		t.Logf("a bound instead of a small disk, which cannot be mounted here: %s", bytes.TrimSpace(out))
		config := filepath.Join(dir, "countersign.yaml")
		writeConfig(t, config, dir, "storage_limit: 1MiB")
		s := startSite(t, dir, "server", "run", "--config", config)
		runOutOfSpace(t, s, func() {}, func() *site {
			if err := s.stop(); err != nil {
				t.Error(err)
			}
			writeConfig(t, config, dir, "")
			return startSite(t, dir, "server", "run", "--config", config)
		})
		return
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %s", out)
		}
	})
	s := startSite(t, dir, "dev", "--dir", dir, "--ports", "0")
	ballast := filepath.Join(dir, "ballast")
	runOutOfSpace(t, s, func() {
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		block := make([]byte, 4096)
		for err == nil { // until there is no space left
			_, err = f.Write(block)
		}
	}, func() *site {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		return s
	})
	s.kill() // before the mount goes
}

// runOutOfSpace has fill take the space and free give it back; free tells who
// serves then.
func runOutOfSpace(t *testing.T, s *site, fill func(), free func() *site) {
	before := &holder{id: "before"}
	connected := &holder{id: "connected"}
	for _, h := range []*holder{before, connected} {
		if !h.live(t, s, 0) {
			t.Fatal("no device before the disk is full")
		}
	}
	if code, err := connectMQTT(t.Context(), s, connected); err != nil || code != 0 {
		t.Fatalf("connect before the disk is full: got %d, %v, want 0", code, err)
	}
	connected.used = true
	tokens, err := s.admin.CreateToken(t.Context(), api.NewToken{Uses: maxUntilFull})
	if err != nil {
		t.Fatal(err)
	}
	checkStatus(t, s, []*holder{before, connected})
	fill()
	granted, refused := enrollUntilFull(t, s, tokens.Secret)

	// Revocation says that it did not happen, in so many words.
	cmd := exec.CommandContext(t.Context(), program, "device", "revoke", "before", "--reason", "keyCompromise", "--yes")
	cmd.Env = append(os.Environ(), "COUNTERSIGN_DIR="+filepath.Dir(s.ends.Socket))
	out, err := cmd.CombinedOutput()
	if code, _ := codeOf(err); code != 6 || !strings.Contains(string(out), "not recorded") {
		t.Errorf("revoke on a full disk: got exit code %d, want 6 and a word that it was not recorded\n%s", code, out)
	}
	// Nothing half-written is served; what was there goes on.
	all := append([]*holder{before, connected}, granted...)
	checkRecord(t, s, append(all, refused))
	checkStatus(t, s, all)
	if code, err := connectMQTT(t.Context(), s, connected); err != nil || code != 0 {
		t.Errorf("connect on a full disk: got %d, %v, want 0", code, err)
	}
	// A first use cannot be recorded, so it is not let in: unavailable, not refused.
	if code, err := connectMQTT(t.Context(), s, before); err != nil || code != 3 {
		t.Errorf("first connect on a full disk: got return code %d, %v, want 3", code, err)
	}

	s = free()
	if err := refused.enroll(t, s); err != nil {
		t.Errorf("enroll once there is space: %v", err)
	}
	if err := before.revoke(t, s); err != nil {
		t.Errorf("revoke once there is space: %v", err)
	}
	all = append(all, refused)
	checkRecord(t, s, all)
	checkStatus(t, s, all)
	back := eventually(func() bool {
		code, err := connectMQTT(t.Context(), s, connected)
		return err == nil && code == 0
	})
	if !back {
		t.Error("connect once there is space: no device can")
	}
	checkDoor(t, s, all)
	if v, err := s.admin.VerifyLog(t.Context()); err != nil || !v.Intact {
		t.Errorf("verify the log: got %+v, %v, want it intact", v, err)
	}
	if t.Failed() {
		t.Logf("the server said:\n%s", s.out.String())
	}
}

// enrollUntilFull enrolls devices until one is refused for want of space. The
// token lets them all in, so that its own spending needs no other record.
func enrollUntilFull(t *testing.T, s *site, token string) (granted []*holder, refused *holder) {
	t.Helper()
	for n := range maxUntilFull {
		h := &holder{id: fmt.Sprintf("full-%d", n), token: token}
		err := h.enroll(t, s)
		if err == nil {
			granted = append(granted, h)
			continue
		}
		e, ok := errors.AsType[*est.Error](err)
		if !ok || e.Status != http.StatusServiceUnavailable || e.RetryAfter <= 0 {
			t.Fatalf("enroll on a full disk: got %v, want 503 with Retry-After", err)
		}
		return granted, h
	}
	t.Fatalf("the disk was not full after %d devices", maxUntilFull)
	return nil, nil
}
