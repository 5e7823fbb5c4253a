package mqtt_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/countersign-iot/countersign/test/kit"
)

// page is docs/protocols/mqtt.md with the tests that it names.
type page struct {
	*testing.T
	text   string
	source string // of the tests
	cases  map[string]conformanceCase
	used   map[string]bool            // cases, with the version
	except map[string]map[string]bool // by version: statements among the departures, and whether a table says so
}

// TestConformanceTable holds the tables of docs/protocols/mqtt.md against the tests:
// each statement of the standards is there or is the client's, each test exists and
// is labeled with the statement, and what an engine lacks is said.
func TestConformanceTable(t *testing.T) {
	p := &page{T: t, cases: map[string]conformanceCase{}, used: map[string]bool{}, except: map[string]map[string]bool{"v3": {}, "v5": {}}}
	p.text = string(kit.Must(os.ReadFile("../docs/protocols/mqtt.md")))
	for _, name := range slices.Concat(kit.Must(filepath.Glob("*_test.go")), kit.Must(filepath.Glob("../broker/*_test.go"))) {
		p.source += string(kit.Must(os.ReadFile(name)))
	}
	for _, c := range conformanceCases {
		p.cases[c.name] = c
	}
	for _, cells := range p.rows("## Departures, by statement of the standard", 4) {
		for i, version := range []string{"v3", "v5"} {
			for id := range strings.FieldsSeq(strings.ReplaceAll(cells[i], ",", " ")) {
				p.except[version][id] = false
			}
		}
		p.tests("departure "+cells[0]+" "+cells[1], cells[3])
	}
	for _, cells := range p.rows("## Public suites", 3) {
		p.tests("case "+cells[0], cells[1])
	}
	p.statements("v3", "### Statements of MQTT 3.1.1")
	p.statements("v5", "### Statements of MQTT 5")
	for version, ids := range p.except {
		for id, said := range ids {
			if !said {
				t.Errorf("%s %s is among the departures, but the table does not say so", version, id)
			}
		}
	}
	for _, c := range conformanceCases {
		if c.v3 != "" && !p.used[c.name+"v3"] || c.v5 != "" && !p.used[c.name+"v5"] {
			t.Errorf("case %s shows nothing in the table", c.name)
		}
	}
}

func (p *page) section(heading string) string {
	_, section, ok := strings.Cut(p.text, heading+"\n")
	if !ok {
		p.Fatalf("docs/protocols/mqtt.md has no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n##")
	return section
}

// rows returns the rows of n cells of the tables in a section, without those of headings.
func (p *page) rows(heading string, n int) (rows [][]string) {
	for line := range strings.SplitSeq(p.section(heading), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != n+2 || !strings.ContainsAny(cells[1]+cells[2], "0123456789") || !strings.Contains(cells[n], "Test") && !strings.Contains(cells[2], "Test") {
			continue
		}
		cells = cells[1 : n+1]
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	if len(rows) == 0 {
		p.Errorf("section %q has no table with tests", heading)
	}
	return rows
}

// tests checks that there are the tests which a cell names, and returns the cases of
// TestConformance among them.
func (p *page) tests(what, cell string) (cases []conformanceCase) {
	for test := range strings.SplitSeq(cell, ", ") {
		test = strings.Trim(test, "`")
		name, isCase := strings.CutPrefix(test, "TestConformance/")
		c, ok := p.cases[name]
		switch {
		case isCase && ok:
			cases = append(cases, c)
		case isCase || !strings.Contains(p.source, "\nfunc "+test+"(t *testing.T) {"):
			p.Errorf("%s: there is no test %q", what, test)
		}
	}
	return cases
}

// statements checks the table of one version of the standard.
func (p *page) statements(version, heading string) {
	listed := map[string]bool{}
	for line := range strings.SplitSeq(p.section(heading), "\n") {
		if rest, ok := strings.CutPrefix(line, "The client's: "); ok {
			for id := range strings.FieldsSeq(strings.Trim(rest, ".")) {
				listed[strings.Trim(id, ",")] = true
			}
		}
	}
	for _, cells := range p.rows(heading, 6) {
		id, builtin, relayed := cells[0], cells[3], cells[4]
		if listed[id] {
			p.Errorf("%s %s is listed twice", version, id)
		}
		listed[id] = true
		_, excepted := p.except[version][id]
		if excepted {
			p.except[version][id] = true
		}
		if excepted != (builtin == "not always") {
			p.Errorf("%s %s: the table says %q, and the departures have it: %t", version, id, builtin, excepted)
		}
		for _, c := range p.tests(version+" "+id, cells[5]) {
			ids := c.v3
			if version == "v5" {
				ids = c.v5
			}
			if !slices.Contains(strings.Fields(ids), id) {
				p.Errorf("%s %s: case %q is not labeled with it", version, id, c.name)
			}
			if own, other := c.lacks == "builtin", c.lacks == "mosquitto"; own != (builtin == "no") || other != (relayed == "no") {
				p.Errorf("%s %s: the table says %s and %s, but %s lacks %q", version, id, builtin, relayed, c.name, c.lacks)
			}
			p.used[c.name+version] = true
		}
		if !slices.Contains([]string{"yes", "not always", "no"}, builtin) || relayed != "yes" && relayed != "no" {
			p.Errorf("%s %s: neither yes nor no: %q %q", version, id, builtin, relayed)
		}
	}
	for id := range strings.FieldsSeq(string(kit.Must(os.ReadFile("testdata/statements-" + version + ".txt")))) {
		if !listed[id] {
			p.Errorf("%s %s is in the standard and not in the table", version, id)
		}
		delete(listed, id)
	}
	for id := range listed {
		p.Errorf("%s %s is in the table and not in the standard", version, id)
	}
}
