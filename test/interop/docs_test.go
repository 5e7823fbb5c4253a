package interop

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/test/kit"
)

// A fenced block of README.md or docs says in a comment right above it what becomes
// of it in the tests:
//
//	<!-- run: shell -->        pasted into one shell, with the other blocks of its page
//	<!-- run: config -->       checked as a server's configuration
//	<!-- run: policy -->       checked as a policy, its own tests included
//	<!-- run: rules -->        set as the rules of a fleet
//	<!-- run: go -->           its lines are in sdk/example_test.go, which is compiled
//	<!-- test: NAME -->        another test of this package runs it
//	<!-- not run: REASON -->   it cannot be run
//
// A comment that begins with "setup" holds what the shell does before: what a reader
// has done already.
var (
	docsMark  = regexp.MustCompile(`^<!-- (run: (shell|config|policy|rules|go)|test: [a-z ]+|not run: .+) -->$`)
	docsSetup = regexp.MustCompile(`(?s)<!-- setup\n(.*?)-->`)
)

// docsBlock is a fenced block with its mark.
type docsBlock struct {
	line int
	mark string
	text string
}

// docsPages lists README.md and the pages of docs; decisions of the past stay as they
// were and hold no commands.
func docsPages(t *testing.T) []string {
	t.Helper()
	pages := []string{"README.md", "CONTRIBUTING.md"}
	err := fs.WalkDir(os.DirFS(moduleRoot), "docs", func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".md" && filepath.Dir(path) != "docs/adr" {
			pages = append(pages, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

func docsBlocks(t *testing.T, page string) (blocks []docsBlock, setup string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot, page))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range docsSetup.FindAllStringSubmatch(string(text), -1) {
		setup += m[1]
	}
	var above string
	var open *docsBlock
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		switch fence := strings.HasPrefix(line, "```"); {
		case fence && open == nil:
			open = &docsBlock{line: n, mark: strings.TrimSpace(above)}
		case fence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.text += line
		}
		above = line
	}
	return blocks, setup
}

// TestDocumentedBlocksWork does what the pages tell their reader to do. Only the ports
// are others.
func TestDocumentedBlocksWork(t *testing.T) {
	t.Parallel()
	kit.Programs(t, "bash", "openssl", "curl", "jq", "mosquitto_pub")
	for _, page := range docsPages(t) {
		t.Run(page, func(t *testing.T) {
			blocks, shell := docsBlocks(t, page)
			run := false
			for i, b := range blocks {
				m := docsMark.FindStringSubmatch(b.mark)
				if m == nil {
					t.Errorf("%s:%d: the block has no mark that says how it is tested: see docs_test.go", page, b.line)
					continue
				}
				if m[2] == "go" {
					compiled(t, page, b)
					continue
				}
				shell += docsScript(m[2], i, b.text)
				run = run || m[2] != ""
			}
			if run {
				runDocs(t, shell)
			}
		})
	}
}

// compiled wants each line of a block in the examples of the sdk.
func compiled(t *testing.T, page string, b docsBlock) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot, "sdk", "example_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.text) {
		if line = strings.TrimSpace(line); !strings.Contains(string(text), line) {
			t.Errorf("%s:%d: %q is not in sdk/example_test.go", page, b.line, line)
		}
	}
}

// docsScript turns a block into what the page's shell does.
func docsScript(kind string, n int, text string) string {
	file := fmt.Sprintf("block-%d.yaml", n)
	write := "cat > " + file + " <<'END-OF-BLOCK'\n" + text + "END-OF-BLOCK\n"
	switch kind {
	case "shell":
		return text
	case "config":
		return write + docsFiles(file) + "countersign server config check --config " + file + "\n"
	case "policy":
		return write + "countersign policy check " + file + "\n"
	case "rules":
		return write + "countersign fleet set pumps --yes --rules " + file + "\n"
	}
	return ""
}

// docsFiles makes what a configuration names and its reader has: secrets in files and
// in the environment, and the roots of other servers.
func docsFiles(file string) string {
	return fmt.Sprintf(`sed -i "s#/etc/countersign#$PWD/etc#g; s#/var/lib/countersign#$PWD/lib#g" %[1]s
for f in $(grep -oE "file:[^\"',} ]+" %[1]s | cut -d: -f2); do mkdir -p "$(dirname "$f")"; printf 'a-secret-of-24-characters' > "$f"; done
for f in $(grep -oE "roots: *[^\"',} ]+" %[1]s | sed 's/roots: *//'); do mkdir -p "$(dirname "$f")"; cp .countersign/roots.pem "$f"; done
for v in $(grep -oE "env:[A-Z_]+" %[1]s | cut -d: -f2); do export "$v=a-secret-of-24-characters"; done
mkdir -p lib/mosquitto
`, file)
}

// runDocs pastes the commands of a page into a shell beside a server.
func runDocs(t *testing.T, commands string) {
	t.Helper()
	dir := shortDir(t)
	if err := os.Symlink(program, filepath.Join(dir, "countersign")); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, ".countersign")
	s := startSite(t, data, "dev", "--dir", data, "--ports", "0")
	ports := strings.NewReplacer("8443", portIn(t, s.ends.Enroll), "8883", portIn(t, s.ends.MQTT), "127.0.0.1:8080", "127.0.0.1:"+portIn(t, s.ends.API))
	t.Log(pasted(t, dir, "shopt -s expand_aliases\n"+ports.Replace(commands)))
}
