package countersign_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/countersign-iot/countersign"

// maxRootLines keeps the nouns readable in one sitting, the table of the kinds of
// events and the parser of durations with them.
const maxRootLines = 1700

// A ring is a set of packages with the same rights: the folders of this module
// that they may import, and the libraries. "." is the root, "std" means
// the standard library alone.
type ring struct {
	name     string
	packages []string
	own      []string // folders of this module, beside those of a package's own test kit
	libs     []string // import path prefixes; nil: any
	deny     []string // import path prefixes refused all the same
}

func words(lists ...string) []string { return strings.Fields(strings.Join(lists, " ")) }

const (
	nouns         = " . "
	wire          = " cms pkcs10 api query topics "
	refusing      = " api pkcs10 " // these know our errors: pkcs10 refuses, api has what the two JSON doors make of a refusal
	tools         = " attest config keystore policy store weakkey "
	appraisal     = " attest "                                                                                  // holds each key of its evidence against weakkey
	keepers       = " keycheck watermark hold event registry ca lockout policies access operator detect audit " // in their order
	decisions     = " ra provision rotation respond "
	deviceDoors   = " est enroll scep cmp acme status mqtt tunnel hook awsiot dps "
	operatorDoors = " rest console "
)

// rings is the table of the house, from the inside out. A package imports only
// from rings above its own; a folder that is not here does not belong. A change
// of this table wants an ADR.
var rings = slices.Concat([]ring{
	{name: "nouns", packages: words(nouns), libs: words("std")},
	{name: "wire", packages: slices.DeleteFunc(words(wire), func(p string) bool { return slices.Contains(words(refusing), p) }), libs: words("golang.org/x/crypto")},
	{name: "wire that refuses", packages: words(refusing), own: words(nouns), libs: words("golang.org/x/crypto")},
	{name: "tools", packages: slices.DeleteFunc(words(tools), func(p string) bool { return slices.Contains(words(appraisal), p) }), own: words(nouns, wire)},
	{name: "appraisal", packages: words(appraisal), own: words(nouns, wire, "weakkey")},
	{name: "tools' test kits", packages: words("pkcs10/pkcs10test attest/tpmtest operator/operatortest store/storetest"), own: words(nouns, wire, "test/kit")},
}, keeperRings(), []ring{
	{name: "decisions", packages: words("ra"), own: words(nouns, wire, tools, keepers)},
	{name: "decisions on ra", packages: words("provision rotation respond"), own: words(nouns, wire, tools, keepers, "ra")},
	{name: "edge", packages: words("edge"), own: words(nouns, wire), libs: words("golang.org/x"), deny: words("database/sql")},
	{
		name: "device doors", packages: words("est enroll scep cmp acme status awsiot dps"),
		own: words(nouns, wire), libs: words("golang.org/x"), deny: words("database/sql"),
	},
	{ // it speaks to brokers in their own protocols, as a client
		name: "hook", packages: words("hook"), own: words(nouns, wire),
		libs: words("golang.org/x github.com/nats-io github.com/eclipse"), deny: words("database/sql"),
	},
	{name: "the broker core", packages: words("broker"), own: words(nouns, wire, "store"), libs: words("std")},
	{
		name: "device doors on the edge", packages: words("mqtt tunnel"),
		own: words(nouns, wire, "edge broker"), libs: words("golang.org/x github.com/pires/go-proxyproto github.com/coder/websocket"), deny: words("database/sql"),
	},
	{
		name: "operator doors", packages: words(operatorDoors),
		own: words(nouns, wire, keepers, decisions), deny: words("database/sql"),
	},
	{
		name: "server", packages: words("server"),
		own: words(nouns, wire, tools, keepers, decisions, "edge broker", deviceDoors, operatorDoors),
	},
	{name: "sdk", packages: words("sdk"), own: words(nouns, wire, "est acme cmp keystore")},
	{name: "simulate", packages: words("simulate simulate/device"), own: words(nouns, wire, "sdk simulate/device")},
	{name: "agent", packages: words("agent"), own: words("sdk config")},
	{name: "agent's program", packages: words("cmd/countersign-agent"), own: words("agent sdk config")},
	{
		name: "hosts", packages: words("cmd/countersign cmd/countersign/command cmd/countersign/demo"),
		own: words(nouns, wire, tools, keepers, decisions, "edge", deviceDoors, operatorDoors, "server sdk simulate simulate/device agent cmd/countersign/command cmd/countersign/demo"),
	},
	{ // it starts the same peers as the tests
		name: "measurements", packages: words("test/bench"),
		own: words(nouns, wire, tools, keepers, decisions, "edge", deviceDoors, operatorDoors, "server sdk simulate simulate/device store/storetest test/kit"),
	},
	{
		name: "the whole's test kit", packages: words("countersigntest"),
		own: words(nouns, wire, tools, keepers, decisions, "edge", deviceDoors, operatorDoors, "server sdk simulate agent store/storetest"),
	},
	{name: "a bad device", packages: words("countersigntest/baddevice"), libs: words("std")}, // it knows the wire and nothing else
	{name: "the tests' kit", packages: words("test/kit"), own: words(nouns), libs: words("std")},
	{name: "tests", packages: words("test/gotest test/interop"), own: words("countersigntest")},
})

// keeperRings returns a ring for each keeper, which may import those before it: rows
// are read by their owner's functions.
func keeperRings() (list []ring) {
	all := words(keepers)
	for i, name := range all {
		list = append(list, ring{
			name: "keeper " + name, packages: []string{name}, own: words(nouns, wire, tools, strings.Join(all[:i], " ")),
		})
	}
	return list
}

// onlyIn names the one package that may know a library, so that each can be
// replaced in one folder.
var onlyIn = map[string][]string{
	"modernc.org/sqlite":                  {"store"},
	"github.com/jackc/pgx":                {"store"},
	"github.com/nats-io/nats.go":          {"hook"},
	"github.com/nats-io/nkeys":            {"hook"},
	"github.com/nats-io/jwt":              {"hook"},
	"github.com/eclipse/paho.mqtt.golang": {"hook"},
	"github.com/zmap":                     {"ca"},
	"github.com/danielgtaylor/huma":       {"rest"},
	"github.com/spf13/cobra":              {"cmd/countersign", "cmd/countersign/command", "cmd/countersign-agent"},
	"github.com/prometheus/client_golang": {"server"},
	"github.com/pires/go-proxyproto":      {"tunnel"},
}

// agentNever is what the device daemon must not link, by any way: it has to fit
// small machines and has no business with the authority's keys and records.
var agentNever = []string{
	module + "/store", module + "/server", module + "/ca", module + "/console", module + "/rest",
	"modernc.org/sqlite", "github.com/jackc/pgx", "github.com/nats-io", "database/sql",
}

// goFile is a Go file of this module with what it imports.
type goFile struct {
	path, dir string
	imports   []string
}

// goFiles reads all Go files, whatever their build tags say. It does not ask
// "go list": the test cache cannot see what a subprocess read and would serve a
// stale pass.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." {
			_, nested := os.Stat(path.Join(name, "go.mod"))
			if nested == nil || strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_") || d.Name() == "testdata" {
				return fs.SkipDir
			}
		}
		if d.IsDir() || path.Ext(name) != ".go" {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		f := goFile{path: name, dir: path.Dir(name)}
		for _, i := range parsed.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, p)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatalf("read the Go files: %v", err)
	}
	return files
}

func isTest(name string) bool { return strings.HasSuffix(name, "_test.go") }

// isTestKit reports whether a folder holds help for tests, such as store/storetest.
func isTestKit(dir string) bool {
	return dir != "attest" && strings.HasSuffix(dir, "test") && dir != "test"
}

// under reports whether import path p is one of the prefixes or inside it.
func under(p string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool {
		return p == prefix || strings.HasPrefix(p, prefix+"/")
	})
}

// ownDir returns the folder of an import of this module.
func ownDir(p string) (dir string, own bool) {
	if p == module {
		return ".", true
	}
	return strings.CutPrefix(p, module+"/")
}

// breach returns the rule of r, the ring of a non-test file in dir, that forbids the
// import; empty if none does.
func (r ring) breach(dir, imported string) string {
	if under(imported, r.deny) {
		return fmt.Sprintf("%s may not import %s", r.name, strings.Join(r.deny, ", "))
	}
	if target, own := ownDir(imported); own {
		kitOf := isTestKit(dir) && target == path.Dir(dir)
		if isTestKit(target) && r.name != "tests" && r.name != "measurements" && !isTestKit(dir) {
			return "test kits are for tests"
		}
		if !kitOf && !slices.Contains(r.own, target) {
			return fmt.Sprintf("%s may import only [%s] of this module", r.name, strings.Join(r.own, " "))
		}
		return ""
	}
	if imported == "testing" && !isTestKit(dir) && r.name != "tests" {
		return "package testing stays out of programs"
	}
	if standard := !strings.Contains(strings.Split(imported, "/")[0], "."); standard {
		return ""
	}
	if r.libs != nil && !under(imported, r.libs) {
		return fmt.Sprintf("%s may import only these libraries: %s", r.name, strings.Join(r.libs, ", "))
	}
	if isTestKit(dir) {
		dir = path.Dir(dir) // a test kit knows what its package knows
	}
	for lib, homes := range onlyIn {
		if under(imported, []string{lib}) && r.name != "hosts" && !slices.Contains(homes, dir) {
			return fmt.Sprintf("only %s may import %s", strings.Join(homes, " and "), lib)
		}
	}
	return ""
}

func TestImportsKeepToTheRings(t *testing.T) {
	home := map[string]ring{}
	for _, r := range rings {
		for _, dir := range r.packages {
			home[dir] = r
		}
	}
	for _, f := range goFiles(t) {
		r, known := home[f.dir]
		if !known {
			t.Errorf("%s: folder %s has no place in the rings of arch_test.go", f.path, f.dir)
			continue
		}
		if isTest(f.path) {
			continue
		}
		for _, imported := range f.imports {
			if rule := r.breach(f.dir, imported); rule != "" {
				t.Errorf("%s imports %s: %s", f.path, imported, rule)
			}
		}
	}
}

// skips is the beginning of a call by which a test is skipped.
var skips = regexp.MustCompile(`\.(Skip|Skipf|SkipNow)\(`)

// TestOnlyTheKitSkips holds that every test that lacks something is one for kit.Missing,
// which fails it where CI wants all peers. The kit's own, the
// text of a program that gotest has to refuse, and a run that rapid replaces by another
// one are named.
func TestOnlyTheKitSkips(t *testing.T) {
	others := map[string]int{"test/kit/peers.go": 1, "test/gotest/main_test.go": 1, "broker/machine_test.go": 1}
	for _, f := range goFiles(t) {
		text, err := os.ReadFile(f.path)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(skips.FindAll(text, -1)); n != others[f.path] {
			t.Errorf("%s: skips %d times, want %d: call kit.Missing", f.path, n, others[f.path])
		}
	}
}

// reasons are words of which a comment that says why has one.
var reasons = regexp.MustCompile(`(?i)\b(because|since|so that|a function)\b`)

// TestCallbacksSayWhyTheyAreNoCall holds that an exported field that is a function says
// why it is one: a caller who follows it has to search for what it calls. A clock and
// what hosts and tests have of their own need no reason.
func TestCallbacksSayWhyTheyAreNoCall(t *testing.T) {
	for _, f := range goFiles(t) {
		if isTest(f.path) || isTestKit(f.dir) || strings.HasPrefix(f.dir, "cmd/") || strings.HasPrefix(f.dir, "test/") || strings.HasPrefix(f.dir, "countersigntest") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f.path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			for _, name := range callbacksWithoutReason(spec) {
				t.Errorf("%s: %s.%s is a function, and its comment does not say why: call what it calls, or state the reason", f.path, spec.Name.Name, name)
			}
			return false
		})
	}
}

// callbacksWithoutReason returns the exported fields of a struct type that are functions and
// do not say why.
func callbacksWithoutReason(spec *ast.TypeSpec) (names []string) {
	s, ok := spec.Type.(*ast.StructType)
	if !ok || !spec.Name.IsExported() {
		return nil
	}
	shared := false // a comment "Functions, because" is for the fields below it too
	for _, f := range s.Fields.List {
		text := f.Doc.Text() + f.Comment.Text()
		if f.Doc != nil {
			shared = strings.Contains(text, "Functions,")
		}
		if _, ok := f.Type.(*ast.FuncType); !ok || shared || reasons.MatchString(text) {
			continue
		}
		for _, name := range f.Names {
			if name.IsExported() && name.Name != "Now" {
				names = append(names, name.Name)
			}
		}
	}
	return names
}

func TestCallbacksWithoutReasonAreSeen(t *testing.T) {
	const source = `package p
type T struct {
	Now func() int
	A func() // is called
	// B is called, because it must be.
	B func()
	C func()
	hidden func()
	// Functions, because both are.
	D func()
	E func()
	// F is called.
	F, G func()
}`
	parsed, err := parser.ParseFile(token.NewFileSet(), "", source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	spec, _ := parsed.Decls[0].(*ast.GenDecl).Specs[0].(*ast.TypeSpec)
	if got, want := strings.Join(callbacksWithoutReason(spec), " "), "A C F G"; got != want {
		t.Errorf("fields without a reason: got %q, want %q", got, want)
	}
}

func TestAgentLinksNothingOfTheAuthority(t *testing.T) {
	imports := map[string][]string{}
	for _, f := range goFiles(t) {
		if !isTest(f.path) {
			imports[f.dir] = append(imports[f.dir], f.imports...)
		}
	}
	var visit func(dir string, way []string)
	seen := map[string]bool{}
	visit = func(dir string, way []string) {
		if seen[dir] {
			return
		}
		seen[dir] = true
		way = append(slices.Clone(way), dir)
		for _, imported := range imports[dir] {
			if under(imported, agentNever) {
				t.Errorf("the agent links %s by way of %s", imported, strings.Join(way, " -> "))
			}
			if target, own := ownDir(imported); own {
				visit(target, way)
			}
		}
	}
	visit("cmd/countersign-agent", nil)
	visit("agent", nil)
}

// TestBreachSeesForbiddenImports tries the table itself: a rule that cannot say
// no would keep the other tests green for ever.
func TestBreachSeesForbiddenImports(t *testing.T) {
	for _, tt := range []struct {
		dir, imported string
		allowed       bool
	}{
		{".", "crypto/x509", true},
		{".", "golang.org/x/crypto/ocsp", false},
		{".", module + "/api", false},
		{"cms", module, false},
		{"api", module, true},
		{"enroll", module + "/api", true},
		{"enroll", module + "/ra", false},
		{"enroll", module + "/access", false},
		{"enroll", "github.com/danielgtaylor/huma/v2", false},
		{"store", "github.com/jackc/pgx/v5/stdlib", true},
		{"ca", "github.com/jackc/pgx/v5", false},
		{"ca", module + "/store", true},
		{"ca", module + "/registry", true},
		{"registry", module + "/ca", false},
		{"detect", module + "/event", true},
		{"detect", module + "/audit", false},
		{"ca", "testing", false},
		{"ra", module + "/rotation", false},
		{"rotation", module + "/ra", true},
		{"hook", "github.com/nats-io/nats.go", true},
		{"hook", module + "/edge", false},
		{"est", module + "/ra", false},
		{"est", module + "/mqtt", false},
		{"est", "database/sql", false},
		{"mqtt", module + "/edge", true},
		{"mqtt", module + "/broker", true},
		{"mqtt", module + "/store", false},
		{"mqtt", "github.com/nats-io/nats.go", false},
		{"broker", module + "/store", true},
		{"broker", module + "/edge", false},
		{"rest", module + "/store", false},
		{"server", module + "/agent", false},
		{"server", module + "/countersigntest", false},
		{"agent", module + "/ca", false},
		{"store/storetest", module + "/store", true},
		{"store/storetest", "testing", true},
		{"store/storetest", "github.com/jackc/pgx/v5", true},
		{"countersigntest", module + "/server", true},
		{"countersigntest", module + "/store/storetest", true},
		{"server", module + "/store/storetest", false},
		{"cmd/countersign", module + "/countersigntest", false},
	} {
		i := slices.IndexFunc(rings, func(r ring) bool { return slices.Contains(r.packages, tt.dir) })
		if got := rings[i].breach(tt.dir, tt.imported); (got == "") != tt.allowed {
			t.Errorf("%s imports %s: got rule %q, want allowed %v", tt.dir, tt.imported, got, tt.allowed)
		}
	}
}

func TestRootStaysShort(t *testing.T) {
	lines := 0
	for _, f := range goFiles(t) {
		if f.dir != "." || isTest(f.path) {
			continue
		}
		text, err := os.ReadFile(f.path)
		if err != nil {
			t.Fatal(err)
		}
		lines += strings.Count(string(text), "\n")
	}
	if lines == 0 || lines > maxRootLines {
		t.Errorf("package countersign: got %d lines, want 1 to %d: it holds the nouns, nothing that acts", lines, maxRootLines)
	}
}

// TestMigrationsAreNumberedOneByOne finds two branches that took the same number: no
// database would open with both.
func TestMigrationsAreNumberedOneByOne(t *testing.T) {
	entries, err := os.ReadDir("store/migrations")
	if err != nil || len(entries) == 0 {
		t.Fatalf("read store/migrations: %d files, %v", len(entries), err)
	}
	for i, e := range entries {
		if want := fmt.Sprintf("%04d_", i+1); !strings.HasPrefix(e.Name(), want) {
			t.Errorf("store/migrations/%s: want a name that begins with %s", e.Name(), want)
		}
	}
}
