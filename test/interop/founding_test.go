package interop

import (
	"math/rand/v2"
	"os/exec"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
)

const (
	// foundings is how many servers are killed in their first moments.
	foundings = 8
	// killsEach is how often in a row each is.
	killsEach = 3
	// foundingTime is about what the first start takes on a slow machine.
	foundingTime = 200 * time.Millisecond
)

// TestServerKilledWhileFoundingStartsAgain kills the first start, which makes the
// authorities and their keys, at any moment. The next start must come up with one
// root and one issuing authority that work.
func TestServerKilledWhileFoundingStartsAgain(t *testing.T) {
	t.Parallel()
	for n := range foundings {
		dir := shortDir(t)
		for range rand.IntN(killsEach) + 1 {
			p, err := launch(exec.Command(program, "dev", "--dir", dir, "--ports", "0"))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(rand.N(foundingTime))
			p.kill()
		}
		s := startSite(t, dir, "dev", "--dir", dir, "--ports", "0")
		checkFounded(t, s)
		h := &holder{id: "pump-7"}
		if !h.live(t, s, 1) {
			t.Errorf("founding %d: a device could not live with it", n)
		}
		v, err := s.admin.VerifyLog(t.Context())
		if err != nil || !v.Intact {
			t.Errorf("verify the log: got %+v, %v, want it intact", v, err)
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}
}

func checkFounded(t *testing.T, s *site) {
	t.Helper()
	var ids []string
	for a, err := range s.admin.Authorities(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, a.ID)
	}
	if len(ids) != 2 || ids[0] != "root" || ids[1] != "issuing" {
		t.Errorf("authorities: got %q, want root and issuing", ids)
	}
	d, err := s.admin.Doctor(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range d.Checks {
		if c.Level == api.LevelFail {
			t.Errorf("doctor fails: %s: %s", c.Name, c.Message)
		}
	}
}
