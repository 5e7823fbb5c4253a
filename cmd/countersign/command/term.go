package command

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"
)

// printer writes for people, to one of the two outputs.
type printer struct {
	w     io.Writer
	color bool
	ascii bool
	width int // of the terminal, in characters; 0: tables are as wide as they are
}

func (env *Env) stdout() printer { return env.printer(env.Out) }
func (env *Env) stderr() printer { return env.printer(env.Err) }

func (env *Env) printer(w io.Writer) printer {
	p := printer{w: w, color: env.wantsColor(w), ascii: env.wantsASCII()}
	if f, ok := w.(*os.File); ok && !env.wide && isTerminal(w) {
		p.width, _, _ = term.GetSize(int(f.Fd())) // 0 where the terminal does not know
	}
	return p
}

// wantsColor follows the flag, then no-color.org, then bixense.com/clicolors.
func (env *Env) wantsColor(w io.Writer) bool {
	switch force := env.Getenv("CLICOLOR_FORCE"); {
	case env.color != "auto" && env.color != "":
		return env.color == "always"
	case env.Getenv("NO_COLOR") != "":
		return false
	case force != "" && force != "0":
		return true
	case env.Getenv("CLICOLOR") == "0" || env.Getenv("TERM") == "dumb":
		return false
	}
	return isTerminal(w)
}

// wantsASCII reports whether the locale says that it is not UTF-8. One that says
// nothing, as in a container, is taken for UTF-8.
func (env *Env) wantsASCII() bool {
	for _, k := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToUpper(env.Getenv(k)); v != "" {
			return !strings.Contains(v, "UTF-8") && !strings.Contains(v, "UTF8")
		}
	}
	return false
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func (p printer) paint(code, s string) string {
	if !p.color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p printer) red(s string) string    { return p.paint("31", s) }
func (p printer) green(s string) string  { return p.paint("32", s) }
func (p printer) yellow(s string) string { return p.paint("33", s) }

// linef writes one line. What it shows may come from strangers, so nothing in the
// arguments can move the cursor or change colors but what p itself put there.
func (p printer) linef(format string, args ...any) {
	_, _ = fmt.Fprintf(p.w, format+"\n", args...) // there is no other output for a failure of this one
}

// done prints one change of state.
func (p printer) done(format string, args ...any) {
	mark := "✓"
	if p.ascii {
		mark = "ok:"
	}
	p.linef("%s %s", p.green(mark), printable(fmt.Sprintf(format, args...)))
}

// next prints the command that follows.
func (p printer) next(format string, args ...any) {
	p.linef("  next: %s", printable(fmt.Sprintf(format, args...)))
}

// printable replaces what could drive a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar || unicode.Is(unicode.Cf, r) {
			return '?'
		}
		return r
	}, s)
}

// confirm asks before an act that hurts. It refuses if there is no terminal to ask on.
func (env *Env) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if env.noInput || !isTerminal(env.In) {
		return usagef("there is no terminal to ask on: %q Add --yes", question)
	}
	_, _ = fmt.Fprintf(env.Err, "%s [y/N] ", printable(question))
	line, err := bufio.NewReader(io.LimitReader(env.In, 100)).ReadString('\n')
	if answer := strings.ToLower(strings.TrimSpace(line)); err == nil && (answer == "y" || answer == "yes") {
		return nil
	}
	env.stderr().linef("Nothing was done.")
	return failed(exitFailed)
}

// span writes a length of time in its largest unit: 12s, 5m, 3h, 30d, 3y.
func span(d time.Duration) string {
	switch d = d.Abs(); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	if years := d.Hours() / 24 / 365; years >= 2 {
		return fmt.Sprintf("%dy", int(years))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// ago writes a past time as its distance; "never" for none.
func (env *Env) ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return span(env.Now().Sub(t)) + " ago"
}

// until writes a time to come as its distance, and one that has passed as such.
func (env *Env) until(t time.Time) string {
	switch left := t.Sub(env.Now()); {
	case t.IsZero():
		return ""
	case t.Year() == 9999: // RFC 5280, 4.1.2.5: no well-defined expiration
		return "never"
	case left < 0:
		return span(left) + " ago"
	default:
		return span(left)
	}
}

// colons writes hex in pairs, as people read serials and fingerprints.
func colons(hex string) string {
	var b strings.Builder
	for i := 0; i < len(hex); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(strings.ToUpper(hex[i:min(i+2, len(hex))]))
	}
	return b.String()
}

// short writes the start of a serial, which is enough to distinguish a few.
func short(hex string) string {
	if len(hex) <= 8 {
		return colons(hex)
	}
	return colons(hex[:8]) + ":..."
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// pairs writes what a map holds as one line, in the order of its keys.
func pairs(m map[string]string) string {
	set := maps.Clone(m)
	maps.DeleteFunc(set, func(_, v string) bool { return v == "" })
	return joined(set, " ")
}

// tagText writes tags as --tag accepts them.
func tagText(tags map[string]string) string { return joined(tags, ",") }

func joined(m map[string]string, sep string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, sep)
}

// octets writes a size in the largest binary unit of which it has one.
func octets(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

// clock writes a time of today without its date.
func (env *Env) clock(t time.Time) string {
	t, now := t.Local(), env.Now().Local()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}
