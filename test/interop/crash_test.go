package interop

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/sdk"
	"github.com/countersign-iot/countersign/store/storetest"
)

// The server is killed as often as one test may take; each time somewhere else
// in the storm.
const (
	killsSQLite   = 6
	killsPostgres = 2
	stormWorkers  = 8
	// stormLeast and stormMore bound how long a storm blows before the kill.
	stormLeast = 150 * time.Millisecond
	stormMore  = 750 * time.Millisecond
)

func TestKilledServerLosesNothingAnswered(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		dir := shortDir(t)
		blowAndKill(t, dir, killsSQLite, "dev", "--dir", dir, "--ports", "0")
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		dir := shortDir(t)
		config := filepath.Join(dir, "countersign.yaml")
		writeConfig(t, config, dir, "database: "+storetest.PostgresURL(t))
		found(t, config)
		blowAndKill(t, dir, killsPostgres, "server", "run", "--config", config)
	})
}

// found founds the server of a configuration.
func found(t *testing.T, config string, flags ...string) {
	t.Helper()
	args := append([]string{"server", "init", "--config", config}, flags...)
	if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
		t.Fatalf("server init: %v\n%s", err, out)
	}
}

// shortDir is a temporary folder whose path leaves room for that of a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") //nolint:usetesting // the path of a socket has 107 octets at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// writeConfig writes a configuration on free ports of the loopback address.
func writeConfig(t *testing.T, path, dir, more string) {
	t.Helper()
	text := fmt.Sprintf(`dir: %s
names: [127.0.0.1]
listeners: {enroll: "127.0.0.1:0", mqtt: "127.0.0.1:0", api: "127.0.0.1:0", status: "127.0.0.1:0"}
%s
`, dir, more)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// site is a server under test with what its clients need.
type site struct {
	*process
	ends  api.Endpoints
	admin *sdk.Admin
	roots *x509.CertPool
}

// startSite starts the program under test; the test's end kills it.
func startSite(t *testing.T, dir string, args ...string) *site {
	t.Helper()
	p, ends, err := runServer(dir, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	text, err := os.ReadFile(ends.Roots)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{process: p, ends: ends, admin: sdk.Local(ends.Socket), roots: x509.NewCertPool()}
	s.roots.AppendCertsFromPEM(text)
	return s
}

func blowAndKill(t *testing.T, dir string, kills int, args ...string) {
	var all []*holder
	for round := range kills {
		s := startSite(t, dir, args...)
		var mu sync.Mutex
		var met []*holder
		ctx, cancel := context.WithCancel(t.Context())
		var workers sync.WaitGroup
		for w := range stormWorkers {
			workers.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					h := &holder{id: fmt.Sprintf("r%d-w%d-%d", round, w, n)}
					mu.Lock()
					met = append(met, h)
					mu.Unlock()
					if !h.live(t, s, n) {
						return // the server is gone
					}
				}
			})
		}
		time.Sleep(stormLeast + rand.N(stormMore))
		s.kill()
		cancel()
		workers.Wait()

		s = startSite(t, dir, args...)
		for _, h := range met {
			h.settle(t, s)
		}
		all = append(all, met...)
		checkRecord(t, s, met)
		checkStatus(t, s, all)
		checkDoor(t, s, met)
		s.kill()
	}
	s := startSite(t, dir, args...)
	checkHeld(t, s, all)
	if v, err := s.admin.VerifyLog(t.Context()); err != nil || !v.Intact {
		t.Errorf("verify the log: got %+v, %v, want it intact", v, err)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

// parsePEM reads the one certificate of an answer of the API.
func parsePEM(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("got %q, want a certificate in PEM", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
