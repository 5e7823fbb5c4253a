package countersign_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// readText returns the text of a file of this module.
func readText(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// constants returns the values of the string constants of type typ in a file of the root.
func constants(t *testing.T, file, typ string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := v.Type.(*ast.Ident); ok && name.Name == typ {
			for _, value := range v.Values {
				if s, err := strconv.Unquote(value.(*ast.BasicLit).Value); err == nil && s != "" {
					all = append(all, s)
				}
			}
		}
		return true
	})
	if len(all) < 10 {
		t.Fatalf("found %d constants of type %s in %s: the test reads it wrongly", len(all), typ, file)
	}
	return all
}

// section returns the part of a page from one heading to the next.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, after, found := strings.Cut(page, heading+"\n")
	if !found {
		t.Fatalf("no heading %q", heading)
	}
	before, _, _ := strings.Cut(after, "\n#")
	return before
}

var firstCell = regexp.MustCompile("(?m)^\\| ((?:`[^`|]+` ?)+)\\|")

// firstCells returns the names in backquotes in the first column of the tables of a page.
func firstCells(page string) []string {
	var all []string
	for _, m := range firstCell.FindAllStringSubmatch(page, -1) {
		for name := range strings.FieldsSeq(m[1]) {
			all = append(all, strings.Trim(name, "`"))
		}
	}
	return all
}

// wantSame fails for each name that is in one of two lists only.
func wantSame(t *testing.T, code, page string, inCode, inPage []string) {
	t.Helper()
	for _, name := range inCode {
		if !slices.Contains(inPage, name) {
			t.Errorf("%s: %s is missing, which is in %s", page, name, code)
		}
	}
	for _, name := range inPage {
		if !slices.Contains(inCode, name) {
			t.Errorf("%s: %s is not in %s", page, name, code)
		}
	}
}

// TestErrorCodesHaveAPage holds docs/errors.md to the codes of refusals and of ends of sessions.
func TestErrorCodesHaveAPage(t *testing.T) {
	page := readText(t, "docs/errors.md")
	wantSame(t, "error.go", "docs/errors.md", constants(t, "error.go", "Code"), firstCells(section(t, page, "# Error codes")))
	wantSame(t, "connect.go", "docs/errors.md, ends", constants(t, "connect.go", "EndCode"), firstCells(section(t, page, "## Ends of sessions")))
}

var (
	exitConstant = regexp.MustCompile(`(?m)^\t(exit\w+) += (\d+)$`)
	exitMeaning  = regexp.MustCompile(`(?m)^  %3d  ([^` + "`" + `\n]+)`)
	exitOrder    = regexp.MustCompile(`(?m)^\t+(exitOK, .*)\),$`)
	exitOfCode   = regexp.MustCompile(`(?m)^\tcountersign\.(\w+): +(exit\w+),$`)
	codeConstant = regexp.MustCompile(`(?m)^\t(\w+) +Code = "(\w+)"`)
	exitRow      = regexp.MustCompile(`(?m)^\| (\d+) \| ([^|]+) \|([^|]*)\|$`)
)

// TestExitCodesHaveARow holds the table of docs/errors.md, in both directions, to the exit
// codes of the command line: the constants, what its help says of each, and the error
// codes that lead to it.
func TestExitCodesHaveARow(t *testing.T) {
	source, names := readText(t, "cmd/countersign/command/exit.go"), map[string]string{}
	for _, m := range codeConstant.FindAllStringSubmatch(readText(t, "error.go"), -1) {
		names[m[1]] = m[2]
	}
	numbers, codes := map[string]string{}, map[string][]string{}
	for _, m := range exitConstant.FindAllStringSubmatch(source, -1) {
		numbers[m[1]] = m[2]
	}
	for _, m := range exitOfCode.FindAllStringSubmatch(source, -1) {
		codes[m[2]] = append(codes[m[2]], names[m[1]])
	}
	order := exitOrder.FindStringSubmatch(source)
	if order == nil || len(codes) < 5 {
		t.Fatal("exit.go: found neither the exit codes of its help nor those of error codes: the test reads it wrongly")
	}
	constants, meanings := strings.Split(order[1], ", "), exitMeaning.FindAllStringSubmatch(source, -1)
	if len(constants) != len(numbers) || len(meanings) != len(numbers) {
		t.Fatalf("exit.go: the help names %d exit codes and has %d meanings; there are %d", len(constants), len(meanings), len(numbers))
	}
	var inCode, inPage []string
	for i, c := range constants {
		inCode = append(inCode, numbers[c]+" "+meanings[i][1])
	}
	page := section(t, readText(t, "docs/errors.md"), "## Exit codes")
	for _, row := range exitRow.FindAllStringSubmatch(page, -1) {
		inPage = append(inPage, row[1]+" "+row[2])
		for name, number := range numbers {
			if number == row[1] && name != "exitFailed" {
				wantSame(t, "exit.go, "+name, "docs/errors.md, exit code "+number, codes[name], strings.Fields(strings.ReplaceAll(row[3], "`", "")))
			}
		}
	}
	wantSame(t, "exit.go", "docs/errors.md, exit codes", inCode, inPage)
}

// TestEventsHaveARow holds the tables of docs/events.md to the event types, in both
// directions: a page that lists what no longer happens is believed.
func TestEventsHaveARow(t *testing.T) {
	wantSame(t, "event.go", "docs/events.md", constants(t, "event.go", "EventType"), firstCells(readText(t, "docs/events.md")))
}

var metricName = regexp.MustCompile(`"(countersign_[a-z_]+)"`)

// TestMetricsHaveARow holds docs/metrics.md to the names in the code. A name that the
// code puts together has its prefix there, which ends in an underscore.
func TestMetricsHaveARow(t *testing.T) {
	var names, prefixes []string
	for _, f := range goFiles(t) {
		if isTest(f.path) || f.dir != "server" {
			continue
		}
		for _, m := range metricName.FindAllStringSubmatch(readText(t, f.path), -1) {
			if strings.HasSuffix(m[1], "_") {
				prefixes = append(prefixes, m[1])
			} else {
				names = append(names, m[1])
			}
		}
	}
	if len(names) < 30 {
		t.Fatalf("found %d metrics in server: the test reads it wrongly", len(names))
	}
	documented := slices.DeleteFunc(firstCells(readText(t, "docs/metrics.md")), func(name string) bool {
		composed := slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
		return composed || strings.HasSuffix(name, "_*")
	})
	wantSame(t, "server", "docs/metrics.md", names, documented)
}

// TestMapShowsEachPackage holds the table of ARCHITECTURE.md to the folders with Go
// files, each once. Test kits beside their package need no row.
func TestMapShowsEachPackage(t *testing.T) {
	var dirs []string
	for _, f := range goFiles(t) {
		if kitInside := isTestKit(f.dir) && strings.Contains(f.dir, "/"); !kitInside && !isTest(f.path) && !slices.Contains(dirs, f.dir) {
			dirs = append(dirs, f.dir)
		}
	}
	dirs = append(dirs, "test/interop") // it has tests only
	table := section(t, readText(t, "ARCHITECTURE.md"), "## The house")
	var rows []string
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) == 5 && strings.Contains(cells[2], "`") {
			for name := range strings.FieldsSeq(cells[2]) {
				name = strings.Trim(name, "`")
				if slices.Contains(rows, name) {
					t.Errorf("ARCHITECTURE.md: %s has two rows", name)
				}
				rows = append(rows, name)
			}
		}
	}
	wantSame(t, "this module", "ARCHITECTURE.md", dirs, rows)
}

var (
	adrTitle  = regexp.MustCompile(`^# ([0-9]+)\. \S`)
	adrStatus = regexp.MustCompile(`^Date: [0-9]{4}-[0-9]{2}-[0-9]{2}\. Status: (proposed|accepted|superseded by)\b`)
	adrLink   = regexp.MustCompile(`\[ADR ([0-9]+)\]\(([0-9]{4}-[a-z0-9-]+\.md)\)`)
)

// maxADRLines keeps a decision on one page.
const maxADRLines = 60

var (
	fileInText = regexp.MustCompile("`([\\w./-]+\\.(?:go|md|txt|sql))`")
	testInText = regexp.MustCompile("`(Test\\w+)`")
)

// TestContributingNamesWhatThereIs holds the lists of CONTRIBUTING.md to the files and
// tests of the module. A file may be named by the end of its path; NAME and NOUN stand
// for what the reader adds.
func TestContributingNamesWhatThereIs(t *testing.T) {
	paths := map[string]bool{}
	tests := ""
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if isTest(name) {
			tests += readText(t, name)
		}
		for end, more := name, true; more; _, end, more = strings.Cut(end, "/") {
			paths[end] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	text := readText(t, "CONTRIBUTING.md")
	files := fileInText.FindAllStringSubmatch(text, -1)
	if len(files) < 30 {
		t.Fatalf("found %d files in CONTRIBUTING.md: the test reads it wrongly", len(files))
	}
	for _, m := range files {
		if added := strings.Contains(m[1], "NAME") || strings.Contains(m[1], "NOUN"); !added && !paths[m[1]] {
			t.Errorf("CONTRIBUTING.md names %s, which there is not", m[1])
		}
	}
	for _, m := range testInText.FindAllStringSubmatch(text, -1) {
		if !strings.Contains(tests, "func "+m[1]+"(") {
			t.Errorf("CONTRIBUTING.md names %s, which there is not", m[1])
		}
	}
}

// TestDecisionsCarryAStatus checks that records are numbered without gaps, have date and
// status in the third line, and that each link between records leads to the one it names.
func TestDecisionsCarryAStatus(t *testing.T) {
	names, err := filepath.Glob("docs/adr/*.md")
	if err != nil || len(names) == 0 {
		t.Fatalf("read docs/adr: %d files, %v", len(names), err)
	}
	for i, name := range names {
		text := readText(t, name)
		lines := strings.Split(text, "\n")
		number := adrTitle.FindStringSubmatch(lines[0])
		if number == nil || number[1] != strconv.Itoa(i+1) {
			t.Errorf("%s: got title %q, want # %d. and a sentence", name, lines[0], i+1)
		}
		if len(lines) < 3 || !adrStatus.MatchString(lines[2]) {
			t.Errorf("%s: want line 3 as \"Date: 2006-01-02. Status: accepted.\", or superseded by which", name)
		}
		if len(lines) > maxADRLines+1 {
			t.Errorf("%s: got %d lines, want at most %d", name, len(lines)-1, maxADRLines)
		}
		for _, m := range adrLink.FindAllStringSubmatch(text, -1) {
			to, err := strconv.Atoi(m[1])
			if err != nil || to < 1 || to > len(names) || filepath.Base(names[to-1]) != m[2] {
				t.Errorf("%s: the link %s leads to no such record", name, m[0])
			}
		}
	}
}
