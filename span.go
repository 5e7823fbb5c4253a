package countersign

import (
	"fmt"
	"strings"
	"time"
)

// Span is a time.Duration whose text form may use days and weeks: 36h, 7d, 1w2d.
type Span time.Duration

// The units that ParseSpan accepts beside those of time.ParseDuration. A day is 24
// hours and a week is 7 days, also where a clock change makes a day longer or shorter.
const (
	day  = 24 * time.Hour
	week = 7 * day
)

// maxSpanText bounds what is parsed: the longest span that fits needs some 60
// characters.
const maxSpanText = 100

// ParseSpan parses a duration as time.ParseDuration does and accepts the units d and
// w too. It is the one parser of durations for configuration, rules and commands, so
// that 7d means the same everywhere. An error names the value and what to write.
func ParseSpan(s string) (time.Duration, error) {
	bad := func(why string) error {
		return Errorf(BadRequest, "%.40q is not a duration: %s", s, why).WithNext("write a number with a unit, such as 90s, 15m, 24h, 7d or 2w")
	}
	rest, negative := strings.CutPrefix(s, "-")
	if rest == "" || len(s) > maxSpanText {
		return 0, bad("write a number with a unit, such as 24h or 7d")
	}
	if rest == "0" {
		return 0, nil
	}
	var sum time.Duration
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789."))
		letters := len(rest) - digits - len(strings.TrimLeft(rest[digits:], "abcdefghijklmnopqrstuvwxyzµμ"))
		number, unit := rest[:digits], rest[digits:digits+letters]
		rest = rest[digits+letters:]
		if digits == 0 {
			return 0, bad("write a number with a unit, such as 24h or 7d")
		}
		if unit == "" {
			return 0, bad(fmt.Sprintf("write a unit, such as %[1]sh or %[1]sd", number))
		}
		part, err := parsePart(number, unit)
		if err != nil {
			return 0, bad("the units are ns, us, ms, s, m, h, d and w, and the longest is 292 years")
		}
		if sum += part; sum < 0 {
			return 0, bad("it is longer than 292 years")
		}
	}
	if negative {
		sum = -sum
	}
	return sum, nil
}

// parsePart parses one number with its unit.
func parsePart(number, unit string) (time.Duration, error) {
	times := time.Duration(1)
	switch unit {
	case "d":
		unit, times = "h", day/time.Hour
	case "w":
		unit, times = "h", week/time.Hour
	}
	d, err := time.ParseDuration(number + unit)
	if err == nil && d*times/times != d {
		err = fmt.Errorf("%s%s overflows", number, unit)
	}
	return d * times, err
}

func (d Span) String() string { return time.Duration(d).String() }

// MarshalText writes the duration as Go does, which every reader of it accepts.
func (d Span) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what ParseSpan accepts.
func (d *Span) UnmarshalText(b []byte) error {
	v, err := ParseSpan(string(b))
	*d = Span(v)
	return err
}
