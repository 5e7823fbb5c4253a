package countersign_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestEachFuzzTargetHasACorpus holds that each fuzz target begins from something: seeds in
// its code, and a small corpus beside it that every run of the tests reads. A folder of a
// target that is gone is read by no test, and is found too.
func TestEachFuzzTargetHasACorpus(t *testing.T) {
	const (
		fewest  = 6       // inputs, which take different paths
		largest = 2 << 10 // octets of one, so that a reader can see what it is
		header  = "go test fuzz v1\n"
	)
	targets := fuzzTargets(t)
	if len(targets) < 40 {
		t.Fatalf("got %d fuzz targets, want at least the 40 that there were: are they found?", len(targets))
	}
	for folder, seeded := range targets {
		entries, err := os.ReadDir(folder)
		if err != nil || len(entries) < fewest {
			t.Errorf("%s: got %d inputs, want at least %d (run the target, and keep what the cache of go test has found)", folder, len(entries), fewest)
		}
		if !seeded {
			t.Errorf("%s: its target adds no seed", folder)
		}
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(folder, e.Name()))
			if err != nil || len(text) > largest || !strings.HasPrefix(string(text), header) {
				t.Errorf("%s: got %d octets, %v, want at most %d in the form of go test", filepath.Join(folder, e.Name()), len(text), err, largest)
			}
		}
	}
	found := folders(t, func(path string) bool {
		return filepath.Base(filepath.Dir(path)) == "fuzz" && strings.Contains(path, "testdata")
	})
	for _, folder := range found {
		if _, ok := targets[folder]; !ok {
			t.Errorf("%s belongs to no fuzz target: its inputs are not tested", folder)
		}
	}
}

// fuzzTargets returns, by the folder of its corpus, whether each fuzz target of the module
// adds a seed.
func fuzzTargets(t *testing.T) map[string]bool {
	t.Helper()
	targets := map[string]bool{}
	for _, dir := range folders(t, func(path string) bool { return !strings.Contains(path, "testdata") }) {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range file.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Fuzz") {
					targets[filepath.Join(dir, "testdata", "fuzz", fn.Name.Name)] = addsSeed(fn)
				}
			}
		}
	}
	return targets
}

func addsSeed(fn *ast.FuncDecl) (adds bool) {
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		if call, ok := n.(*ast.SelectorExpr); ok && call.Sel.Name == "Add" {
			if f, ok := call.X.(*ast.Ident); ok && f.Name == "f" {
				adds = true
			}
		}
		return !adds
	})
	return adds
}

// folders returns the folders of the module that are wanted.
func folders(t *testing.T, want func(path string) bool) (list []string) {
	t.Helper()
	skipped := []string{".git", "node_modules", "bin"}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir():
			return err
		case slices.Contains(skipped, d.Name()):
			return fs.SkipDir
		case want(path):
			list = append(list, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
