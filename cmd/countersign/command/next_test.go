package command

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// A command of this program within a text, and the flags behind it up to the end of the
// clause.
var (
	named = regexp.MustCompile(`\bcountersign ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)*)([^;,$\n]*)`)
	flags = regexp.MustCompile(`--([a-z][a-z0-9-]*)`)
)

// texts calls f with each string in the code of the program and its packages.
func texts(t *testing.T, f func(where, text string)) {
	t.Helper()
	files := token.NewFileSet()
	err := filepath.WalkDir("../../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || d.Name() == "node_modules" || len(d.Name()) > 2 && d.Name()[0] == '.'):
			return fs.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		parsed, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if text, err := strconv.Unquote(lit.Value); err == nil {
					f(files.Position(lit.Pos()).String(), text)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestMessagesNameCommandsThatExist holds the commands and flags in the messages of all
// packages against the program: advice has to lead somewhere.
func TestMessagesNameCommandsThatExist(t *testing.T) {
	n := 0
	texts(t, func(where, text string) {
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			words := strings.Fields(m[1])
			cmd, rest, err := rootCommand(&Env{Getenv: func(string) string { return "" }}).Find(words)
			if !cmd.HasParent() {
				if len(words) > 0 && isCommandLine(text, m[0]) {
					t.Errorf("%s: %q names no command: %v", where, m[0], err)
				}
				continue // the word is that of a sentence about the program
			}
			n++
			if cmd.HasSubCommands() && len(rest) > 0 {
				t.Errorf("%s: %q: %s has no command %s", where, m[0], cmd.CommandPath(), rest[0])
			}
			for _, flag := range flags.FindAllStringSubmatch(m[2], -1) {
				if cmd.Flag(flag[1]) == nil && cmd.InheritedFlags().Lookup(flag[1]) == nil && flag[1] != "help" {
					t.Errorf("%s: %q: %s has no flag --%s", where, m[0], cmd.CommandPath(), flag[1])
				}
			}
		}
	})
	if n < 50 {
		t.Errorf("%d commands were found, want those of all messages", n)
	}
}

// isCommandLine reports whether a text names command as a step to take: after a colon, or
// as all that it says. "countersign on HOST" begins the subject of a message.
func isCommandLine(text, command string) bool {
	return strings.HasPrefix(text, command) && !strings.HasPrefix(text, "countersign on ") || strings.Contains(text, ": "+command)
}
