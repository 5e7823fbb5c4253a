package audit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/event"
)

const (
	// maxFindings is how many findings of one check are kept; all are counted. More
	// than a person reads, and few enough that a fleet of a million expired
	// certificates costs a megabyte.
	maxFindings = 1000
	// maxGroups bounds how many subjects of one check are distinguished when its
	// findings are handed on; those of further ones are of the server.
	maxGroups = 200
	// maxExamples is how many subjects a finding about many of them names.
	maxExamples = 5
)

// work is a run that is being carried out. One goroutine looks; another records how
// far it is.
type work struct {
	*Auditor
	run          Run
	now          time.Time
	fleets       map[string]countersign.Rules
	expiring     map[string]countersign.Span // by authority, the longest warning that a fleet of it wants
	suppressions []Suppression
	log          event.Report // as far as it is known

	mu     sync.Mutex
	checks map[string]*tally // those that were asked for
}

// tally is what a check has come to so far.
type tally struct {
	Result
	findings []Finding // those that are kept, until they are written
	groups   map[string]*countersign.Finding
	counts   map[string]int64 // by group
}

// wants reports whether the check was asked for.
func (w *work) wants(check string) bool { return w.checks[check] != nil }

// looked counts rows that checks looked at.
func (w *work) looked(n int64, checks ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range checks {
		if t := w.checks[name]; t != nil {
			t.Looked += n
		}
	}
}

// report records a finding. Its id, run, time and severity, if it has none of
// its own, are filled in here.
func (w *work) report(check string, f Finding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.checks[check]
	if t == nil {
		return
	}
	f.Run, f.Check, f.At = w.run.ID, check, w.now
	f.Severity = cmp.Or(f.Severity, catalog()[check].Severity)
	f.Suppressed = suppressedBy(w.suppressions, f)
	if f.Suppressed != "" {
		t.Suppressed++
	} else {
		t.NonCompliant++
		if f.Severity.Rank() > t.Severity.Rank() {
			t.Severity = f.Severity
		}
		t.group(f)
	}
	if t.Kept < maxFindings {
		t.Kept++
		f.ID = fmt.Sprintf("%s-%s-%04d", f.Run, strings.ToLower(check), t.Kept)
		t.findings = append(t.findings, f)
	}
}

// found reports a finding; nil is none.
func (w *work) found(check string, f *Finding) {
	if f != nil {
		w.report(check, *f)
	}
}

// group adds a finding to those that are handed on: one for each fleet, so that ten
// thousand devices with one fault are one alert. It names no device: no one must
// suspend ten thousand of them for it.
func (t *tally) group(f Finding) {
	subject := f.Subject
	if f.Fleet != "" {
		subject = "fleet:" + f.Fleet
	}
	if t.groups == nil {
		t.groups, t.counts = map[string]*countersign.Finding{}, map[string]int64{}
	}
	g := t.groups[subject]
	if g == nil && len(t.groups) >= maxGroups {
		subject = "server"
		g = t.groups[subject]
	}
	if g == nil {
		g = &countersign.Finding{
			Rule: f.Check, Severity: f.Severity, At: f.At, Subject: subject, Fleet: f.Fleet, Summary: f.Summary,
			Evidence: map[string]string{"run": f.Run, "reason_code": f.Reason, "examples": f.Subject},
		}
		t.groups[subject] = g
	} else if t.counts[subject] < maxExamples {
		g.Evidence["examples"] += ", " + f.Subject
	}
	if f.Severity.Rank() > g.Severity.Rank() {
		g.Severity, g.Summary, g.Evidence["reason_code"] = f.Severity, f.Summary, f.Reason
	}
	t.counts[subject]++
}

// handedOn returns the findings of finished checks, for Handle.
func (w *work) handedOn() (list []countersign.Finding) {
	for _, name := range slices.Sorted(maps.Keys(w.checks)) {
		t := w.checks[name]
		if t.Status != NonCompliant {
			continue
		}
		for _, subject := range slices.Sorted(maps.Keys(t.groups)) {
			g := *t.groups[subject]
			if n := t.counts[subject]; n > 1 {
				g.Summary = fmt.Sprintf("%d findings of %s, such as: %s", n, g.Subject, g.Summary)
			}
			g.Evidence["count"] = strconv.FormatInt(t.counts[subject], 10)
			list = append(list, g)
		}
	}
	return list
}

func (w *work) set(names []string, change func(*tally)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, name := range names {
		change(w.checks[name])
	}
}
