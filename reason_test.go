package countersign_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"
)

// judges are the packages that act on what happened, except those that read reason
// codes of revocations, which are codes. They must act on codes and data; the text of
// an event, an ending or an error is for people, and its wording may change.
var judges = []string{"detect", "audit", "respond", "edge", "hook", "event", "access"}

// texts are the fields that hold such text.
var texts = []string{"Reason", "Message", "Summary"}

// comparers are the functions of package strings that would compare them.
var comparers = []string{"Contains", "HasPrefix", "HasSuffix", "EqualFold", "Index", "Cut", "CutPrefix", "CutSuffix", "Compare", "Count"}

// TestNoJudgeReadsMessages looks for comparisons of text that is for people.
func TestNoJudgeReadsMessages(t *testing.T) {
	seen := 0
	for _, f := range goFiles(t) {
		if isTest(f.path) || !slices.Contains(judges, f.dir) {
			continue
		}
		seen++
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, f.path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if what := readsMessage(n); what != "" {
				t.Errorf("%s: compares %s: use a code or the event's data", path.Join(fset.Position(n.Pos()).String()), what)
			}
			return true
		})
	}
	if seen < 50 {
		t.Errorf("looked at %d files only", seen)
	}
}

// readsMessage returns the text that a node compares with another one; empty if none.
// A comparison with the empty text asks whether there is one.
func readsMessage(n ast.Node) string {
	switch n := n.(type) {
	case *ast.BinaryExpr:
		if n.Op != token.EQL && n.Op != token.NEQ {
			return ""
		}
		for _, side := range [][2]ast.Expr{{n.X, n.Y}, {n.Y, n.X}} {
			if text := messageIn(side[0]); text != "" && !isEmptyText(side[1]) && messageIn(side[1]) == "" {
				return text
			}
		}
	case *ast.SwitchStmt:
		if n.Tag != nil {
			return messageIn(n.Tag)
		}
	case *ast.CallExpr:
		f, ok := n.Fun.(*ast.SelectorExpr)
		if !ok {
			return ""
		}
		if x, ok := f.X.(*ast.Ident); !ok || x.Name != "strings" || !slices.Contains(comparers, f.Sel.Name) {
			return ""
		}
		return messageIn(n.Args[0])
	}
	return ""
}

// messageIn returns the message that an expression is: a field of texts, or the text
// of an error.
func messageIn(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		if slices.Contains(texts, e.Sel.Name) {
			return e.Sel.Name
		}
	case *ast.CallExpr:
		if f, ok := e.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Error" && len(e.Args) == 0 {
			return "Error()"
		}
		for _, a := range e.Args { // string(x.Reason), strings.ToLower(x.Reason)
			if text := messageIn(a); text != "" && len(e.Args) == 1 {
				return text
			}
		}
	}
	return ""
}

func isEmptyText(e ast.Expr) bool {
	lit, ok := e.(*ast.BasicLit)
	return ok && lit.Value == `""`
}

// TestMessagesThatAreReadAreSeen tries the test itself.
func TestMessagesThatAreReadAreSeen(t *testing.T) {
	for text, want := range map[string]bool{
		`e.Reason == "taken over"`:                   true,
		`"taken over" != e.Reason`:                   true,
		`strings.HasPrefix(e.Reason, takenOver)`:     true,
		`strings.Contains(err.Error(), "ROCA")`:      true,
		`strings.Contains(Public(err).Message, "x")`: true,
		`string(e.Reason) == "x"`:                    true,
		`e.Reason == ""`:                             false,
		`e.Code == TakenOver`:                        false,
		`strings.Contains(name, "x")`:                false,
		`a.Reason == b.Reason`:                       false,
	} {
		e, err := parser.ParseExpr(text)
		if err != nil {
			t.Fatal(err)
		}
		got := false
		ast.Inspect(e, func(n ast.Node) bool { got = got || readsMessage(n) != ""; return true })
		if got != want {
			t.Errorf("%s: seen %v, want %v", strings.TrimSpace(text), got, want)
		}
	}
}
