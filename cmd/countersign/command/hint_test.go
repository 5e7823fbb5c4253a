package command

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
)

// withoutHint are the codes after which no command helps: the sentence of the error says
// what the request itself has to change.
var withoutHint = []countersign.Code{
	countersign.BadRequest, countersign.TooLarge, countersign.BadSignature, countersign.WeakKey, countersign.Unauthenticated,
	countersign.BadCredential, countersign.NotAllowed, countersign.SubjectMismatch, countersign.CertNotYetValid,
}

// codes reads the codes from their source.
func codes(t *testing.T) (all []countersign.Code) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../../../error.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Code" {
			s, _ := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			all = append(all, countersign.Code(s))
		}
		return true
	})
	return all
}

func TestEachCodeHasAHintOrNeedsNone(t *testing.T) {
	all := codes(t)
	if len(all) < 25 {
		t.Fatalf("only these codes were found: %v", all)
	}
	for _, code := range all {
		hinted := slices.ContainsFunc(hints, func(h hint) bool { return h.code == code })
		if hinted == slices.Contains(withoutHint, code) {
			t.Errorf("%s: a hint is %v, and that it needs none is %v", code, hinted, !hinted)
		}
	}
}

// TestHintsNameCommandsThatExist parses both sides of each hint, and finds the hints that
// another one before them covers.
func TestHintsNameCommandsThatExist(t *testing.T) {
	root := rootCommand(&Env{Getenv: func(string) string { return "" }})
	for i, h := range hints {
		checkCommand(t, "countersign "+strings.NewReplacer("{1}", "x", "{device}", "x").Replace(h.run))
		if cmd, rest, err := root.Find(strings.Fields(h.of)); err != nil || len(rest) > 0 {
			t.Errorf("%s of %q: there is no command %s: %v", h.code, h.of, cmd.CommandPath(), err)
		}
		for _, before := range hints[:i] {
			if before.code == h.code && (before.of == "" || strings.HasPrefix(h.of+" ", before.of+" ")) {
				t.Errorf("%s of %q is never used: %q comes first", h.code, h.of, before.of)
			}
		}
	}
}

// TestEachNounKnowsWhatIsThere wants a hint for each noun whose objects can be missing.
func TestEachNounKnowsWhatIsThere(t *testing.T) {
	for _, noun := range rootCommand(&Env{Getenv: func(string) string { return "" }}).Commands() {
		list, _, err := noun.Find([]string{"list"})
		if err != nil || list == noun || noun.Name() == "log" {
			continue
		}
		if !slices.ContainsFunc(hints, func(h hint) bool { return h.code == countersign.NotFound && h.of == noun.Name() }) {
			t.Errorf("%s: no hint for what is not found", noun.Name())
		}
	}
}

func TestRefusalsAreFollowedByACommand(t *testing.T) {
	w := newWorld(t)
	w.do("device", "create", "pump-7")
	w.do("device", "create", "pump-8")
	w.Enroll(t, "pump-9")
	w.do("device", "suspend", "pump-9", "--reason", "test", "--yes")
	w.do("device", "retire", "pump-8", "--yes")
	for _, tt := range []struct {
		args []string
		exit int
		next string
	}{
		{[]string{"device", "get", "nope"}, exitNotFound, "countersign device list"},
		{[]string{"cert", "get", "abcd"}, exitNotFound, "countersign cert list"},
		{[]string{"ca", "get", "nope"}, exitNotFound, "countersign ca list"},
		{[]string{"fleet", "get", "nope"}, exitNotFound, "countersign fleet list"},
		{[]string{"fleet", "rule", "get", "default", "connect"}, exitNotFound, "countersign fleet rule list default"},
		{[]string{"policy", "get", "nope"}, exitNotFound, "countersign fleet list"},
		{[]string{"profile", "get", "nope"}, exitNotFound, "countersign profile list"},
		{[]string{"alert", "show", "nope"}, exitNotFound, "countersign alert list"},
		{[]string{"block", "remove", "192.0.2.1"}, exitNotFound, "countersign block list"},
		{[]string{"hold", "retry", "nope"}, exitNotFound, "countersign hold list"},
		{[]string{"operator", "revoke", "nope", "--yes"}, exitNotFound, "countersign operator list"},
		{[]string{"access-token", "revoke", "nope"}, exitNotFound, "countersign access-token list"},
		{[]string{"enroll", "stop", "nope", "--reason", "x"}, exitNotFound, "countersign enroll list"},
		{[]string{"enroll", "approve", "nope"}, exitNotFound, "countersign enroll pending"},
		{[]string{"audit", "unsuppress", "nope"}, exitNotFound, "countersign audit suppressions"},
		{[]string{"device", "secret", "stop", "pump-7", "nope", "--yes"}, exitNotFound, "countersign device secret list pump-7"},
		{[]string{"device", "create", "pump-7"}, exitRefused, "countersign device get pump-7"},
		{[]string{"device", "create", "two words"}, exitUsage, ""},
	} {
		code, out, errOut := w.run(tt.args...)
		if code != tt.exit || tt.next != "" && !strings.Contains(errOut, tt.next+"\n") || tt.next == "" && strings.Contains(errOut, "Run: ") {
			t.Errorf("%q: got exit code %d and %s%s\nwant %d and %q", tt.args, code, out, errOut, tt.exit, tt.next)
		}
	}
}
