package detect

import (
	_ "embed"
	"iter"
	"strings"

	"github.com/countersign-iot/countersign"
)

//go:embed rules.txt
var text string // read by Rules

// Entries parses a catalog and returns its entries: blocks of lines, separated by an empty
// line. The first line is the name of a rule, the others are "field: value". Lines that
// begin with # are comments. The fields title, severity, unproven, default, why and do are
// set in the rule; the map has all fields.
func Entries(text string) iter.Seq2[countersign.Rule, map[string]string] {
	return func(yield func(countersign.Rule, map[string]string) bool) {
		for block := range strings.SplitSeq(text, "\n\n") {
			var r countersign.Rule
			fields := map[string]string{}
			for line := range strings.Lines(block) {
				if field, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
					fields[field] = value
				} else if !strings.HasPrefix(line, "#") {
					r.Name = field
				}
			}
			if r.Name == "" {
				continue
			}
			r.Title, r.Why, r.Do = fields["title"], fields["why"], fields["do"]
			r.Severity, r.Unproven = countersign.Severity(fields["severity"]), fields["unproven"] == "yes"
			if what := fields["default"]; what != "" {
				r.Default = []countersign.Mitigation{countersign.Mitigation(what)}
			}
			if !yield(r, fields) {
				return
			}
		}
	}
}
