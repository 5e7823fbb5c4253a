// Package topics implements MQTT topic names and filters: validation, which filter
// covers which, and the evaluation of lists that allow and deny.
package topics

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// maxLevels bounds the work on one topic. Brokers allow 128 to 200.
const maxLevels = 128

// ValidName checks a topic name (MQTT 5, 4.7.1 and 4.7.3).
func ValidName(t string) bool {
	return validString(t) && !strings.ContainsAny(t, "+#")
}

// ValidFilter checks a topic filter (MQTT 5, 4.7.1). The filter of a shared
// subscription is checked with Shared first.
func ValidFilter(f string) bool {
	if !validString(f) {
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

func validString(t string) bool {
	return t != "" && len(t) <= 65535 && utf8.ValidString(t) &&
		strings.IndexByte(t, 0) < 0 && strings.Count(t, "/") < maxLevels
}

// Shared splits $share/<name>/<filter> (MQTT 5, 4.8.2). shared reports whether f
// has that form, ok whether it is well formed.
func Shared(f string) (inner string, shared, ok bool) {
	rest, shared := strings.CutPrefix(f, "$share/")
	if !shared {
		return f, false, true
	}
	name, inner, found := strings.Cut(rest, "/")
	return inner, true, found && name != "" && !strings.ContainsAny(name, "+#") && inner != ""
}

// Covers reports whether every topic that matches sub also matches filter. A topic
// name is the filter of itself. Topics that start with $ are covered by a filter
// that starts with the same level only (MQTT 5, 4.7.2).
func Covers(filter, sub string) bool {
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

// Overlap reports whether there is a topic that matches both filters.
func Overlap(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	if (a[0] == '$') != (b[0] == '$') {
		return false // a leading wildcard matches no $ topic
	}
	for {
		x, xrest, xmore := strings.Cut(a, "/")
		y, yrest, ymore := strings.Cut(b, "/")
		if x == "#" || y == "#" {
			return true
		}
		if x != "+" && y != "+" && x != y {
			return false
		}
		switch {
		case xmore && ymore:
			a, b = xrest, yrest
		case xmore: // a/# matches a too
			return xrest == "#"
		case ymore:
			return yrest == "#"
		default:
			return true
		}
	}
}

// Allowed reports whether sub, a topic name or filter, is covered by one of allow
// and overlaps none of deny: a subscription that is partly denied is denied.
func Allowed(allow, deny []string, sub string) bool {
	return slices.ContainsFunc(allow, func(f string) bool { return Covers(f, sub) }) &&
		!slices.ContainsFunc(deny, func(f string) bool { return Overlap(f, sub) })
}
