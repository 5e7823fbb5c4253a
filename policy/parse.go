package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

const (
	// MaxSource bounds a document. The largest that AWS IoT accepts has 2 KiB.
	MaxSource = 64 << 10
	// maxStatements and maxTests bound the work on one document.
	maxStatements = 256
	maxTests      = 256
	// maxPatterns bounds the filters, and so the clients, of one statement.
	maxPatterns = 64
	// maxFilters bounds those of a whole document, and so what each session of the
	// fleet carries.
	maxFilters = 1024
	// maxActs bounds the acts of one test.
	maxActs = 64
	// maxProblems is how many are reported at once.
	maxProblems = 20
	// maxDepth is far more than any document of this language needs.
	maxDepth = 16
	// maxText bounds the ids, names and values of a document.
	maxText = 256
)

// Problem is an error in a document, with its place.
type Problem struct {
	Line, Column int // from 1; 0 where it is of the whole document
	Message      string
}

func (p Problem) String() string {
	if p.Line == 0 {
		return p.Message
	}
	return fmt.Sprintf("line %d, column %d: %s", p.Line, p.Column, p.Message)
}

// ParseError is why a document cannot be parsed, in the order of its lines.
type ParseError struct {
	Problems []Problem
}

func (e *ParseError) Error() string {
	text := e.Problems[0].String()
	if n := len(e.Problems) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more)", n)
	}
	return text
}

// Parse reads a document, YAML or JSON. What is unknown, repeated, or beyond the
// bounds of this package is an error, of type *ParseError. Its tests are not run: see
// RunTests.
func Parse(source []byte) (*Policy, error) {
	r := reader{}
	var p *Policy
	if err := r.read(source, func(n ast.Node) { p = r.document(n) }); err != nil {
		return nil, err
	}
	p.compile()
	return p, nil
}

// read parses one YAML document and passes it to take.
func (r *reader) read(source []byte, take func(ast.Node)) (err error) {
	defer func() {
		if recover() != nil { // the library dereferences nil on a few malformed texts
			err = whole("the YAML is malformed")
		}
	}()
	if len(source) > MaxSource {
		return whole(fmt.Sprintf("it has more than %d octets", MaxSource))
	}
	tokens := lexer.Tokenize(string(source))
	if tooDeep(tokens) {
		return whole(fmt.Sprintf("it is nested more than %d deep", maxDepth))
	}
	file, err := parser.Parse(tokens, 0)
	if err != nil {
		return &ParseError{[]Problem{syntax(err)}}
	}
	docs := slices.DeleteFunc(file.Docs, func(d *ast.DocumentNode) bool { return d.Body == nil })
	switch {
	case len(docs) == 0:
		return whole("it is empty: begin with the policy that is built in")
	case len(docs) > 1:
		return whole("it has more than one document")
	}
	take(docs[0].Body)
	if len(r.problems) > 0 {
		slices.SortStableFunc(r.problems, func(a, b Problem) int { return a.Line - b.Line })
		return &ParseError{r.problems}
	}
	return nil
}

// tooDeep reports whether lists are nested too deep, because the parser keeps the whole
// path of each: a hostile document of 64 KiB would cost seconds and gigabytes. Nesting
// by indentation is bounded by the size of the document.
func tooDeep(tokens token.Tokens) bool {
	flow, dashes, line := 0, 0, 0
	for _, t := range tokens {
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow--
		case token.SequenceEntryType:
			if t.Position.Line != line {
				dashes, line = 0, t.Position.Line
			}
			dashes++
		}
		if flow > maxDepth || dashes > maxDepth {
			return true
		}
	}
	return false
}

func whole(message string) error { return &ParseError{[]Problem{{Message: message}}} }

// syntax finds the place in an error of the library.
func syntax(err error) Problem {
	var e yaml.Error
	if !errors.As(err, &e) || e.GetToken() == nil || e.GetToken().Position == nil {
		return Problem{Message: "the YAML is malformed"}
	}
	at := e.GetToken().Position
	return Problem{at.Line, at.Column, e.GetMessage()}
}

// reader walks the tree and collects the problems.
type reader struct {
	problems []Problem
	filters  int
}

func (r *reader) fault(n ast.Node, format string, args ...any) {
	if len(r.problems) >= maxProblems {
		return
	}
	p := Problem{Message: fmt.Sprintf(format, args...)}
	if n != nil && n.GetToken() != nil && n.GetToken().Position != nil {
		p.Line, p.Column = n.GetToken().Position.Line, n.GetToken().Position.Column
	}
	r.problems = append(r.problems, p)
}

// fields reads a mapping: each key is read by its function.
func (r *reader) fields(n ast.Node, what string, take map[string]func(ast.Node)) {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		r.fault(n, "%s must be a mapping of names to values", what)
		return
	}
	seen := map[string]bool{}
	for _, v := range values {
		key := r.text(v.Key, "a name")
		set := take[key]
		switch {
		case key == "":
		case seen[key]:
			r.fault(v.Key, "%s is here twice", key)
		case set == nil && take["*"] != nil:
			take["*"](v)
		case set == nil:
			r.fault(v.Key, "%s has no %.40q: there are %s", what, key, strings.Join(sortedKeys(take), ", "))
		default:
			set(v.Value)
		}
		seen[key] = true
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// items returns the entries of a list with at most limit of them.
func (r *reader) items(n ast.Node, what string, limit int) []ast.Node {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		r.fault(n, "%s must be a list", what)
		return nil
	}
	if len(seq.Values) > limit {
		r.fault(n, "%s has more than %d entries", what, limit)
		return nil
	}
	return seq.Values
}

// text reads a string. A value that YAML reads as a number or a boolean must be quoted,
// because it is not clear what was meant.
func (r *reader) text(n ast.Node, what string) string {
	var v string
	switch s := n.(type) {
	case *ast.StringNode:
		v = s.Value
	case *ast.LiteralNode:
		v = s.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		r.fault(n, "%s must be a string: put quotes around it", what)
		return ""
	default:
		r.fault(n, "%s must be a string", what)
		return ""
	}
	if len(v) > max(maxText, maxPattern+len("subscribe ")) {
		r.fault(n, "%s is too long", what)
		return ""
	}
	return v
}

func (r *reader) short(n ast.Node, what string) string {
	v := r.text(n, what)
	if len(v) > maxText || strings.ContainsAny(v, "\n\r\x00") {
		r.fault(n, "%s must be one line of at most %d octets", what, maxText)
		return ""
	}
	return v
}

func (r *reader) document(n ast.Node) *Policy {
	p := &Policy{}
	r.fields(n, "a policy", map[string]func(ast.Node){
		"statements": func(n ast.Node) {
			ids := map[string]int{}
			for _, item := range r.items(n, "statements", maxStatements) {
				s := r.statement(item)
				if first := ids[s.ID]; first > 0 && s.ID != "" {
					r.fault(item, "the id %q is that of the statement in line %d", s.ID, first)
				}
				ids[s.ID] = s.Line
				p.Statements = append(p.Statements, s)
			}
		},
		"tests": func(n ast.Node) {
			for _, item := range r.items(n, "tests", maxTests) {
				p.Tests = append(p.Tests, r.test(item))
			}
		},
	})
	if len(p.Statements) == 0 && len(r.problems) == 0 {
		r.fault(n, "there are no statements")
	}
	if r.filters > maxFilters {
		r.fault(n, "there are more than %d topics and clients in all", maxFilters)
	}
	return p
}

func (r *reader) statement(n ast.Node) Statement {
	s := Statement{For: []Kind{Devices}}
	if at := n.GetToken(); at != nil && at.Position != nil {
		s.Line = at.Position.Line
	}
	r.fields(n, "a statement", map[string]func(ast.Node){
		"id": func(n ast.Node) {
			if s.ID = r.short(n, "the id"); s.ID != "" && strings.ContainsFunc(s.ID, notInID) || len(s.ID) > maxID {
				r.fault(n, "the id must be 1 to %d of A-Z a-z 0-9 . _ : -", maxID)
			}
			if at := n.GetToken(); at != nil && at.Position != nil {
				s.Line = at.Position.Line
			}
		},
		"effect":  func(n ast.Node) { s.Effect = oneOf(r, n, "effect", Allow, Deny) },
		"for":     func(n ast.Node) { s.For = someOf(r, n, "for", kinds...) },
		"actions": func(n ast.Node) { s.Actions = someOf(r, n, "actions", append(topical[:], Connect)...) },
		"topics":  func(n ast.Node) { s.Topics = r.patterns(n, "topics", parseFilter) },
		"clients": func(n ast.Node) { s.Clients = r.patterns(n, "clients", parsePattern) },
	})
	if len(r.problems) > 0 {
		return s
	}
	connects := slices.Contains(s.Actions, Connect)
	acts := len(s.Actions) > 1 || !connects
	switch {
	case s.ID == "":
		r.fault(n, "a statement has no id: explanations and comparisons name it by that")
	case s.Effect == "":
		r.fault(n, "statement %s has no effect: allow or deny", s.ID)
	case len(s.Actions) == 0:
		r.fault(n, "statement %s has no actions", s.ID)
	case len(s.For) == 0:
		r.fault(n, "statement %s is for no kind of client", s.ID)
	case acts && len(s.Topics) == 0:
		r.fault(n, "statement %s has no topics", s.ID)
	case !acts && len(s.Topics) > 0:
		r.fault(n, "statement %s has topics, but connect alone is about none: write clients", s.ID)
	case !connects && len(s.Clients) > 0:
		r.fault(n, "statement %s has clients, which only connect is about", s.ID)
	}
	return s
}

// maxID bounds the id of a statement.
const maxID = 64

func notInID(c rune) bool {
	return (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && !strings.ContainsRune("._:-", c)
}

func (r *reader) patterns(n ast.Node, what string, parse func(string) (Pattern, string)) []Pattern {
	list := []Pattern{}
	faults := len(r.problems)
	items := r.items(n, what, maxPatterns)
	if len(items) == 0 && len(r.problems) == faults {
		r.fault(n, "%s is empty: leave it out, or list what is meant", what) // it could mean none or any
	}
	for _, item := range items {
		r.filters++
		faults := len(r.problems)
		text := r.text(item, "an entry of "+what)
		if len(r.problems) > faults {
			continue
		}
		p, problem := parse(text)
		if problem != "" {
			r.fault(item, "%.80q: %s", text, problem)
			continue
		}
		if at := item.GetToken(); at != nil && at.Position != nil {
			p.Line, p.Column = at.Position.Line, at.Position.Column
		}
		list = append(list, p)
	}
	return list
}

func oneOf[T ~string](r *reader, n ast.Node, what string, choices ...T) T {
	v := T(r.short(n, what))
	if v != "" && !slices.Contains(choices, v) {
		r.fault(n, "%s is not %.40q: there are %s", what, string(v), joined(choices))
		return ""
	}
	return v
}

func someOf[T ~string](r *reader, n ast.Node, what string, choices ...T) []T {
	list := []T{}
	for _, item := range r.items(n, what, len(choices)) {
		v := oneOf(r, item, what, choices...)
		if slices.Contains(list, v) {
			r.fault(item, "%s is here twice", string(v))
		}
		list = append(list, v)
	}
	return list
}

func joined[T ~string](list []T) string {
	text := make([]string, len(list))
	for i, v := range list {
		text[i] = string(v)
	}
	return strings.Join(text, ", ")
}
