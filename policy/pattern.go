package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/countersign-iot/countersign/topics"
)

const (
	// maxPattern bounds a filter as it is written. AWS IoT takes topics of 256
	// octets, and a common name alone may have 64.
	maxPattern = 1024
	// maxVariables bounds the variables in one, and so the length of what it
	// becomes: 9 KiB, where MQTT takes 64.
	maxVariables = 8
	// maxValue is the longest value that substitutes.
	maxValue = 1024
)

// variable is a place that the client fills.
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

// value is what the variable stands for, and whether it may be substituted. device
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
	case s.Kind != Devices: // the rest is of a device, and this is none
	case v.name == "device.id":
		text = s.Device
	case v.name == "cert.subject.cn":
		text = s.CN
	}
	return text, fits(text)
}

// fits reports whether a value may stand in a filter or a pattern: never one that
// would mean more there than itself, or nothing.
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
		return p, "write the filter without $share/<name>/: shared subscriptions are held against it all the same"
	case strings.HasPrefix(sample, "$"):
		return p, "topics that begin with $ are the broker's own, nobody may use them"
	case !topics.ValidFilter(sample):
		return p, "it is no topic filter: + and # stand for whole levels, and # is the last"
	}
	p.wide = p.widest()
	return p, ""
}

// widest is the filter of all topics that the pattern can come to mean.
func (p *Pattern) widest() string {
	levels := strings.Split(strings.Join(p.lits, "\x00"), "/")
	for i, level := range levels {
		if strings.Contains(level, "\x00") {
			levels[i] = "+"
		}
	}
	return strings.Join(levels, "/")
}

// each reports whether the pattern is one for each device of an app's scope.
func (p *Pattern) each() bool {
	return slices.ContainsFunc(p.vars, func(v variable) bool { return v.name == "device" })
}

// devices are those for which the pattern is expanded.
func (p *Pattern) devices(s *Subject) []string {
	if p.each() {
		if s.Kind != Apps {
			return none
		}
		return s.Scope
	}
	return none
}

// none stands for no device: a pattern that names none is expanded once.
var none = []string{""}

// fill substitutes the variables. ok is false where one has no value that may
// stand there; text is then what comes before it.
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

// filters are the topic filters that the pattern comes to. Where a variable has no
// value that fits, to allow it allows nothing, and to deny it denies all that the
// filter could have meant: everything from the level of the variable on.
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

// clients are the patterns of client identifiers that it comes to, in the same way.
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

// matchClient matches a client identifier: * stands for any text, ? for one octet.
func matchClient(pattern, id string) bool {
	p, i := 0, 0
	star, from := -1, 0 // where the last * stands, and what it has taken up to
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
