package countersign_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rfc is a row of docs/rfc.txt.
type rfc struct {
	number int
	status string
	where  []string
}

// readRFCs reads docs/rfc.txt: number, status, where and title between tabs;
// lines that begin with # are comments.
func readRFCs(t *testing.T) []rfc {
	t.Helper()
	text, err := os.ReadFile("docs/rfc.txt")
	if err != nil {
		t.Fatal(err)
	}
	var rows []rfc
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 4 || f[3] == "" {
			t.Fatalf("docs/rfc.txt:%d: got %q, want number, status, where and title between tabs", i+1, line)
		}
		n, err := strconv.Atoi(f[0])
		if err != nil {
			t.Fatalf("docs/rfc.txt:%d: %v", i+1, err)
		}
		if !slices.Contains([]string{"Yes", "Partial", "Later", "No"}, f[1]) {
			t.Errorf("docs/rfc.txt:%d: got status %q, want Yes, Partial, Later or No", i+1, f[1])
		}
		if len(rows) > 0 && rows[len(rows)-1].number >= n {
			t.Errorf("docs/rfc.txt:%d: RFC %d is out of order", i+1, n)
		}
		rows = append(rows, rfc{n, f[1], strings.Fields(f[2])})
	}
	return rows
}

var citation = regexp.MustCompile(`\bRFC ([0-9]{3,5})\b`)

// citations returns, for each RFC that the text of this file names, its number.
func citations(t *testing.T, name string) []int {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var numbers []int
	for _, m := range citation.FindAllStringSubmatch(string(text), -1) {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// markdown lists the documents at the root and under docs.
func markdown(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir("docs", func(name string, _ fs.DirEntry, err error) error {
		if filepath.Ext(name) == ".md" {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestCitedRFCsAreListed(t *testing.T) {
	listed := map[int]bool{}
	for _, r := range readRFCs(t) {
		listed[r.number] = true
	}
	names := markdown(t)
	for _, f := range goFiles(t) {
		names = append(names, f.path)
	}
	for _, name := range names {
		for _, n := range citations(t, name) {
			if !listed[n] {
				t.Errorf("%s cites RFC %d, which docs/rfc.txt does not list", name, n)
				listed[n] = true
			}
		}
	}
}

// TestImplementedRFCsAreCited wants each row that claims something to be borne
// out by a comment in the code at the place that the row names, and a row that
// claims nothing not to be contradicted by one.
func TestImplementedRFCsAreCited(t *testing.T) {
	citedIn := map[int][]string{} // folders
	byPrograms := map[int]string{}
	for _, f := range goFiles(t) {
		for _, n := range citations(t, f.path) {
			citedIn[n] = append(citedIn[n], f.dir)
			if !isTest(f.path) && !isTestKit(f.dir) {
				byPrograms[n] = f.path
			}
		}
	}
	for _, r := range readRFCs(t) {
		built := r.status == "Yes" || r.status == "Partial"
		if built && len(r.where) == 0 {
			t.Errorf("docs/rfc.txt: RFC %d is %s, and no folder is named", r.number, r.status)
		}
		if file, cited := byPrograms[r.number]; cited && !built {
			t.Errorf("docs/rfc.txt: RFC %d is %s, and %s cites it", r.number, r.status, file)
		}
		for _, dir := range r.where {
			if built && !slices.Contains(citedIn[r.number], dir) {
				t.Errorf("docs/rfc.txt: RFC %d is %s in %s, and no Go file there cites it", r.number, r.status, dir)
			}
		}
	}
}
