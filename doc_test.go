package countersign_test

import (
	"go/parser"
	"go/token"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
)

// minPurpose is the least that says more than the package's name: half a line.
const minPurpose = 40

// TestPackagesSayWhatTheyAreFor wants one package comment in the form that Go's
// documentation shows: "Package name ..." or, for a program, "Command name ...".
func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	comments := map[string][]string{}
	names := map[string]string{}
	for _, f := range goFiles(t) {
		if _, seen := comments[f.dir]; !seen {
			comments[f.dir] = nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f.path, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if !isTest(f.path) || names[f.dir] == "" {
			names[f.dir] = strings.TrimSuffix(parsed.Name.Name, "_test")
		}
		if parsed.Doc != nil {
			comments[f.dir] = append(comments[f.dir], parsed.Doc.Text())
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(comments)) {
		opening := "Package " + names[dir] + " "
		if names[dir] == "main" {
			opening = "Command " + path.Base(dir) + " "
		}
		switch c := comments[dir]; {
		case len(c) != 1:
			t.Errorf("%s: got %d package comments, want 1 that begins %q", dir, len(c), opening)
		case !strings.HasPrefix(c[0], opening) || len(c[0]) < minPurpose:
			t.Errorf("%s: got package comment %.60q, want one that begins %q and says what it is for", dir, c[0], opening)
		}
	}
}
