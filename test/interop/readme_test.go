package interop

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/test/kit"
)

// readmeBlock is a block of commands in README.md that a comment marks for this
// test: <!-- test: NAME -->.
var readmeBlock = regexp.MustCompile("(?s)<!-- test: ([a-z]+) -->\n```console\n(.*?)```")

// readmeCommands gives the commands of each marked block.
func readmeCommands(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string][]string{}
	for _, m := range readmeBlock.FindAllStringSubmatch(string(text), -1) {
		for line := range strings.Lines(strings.ReplaceAll(m[2], "\\\n", " ")) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				blocks[m[1]] = append(blocks[m[1]], strings.TrimSpace(command))
			}
		}
	}
	return blocks
}

// TestReadmeCommandsWork types what README.md tells its reader to type, in three
// terminals. Only the ports are others, since somebody else may have the ones of
// the text.
func TestReadmeCommandsWork(t *testing.T) {
	t.Parallel()
	kit.Programs(t, "openssl", "curl", "mosquitto_sub")
	blocks := readmeCommands(t)
	server, device, operator := blocks["server"], blocks["device"], blocks["operator"]
	if len(server) != 2 || len(device) == 0 || len(operator) == 0 {
		t.Fatalf("README.md: got blocks %q, want those of server, device and operator", blocks)
	}
	if build := "go build -o countersign ./cmd/countersign"; server[0] != build || server[1] != "./countersign dev" {
		t.Fatalf("README.md: got %q, want %q and ./countersign dev", server, build)
	}
	dir := shortDir(t)
	if err := os.Symlink(program, filepath.Join(dir, "countersign")); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, ".countersign")
	s := startSite(t, data, "dev", "--dir", data, "--ports", "0")
	ports := strings.NewReplacer("8443", portIn(t, s.ends.Enroll), "8883", portIn(t, s.ends.MQTT))
	shell := func(command string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", ports.Replace(command))
		cmd.Dir = dir
		return cmd
	}
	run := func(command string) string {
		t.Helper()
		out, err := shell(command).CombinedOutput()
		if err != nil {
			t.Fatalf("$ %s\n%s%v", command, out, err)
		}
		return string(out)
	}

	last := len(device) - 1
	for _, command := range device[:last] {
		run(command)
	}
	sub, err := launch(shell("exec stdbuf -oL " + device[last]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sub.kill)
	if err := sub.says(regexp.MustCompile(`Subscribed \(mid: 1\): 0`)); err != nil {
		t.Fatal(err)
	}
	said := ""
	for _, command := range operator {
		said += run(command)
	}
	if err := sub.says(regexp.MustCompile(`Received DISCONNECT \(152\)`)); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"1 session closed", "revoked (keyCompromise)", "certificate.issued", "session.opened", "device.revoked"} {
		if !strings.Contains(said, want) {
			t.Errorf("the operator read no %q in:\n%s", want, said)
		}
	}
}

func portIn(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Port()
}
