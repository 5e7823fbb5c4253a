package detect

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign"
)

var update = flag.Bool("update", false, "write the catalog into docs/detect.md")

const (
	docsPath = "../docs/detect.md"
	docsMark = "\n## The rules\n"
)

// render returns the catalog in the form of its page.
func render() string {
	var b strings.Builder
	b.WriteString(docsMark + "\n| rule | severity | window | threshold | again after | default |\n|---|---|---|---|---|---|\n")
	for _, r := range Rules() {
		window, again := "each event", "each time"
		if r.Window > 0 {
			window = span(r.Window)
		}
		if r.Again > 0 {
			again = span(r.Again)
		}
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s | %s | %d | %s | %s |\n", r.Name, r.Name, r.Severity, window, r.Threshold, again, acts(r.Default))
	}
	for _, r := range Rules() {
		fmt.Fprintf(&b, "\n### %s\n\n**%s.**\n\n", r.Name, r.Title)
		for _, p := range []struct{ what, text string }{
			{"What it sees", r.Sees}, {"Why it matters", r.Why}, {"What to do", r.Do}, {"When it is wrong", r.FalsePositives},
		} {
			fmt.Fprintf(&b, "- *%s:* %s\n", p.what, p.text)
		}
	}
	return b.String()
}

func acts(list []countersign.Mitigation) string {
	var words []string
	for _, m := range list {
		words = append(words, string(m))
	}
	return strings.Join(words, ", ")
}

// TestPageAgreesWithTheCatalog compares docs/detect.md with the numbers and texts of the
// program. To update the page: go test ./detect -run Page -update
func TestPageAgreesWithTheCatalog(t *testing.T) {
	b, err := os.ReadFile(docsPath)
	if err != nil {
		t.Fatal(err)
	}
	text, rules, found := strings.Cut(string(b), docsMark)
	if !found {
		t.Fatalf("%s has no heading %q", docsPath, strings.TrimSpace(docsMark))
	}
	if *update {
		if err := os.WriteFile(docsPath, []byte(text+render()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if docsMark+rules != render() {
		t.Errorf("%s does not agree with the catalog: update it with: go test ./detect -run Page -update", docsPath)
	}
	for _, fact := range []string{
		span(memory), fmt.Sprint(maxReplay / 1000), fmt.Sprint(massAfter), span(massWindow), fmt.Sprint(maxDevices / 1000), fmt.Sprint(maxSources / 1000),
		fmt.Sprint(steadyDevices), fmt.Sprint(steadyDays, " days"),
	} {
		if !strings.Contains(text, strings.TrimSpace(fact)) {
			t.Errorf("%s does not say %q", docsPath, fact)
		}
	}
}
