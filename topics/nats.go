package topics

import "strings"

// fitsNATS reports whether nats-server accepts a topic name or filter of MQTT: a blank
// ends a subject, * and > are wildcards in it.
func fitsNATS(t string) bool { return !strings.ContainsAny(t, " \t\n\r\f\v*>\x7f") }

// NATSSubjects returns the subjects of topic filters, as nats-server maps those of its
// MQTT clients. A filter that has none is left out: it could match nothing.
func NATSSubjects(filters []string) []string {
	var list []string
	for _, f := range filters {
		if !ValidFilter(f) || !fitsNATS(f) {
			continue
		}
		list = append(list, natsSubject(f))
		if parent, ok := strings.CutSuffix(f, "/#"); ok && parent != "" { // a/# is also a
			list = append(list, natsSubject(parent))
		}
	}
	return list
}

// natsSubject maps levels to tokens, an empty one to a slash, a dot to two slashes.
func natsSubject(filter string) string {
	tokens := strings.Split(filter, "/")
	for i, t := range tokens {
		switch t {
		case "":
			tokens[i] = "/"
		case "+":
			tokens[i] = "*"
		case "#":
			tokens[i] = ">"
		default:
			tokens[i] = strings.ReplaceAll(t, ".", "//")
		}
	}
	return strings.Join(tokens, ".")
}
