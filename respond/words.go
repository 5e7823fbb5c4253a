package respond

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
)

// The news that channels are sent.
const (
	NewsOpened  = "opened"
	NewsChanged = "changed" // its severity rose, or it goes on after its snooze
	NewsFailed  = "failed"  // a mitigation failed: a person must act
	NewsDigest  = "digest"  // many at once
	NewsTest    = "test"
)

// subject is a notice in one line.
func subject(n api.Notice) string {
	switch {
	case n.Alert != nil:
		a := n.Alert
		what := map[string]string{NewsOpened: "", NewsChanged: "goes on: ", NewsFailed: "a person must act: "}[n.Kind]
		return fmt.Sprintf("[%s] %s%s", a.Severity, what, a.Summary)
	case n.Digest != nil:
		return fmt.Sprintf("[%s] %d more notices since %s", worst(n.Digest.BySeverity), n.Digest.Notices, n.Digest.Since.UTC().Format(time.RFC3339))
	}
	return "[test] this channel works"
}

// text is a notice as the text of a mail.
func text(n api.Notice) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	switch {
	case n.Alert != nil:
		alertText(line, n.Alert)
	case n.Digest != nil:
		g := n.Digest
		line("%d notices were gathered into this one, since %s.", g.Notices, g.Since.UTC().Format(time.RFC3339))
		line("")
		for _, rule := range slices.Sorted(maps.Keys(g.ByRule)) {
			line("%6d  %s", g.ByRule[rule], oneLine(rule))
		}
		line("")
		line("The list of alerts has them all.")
	default:
		line("An operator tried this channel. It works.")
	}
	line("")
	line("-- ")
	line("countersign on %s, %s", n.Host, n.ID)
	return b.String()
}

func alertText(line func(format string, args ...any), a *api.Alert) {
	line("%s", oneLine(a.Summary))
	line("")
	for _, f := range [][2]string{
		{"rule", a.Rule},
		{"severity", a.Severity},
		{"state", a.State},
		{"device", a.Device},
		{"fleet", a.Fleet},
		{"address", a.Remote},
		{"findings", fmt.Sprint(a.Count)},
		{"first", a.FirstSeen.Format(time.RFC3339)},
		{"last", a.LastSeen.Format(time.RFC3339)},
	} {
		if f[1] != "" {
			line("%-10s%s", f[0], oneLine(f[1]))
		}
	}
	if a.Why != "" {
		line("")
		line("Why it matters: %s", a.Why)
	}
	if a.Do != "" {
		line("What to do: %s", a.Do)
	}
	if len(a.Timeline) > 0 {
		line("")
		for _, l := range a.Timeline {
			line("%s  %s %s: %s", l.At.Format(time.RFC3339), l.Act, l.Outcome, oneLine(l.Text))
		}
	}
	line("")
	line("Alert %s has all evidence, and what can be done about it.", a.ID)
}

// oneLine keeps text of devices and people from making a header or line of its own.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// worst is the highest severity of a digest.
func worst(by map[string]int64) string {
	for _, s := range slices.Backward(countersign.Severities()) {
		if by[string(s)] > 0 {
			return string(s)
		}
	}
	return ""
}
