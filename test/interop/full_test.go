package interop

import (
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
	"github.com/countersign-iot/countersign/test/kit"
)

const (
	// diskSize holds a young authority with its message store, and little more.
	diskSize = "24m"
	// maxUntilFull bounds how many devices find the last room.
	maxUntilFull = 2000
)

// disk is a small file system with a server on it.
type disk struct {
	t       *testing.T
	dir     string
	ballast string // the file that fills it
}

// smallDisk mounts one, or skips the test where it may not.
func smallDisk(t *testing.T) disk {
	t.Helper()
	d := disk{t: t, dir: shortDir(t)}
	d.ballast = filepath.Join(d.dir, "ballast")
	kit.SmallDisk(t, d.dir, diskSize)
	return d
}

func (d disk) start() *site { return startSite(d.t, d.dir, "dev", "--dir", d.dir, "--ports", "0") }

// fill takes all that is left.
func (d disk) fill() {
	f, err := os.OpenFile(d.ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
}

// TestFullDiskRefusesAndRecovers fills the disk below a running server: it refuses what
// it cannot record, and goes on to revoke, also after a start on the full disk.
func TestFullDiskRefusesAndRecovers(t *testing.T) {
	t.Parallel()
	d := smallDisk(t)
	s := d.start()
	before, connected, online, again := &holder{id: "before"}, &holder{id: "connected"}, &holder{id: "online"}, &holder{id: "again"}
	all := []*holder{before, connected, online, again}
	for _, h := range all {
		if !h.live(t, s, 0) {
			t.Fatal("no device before the disk is full")
		}
	}
	for _, h := range all[1:] {
		if code, err := connectMQTT(t.Context(), s, h); err != nil || code != 0 {
			t.Fatalf("connect before the disk is full: got %d, %v, want 0", code, err)
		}
		h.used = true
	}
	tokens, err := s.admin.CreateToken(t.Context(), api.NewToken{Uses: maxUntilFull})
	if err != nil {
		t.Fatal(err)
	}
	checkStatus(t, s, all)
	d.fill()
	granted, refused := enrollUntilFull(t, s, tokens.Secret)
	all = append(all, granted...)
	revokeLive(t, s, online)
	checkFull(t, s, all, before, connected)
	checkRecord(t, s, append(all, refused))

	// It starts again where there is no space, and does the same.
	s.kill()
	d.fill()
	s = d.start()
	revokeLive(t, s, again)
	checkFull(t, s, all, before, connected)

	if err := os.Remove(d.ballast); err != nil {
		t.Fatal(err)
	}
	recovered := eventually(func() bool { return reserveOf(t, s).Level == api.LevelOK })
	if !recovered {
		t.Errorf("the reserve once there is space: got %+v", reserveOf(t, s))
	}
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
	s.kill() // before the mount goes
}

// revokeLive revokes a device while it is connected, and wants its session cut.
func revokeLive(t *testing.T, s *site, h *holder) {
	t.Helper()
	conn, code, err := openMQTT(t.Context(), s, h)
	if err != nil || code != 0 {
		t.Fatalf("connect on a full disk: got %d, %v, want 0\n%s", code, err, s.out.String())
	}
	defer func() { _ = conn.Close() }()
	cmd := exec.CommandContext(t.Context(), program, "device", "revoke", h.id, "--reason", "keyCompromise", "--yes")
	cmd.Env = append(os.Environ(), "COUNTERSIGN_DIR="+filepath.Dir(s.ends.Socket))
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "1 session closed") {
		t.Errorf("revoke on a full disk: got %v, want it done and a session cut\n%s", err, out)
	}
	h.revoking, h.revoked = true, true
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the session of a revoked device on a full disk: got %v, want its end", err)
	}
	if code, err := connectMQTT(t.Context(), s, h); err != nil || code != 5 {
		t.Errorf("connect of a revoked device on a full disk: got %d, %v, want 5", code, err)
	}
}

// checkFull wants everything served that needs no record, and the state shown.
func checkFull(t *testing.T, s *site, all []*holder, before, connected *holder) {
	t.Helper()
	checkStatus(t, s, all)
	if code, err := connectMQTT(t.Context(), s, connected); err != nil || code != 0 {
		t.Errorf("connect on a full disk: got %d, %v, want 0", code, err)
	}
	// A first use cannot be recorded, so it is not let in: unavailable, not refused.
	if code, err := connectMQTT(t.Context(), s, before); err != nil || code != 3 {
		t.Errorf("first connect on a full disk: got return code %d, %v, want 3", code, err)
	}
	if c := reserveOf(t, s); c.Level != api.LevelFail {
		t.Errorf("doctor on a full disk: got %+v, want it to fail", c)
	}
	if !eventually(func() bool {
		for a, err := range s.admin.Alerts(t.Context(), api.AlertFilter{Rule: "reserve_in_use"}) {
			return err == nil && a.ID != ""
		}
		return false
	}) {
		t.Error("no alert that the reserve is in use")
	}
}

func reserveOf(t *testing.T, s *site) (found api.Check) {
	t.Helper()
	d, err := s.admin.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range d.Checks {
		if c.Name == "reserve" {
			found = c
		}
	}
	return found
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
