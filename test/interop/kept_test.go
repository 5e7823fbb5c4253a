package interop

import (
	"fmt"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestKeptSessionSurvivesTheServer has a stock mosquitto_sub leave a kept session at
// QoS 1, ends the server by a signal and by a power cut, and wants each message that
// was acknowledged before and after.
func TestKeptSessionSurvivesTheServer(t *testing.T) {
	t.Parallel()
	peers(t, "bash", "openssl", "curl", "mosquitto_pub", "mosquitto_sub")
	for name, end := range map[string]func(*testing.T, *site){
		"SIGTERM": func(t *testing.T, s *site) {
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
		},
		"SIGKILL": func(_ *testing.T, s *site) { s.kill() },
	} {
		for _, level := range []string{"311", "5"} {
			t.Run(name+" "+level, func(t *testing.T) {
				dir := shortDir(t)
				data := filepath.Join(dir, ".countersign")
				s := startSite(t, data, "dev", "--dir", data, "--ports", "0")
				pasted(t, dir, fmt.Sprintf(`
cat > talk.yaml <<'POLICY'
statements:
  - {id: in, effect: allow, actions: [connect]}
  - {id: talk, effect: allow, actions: [publish, subscribe, receive], topics: ["talk/#"]}
POLICY
%[1]s policy apply default talk.yaml --note test --yes --dir .countersign
for d in pump-1 pump-2; do
  TOKEN=$(%[1]s enroll token --fleet default --device $d -o name --dir .countersign)
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $d.key -subj /CN=$d -out $d.csr 2>/dev/null
  curl --fail-with-body -sS --cacert .countersign/roots.pem --user "x:$TOKEN" --data-binary @$d.csr --output $d.pem %[2]s/api/v1/enroll
done`, program, s.ends.Enroll))
				kept := func(more ...string) []string {
					args := append(clientArgs(t, s, dir, "pump-1", level), "-t", "talk/#", "-q", "1", "-c")
					if level == "5" {
						args = append(args, "-x", "3600")
					}
					out, _ := exec.CommandContext(t.Context(), "mosquitto_sub", append(args, more...)...).Output() // its end by -W is no success
					return strings.Fields(string(out))
				}
				talk := func(s *site, from, to int) (said []string) {
					for n := from; n <= to; n++ {
						args := append(clientArgs(t, s, dir, "pump-2", level), "-t", "talk/x", "-q", "1", "-m", fmt.Sprint(n))
						if out, err := exec.CommandContext(t.Context(), "mosquitto_pub", args...).CombinedOutput(); err != nil {
							t.Fatalf("publish: %v\n%s", err, out)
						}
						said = append(said, fmt.Sprint(n))
					}
					return said
				}
				if got := kept("-W", "2"); len(got) > 0 {
					t.Fatalf("the first session got %v, want nothing", got)
				}
				said := talk(s, 1, 5)
				end(t, s)
				s = startSite(t, data, "dev", "--dir", data, "--ports", "0")
				said = append(said, talk(s, 6, 10)...)
				got := strings.Join(kept("-C", "10", "-W", "20"), " ")
				if want := strings.Join(said, " "); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

// clientArgs are what each mosquitto client of a device is told.
func clientArgs(t *testing.T, s *site, dir, device, level string) []string {
	t.Helper()
	u, err := url.Parse(s.ends.MQTT)
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"-V", level, "-h", u.Hostname(), "-p", u.Port(), "--cafile", s.ends.Roots, "-i", device,
		"--cert", filepath.Join(dir, device+".pem"), "--key", filepath.Join(dir, device+".key"),
	}
}
