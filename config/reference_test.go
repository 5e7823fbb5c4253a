package config

import (
	"flag"
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/operations/configuration.md")

const referencePath = "../docs/operations/configuration.md"

const referenceHead = `# Configuration

The file is YAML. Unknown and repeated names are refused; ` + "`countersign server config check`" + ` reports all that is wrong with it at once. It is the one named
by ` + "`--config`" + `, else ` + "`countersign.yaml`" + ` in the data folder, else there is none: each setting has a default. Durations are written with a unit: ` + "`90s`, `15m`,\n`24h`, `7d`, `2w`" + `;
sizes with KiB, MiB or GiB. A secret is a reference, ` + "`file:/path` or `env:NAME`" + `, never the secret itself.

A server that gets SIGHUP reads the file again. ` + "`names`, `weak_keys` and `log.level`" + ` count at once; the log names the other settings that changed and need a
restart.

This page is made of the comments in the source: ` + "`go test ./config -run Reference -update`" + `.
`

// TestReferenceIsThatOfTheComments holds docs/operations/configuration.md to the field
// comments, which are the manual.
func TestReferenceIsThatOfTheComments(t *testing.T) {
	want := reference(t)
	if *update {
		if err := os.WriteFile(referencePath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referencePath)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the comments say: write it anew with: go test ./config -run Reference -update", referencePath)
	}
}

// reference writes a section for each struct, in the order in which they are met.
func reference(t *testing.T) string {
	t.Helper()
	comments := fieldComments(t)
	var b strings.Builder
	b.WriteString(referenceHead)
	writeStruct(&b, comments, reflect.TypeFor[Config](), "")
	return b.String()
}

func writeStruct(b *strings.Builder, comments map[string]string, typ reflect.Type, prefix string) {
	title := "Top level"
	if prefix != "" {
		title = "`" + strings.TrimSuffix(prefix, ".") + "`"
	}
	fmt.Fprintf(b, "\n## %s\n\n", title)
	type section struct {
		typ    reflect.Type
		prefix string
	}
	var below []section
	last := ""
	for f := range typ.Fields() {
		name := prefix + f.Tag.Get("yaml")
		text := comments[typ.Name()+"."+f.Name]
		if text == "" { // a comment that stands above several fields
			text = last
		}
		last = text
		fmt.Fprintf(b, "- **`%s`** - %s\n", name, text)
		switch {
		case f.Type.Kind() == reflect.Struct:
			below = append(below, section{f.Type, name + "."})
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			below = append(below, section{f.Type.Elem(), name + "[]."})
		}
	}
	for _, s := range below {
		writeStruct(b, comments, s.typ, s.prefix)
	}
}

// fieldComments reads the comments of all fields of this package, by type and field.
func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	comments := map[string]string{}
	for _, path := range []string{"config.go", "hook.go", "notify.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			st, ok := spec.Type.(*ast.StructType)
			if !ok {
				return true
			}
			for _, f := range st.Fields.List {
				for _, name := range f.Names {
					comments[spec.Name.Name+"."+name.Name] = plain(f.Doc.Text())
				}
			}
			return true
		})
	}
	return comments
}

// plain writes a comment as one paragraph.
func plain(text string) string {
	var p comment.Parser
	out := (&comment.Printer{TextWidth: -1}).Text(p.Parse(text))
	return strings.Join(strings.Fields(string(out)), " ")
}

// TestEachSettingHasAComment holds that the reference says something of every field.
func TestEachSettingHasAComment(t *testing.T) {
	if text := reference(t); strings.Contains(text, "** - \n") {
		t.Error("a field has no comment")
	}
}
