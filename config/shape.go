package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/countersign-iot/countersign"
)

// Problems are all that is wrong with a file.
type Problems []Problem

func (p Problems) Error() string {
	var lines []string
	for _, one := range p {
		lines = append(lines, one.Error())
	}
	return strings.Join(lines, "; ")
}

// shape is a walk over a YAML file beside the struct that it is for. It finds what the
// decoder would refuse, all at once and with field, line and value, which the decoder
// does not name.
type shape struct {
	problems Problems
}

// shapeOf walks a text that is YAML; one that is not has no shape.
func shapeOf(b []byte) *shape {
	s := &shape{}
	file, err := parser.ParseBytes(b, 0)
	if err != nil || len(file.Docs) != 1 {
		return s
	}
	s.value(file.Docs[0].Body, reflect.TypeFor[Config](), "")
	return s
}

func (s *shape) bad(n ast.Node, field, format string, args ...any) {
	s.problems = append(s.problems, Problem{Field: field, Line: n.GetToken().Position.Line, Message: fmt.Sprintf(format, args...)})
}

// value walks one value. What it does not know, such as an alias, is left to the decoder.
func (s *shape) value(n ast.Node, typ reflect.Type, field string) {
	switch n := n.(type) {
	case *ast.MappingNode:
		if typ.Kind() != reflect.Struct {
			s.bad(n, field, "a mapping is where %s is due", kindOf(typ))
			return
		}
		for _, m := range n.Values {
			s.member(m, typ, field)
		}
	case *ast.MappingValueNode:
		if typ.Kind() == reflect.Struct {
			s.member(n, typ, field)
		}
	case *ast.SequenceNode:
		if typ.Kind() != reflect.Slice {
			s.bad(n, field, "a list is where %s is due", kindOf(typ))
			return
		}
		for i, one := range n.Values {
			s.value(one, typ.Elem(), fmt.Sprintf("%s[%d]", field, i))
		}
	case ast.ScalarNode:
		s.scalar(n, typ, field)
	}
}

// member walks a name and its value.
func (s *shape) member(m *ast.MappingValueNode, typ reflect.Type, within string) {
	if _, plain := m.Key.(ast.ScalarNode); !plain || m.Key.Type() == ast.MergeKeyType {
		return
	}
	name := m.Key.GetToken().Value
	field := strings.TrimPrefix(within+"."+name, ".")
	for f := range typ.Fields() {
		if f.Tag.Get("yaml") == name {
			s.value(m.Value, f.Type, field)
			return
		}
	}
	s.bad(m.Key, field, "there is no such setting")
}

// scalar checks a value that is shown in the message only where it can be no secret.
func (s *shape) scalar(n ast.ScalarNode, typ reflect.Type, field string) {
	if n.Type() == ast.NullType {
		return
	}
	text := n.GetToken().Value
	switch {
	case typ == reflect.TypeFor[time.Duration]():
		if _, err := countersign.ParseSpan(text); err != nil {
			_, why, _ := strings.Cut(err.Error(), ": ")
			s.bad(n, field, "%.40s: %s", text, why)
		}
	case typ == reflect.TypeFor[Size]():
		var size Size
		if size.UnmarshalText([]byte(text)) != nil {
			s.bad(n, field, "%.40s: write a number of bytes, or one with KiB, MiB or GiB", text)
		}
	case typ.Kind() == reflect.Int:
		if _, err := strconv.Atoi(text); err != nil {
			s.bad(n, field, "%.40s: write a whole number", text)
		}
	case typ.Kind() == reflect.Bool:
		if n.Type() != ast.BoolType {
			s.bad(n, field, "%.40s: write true or false", text)
		}
	case typ.Kind() == reflect.Slice || typ.Kind() == reflect.Struct:
		s.bad(n, field, "a single value is where %s is due", kindOf(typ))
	}
}

func kindOf(typ reflect.Type) string {
	switch typ.Kind() {
	case reflect.Struct:
		return "a mapping of settings"
	case reflect.Slice:
		return "a list, such as [a, b],"
	}
	return "a single value"
}
