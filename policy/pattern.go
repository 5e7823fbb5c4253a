package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/countersign-iot/countersign/topics"
)

const (
	// maxPattern bounds a filter as written. AWS IoT accepts topics of 256
	// octets, and a common name alone may have 64.
	maxPattern = 1024
	// maxVariables bounds the variables in one, and so the length of its expansion:
	// 9 KiB, where MQTT allows 64.
	maxVariables = 8
	// maxValue is the longest value that substitutes.
	maxValue = 1024
)

// variable is a place where a value of the client is substituted.
type variable struct {
	name string
	tag  string // of device.tags.<tag>
}

const tagPrefix = "device.tags."

// variables and the kinds of client that have a value for them.
var variables = map[string][]Kind{
	"device.id":       {Devices},
	"device.fleet":    {Devices, Guests, Apps},
	"cert.subject.cn": {Devices},
	"client.id":       {Devices, Guests, Apps},
	"device":          {Apps},
}

// kinds lists the kinds of client that can have a value.
func (v variable) kinds() []Kind {
	if v.tag != "" {
		return []Kind{Devices}
	}
	return variables[v.name]
}

// value returns the value of the variable, and whether it may be substituted. device
// is one of an app's scope.
func (v variable) value(s *Subject, device string) (string, bool) {
	var text string
	switch {
	case v.tag != "":
		text = s.Tags[v.tag]
	case v.name == "device.fleet":
		text = s.Fleet
	case v.name == "client.id":
		text = s.ClientID
	case v.name == "device":
		text = device
	case s.Kind != Devices: // the others are of a device, and this is not one
	case v.name == "device.id":
		text = s.Device
	case v.name == "cert.subject.cn":
		text = s.CN
	}
	return text, fits(text)
}

// fits reports whether a value may be substituted in a filter or a pattern: it must not
// be empty or have a character with a meaning there.
func fits(value string) bool {
	return value != "" && len(value) <= maxValue && !strings.ContainsAny(value, "+#/$*?\x00") && utf8.ValidString(value)
}

// parsePattern finds the variables in text.
func parsePattern(text string) (p Pattern, problem string) {
	p.Text = text
	switch {
	case text == "":
		return p, "it is empty"
	case len(text) > maxPattern:
		return p, fmt.Sprintf("it has more than %d octets", maxPattern)
	case !utf8.ValidString(text) || strings.ContainsRune(text, 0):
		return p, "it is not UTF-8 without NUL"
	}
	rest := text
	for {
		before, after, found := strings.Cut(rest, "${")
		p.lits = append(p.lits, before)
		if !found {
			return p, ""
		}
		name, more, closed := strings.Cut(after, "}")
		if !closed {
			return p, "a variable that begins with ${ has no }"
		}
		v := variable{name: name}
		tag, ofTags := strings.CutPrefix(name, tagPrefix)
		if ofTags {
			v.tag = tag
		}
		if _, known := variables[name]; !known && v.tag == "" {
			return p, fmt.Sprintf("there is no variable ${%.80s}: use device.id, device.fleet, device.tags.<tag>, cert.subject.cn, client.id, or device for apps", name)
		}
		if p.vars = append(p.vars, v); len(p.vars) > maxVariables {
			return p, fmt.Sprintf("it has more than %d variables", maxVariables)
		}
		rest = more
	}
}

// parseFilter is parsePattern for a topic filter.
func parseFilter(text string) (p Pattern, problem string) {
	p, problem = parsePattern(text)
	if problem != "" {
		return p, problem
	}
	sample := strings.Join(p.lits, "x") // no value has a wildcard or a slash
	switch _, shared, _ := topics.Shared(sample); {
	case shared:
		return p, "write the filter without $share/<name>/: it applies to shared subscriptions too"
	case strings.HasPrefix(sample, "$"):
		return p, "topics that begin with $ are the broker's own and cannot be allowed"
	case !topics.ValidFilter(sample):
		return p, "it is not a topic filter: + and # must be whole levels, and # the last one"
	}
	p.wide = p.widest()
	return p, ""
}

// widest returns the filter of all topics that the pattern can match.
func (p *Pattern) widest() string {
	levels := strings.Split(strings.Join(p.lits, "\x00"), "/")
	for i, level := range levels {
		if strings.Contains(level, "\x00") {
			levels[i] = "+"
		}
	}
	return strings.Join(levels, "/")
}

// each reports whether the pattern is expanded for each device of an app's scope.
func (p *Pattern) each() bool {
	return slices.ContainsFunc(p.vars, func(v variable) bool { return v.name == "device" })
}

// devices returns those for which the pattern is expanded.
func (p *Pattern) devices(s *Subject) []string {
	if p.each() {
		if s.Kind != Apps {
			return none
		}
		return s.Scope
	}
	return none
}

// none means no device: a pattern that names none is expanded once.
var none = []string{""}

// fill substitutes the variables. ok is false if one has no value that may be
// substituted; text is then what comes before it.
func (p *Pattern) fill(s *Subject, device string) (text string, ok bool) {
	if len(p.vars) == 0 {
		return p.Text, true
	}
	var room [2*maxVariables + 1]string
	parts := append(room[:0], p.lits[0])
	for i, v := range p.vars {
		value, fit := v.value(s, device)
		if !fit {
			return strings.Join(parts, ""), false
		}
		parts = append(parts, value, p.lits[i+1])
	}
	return strings.Join(parts, ""), true
}

// filters returns the topic filters that the pattern expands to. If a variable has no
// value that fits, allow allows nothing, and deny denies all that the filter could have
// matched: everything from the level of the variable on.
func (p *Pattern) filters(to []string, s *Subject, effect Effect) []string {
	for _, device := range p.devices(s) {
		text, ok := p.fill(s, device)
		if !ok && effect == Allow {
			continue
		}
		if !ok {
			text = text[:strings.LastIndexByte(text, '/')+1] + "#"
		}
		to = append(to, text)
	}
	return to
}

// clients returns the patterns of client identifiers that it expands to, in the same way.
func (p *Pattern) clients(to []string, s *Subject, effect Effect) []string {
	for _, device := range p.devices(s) {
		text, ok := p.fill(s, device)
		if !ok && effect == Allow {
			continue
		}
		if !ok {
			text += "*"
		}
		to = append(to, text)
	}
	return to
}

// matchClient matches a client identifier: * matches any text, ? one octet.
func matchClient(pattern, id string) bool {
	p, i := 0, 0
	star, from := -1, 0 // place of the last *, and how far it has matched
	for i < len(id) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == id[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
