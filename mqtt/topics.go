package mqtt

import (
	"strings"
	"unicode/utf8"
)

// maxTopicLevels bounds the work on one topic. Engines allow 128 to 200.
const maxTopicLevels = 128

// validTopic checks a topic name (MQTT 5, 4.7.1 and 4.7.3).
func validTopic(t string) bool {
	return validTopicString(t) && !strings.ContainsAny(t, "+#")
}

// validFilter checks a topic filter (MQTT 5, 4.7.1). The filter of a shared
// subscription is checked with sharedFilter first.
func validFilter(f string) bool {
	if !validTopicString(f) {
		return false
	}
	for rest, more := f, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if level == "#" && more {
			return false
		}
		if len(level) > 1 && strings.ContainsAny(level, "+#") {
			return false
		}
	}
	return true
}

func validTopicString(t string) bool {
	return t != "" && len(t) <= 65535 && utf8.ValidString(t) &&
		strings.IndexByte(t, 0) < 0 && strings.Count(t, "/") < maxTopicLevels
}

// sharedFilter takes $share/<name>/<filter> apart (MQTT 5, 4.8.2). shared tells
// whether f is meant as one, ok whether it is well formed.
func sharedFilter(f string) (inner string, shared, ok bool) {
	rest, shared := strings.CutPrefix(f, "$share/")
	if !shared {
		return f, false, true
	}
	name, inner, found := strings.Cut(rest, "/")
	return inner, true, found && name != "" && !strings.ContainsAny(name, "+#") && inner != ""
}

// covers tells whether every topic that matches sub also matches filter. A topic
// name is the filter of itself. Topics that start with $ are covered by a filter
// that starts with the same level only (MQTT 5, 4.7.2).
func covers(filter, sub string) bool {
	if filter == "" || sub == "" {
		return false
	}
	if sub[0] == '$' && filter[0] != '$' {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		s, srest, smore := strings.Cut(sub, "/")
		if s == "#" || f != "+" && f != s {
			return false
		}
		switch {
		case fmore && smore:
			filter, sub = frest, srest
		case fmore: // a/# matches a too
			return frest == "#"
		default:
			return !smore
		}
	}
}

// permits tells whether one of the filters covers sub.
func permits(filters []string, sub string) bool {
	for _, f := range filters {
		if covers(f, sub) {
			return true
		}
	}
	return false
}
