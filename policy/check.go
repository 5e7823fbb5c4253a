package policy

import (
	"maps"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// Test is a test in a document: acts of a client that it must allow and deny.
type Test struct {
	Name  string
	Line  int
	As    Subject
	Allow []Act
	Deny  []Act
}

// Act is an action on a topic, a filter, or with a client identifier.
type Act struct {
	Action Action
	Topic  string
	Line   int
}

func (a Act) String() string { return strings.TrimSpace(string(a.Action) + " " + a.Topic) }

// Failure is an act for which a test failed.
type Failure struct {
	Test     string
	Line     int // of the act
	Act      string
	Want     Effect
	Decision Decision
}

// RunTests runs the tests of the document and returns the failures.
func (p *Policy) RunTests() []Failure {
	var failed []Failure
	for _, t := range p.Tests {
		for _, acts := range []struct {
			want Effect
			list []Act
		}{{Allow, t.Allow}, {Deny, t.Deny}} {
			for _, a := range acts.list {
				if d := p.Explain(t.As, a.Action, a.Topic); d.Allowed != (acts.want == Allow) {
					failed = append(failed, Failure{t.Name, a.Line, a.String(), acts.want, d})
				}
			}
		}
	}
	return failed
}

// ParseAct reads an act as tests write it: "publish devices/pump-1/up/t", "connect"
// or "connect pump-1/a". problem is empty if it is valid.
func ParseAct(text string) (a Act, problem string) {
	action, topic, _ := strings.Cut(strings.TrimSpace(text), " ")
	a = Act{Action: Action(action), Topic: strings.TrimSpace(topic)}
	if a.Action == Connect {
		return a, ""
	}
	if !slices.Contains(topical[:], a.Action) {
		return a, "it begins with none of " + joined(append(topical[:], Connect))
	}
	if a.Topic == "" {
		return a, "a topic is missing"
	}
	return a, ""
}

func (r *reader) test(n ast.Node) Test {
	var t Test
	if at := n.GetToken(); at != nil && at.Position != nil {
		t.Line = at.Position.Line
	}
	r.fields(n, "a test", map[string]func(ast.Node){
		"name":  func(n ast.Node) { t.Name = r.short(n, "the name") },
		"as":    func(n ast.Node) { t.As = r.subject(n) },
		"allow": func(n ast.Node) { t.Allow = r.acts(n, "allow") },
		"deny":  func(n ast.Node) { t.Deny = r.acts(n, "deny") },
	})
	if len(r.problems) > 0 {
		return t
	}
	switch {
	case t.Name == "":
		r.fault(n, "a test has no name")
	case t.As.Kind == "":
		r.fault(n, "test %q has no client: write for example as: {device: pump-1}", t.Name)
	case len(t.Allow)+len(t.Deny) == 0:
		r.fault(n, "test %q has no acts: list them under allow or deny", t.Name)
	}
	return t
}

func (r *reader) acts(n ast.Node, what string) []Act {
	var list []Act
	for _, item := range r.items(n, what, maxActs) {
		faults := len(r.problems)
		text := r.text(item, "an act")
		if len(r.problems) > faults {
			continue
		}
		a, problem := ParseAct(text)
		if problem != "" {
			r.fault(item, "%.80q is not an act: %s", text, problem)
		}
		if at := item.GetToken(); at != nil && at.Position != nil {
			a.Line = at.Position.Line
		}
		list = append(list, a)
	}
	return list
}

// maxScope bounds the devices and the tags of a test's client.
const maxScope = 64

func (r *reader) subject(n ast.Node) Subject {
	var s Subject
	var names []string
	as := func(kind Kind, prefix string) func(ast.Node) {
		return func(n ast.Node) {
			name := r.short(n, "a name")
			names = append(names, name)
			s.Kind, s.Device = kind, prefix+name
		}
	}
	r.fields(n, "as", map[string]func(ast.Node){
		"device": as(Devices, ""),
		"guest":  as(Guests, "guest/"),
		"app":    as(Apps, "operator/"),
		"fleet":  func(n ast.Node) { s.Fleet = r.short(n, "the fleet") },
		"cn":     func(n ast.Node) { s.CN = r.text(n, "the common name") },
		"client": func(n ast.Node) { s.ClientID = r.text(n, "the client id") },
		"scope": func(n ast.Node) {
			for _, item := range r.items(n, "scope", maxScope) {
				s.Scope = append(s.Scope, r.short(item, "a device"))
			}
		},
		"tags": func(n ast.Node) {
			s.Tags = map[string]string{}
			r.fields(n, "tags", map[string]func(ast.Node){"*": func(n ast.Node) {
				if v, ok := n.(*ast.MappingValueNode); ok {
					s.Tags[r.text(v.Key, "a tag")] = r.text(v.Value, "the value of a tag")
				}
			}})
			if len(s.Tags) > maxScope {
				r.fault(n, "tags has more than %d entries", maxScope)
			}
		},
	})
	if len(names) != 1 && len(r.problems) == 0 {
		r.fault(n, "as must name one device, guest or app")
	}
	if s.ClientID == "" && len(names) > 0 {
		s.ClientID = names[0] // what the server assigns to a client that chose none
	}
	return s
}

// ParseSubject reads a client in the form of a test's as: {device: pump-1, tags:
// {site: north}}. The error is of type *ParseError.
func ParseSubject(text string) (s Subject, err error) {
	r := reader{}
	err = r.read([]byte(text), func(n ast.Node) { s = r.subject(n) })
	return s, err
}

// Change is how a statement of one document differs from that of another.
type Change struct {
	What  string // added, removed or changed
	ID    string
	Lines []string // each begins with + or -
}

// Diff compares two documents statement by statement. Order and form are ignored, since
// they do not affect decisions. Tests are not compared.
func Diff(from, to *Policy) []Change {
	a, b := from.byID(), to.byID()
	all := maps.Clone(a)
	maps.Copy(all, b)
	var changes []Change
	for _, id := range sortedKeys(all) {
		old, had := a[id]
		now, has := b[id]
		c := Change{What: "changed", ID: id}
		if !had {
			c.What = "added"
		} else if !has {
			c.What = "removed"
		}
		c.Lines = append(c.Lines, missing(old, now, "- ")...)
		c.Lines = append(c.Lines, missing(now, old, "+ ")...)
		if len(c.Lines) > 0 {
			changes = append(changes, c)
		}
	}
	return changes
}

// missing returns the lines of one statement that are not in the other.
func missing(list, other []string, mark string) []string {
	var lines []string
	for _, l := range list {
		if !slices.Contains(other, l) {
			lines = append(lines, mark+l)
		}
	}
	return lines
}

// byID returns each statement as lines, one for each of its properties.
func (p *Policy) byID() map[string][]string {
	all := map[string][]string{}
	for _, s := range p.Statements {
		lines := []string{"effect " + string(s.Effect)}
		for _, k := range s.For {
			lines = append(lines, "for "+string(k))
		}
		for _, a := range s.Actions {
			lines = append(lines, "action "+string(a))
		}
		for _, t := range s.Topics {
			lines = append(lines, "topic "+t.Text)
		}
		for _, c := range s.Clients {
			lines = append(lines, "client "+c.Text)
		}
		all[s.ID] = lines
	}
	return all
}
