package respond

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/countersign-iot/countersign"
	"github.com/countersign-iot/countersign/api"
	"github.com/countersign-iot/countersign/config"
)

const (
	// facility is log audit (RFC 5424, 6.2.1).
	facility = 13
	// maxSyslog is what every receiver over TLS accepts (RFC 5425, 4.3.1: 2048 octets,
	// 8192 where it can); words are cut to stay within.
	maxSyslog = 2048
	// dataID names our structured data. 32473 is the number that RFC 5612 sets aside for
	// those who have none of their own.
	dataID = "countersign@32473"
	// lingerTime is how long the other side may take to close after our close_notify.
	// Syslog has no answer: what is learned here is only that the connection was good
	// to its end.
	lingerTime = 2 * time.Second
)

// sendSyslog sends the notice over TLS, framed by its length (RFC 5425, 4.3).
func sendSyslog(ctx context.Context, c config.Channel, host string, n api.Notice) (err error) {
	conn, err := dial(ctx, c, c.TLS == config.TLSOn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the message was received or was not
	m := syslogMessage(host, n)
	if _, err := fmt.Fprintf(conn, "%d %s", len(m), m); err != nil {
		return fmt.Errorf("couldn't send: %w", err)
	}
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	if err := half.CloseWrite(); err != nil { // close_notify (RFC 5425, 4.4)
		return fmt.Errorf("couldn't send: %w", err)
	}
	// A receiver that refuses our certificate does so after the handshake of TLS 1.3.
	linger, cancel := context.WithTimeout(ctx, lingerTime)
	defer cancel()
	deadline, _ := linger.Deadline() // it has one
	if err := conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(conn, maxAnswer))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the connection broke: %w", err)
	}
	return nil
}

// syslogMessage writes a message (RFC 5424, 6). host is the server that sends it, as the
// process id is: another one may have queued the notice.
func syslogMessage(host string, n api.Notice) string {
	severity := 5 // notice
	pairs := [][2]string{{"kind", n.Kind}, {"id", n.ID}}
	if a := n.Alert; a != nil {
		severity = syslogSeverity(a.Severity)
		pairs = append(pairs, [][2]string{
			{"alert", a.ID},
			{"rule", a.Rule},
			{"severity", a.Severity},
			{"state", a.State},
			{"subject", a.Subject},
			{"device", a.Device},
			{"fleet", a.Fleet},
			{"remote", a.Remote},
			{"count", strconv.FormatInt(a.Count, 10)},
		}...)
	}
	if g := n.Digest; g != nil {
		severity = syslogSeverity(worst(g.BySeverity))
		pairs = append(pairs, [2]string{"notices", strconv.FormatInt(g.Notices, 10)})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<%d>1 %s %s countersign %d %s [%s", facility*8+severity, n.At.UTC().Format("2006-01-02T15:04:05.000000Z"),
		syslogName(host, 255), os.Getpid(), syslogName("alert."+n.Kind, 32), dataID)
	for _, p := range pairs {
		if p[1] != "" {
			fmt.Fprintf(&b, ` %s="%s"`, p[0], paramValue(p[1]))
		}
	}
	b.WriteString("] \xef\xbb\xbf") // the text is UTF-8 (6.4)
	words := oneLine(subject(n))
	if room := maxSyslog - b.Len(); len(words) > room {
		words = strings.ToValidUTF8(words[:max(room, 0)], "")
	}
	return b.String() + words
}

// maxParam keeps the structured data within maxSyslog.
const maxParam = 140

// paramValue escapes a value (RFC 5424, 6.3.3).
func paramValue(s string) string {
	if len(s) > maxParam {
		s = strings.ToValidUTF8(s[:maxParam], "")
	}
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(oneLine(s))
}

// syslogName is a field of printable ASCII without spaces; "-" where there is none.
func syslogName(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	if s == "" {
		return "-"
	}
	return s[:min(len(s), most)]
}

// syslogSeverity is that of RFC 5424, 6.2.1.
func syslogSeverity(s string) int {
	switch countersign.Severity(s) {
	case countersign.SeverityCritical:
		return 1 // alert
	case countersign.SeverityHigh:
		return 2 // critical
	case countersign.SeverityMedium:
		return 4 // warning
	case countersign.SeverityLow:
		return 5 // notice
	}
	return 6 // informational
}
